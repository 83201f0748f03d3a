//! What to do next for one pod: `plan(inputs) -> Plan`, pure.
//!
//! ```text
//! sandbox gone? ──► stop leftovers, make a sandbox
//!       │ ready
//! ephemeral containers, once each and whatever else goes on
//! init containers in order, each to its end (sidecars: to "started") ──► containers ──► all ended for good? ──► Finished
//! ```
//! The plan looks only at what the runtime reports now, never at what was done before, so it is the same after a restart
//! of the kubelet. Image pulls, volumes and hooks belong to the steps and are not decided here.
//! Upstream: `kuberuntime_manager.go` (computePodActions, doBackOff), `kuberuntime_container.go` (computeInitContainerActions), v1.33.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::backoff::Backoff;
use crate::observed::{Instance, Observed, State};
use crate::pod::{ContainerExt, PodExt, ProbeKind};

/// What the probes of one running container say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Health {
    /// The startup probe has succeeded (or there is none).
    pub started: bool,
    /// The readiness probe's last result (true if there is none).
    pub ready: bool,
    /// The probe that condemned the container.
    pub failed: Option<ProbeKind>,
}

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    /// By the id of every running container.
    pub health: &'a BTreeMap<String, Health>,
    pub backoff: &'a Backoff,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `message` is the text of the Killing event.
    StopContainer {
        id: String,
        name: String,
        message: String,
    },
    StopSandbox {
        id: String,
    },
    RemoveContainer {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    CreateSandbox {
        attempt: u32,
    },
    Start {
        name: String,
        restarts: i32,
    },
}

/// Why a container does not run: its `state.waiting`.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub waiting: BTreeMap<String, Waiting>,
    /// When to plan again although nothing happened.
    pub wake: Option<Duration>,
    /// Every container has ended for good (or initialisation failed for good): the pod is over.
    pub finished: bool,
}

/// `name` and hash, so that a new image starts with a clean slate.
pub fn backoff_key(container: &Container) -> String {
    format!("{}/{}", container.name, container.hash())
}

pub fn plan(inputs: &Inputs) -> Plan {
    let mut plan = Plan::default();
    let (pod, observed) = (inputs.pod, inputs.observed);
    prune(observed, &mut plan);
    if over(pod, observed) {
        plan.finished = true;
        return plan;
    }
    let Some(sandbox) = observed.ready_sandbox() else {
        plan_sandbox(observed, &mut plan);
        return plan;
    };
    let asked = pod.ephemeral_containers().iter().filter(|c| observed.latest(&c.name).is_none());
    plan.actions.extend(asked.map(|c| Action::Start { name: c.name.clone(), restarts: 0 }));
    let planner = Planner { inputs, sandbox: &sandbox.id };
    if planner.init_containers(&mut plan) {
        for container in &pod.spec().containers {
            planner.container(container, &mut plan);
        }
    }
    plan
}

/// Stops what still runs: containers first, then sidecars one by one, the last started first; then the sandboxes.
pub fn plan_end(pod: &Pod, observed: &Observed) -> Plan {
    let mut plan = Plan { finished: true, ..Plan::default() };
    let sidecars: Vec<&Container> = pod.init_containers().iter().filter(|c| c.is_sidecar()).rev().collect();
    let others: Vec<_> = observed.running().filter(|run| !sidecars.iter().any(|c| c.name == run.name)).collect();
    let last = sidecars.iter().find_map(|c| observed.running().find(|run| run.name == c.name));
    let next = if others.is_empty() { last.into_iter().collect() } else { others };
    for instance in &next {
        plan.actions.push(stop(instance, format!("Stopping container {}", instance.name)));
    }
    if next.is_empty() {
        let ready = observed.sandboxes.iter().filter(|s| s.ready);
        plan.actions.extend(ready.map(|s| Action::StopSandbox { id: s.id.clone() }));
    }
    plan
}

/// Whether no container will ever run again by the pod's own rules.
fn over(pod: &Pod, observed: &Observed) -> bool {
    let ended = |c: &Container| observed.latest(&c.name).is_some_and(|i| i.state == State::Exited && !restarts(pod.restart_policy(), i));
    let init_failed = pod.restart_policy() == "Never"
        && pod
            .init_containers()
            .iter()
            .filter(|c| !c.is_sidecar())
            .any(|c| observed.latest(&c.name).is_some_and(|i| i.state == State::Exited && i.exit_code != 0));
    init_failed || pod.spec().containers.iter().all(ended)
}

fn restarts(policy: &str, instance: &Instance) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => instance.exit_code != 0,
        _ => true,
    }
}

fn stop(instance: &Instance, message: String) -> Action {
    Action::StopContainer { id: instance.id.clone(), name: instance.name.clone(), message }
}

fn plan_sandbox(observed: &Observed, plan: &mut Plan) {
    for instance in observed.running() {
        plan.actions.push(stop(instance, format!("Stopping container {}", instance.name)));
    }
    for sandbox in observed.sandboxes.iter().filter(|s| s.ready) {
        plan.actions.push(Action::StopSandbox { id: sandbox.id.clone() });
    }
    let attempt = observed.sandboxes.first().map_or(0, |s| s.attempt + 1);
    plan.actions.push(Action::CreateSandbox { attempt });
}

/// Keeps, of each container, the current run and one dead one before it; and no sandbox that is neither current nor holds one of these.
fn prune(observed: &Observed, plan: &mut Plan) {
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    let mut holding = Vec::new();
    for instance in &observed.containers {
        let count = kept.entry(&instance.name).or_default();
        *count += 1;
        if *count > 2 && instance.state == State::Exited {
            plan.actions.push(Action::RemoveContainer { id: instance.id.clone() });
        } else {
            holding.push(&instance.sandbox);
        }
    }
    for sandbox in observed.sandboxes.iter().skip(1).filter(|s| !holding.contains(&&s.id)) {
        let id = sandbox.id.clone();
        plan.actions.push(if sandbox.ready { Action::StopSandbox { id } } else { Action::RemoveSandbox { id } });
    }
}

struct Planner<'a> {
    inputs: &'a Inputs<'a>,
    sandbox: &'a str,
}

impl Planner<'_> {
    /// The container's newest run in the current sandbox.
    fn current(&self, name: &str) -> Option<&Instance> {
        self.inputs.observed.latest(name).filter(|i| i.sandbox == self.sandbox).map(|i| &**i)
    }

    fn health(&self, instance: &Instance) -> Health {
        self.inputs.health.get(&instance.id).copied().unwrap_or_default()
    }

    /// Plans init containers and sidecars; says whether the containers may run.
    fn init_containers(&self, plan: &mut Plan) -> bool {
        let pod = self.inputs.pod;
        let initialized = pod.spec().containers.iter().any(|c| self.current(&c.name).is_some());
        for container in pod.init_containers() {
            let done = match self.current(&container.name) {
                _ if initialized && !container.is_sidecar() => true,
                Some(run) if run.state == State::Exited && !container.is_sidecar() && run.exit_code == 0 => true,
                Some(run) if run.state == State::Running && container.is_sidecar() => {
                    self.container(container, plan);
                    self.health(run).started
                }
                Some(run) if run.state == State::Running => false,
                _ => {
                    self.container(container, plan);
                    false
                }
            };
            if !done && !initialized {
                return false;
            }
        }
        true
    }

    /// One container that ought to run now.
    fn container(&self, container: &Container, plan: &mut Plan) {
        let name = &container.name;
        let Some(run) = self.inputs.observed.latest(name) else {
            plan.actions.push(Action::Start { name: name.clone(), restarts: 0 });
            return;
        };
        match run.state {
            State::Running => plan.actions.extend(self.condemned(container, run).map(|message| stop(run, message))),
            State::Unknown => plan.actions.push(stop(run, format!("Container {name} is in unknown state, try killing it before restart"))),
            State::Created => {
                // A start that was cut off between create and start: made anew under its number.
                plan.actions.push(Action::RemoveContainer { id: run.id.clone() });
                plan.actions.push(Action::Start { name: name.clone(), restarts: run.restarts });
            }
            State::Exited => self.restart(container, run, plan),
        }
    }

    fn condemned(&self, container: &Container, run: &Instance) -> Option<String> {
        let name = &container.name;
        if !run.hash.is_empty() && run.hash != container.hash() {
            return Some(format!("Container {name} definition changed, will be restarted"));
        }
        match self.health(run).failed? {
            ProbeKind::Startup => Some(format!("Container {name} failed startup probe, will be restarted")),
            _ => Some(format!("Container {name} failed liveness probe, will be restarted")),
        }
    }

    fn restart(&self, container: &Container, run: &Instance, plan: &mut Plan) {
        let pod = self.inputs.pod;
        let policy = match pod.restart_policy() {
            _ if container.is_sidecar() => "Always",
            // A failed init container is tried again, a succeeded one is done; a new sandbox needs it to run again.
            "Always" if pod.is_init(&container.name) => "OnFailure",
            policy => policy,
        };
        let again = restarts(policy, run) || (pod.is_init(&container.name) && run.sandbox != self.sandbox);
        if !again {
            return;
        }
        let key = backoff_key(container);
        match self.inputs.backoff.remaining(&key, run.finished_at, self.inputs.now) {
            None => plan.actions.push(Action::Start { name: container.name.clone(), restarts: run.restarts + 1 }),
            Some(left) => {
                let delay = go_duration(self.inputs.backoff.delay(&key));
                let message = format!("back-off {delay} restarting failed container={} pod={}", container.name, pod.full_name());
                plan.waiting.insert(container.name.clone(), Waiting { reason: "CrashLoopBackOff".into(), message });
                plan.wake = Some(plan.wake.map_or(left, |w| w.min(left)));
            }
        }
    }
}

/// As Go prints a duration of whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
