//! The pod's status from what is observed: pure, in upstream's words.
//!
//! Upstream: `pkg/kubelet/kubelet_pods.go` (generateAPIPodStatus, getPhase, convertToAPIContainerStatuses),
//! `pkg/kubelet/status/generate.go`, v1.33.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP, Pod,
    PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::observed::{Instance, Observed, State};
use crate::plan::{Health, Waiting};
use crate::pod::{ContainerExt, PodExt, Qos};

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub health: &'a BTreeMap<String, Health>,
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// Termination messages by container id.
    pub messages: &'a BTreeMap<String, String>,
    /// A verdict of the kubelet's own: the phase is Failed, with this reason and message.
    pub failure: Option<&'a (String, String)>,
    /// No container will run again: what has ended has ended.
    pub ended: bool,
    pub host_ips: &'a [String],
    pub now: Timestamp,
}

pub fn whole_seconds(timestamp: Timestamp) -> Time {
    Time(Timestamp::from_second(timestamp.as_second()).unwrap_or(timestamp))
}

pub fn pod_status(inputs: &Inputs) -> PodStatus {
    let pod = inputs.pod;
    let old = pod.status();
    let init = statuses(inputs, pod.init_containers(), true);
    let main = statuses(inputs, &pod.spec().containers, false);
    let ephemeral = ephemeral_statuses(inputs);
    let phase = match inputs.failure {
        Some(_) => "Failed",
        None if matches!(pod.phase(), "Failed" | "Succeeded") => pod.phase(),
        None => phase(pod, &init, &main, inputs.ended),
    };
    let (reason, message) = match inputs.failure {
        Some((reason, message)) => (Some(reason.clone()), Some(message.clone())),
        None => (old.reason.clone(), old.message.clone()),
    };
    // A pod that was refused has nothing but its verdict, as upstream's.
    let refused = inputs.failure.is_some() && inputs.observed.sandboxes.is_empty() && inputs.observed.containers.is_empty();
    if refused {
        return PodStatus {
            phase: Some(phase.to_owned()),
            reason,
            message,
            start_time: old.start_time.clone().or_else(|| Some(whole_seconds(inputs.now))),
            qos_class: Some(Qos::of(pod).name().to_owned()),
            ..PodStatus::default()
        };
    }
    let ips = pod_ips(inputs);
    PodStatus {
        conditions: Some(conditions(inputs, phase, &init, &main)),
        phase: Some(phase.to_owned()),
        reason,
        message,
        host_ip: inputs.host_ips.first().cloned(),
        host_ips: Some(inputs.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: old.start_time.clone().or_else(|| Some(whole_seconds(inputs.now))),
        qos_class: Some(Qos::of(pod).name().to_owned()),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        ..PodStatus::default()
    }
}

fn pod_ips(inputs: &Inputs) -> Vec<String> {
    if inputs.pod.host_network() {
        let started = !inputs.observed.sandboxes.is_empty() || inputs.pod.status().pod_ip.is_some();
        return if started { inputs.host_ips.to_vec() } else { Vec::new() };
    }
    match inputs.observed.sandboxes.first() {
        Some(sandbox) if sandbox.ready => sandbox.ips.clone(),
        // A pod that is over keeps its address on record.
        _ => inputs.pod.status().pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
    }
}

fn statuses(inputs: &Inputs, containers: &[Container], init: bool) -> Vec<ContainerStatus> {
    let old = if init { &inputs.pod.status().init_container_statuses } else { &inputs.pod.status().container_statuses };
    let old = |name: &str| old.iter().flatten().find(|s| s.name == name);
    containers.iter().map(|c| container_status(inputs, c, init, old(&c.name))).collect()
}

/// Ephemeral containers are never ready and never begin anew.
fn ephemeral_statuses(inputs: &Inputs) -> Vec<ContainerStatus> {
    let old = |name: &str| inputs.pod.status().ephemeral_container_statuses.iter().flatten().find(|s| s.name == name);
    let status = |container: &Container| container_status(inputs, container, false, old(&container.name));
    let never = |status: ContainerStatus| ContainerStatus { ready: false, started: None, ..status };
    inputs.pod.ephemeral_containers().iter().map(|c| never(status(&api::container::of_ephemeral(c)))).collect()
}

fn container_status(inputs: &Inputs, container: &Container, init: bool, old: Option<&ContainerStatus>) -> ContainerStatus {
    let pod = inputs.pod;
    let mut runs = inputs.observed.runs(&container.name);
    let (current, previous) = (runs.next(), runs.next());
    let waiting = inputs.waiting.get(&container.name);
    let state = match current {
        Some(run) if inputs.ended && run.state == State::Created => lost(run),
        Some(run) => state_of(inputs, run),
        None => default_state(inputs, old),
    };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: current.map_or(container.image(), |run| &run.image).to_owned(),
        image_id: current.map(|run| run.image_id.clone()).unwrap_or_default(),
        container_id: current.map(|run| format!("containerd://{}", run.id)),
        restart_count: current.map_or_else(|| old.map_or(0, |o| o.restart_count), |run| run.restarts),
        last_state: previous
            .map(|run| terminated(inputs, run))
            .or_else(|| old.and_then(|o| o.last_state.clone()).filter(|_| current.is_none())),
        started: Some(false),
        // Of a container that was made, even if it asked for nothing.
        allocated_resources: current.and(container.resources.as_ref()).and_then(|r| r.requests.clone()),
        resources: current.map(|_| ResourceRequirements { claims: None, ..container.resources.clone().unwrap_or_default() }),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    };
    let running = state.running.is_some();
    status.state = Some(match (waiting, current) {
        (Some(waiting), Some(run)) if run.state == State::Exited && !inputs.ended => {
            status.last_state = Some(state);
            waiting_state(&waiting.reason, &waiting.message)
        }
        (Some(waiting), None) if !inputs.ended => waiting_state(&waiting.reason, &waiting.message),
        _ => state,
    });
    if let Some(run) = current.filter(|_| running) {
        let health = inputs.health.get(&run.id).copied().unwrap_or_default();
        status.started = Some(health.started);
        status.ready = health.started && health.ready;
    }
    if init && !container.is_sidecar() {
        status.ready = current.is_some_and(|run| run.state == State::Exited && run.exit_code == 0);
    }
    if matches!(pod.phase(), "Failed" | "Succeeded")
        && current.is_none()
        && let Some(old) = old
    {
        return old.clone();
    }
    status
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|m| !m.is_empty())?;
    Some(
        mounts
            .iter()
            .map(|mount| VolumeMountStatus {
                mount_path: mount.mount_path.clone(),
                name: mount.name.clone(),
                read_only: mount.read_only.filter(|&ro| ro),
                recursive_read_only: mount.read_only.filter(|&ro| ro).map(|_| "Disabled".to_owned()),
            })
            .collect(),
    )
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn state_of(inputs: &Inputs, run: &Instance) -> ContainerState {
    match run.state {
        State::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(whole_seconds(run.started_at)) }),
            ..ContainerState::default()
        },
        State::Created => waiting_state(creating(inputs.pod), ""),
        State::Exited => terminated(inputs, run),
        State::Unknown => lost(run),
    }
}

/// The state of a container of which the runtime knows nothing.
fn default_state(inputs: &Inputs, old: Option<&ContainerStatus>) -> ContainerState {
    let was = old.and_then(|o| o.state.as_ref());
    if inputs.ended
        && let Some(terminated) = was.and_then(|s| s.terminated.clone())
    {
        return ContainerState { terminated: Some(terminated), ..ContainerState::default() };
    }
    if inputs.ended && was.is_some_and(|s| s.running.is_some()) {
        let terminated = ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            ..ContainerStateTerminated::default()
        };
        return ContainerState { terminated: Some(terminated), ..ContainerState::default() };
    }
    waiting_state(creating(inputs.pod), "")
}

fn creating(pod: &Pod) -> &'static str {
    if pod.init_containers().is_empty() { "ContainerCreating" } else { "PodInitializing" }
}

fn lost(run: &Instance) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        container_id: Some(format!("containerd://{}", run.id)),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn terminated(inputs: &Inputs, run: &Instance) -> ContainerState {
    let own = inputs.messages.get(&run.id).map(String::as_str).unwrap_or_default();
    let message = match (run.message.as_str(), own) {
        ("", own) => own.to_owned(),
        (runtime, "") => runtime.to_owned(),
        (runtime, own) => format!("{runtime}: {own}"),
    };
    let terminated = ContainerStateTerminated {
        exit_code: run.exit_code,
        reason: (!run.reason.is_empty()).then(|| run.reason.clone()),
        message: (!message.is_empty()).then_some(message),
        started_at: Some(whole_seconds(run.started_at)),
        finished_at: Some(whole_seconds(run.finished_at)),
        container_id: Some(format!("containerd://{}", run.id)),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

#[derive(Default)]
struct Tally {
    pending_init: bool,
    failed_init: bool,
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    succeeded: usize,
}

fn tally(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus]) -> Tally {
    let mut tally = Tally::default();
    let ended_before = |s: &ContainerStatus| s.last_state.as_ref().and_then(|l| l.terminated.as_ref()).map(|t| t.exit_code);
    for (container, status) in pod.init_containers().iter().zip(init) {
        let state = status.state.clone().unwrap_or_default();
        if container.is_sidecar() {
            tally.pending_init |= status.started != Some(true) && ended_before(status).is_none() && state.terminated.is_none();
            continue;
        }
        match (state.terminated, ended_before(status)) {
            (Some(ended), _) if ended.exit_code == 0 => {}
            (Some(_), _) => tally.failed_init = true,
            (None, Some(code)) if state.waiting.is_some() && code != 0 => tally.failed_init = true,
            _ => tally.pending_init = true,
        }
    }
    for status in main {
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            tally.running += 1;
        } else if let Some(ended) = state.terminated {
            tally.stopped += 1;
            tally.succeeded += usize::from(ended.exit_code == 0);
        } else if state.waiting.is_some() {
            match ended_before(status) {
                Some(_) => tally.stopped += 1,
                None => tally.waiting += 1,
            }
        } else {
            tally.unknown += 1;
        }
    }
    tally
}

fn phase(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus], ended: bool) -> &'static str {
    let t = tally(pod, init, main);
    let policy = pod.restart_policy();
    if t.failed_init && (policy == "Never" || ended) {
        return "Failed";
    }
    if ended && (t.pending_init || t.waiting > 0) {
        // Ended before it ran; upstream too leaves such a pod in its phase, which is Pending, unless it had run.
        return if t.running == 0 && t.stopped == 0 { "Pending" } else { "Failed" };
    }
    match () {
        () if (t.pending_init || t.failed_init) && t.running == 0 && t.stopped == 0 => "Pending",
        () if t.waiting > 0 => "Pending",
        () if t.running > 0 && t.unknown == 0 => "Running",
        () if t.stopped > 0 && t.unknown == 0 => match policy {
            _ if ended && t.stopped == t.succeeded => "Succeeded",
            _ if ended => "Failed",
            "Always" => "Running",
            _ if t.stopped == t.succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        },
        () => "Pending",
    }
}

/// Upstream's order: PodReadyToStartContainers, Initialized, Ready, ContainersReady, PodScheduled; then what others wrote.
fn conditions(inputs: &Inputs, phase: &str, init: &[ContainerStatus], main: &[ContainerStatus]) -> Vec<PodCondition> {
    let over = matches!(phase, "Succeeded" | "Failed");
    let sandbox = inputs.observed.ready_sandbox().is_some_and(|s| s.host_network || !s.ips.is_empty());
    let containers = containers_ready(inputs.pod, phase, init, main);
    let verdicts = [
        ("PodReadyToStartContainers", Verdict::plain(sandbox && !over)),
        ("Initialized", initialized(inputs.pod, phase, init, main)),
        ("Ready", ready(inputs.pod, &containers)),
        ("ContainersReady", containers),
        ("PodScheduled", Verdict::plain(true)),
    ];
    let old = inputs.pod.status().conditions.as_deref().unwrap_or_default();
    let mut conditions: Vec<PodCondition> = verdicts
        .into_iter()
        .map(|(kind, verdict)| {
            let before = old.iter().find(|c| c.type_ == kind);
            condition(kind, verdict, before, inputs.now)
        })
        .collect();
    let foreign = old.iter().filter(|c| !OWN_CONDITIONS.contains(&c.type_.as_str()));
    conditions.extend(foreign.cloned());
    conditions
}

/// The condition types that the kubelet writes.
pub const OWN_CONDITIONS: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

#[derive(Clone)]
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn plain(status: bool) -> Self {
        Verdict { status, reason: None, message: None }
    }

    fn not(reason: &'static str, message: Option<String>) -> Self {
        Verdict { status: false, reason: Some(reason), message }
    }
}

fn condition(kind: &str, verdict: Verdict, before: Option<&PodCondition>, now: Timestamp) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" }.to_owned();
    let since = before.filter(|b| b.status == status).and_then(|b| b.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        last_transition_time: since.or_else(|| Some(whole_seconds(now))),
        last_probe_time: None,
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        observed_generation: before.and_then(|b| b.observed_generation),
        status,
    }
}

fn initialized(pod: &Pod, phase: &str, init: &[ContainerStatus], main: &[ContainerStatus]) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { status: true, reason: Some("PodCompleted"), message: None };
    }
    // Once a container has run, initialisation is behind the pod, whatever a sidecar does now.
    if main.iter().any(|s| s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some()) || s.last_state.is_some()) {
        return Verdict::plain(true);
    }
    let incomplete: Vec<&str> = pod
        .init_containers()
        .iter()
        .zip(init)
        .filter(|(container, status)| if container.is_sidecar() { status.started != Some(true) } else { !status.ready })
        .map(|(container, _)| container.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Verdict::plain(true);
    }
    Verdict::not("ContainersNotInitialized", Some(format!("containers with incomplete status: [{}]", incomplete.join(" "))))
}

fn containers_ready(pod: &Pod, phase: &str, init: &[ContainerStatus], main: &[ContainerStatus]) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::not("PodCompleted", None),
        "Failed" => return Verdict::not("PodFailed", None),
        _ => {}
    }
    let sidecars = pod.init_containers().iter().zip(init).filter(|(c, _)| c.is_sidecar()).map(|(_, s)| s);
    let unready: Vec<&str> = sidecars.chain(main).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict::plain(true);
    }
    Verdict::not("ContainersNotReady", Some(format!("containers with unready status: [{}]", unready.join(" "))))
}

fn ready(pod: &Pod, containers: &Verdict) -> Verdict {
    if !containers.status {
        return containers.clone();
    }
    let conditions = pod.status().conditions.as_deref().unwrap_or_default();
    let complaints: Vec<String> = pod
        .spec()
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| match conditions.iter().find(|c| c.type_ == gate.condition_type) {
            None => Some(format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type)),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate {:?} is not \"True\", but {}", gate.condition_type, c.status))
            }
            Some(_) => None,
        })
        .collect();
    match complaints.is_empty() {
        true => Verdict::plain(true),
        false => Verdict::not("ReadinessGatesNotReady", Some(complaints.join(", "))),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
