//! Pods: READY, STATUS and RESTARTS are one summary of the container statuses.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, human, or_none, seconds, string, wide};
use crate::Column;
use crate::value::{flag, int, is_set, list, text};

pub const POD: &[Column] = &[
    NAME,
    Column {
        description: "The aggregate readiness state of this pod for accepting traffic.",
        ..string("Ready", |pod, _| {
            let s = Summary::of(pod);
            format!("{}/{}", s.ready, s.total).into()
        })
    },
    Column {
        description: "The aggregate status of the containers in this pod.",
        ..string("Status", |pod, _| Summary::of(pod).status.into())
    },
    Column {
        description: "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
        ..string("Restarts", |pod, now| Summary::of(pod).restarts(now).into())
    },
    AGE,
    wide(string("IP", |pod, _| or_none(text(pod, "/status/podIPs/0/ip").to_owned()).into())),
    wide(string("Node", |pod, _| or_none(text(pod, "/spec/nodeName").to_owned()).into())),
    wide(string("Nominated Node", |pod, _| or_none(text(pod, "/status/nominatedNodeName").to_owned()).into())),
    wide(string("Readiness Gates", |pod, _| readiness_gates(pod).into())),
];

struct Summary {
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
    status: String,
}

impl Summary {
    fn of(pod: &Value) -> Summary {
        let reason = text(pod, "/status/reason");
        let mut summary = Summary {
            ready: 0,
            total: list(pod, "/spec/containers").len(),
            restarts: 0,
            last_restart: None,
            status: if reason.is_empty() { text(pod, "/status/phase") } else { reason }.to_owned(),
        };
        if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == json!("SchedulingGated")) {
            summary.status = "SchedulingGated".to_owned();
        }
        let sidecars = sidecar_names(pod);
        summary.total += sidecars.len();
        let initializing = summary.init_containers(pod, &sidecars);
        if !initializing || condition(pod, "Initialized").is_some_and(|c| c["status"] == json!("True")) {
            summary.containers(pod);
        }
        if is_set(pod, "/metadata/deletionTimestamp") {
            let phase = text(pod, "/status/phase");
            if reason == "NodeLost" {
                summary.status = "Unknown".to_owned();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                summary.status = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Counts init containers up to the first unfinished one, which names the status. Whether there is one.
    fn init_containers(&mut self, pod: &Value, sidecars: &[&str]) -> bool {
        for (index, container) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.restarts += int(container, "/restartCount");
            self.note_restart(container);
            let sidecar = sidecars.contains(&text(container, "/name"));
            let terminated = container.pointer("/state/terminated");
            let waiting = text(container, "/state/waiting/reason");
            if terminated.is_some_and(|t| t["exitCode"] == json!(0)) && is_set(container, "/state/terminated") {
                continue;
            }
            if sidecar && flag(container, "/started") {
                self.ready += usize::from(flag(container, "/ready"));
                continue;
            }
            self.status = if is_set(container, "/state/terminated") {
                format!("Init:{}", termination(container))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", list(pod, "/spec/initContainers").len())
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value) {
        // Restarts of init containers count only while they run, those of sidecars always.
        let sidecars = sidecar_names(pod);
        (self.restarts, self.last_restart) = (0, None);
        for container in list(pod, "/status/initContainerStatuses").iter().filter(|c| sidecars.contains(&text(c, "/name"))) {
            self.restarts += int(container, "/restartCount");
            self.note_restart(container);
        }
        let mut running = false;
        for container in list(pod, "/status/containerStatuses").iter().rev() {
            self.restarts += int(container, "/restartCount");
            self.note_restart(container);
            let waiting = text(container, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if is_set(container, "/state/terminated") {
                self.status = termination(container);
            } else if flag(container, "/ready") && is_set(container, "/state/running") {
                running = true;
                self.ready += 1;
            }
        }
        if self.status == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == json!("True"));
            self.status = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn note_restart(&mut self, container: &Value) {
        let finished = text(container, "/lastState/terminated/finishedAt").parse().ok();
        self.last_restart = self.last_restart.max(finished);
    }

    fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(then) if self.restarts != 0 => format!("{} ({} ago)", self.restarts, human(seconds(then, now))),
            _ => self.restarts.to_string(),
        }
    }
}

/// Init containers that keep running: they count as containers.
fn sidecar_names(pod: &Value) -> Vec<&str> {
    list(pod, "/spec/initContainers")
        .iter()
        .filter(|container| text(container, "/restartPolicy") == "Always")
        .map(|container| text(container, "/name"))
        .collect()
}

fn termination(container: &Value) -> String {
    let (reason, signal) = (text(container, "/state/terminated/reason"), int(container, "/state/terminated/signal"));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", int(container, "/state/terminated/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    list(pod, "/status/conditions").iter().find(|c| c["type"] == json!(kind))
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|gate| condition(pod, text(gate, "/conditionType")).is_some_and(|c| c["status"] == json!("True")));
    format!("{}/{}", met.count(), gates.len())
}
