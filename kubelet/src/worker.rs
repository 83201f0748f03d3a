//! One worker per pod: observe, plan, act, tell; again until nothing is left to do, then wait for news.
//!
//! The newest spec wins: a deletion, or a shorter grace period, cuts whatever the worker is doing. That is safe because
//! nothing is remembered about half-done work: the next round observes it.
//! Upstream: `pkg/kubelet/pod_workers.go`, `kubelet.go` (SyncPod, SyncTerminatingPod, SyncTerminatedPod), v1.33.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use api::cause::Cause;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::sync::{Notify, watch};

use crate::backoff::Backoff;
use crate::images::Pulls;
use crate::kubelet::Kubelet;
use crate::observed::{self, Exited, Observed, State};
use crate::plan::{self, Health, Plan, Waiting};
use crate::pod::{ANNOTATION_TERMINATION_PATH, ANNOTATION_TERMINATION_POLICY, PodExt};
use crate::probes::Probes;
use crate::status;
use crate::status_writer::StatusWriter;
use crate::volumes::{self, limits};

/// What the API says of the pod.
#[derive(Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// It is no longer in the API (or belongs to no one): end it and leave no trace.
    pub gone: bool,
}

impl Desired {
    /// Seconds to end in; `None` while the pod is to run.
    fn grace(&self) -> Option<i64> {
        let over = matches!(self.pod.phase(), "Failed" | "Succeeded");
        (self.gone || over || self.pod.deletion().is_some()).then(|| self.pod.grace_period().max(1))
    }
}

pub enum Step {
    /// Something was done: look again at once.
    Again,
    /// Nothing to do until something changes, or this much later.
    Wait(Option<Duration>),
    /// Nothing is left of the pod.
    Finished,
}

/// Longest pause after an error that the worker does not understand.
const MAX_RETRY: Duration = Duration::from_secs(10);
/// Upstream's limits on termination messages.
const MAX_MESSAGE: usize = 4096;
const MAX_MESSAGE_LOG: usize = 2048;
const MAX_MESSAGE_LINES: usize = 80;

pub struct Worker {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) uid: String,
    desired: watch::Receiver<Desired>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) about: ObjectReference,
    pub(crate) backoff: Backoff,
    pub(crate) pulls: Pulls,
    pub(crate) probes: Probes,
    statuses: StatusWriter,
    exited: Exited,
    /// The verdict of the kubelet itself: refused, past its deadline.
    failure: Option<(String, String)>,
    admitted: bool,
    /// Why containers wait that the plan would start; refilled by each round.
    pub(crate) waiting: BTreeMap<String, Waiting>,
    pub(crate) retry: Option<Duration>,
    pub(crate) volumes: BTreeMap<String, volumes::Mounted>,
    messages: BTreeMap<String, String>,
    pub(crate) health: BTreeMap<String, Health>,
    /// Containers whose end has begun: since when.
    pub(crate) ending: HashMap<String, Instant>,
    /// Since when the whole pod ends.
    pub(crate) end_since: Option<Instant>,
    /// Crashes whose BackOff event is out.
    pub(crate) told: HashSet<String>,
    deleted: bool,
    /// When its volumes were last measured.
    measured: Option<Instant>,
}

impl Worker {
    pub fn new(kubelet: Arc<Kubelet>, desired: watch::Receiver<Desired>, wake: Arc<Notify>) -> Self {
        let pod = desired.borrow().pod.clone();
        Worker {
            uid: pod.uid().to_owned(),
            about: machinery::events::reference(&*pod),
            backoff: Backoff::standard(),
            pulls: Pulls::default(),
            probes: Probes::new(kubelet.cri.clone(), kubelet.recorder.clone(), wake.clone()),
            statuses: StatusWriter::new(kubelet.client.clone()),
            exited: Exited::new(),
            failure: None,
            admitted: false,
            waiting: BTreeMap::new(),
            retry: None,
            volumes: BTreeMap::new(),
            messages: BTreeMap::new(),
            health: BTreeMap::new(),
            ending: HashMap::new(),
            end_since: None,
            told: HashSet::new(),
            deleted: false,
            measured: None,
            kubelet,
            desired,
            wake,
        }
    }

    /// Runs until nothing is left of the pod, or the kubelet stops.
    pub async fn run(mut self) {
        let token = self.kubelet.token.clone();
        let mut errors = 0;
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let cut = ends_sooner(self.desired.clone(), desired.grace());
            let cause = cause_of(&desired.pod);
            let step = tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = cut => continue,
                step = machinery::cause::scope(Some(cause), self.sync(&desired)) => step,
            };
            let wait = match step {
                Ok(Step::Again) => continue,
                Ok(Step::Finished) => return,
                Ok(Step::Wait(wait)) => {
                    errors = 0;
                    wait
                }
                Err(error) => {
                    errors += 1;
                    let wait = Duration::from_millis(250).saturating_mul(1 << errors.min(8)).min(MAX_RETRY);
                    tracing::warn!(pod = %desired.pod.key(), error = format!("{error:#}"), ?wait, "sync failed");
                    Some(wait)
                }
            };
            tokio::select! {
                () = token.cancelled() => return,
                changed = self.desired.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    async fn sync(&mut self, desired: &Desired) -> Result<Step> {
        let pod = self.with_latest_status(&desired.pod);
        let grace = desired.grace().or_else(|| self.failure.is_some().then(|| pod.grace_period()));
        match grace {
            Some(grace) => self.sync_end(&pod, desired, grace).await,
            None => self.sync_running(&pod).await,
        }
    }

    /// The pod as the API has it, with the status that we last wrote in case its echo is still under way.
    fn with_latest_status(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let Some(last) = self.statuses.last() else { return pod.clone() };
        let mut status = (**last).clone();
        let conditions = pod.status().conditions.iter().flatten();
        let foreign: Vec<_> = conditions.filter(|c| !status::OWN_CONDITIONS.contains(&c.type_.as_str())).cloned().collect();
        let own = status.conditions.take().unwrap_or_default();
        let own = own.into_iter().filter(|c| status::OWN_CONDITIONS.contains(&c.type_.as_str()));
        status.conditions = Some(own.chain(foreign).collect());
        Arc::new(Pod { status: Some(status), ..(**pod).clone() })
    }

    async fn observe(&mut self, pod: &Pod) -> Result<Observed> {
        let observed = observed::observe(&self.kubelet.cri, &self.uid, &mut self.exited).await?;
        let ids = observed.sandboxes.iter().map(|s| &s.id).chain(observed.containers.iter().map(|c| &c.id));
        self.kubelet.remember(ids, &self.uid);
        for instance in observed.containers.iter().filter(|c| c.state == State::Exited) {
            if !self.messages.contains_key(&instance.id) {
                self.messages.insert(instance.id.clone(), termination_message(pod, instance));
            }
        }
        Ok(observed)
    }

    async fn sync_running(&mut self, pod: &Arc<Pod>) -> Result<Step> {
        self.kubelet.objects.hold(&self.uid, Some(pod));
        let observed = self.observe(pod).await?;
        if !self.admitted {
            if let Some((reason, message)) = self.kubelet.admit(pod, observed.sandboxes.is_empty()).await {
                self.kubelet.recorder.warning(&self.about, &reason, message.clone());
                self.failure = Some((reason, format!("Pod was rejected: {message}")));
                return Ok(Step::Again);
            }
            self.admitted = true;
        }
        let deadline = self.deadline(pod);
        if deadline.is_some_and(|left| left.is_zero()) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.kubelet.recorder.normal(&self.about, "DeadlineExceeded", message.clone());
            self.failure = Some(("DeadlineExceeded".into(), message));
            return Ok(Step::Again);
        }
        if let Some(message) = self.over_limit(pod).await? {
            self.kubelet.recorder.warning(&self.about, "Evicted", message.clone());
            self.failure = Some(("Evicted".into(), message));
            return Ok(Step::Again);
        }
        self.probes.follow(pod, &observed, self.kubelet.host_ip());
        self.health = self.probes.health(pod, &observed);
        let inputs = plan::Inputs { pod, observed: &observed, health: &self.health, backoff: &self.backoff, now: Timestamp::now() };
        let plan = plan::plan(&inputs);
        if plan.finished {
            return self.over(pod, &observed).await;
        }
        self.waiting.retain(|name, w| observed.latest(name).is_none_or(|i| i.state != State::Running) && w.reason != "CrashLoopBackOff");
        self.waiting.extend(plan.waiting.clone());
        self.tell_crashes(pod, &plan, &observed);
        self.publish(pod, &observed, false);
        self.retry = None;
        let acted = self.act(pod, &observed, &plan).await;
        if acted? {
            return Ok(Step::Again);
        }
        self.publish(pod, &observed, false);
        let refresh = self.volumes.values().filter_map(|v| v.refresh).min();
        let measure = limits::any(pod).then_some(limits::PERIOD);
        Ok(Step::Wait([plan.wake, self.retry, refresh, deadline, measure].into_iter().flatten().min()))
    }

    async fn over_limit(&mut self, pod: &Arc<Pod>) -> Result<Option<String>> {
        if !limits::any(pod) || self.measured.is_some_and(|at| at.elapsed() < limits::PERIOD) {
            return Ok(None);
        }
        self.measured = Some(Instant::now());
        let (root, pod) = (self.kubelet.config.root_dir.clone(), pod.clone());
        Ok(tokio::task::spawn_blocking(move || limits::exceeded(&root, &pod)).await?)
    }

    /// Every container has ended for good: what is left (sidecars, the sandbox) is stopped before the phase is told.
    async fn over(&mut self, pod: &Arc<Pod>, observed: &Observed) -> Result<Step> {
        let end = plan::plan_end(pod, observed);
        let grace = pod.grace_period();
        if self.stop(pod, observed, &end, grace).await? {
            return Ok(Step::Again);
        }
        self.release_volumes().await?;
        self.publish(pod, observed, true);
        self.kubelet.objects.hold(&self.uid, None);
        Ok(Step::Wait(None))
    }

    /// No container of it will run again: its volumes go, though its record stays. What outlives it is elsewhere.
    async fn release_volumes(&mut self) -> Result<()> {
        self.volumes.clear();
        let directory = volumes::pod_directory(&self.kubelet.config.root_dir, &self.uid);
        Ok(tokio::task::spawn_blocking(move || volumes::remove_volumes(&directory)).await??)
    }

    async fn sync_end(&mut self, pod: &Arc<Pod>, desired: &Desired, grace: i64) -> Result<Step> {
        self.probes.stop_all();
        self.end_since.get_or_insert_with(Instant::now);
        let observed = self.observe(pod).await?;
        let plan = plan::plan_end(pod, &observed);
        if !plan.actions.is_empty() {
            self.publish(pod, &observed, false);
            self.stop(pod, &observed, &plan, grace).await?;
            return Ok(Step::Again);
        }
        self.kubelet.objects.hold(&self.uid, None);
        self.release_volumes().await?;
        if desired.gone {
            self.remove_everything(&observed).await?;
            return Ok(Step::Finished);
        }
        self.publish(pod, &observed, true);
        if pod.deletion().is_some() && !self.deleted {
            self.statuses.flush().await;
            self.clean_node().await?;
            self.delete(pod).await?;
            self.deleted = true;
        }
        Ok(Step::Wait(None))
    }

    /// The last word: the pod leaves the API.
    async fn delete(&self, pod: &Pod) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.kubelet.client.clone(), pod.namespace());
        let preconditions = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
        let parameters = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(pod.name(), &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if machinery::controller::is_not_found(&error) || machinery::controller::is_conflict(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Directories, mounts and cgroups; the dead containers stay until the API has let go of the pod.
    async fn clean_node(&self) -> Result<()> {
        let (root, uid, cgroups) = (self.kubelet.config.root_dir.clone(), self.uid.clone(), self.kubelet.cgroups.clone());
        let done = tokio::task::spawn_blocking(move || {
            let removed = volumes::remove_pod_directory(&root, &uid);
            cgroups.remove_pod(&uid);
            removed
        });
        Ok(done.await??)
    }

    async fn remove_everything(&mut self, observed: &Observed) -> Result<()> {
        for sandbox in &observed.sandboxes {
            self.kubelet.cri.remove_sandbox(&sandbox.id).await?;
        }
        for instance in &observed.containers {
            self.kubelet.cri.remove_container(&instance.id).await?;
        }
        self.clean_node().await?;
        let pod = self.desired.borrow().pod.clone();
        let logs = crate::sandbox::log_directory(&pod);
        if logs.exists() {
            tokio::fs::remove_dir_all(&logs).await?;
        }
        self.kubelet.forget(&self.uid);
        Ok(())
    }

    fn deadline(&self, pod: &Pod) -> Option<Duration> {
        let seconds = pod.spec().active_deadline_seconds?;
        let start = pod.status().start_time.as_ref()?.0;
        let end = start + jiff::SignedDuration::from_secs(seconds);
        Some(Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default())
    }

    fn tell_crashes(&mut self, pod: &Pod, plan: &Plan, observed: &Observed) {
        for name in plan.waiting.keys() {
            let Some(run) = observed.latest(name) else { continue };
            if self.told.insert(run.id.clone()) {
                let about = crate::probes::container_reference(pod, name);
                let text = format!("Back-off restarting failed container {name} in pod {}", pod.full_name());
                self.kubelet.recorder.warning(&about, "BackOff", text);
            }
        }
    }

    fn publish(&mut self, pod: &Arc<Pod>, observed: &Observed, ended: bool) {
        let status = status::pod_status(&status::Inputs {
            pod,
            observed,
            health: &self.health,
            waiting: &self.waiting,
            messages: &self.messages,
            failure: self.failure.as_ref(),
            ended,
            host_ips: &self.kubelet.host_ips,
            now: Timestamp::now(),
        });
        let original = self.desired.borrow().pod.clone();
        self.statuses.set(&original, cause_of(pod), status);
    }
}

pub fn cause_of(pod: &Pod) -> Cause {
    Cause::new(api::key::GroupResource::new("", "pods"), pod.key(), pod.revision())
}

/// Resolves when the pod must end, or end sooner than thought.
async fn ends_sooner(mut desired: watch::Receiver<Desired>, grace: Option<i64>) {
    let sooner = |next: &Desired| match (grace, next.grace()) {
        (None, Some(_)) => true,
        (Some(now), Some(then)) => then < now,
        (_, None) => false,
    };
    if desired.wait_for(sooner).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the container left to say. Upstream: `kuberuntime_container.go` (getTerminationMessage).
fn termination_message(pod: &Pod, instance: &observed::Instance) -> String {
    let path = instance.annotations.get(ANNOTATION_TERMINATION_PATH);
    let file = path.and_then(|path| instance.mounts.iter().find(|(inside, _)| inside == path)).map(|(_, outside)| outside);
    let text = file.and_then(|file| crate::logs::head(std::path::Path::new(file), MAX_MESSAGE)).unwrap_or_default();
    let fall_back = instance.annotations.get(ANNOTATION_TERMINATION_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    if !text.is_empty() || !fall_back || instance.exit_code == 0 {
        return text;
    }
    let log = crate::logs::path(pod, &instance.name, instance.restarts);
    crate::logs::last_lines(&log, MAX_MESSAGE_LINES, MAX_MESSAGE_LOG).unwrap_or_default()
}
