//! Probes: one task per probe of a running container; a change of verdict wakes the pod's worker.
//!
//! The startup probe holds the others back. A container without probes is started and ready as soon as it runs.
//! Upstream: `pkg/kubelet/prober/{worker,prober_manager}.go`, v1.33.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, ObjectReference, Pod, Probe};
use machinery::CancellationToken;
use machinery::events::Recorder;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cri::Cri;
use crate::handlers::{self, Target, Verdict};
use crate::observed::{Instance, Observed, State};
use crate::plan::Health;
use crate::pod::{ContainerExt, PodExt, ProbeKind};

type Id = (String, ProbeKind);

/// The probes of one pod.
pub struct Probes {
    cri: Cri,
    recorder: Recorder,
    wake: Arc<Notify>,
    running: HashMap<Id, CancellationToken>,
    /// What a probe has decided: success or failure past its threshold.
    verdicts: Arc<Mutex<HashMap<Id, bool>>>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl Probes {
    pub fn new(cri: Cri, recorder: Recorder, wake: Arc<Notify>) -> Self {
        Probes { cri, recorder, wake, running: HashMap::new(), verdicts: Arc::default() }
    }

    /// Starts the probes of containers that run and stops those of containers that do not.
    pub fn follow(&mut self, pod: &Arc<Pod>, observed: &Observed, host_ip: &str) {
        let alive: HashMap<&str, &Arc<Instance>> =
            observed.containers.iter().filter(|c| c.state == State::Running).map(|c| (c.id.as_str(), c)).collect();
        self.running.retain(|(id, _), token| {
            let keep = alive.contains_key(id.as_str());
            if !keep {
                token.cancel();
            }
            keep
        });
        self.verdicts.lock().retain(|(id, _), _| alive.contains_key(id.as_str()));
        let ip = match observed.ready_sandbox() {
            Some(sandbox) if !sandbox.host_network => sandbox.ips.first().cloned().unwrap_or_default(),
            _ => host_ip.to_owned(),
        };
        for instance in alive.values() {
            let Some(container) = pod.container(&instance.name) else { continue };
            for kind in ProbeKind::ALL {
                if let Some(probe) = container.probe(kind) {
                    self.ensure(pod, &container, instance, kind, probe, &ip);
                }
            }
        }
    }

    fn ensure(&mut self, pod: &Arc<Pod>, container: &Container, instance: &Instance, kind: ProbeKind, probe: &Probe, ip: &str) {
        let id = (instance.id.clone(), kind);
        if self.running.contains_key(&id) {
            return;
        }
        self.recall(pod, container, &id);
        if kind != ProbeKind::Startup && !self.started(container, &instance.id) {
            return;
        }
        let token = CancellationToken::new();
        self.running.insert(id.clone(), token.clone());
        let task = Task {
            cri: self.cri.clone(),
            recorder: self.recorder.clone(),
            wake: self.wake.clone(),
            verdicts: self.verdicts.clone(),
            about: container_reference(pod, &container.name),
            target: Target { pod: pod.clone(), container: container.clone(), container_id: instance.id.clone(), ip: ip.to_owned() },
            probe: probe.clone(),
            started_at: instance.started_at,
            id,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = task.run() => {}
            }
        });
    }

    /// A kubelet that has just started has no verdicts. A container that was started and ready on record, and is still the same one,
    /// stays so until a probe says otherwise: or a restart of the kubelet would take every pod of the node out of its Services.
    fn recall(&self, pod: &Pod, container: &Container, id: &Id) {
        let status = pod.status();
        let mut statuses = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        let same = |s: &&ContainerStatus| {
            s.name == container.name && s.container_id.as_deref().is_some_and(|on_record| on_record.ends_with(&id.0))
        };
        let Some(recorded) = statuses.find(same) else { return };
        let held = match id.1 {
            ProbeKind::Startup => recorded.started == Some(true),
            ProbeKind::Readiness => recorded.ready,
            ProbeKind::Liveness => false,
        };
        if held {
            self.verdicts.lock().entry(id.clone()).or_insert(true);
        }
    }

    fn started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.verdicts.lock().get(&(id.to_owned(), ProbeKind::Startup)) == Some(&true)
    }

    /// The health of every running container.
    pub fn health(&self, pod: &Pod, observed: &Observed) -> BTreeMap<String, Health> {
        let mut health = BTreeMap::new();
        for instance in observed.containers.iter().filter(|c| c.state == State::Running) {
            let Some(container) = pod.container(&instance.name) else { continue };
            let verdict = |kind| self.verdicts.lock().get(&(instance.id.clone(), kind)).copied();
            let failed = [ProbeKind::Startup, ProbeKind::Liveness].into_iter().find(|kind| verdict(*kind) == Some(false));
            let started = self.started(&container, &instance.id);
            let ready = started && (container.readiness_probe.is_none() || verdict(ProbeKind::Readiness) == Some(true));
            health.insert(instance.id.clone(), Health { started, ready, failed });
        }
        health
    }

    /// The pod is ending: its verdicts stay, nothing probes it any more.
    pub fn stop_all(&mut self) {
        self.running.drain().for_each(|(_, token)| token.cancel());
    }
}

/// An event's object: the pod, with the container named in `fieldPath`.
pub fn container_reference(pod: &Pod, name: &str) -> ObjectReference {
    let field = match name {
        _ if pod.is_init(name) => "spec.initContainers",
        _ if pod.ephemeral_containers().iter().any(|c| c.name == name) => "spec.ephemeralContainers",
        _ => "spec.containers",
    };
    ObjectReference { field_path: Some(format!("{field}{{{name}}}")), ..machinery::events::reference(pod) }
}

struct Task {
    cri: Cri,
    recorder: Recorder,
    wake: Arc<Notify>,
    verdicts: Arc<Mutex<HashMap<Id, bool>>>,
    about: ObjectReference,
    target: Target,
    probe: Probe,
    started_at: Timestamp,
    id: Id,
}

impl Task {
    async fn run(self) {
        let positive = |value: Option<i32>, default: u64| value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default);
        let delay = Duration::from_secs(positive(self.probe.initial_delay_seconds, 0));
        let age = Duration::try_from(Timestamp::now().duration_since(self.started_at)).unwrap_or_default();
        tokio::time::sleep(delay.saturating_sub(age)).await;
        let mut ticks = tokio::time::interval(Duration::from_secs(positive(self.probe.period_seconds, 10)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let timeout = Duration::from_secs(positive(self.probe.timeout_seconds, 1));
        let needed = |success: bool| match success {
            true => positive(self.probe.success_threshold, 1),
            false => positive(self.probe.failure_threshold, 3),
        };
        let (mut last, mut run) = (None, 0);
        loop {
            ticks.tick().await;
            let success = match handlers::probe(&self.cri, &self.target, &self.probe, timeout).await {
                Verdict::Success => true,
                Verdict::Warning(output) => {
                    self.recorder.warning(&self.about, "ProbeWarning", format!("{} probe warning: {output}", self.id.1.name()));
                    true
                }
                Verdict::Failure(output) => {
                    self.recorder.warning(&self.about, "Unhealthy", format!("{} probe failed: {output}", self.id.1.name()));
                    false
                }
            };
            run = if last == Some(success) { run + 1 } else { 1 };
            last = Some(success);
            if run < needed(success) {
                continue;
            }
            let before = self.verdicts.lock().insert(self.id.clone(), success);
            if before != Some(success) {
                tracing::debug!(pod = %self.target.pod.key(), container = self.target.container.name, probe = self.id.1.name(), success, "verdict");
                self.wake.notify_one();
            }
            // A startup probe has done its work when it succeeds; a condemned container is about to be stopped.
            if self.id.1 == ProbeKind::Startup || (self.id.1 == ProbeKind::Liveness && !success) {
                return std::future::pending().await;
            }
        }
    }
}
