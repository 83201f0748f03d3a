//! The steps of a plan: thin, in order, each telling its event. No decision is made here that the plan could make.
//!
//! Upstream: `kuberuntime_manager.go` (SyncPod), `kuberuntime_container.go` (startContainer, killContainer), v1.33.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use crate::handlers::{self, Target};
use crate::images::Blocked;
use crate::observed::{Instance, Observed, State};
use crate::plan::{Action, Plan, Waiting, backoff_key};
use crate::pod::PodExt;
use crate::probes::container_reference;
use crate::worker::{Worker, cause_of};
use crate::{container, dns, env, fields, sandbox, volumes};

/// A container gets this long to end even if its preStop hook took all the time there was.
const MIN_GRACE: i64 = 2;
/// Pause before a container that could not be configured or created is tried again.
const RETRY: Duration = Duration::from_secs(10);

impl Worker {
    /// Whether anything was done.
    pub(crate) async fn act(&mut self, pod: &Arc<Pod>, observed: &Observed, plan: &Plan) -> Result<bool> {
        let mut acted = self.stop(pod, observed, plan, pod.grace_period()).await?;
        if !observed.sandboxes.is_empty() || plan.actions.iter().any(|a| matches!(a, Action::CreateSandbox { .. })) {
            self.mount_volumes(pod, observed).await?;
        }
        for action in &plan.actions {
            acted |= match action {
                Action::RemoveContainer { id } => self.remove_container(pod, observed, id).await?,
                Action::RemoveSandbox { id } => self.kubelet.cri.remove_sandbox(id).await.map(|()| true)?,
                Action::CreateSandbox { attempt } => self.create_sandbox(pod, *attempt).await?,
                Action::Start { name, restarts } => self.start(pod, observed, name, *restarts).await?,
                Action::StopContainer { .. } | Action::StopSandbox { .. } => false,
            };
        }
        Ok(acted)
    }

    /// The stops of a plan, all containers at once. Whether there were any.
    pub(crate) async fn stop(&mut self, pod: &Arc<Pod>, observed: &Observed, plan: &Plan, grace: i64) -> Result<bool> {
        let mut stops = Vec::new();
        for action in &plan.actions {
            let Action::StopContainer { id, name, message } = action else { continue };
            let Some(instance) = observed.containers.iter().find(|c| c.id == *id) else { continue };
            let fresh = !self.ending.contains_key(id);
            let since = *self.ending.entry(id.clone()).or_insert_with(Instant::now);
            if fresh {
                self.kubelet.recorder.normal(&container_reference(pod, name), "Killing", message.clone());
            }
            // The end of a pod has one allowance: sidecars, which wait for the others, have what these left of it.
            let spent = self.end_since.unwrap_or(since).elapsed().max(since.elapsed());
            let allowed = self.container_grace(pod, instance, grace);
            let grace = allowed.saturating_sub(i64::try_from(spent.as_secs()).unwrap_or(i64::MAX)).max(allowed.clamp(0, MIN_GRACE));
            stops.push((instance, grace, fresh));
        }
        let mut acted = !stops.is_empty();
        let work = stops.into_iter().map(|(instance, grace, fresh)| self.stop_container(pod, observed, instance, grace, fresh));
        for result in futures::future::join_all(work).await {
            result?;
        }
        for action in &plan.actions {
            if let Action::StopSandbox { id } = action {
                self.kubelet.cri.stop_sandbox(id).await?;
                acted = true;
            }
        }
        Ok(acted)
    }

    /// A failed probe may grant less time than the pod.
    fn container_grace(&self, pod: &Pod, instance: &Instance, grace: i64) -> i64 {
        let failed = self.health.get(&instance.id).and_then(|h| h.failed);
        let container = pod.container(&instance.name);
        let own = failed.and_then(|kind| crate::pod::ContainerExt::probe(container.as_deref()?, kind)?.termination_grace_period_seconds);
        own.filter(|_| pod.deletion().is_none()).unwrap_or(grace)
    }

    async fn stop_container(&self, pod: &Arc<Pod>, observed: &Observed, instance: &Instance, grace: i64, fresh: bool) -> Result<()> {
        let started = Instant::now();
        let container = pod.container(&instance.name);
        let hook = container.as_deref().and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        if let Some((container, hook)) = hook.filter(|_| fresh && grace > 0) {
            let target = self.target(pod, observed, container, &instance.id);
            let limit = Duration::from_secs(grace.unsigned_abs());
            let result = tokio::time::timeout(limit, handlers::hook(&self.kubelet.cri, &target, hook)).await;
            if let Ok(Err(error)) = result {
                tracing::warn!(pod = %pod.key(), container = instance.name, %error, "preStop hook");
                self.kubelet.recorder.warning(&container_reference(pod, &instance.name), "FailedPreStopHook", "PreStopHook failed");
            }
        }
        let spent = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
        // Upstream grants the minimum only to what has any grace at all.
        let left = if grace <= 1 { grace } else { grace.saturating_sub(spent).max(MIN_GRACE) };
        Ok(self.kubelet.cri.stop_container(&instance.id, left).await?)
    }

    fn target(&self, pod: &Arc<Pod>, observed: &Observed, container: &Container, id: &str) -> Target {
        Target {
            pod: pod.clone(),
            container: container.clone(),
            container_id: id.to_owned(),
            ip: self.pod_ips(pod, observed).into_iter().next().unwrap_or_default(),
        }
    }

    fn pod_ips(&self, pod: &Pod, observed: &Observed) -> Vec<String> {
        if pod.host_network() {
            return self.kubelet.host_ips.clone();
        }
        observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default()
    }

    async fn remove_container(&mut self, pod: &Pod, observed: &Observed, id: &str) -> Result<bool> {
        self.kubelet.cri.remove_container(id).await?;
        if let Some(instance) = observed.containers.iter().find(|c| c.id == id) {
            crate::logs::remove(pod, &instance.name, instance.restarts);
        }
        Ok(true)
    }

    async fn mount_volumes(&mut self, pod: &Arc<Pod>, observed: &Observed) -> Result<()> {
        let kubelet = self.kubelet.clone();
        let ips = self.pod_ips(pod, observed);
        let allocatable = kubelet.allocatable();
        let fields = fields::Context { pod, pod_ips: &ips, host_ips: &kubelet.host_ips, allocatable: &allocatable };
        let node = kubelet.node();
        let tools = volumes::Tools {
            root: &kubelet.config.root_dir,
            objects: &kubelet.objects,
            tokens: &kubelet.tokens,
            client: &kubelet.client,
            node: node.as_deref(),
        };
        let complain = |message: String| kubelet.recorder.warning(&self.about, "FailedMount", message);
        let mounted = volumes::mount_all(&tools, &fields, &self.volumes, complain).await;
        self.volumes = mounted.map_err(|message| {
            complain(message.clone());
            anyhow!(message)
        })?;
        Ok(())
    }

    async fn sandbox_config(&self, pod: &Pod, attempt: u32) -> k8s_cri::v1::PodSandboxConfig {
        let kubelet = &self.kubelet;
        let host = tokio::fs::read_to_string(&kubelet.config.resolv_conf).await.unwrap_or_default();
        let dns = dns::config(pod, &kubelet.dns, dns::parse(&host));
        sandbox::config(pod, attempt, dns::sandbox_hostname(pod, &kubelet.dns), dns, &kubelet.cgroups.pod_path(pod))
    }

    async fn create_sandbox(&mut self, pod: &Arc<Pod>, attempt: u32) -> Result<bool> {
        let kubelet = self.kubelet.clone();
        if attempt > 0 {
            kubelet.recorder.normal(&self.about, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
        }
        kubelet.cgroups.ensure_pod(pod)?;
        tokio::fs::create_dir_all(sandbox::log_directory(pod)).await?;
        tokio::fs::create_dir_all(volumes::pod_directory(&kubelet.config.root_dir, pod.uid())).await?;
        let config = self.sandbox_config(pod, attempt).await;
        let made = async { anyhow::Ok(kubelet.cri.run_sandbox(config, self.runtime_handler(pod).await?).await?) };
        match made.await {
            Ok(id) => {
                kubelet.remember([&id], &self.uid);
                kubelet.note(cause_of(pod), "sandbox created");
                Ok(true)
            }
            Err(error) => {
                kubelet.recorder.warning(&self.about, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
                Err(error)
            }
        }
    }

    /// What the runtime calls the pod's RuntimeClass; empty is its default.
    async fn runtime_handler(&self, pod: &Pod) -> Result<String> {
        let Some(name) = pod.spec().runtime_class_name.as_deref().filter(|name| !name.is_empty()) else { return Ok(String::new()) };
        match Api::<RuntimeClass>::all(self.kubelet.client.clone()).get_opt(name).await {
            Ok(Some(class)) => Ok(class.handler),
            Ok(None) => Err(anyhow!("runtimeclass.node.k8s.io {name:?} not found")),
            Err(error) => Err(anyhow!("failed to lookup RuntimeClass {name}: {error}")),
        }
    }

    /// Whether the container was started (or died trying). What stands in its way is noted in `waiting`.
    async fn start(&mut self, pod: &Arc<Pod>, observed: &Observed, name: &str, restarts: i32) -> Result<bool> {
        let Some(container) = pod.container(name) else { return Ok(false) };
        let container = &*container;
        let kubelet = self.kubelet.clone();
        let about = container_reference(pod, name);
        let image = match kubelet.images.ensure(pod, container, &about, &kubelet.objects, &mut self.pulls, &self.wake).await {
            Ok(image) => image,
            Err(Blocked::Pulling) => return Ok(false),
            Err(Blocked::Waiting { waiting, retry }) => {
                self.retry = [self.retry, retry].into_iter().flatten().min();
                self.waiting.insert(name.to_owned(), waiting);
                return Ok(false);
            }
        };
        let config = match self.container_config(pod, observed, container, restarts, &image).await {
            Ok(config) => config,
            Err(message) => return Ok(self.held_back(pod, name, "CreateContainerConfigError", message)),
        };
        let Some(sandbox) = observed.ready_sandbox() else { return Ok(false) };
        let sandbox_config = self.sandbox_config(pod, sandbox.attempt).await;
        let id = match kubelet.cri.create_container(&sandbox.id, config, sandbox_config).await {
            Ok(id) => id,
            Err(error) => return Ok(self.held_back(pod, name, "CreateContainerError", error.to_string())),
        };
        kubelet.remember([&id], &self.uid);
        kubelet.recorder.normal(&about, "Created", format!("Created container: {name}"));
        if let Some(run) = observed.latest(name).filter(|run| run.state == State::Exited) {
            self.backoff.next(&backoff_key(container), run.finished_at, Timestamp::now());
        }
        self.waiting.remove(name);
        if let Err(error) = kubelet.cri.start_container(&id).await {
            kubelet.recorder.warning(&about, "Failed", format!("Error: {}", error.message));
            return Ok(true);
        }
        kubelet.recorder.normal(&about, "Started", format!("Started container {name}"));
        kubelet.note(cause_of(pod), &format!("container {name} started"));
        self.post_start(pod, observed, container, &id).await?;
        Ok(true)
    }

    fn held_back(&mut self, pod: &Pod, name: &str, reason: &str, message: String) -> bool {
        let same = self.waiting.get(name).is_some_and(|w| w.message == message);
        if !same {
            self.kubelet.recorder.warning(&container_reference(pod, name), "Failed", format!("Error: {message}"));
        }
        self.waiting.insert(name.to_owned(), Waiting { reason: reason.into(), message });
        self.retry = Some(self.retry.map_or(RETRY, |r| r.min(RETRY)));
        false
    }

    async fn container_config(
        &self,
        pod: &Arc<Pod>,
        observed: &Observed,
        container: &Container,
        restarts: i32,
        image: &k8s_cri::v1::Image,
    ) -> Result<k8s_cri::v1::ContainerConfig, String> {
        let kubelet = &self.kubelet;
        let ips = self.pod_ips(pod, observed);
        let allocatable = kubelet.allocatable();
        let context = fields::Context { pod, pod_ips: &ips, host_ips: &kubelet.host_ips, allocatable: &allocatable };
        let links = pod.spec().enable_service_links != Some(false);
        let services = env::service_variables(&kubelet.services.list(), pod.namespace(), links);
        let env = env::environment(&context, container, &kubelet.objects, &services).await.map_err(|e| e.to_string())?;
        let node_hosts = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
        let hosts = dns::hosts_file(pod, &kubelet.dns, &ips, &node_hosts);
        let directory = volumes::pod_directory(&kubelet.config.root_dir, pod.uid());
        tokio::fs::write(directory.join("etc-hosts"), hosts).await.map_err(|e| format!("write the pod's hosts file: {e}"))?;
        let inputs = container::Inputs {
            pod,
            container,
            target: target(pod, observed, &container.name)?,
            restarts,
            env,
            volumes: &self.volumes,
            image,
            root: &kubelet.config.root_dir,
            machine_memory: kubelet.machine.memory,
        };
        container::config(&inputs)
    }

    async fn post_start(&mut self, pod: &Arc<Pod>, observed: &Observed, container: &Container, id: &str) -> Result<()> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let target = self.target(pod, observed, container, id);
        if let Err(error) = handlers::hook(&self.kubelet.cri, &target, hook).await {
            tracing::warn!(pod = %pod.key(), container = container.name, %error, "postStart hook");
            let about = container_reference(pod, &container.name);
            self.kubelet.recorder.warning(&about, "FailedPostStartHook", "PostStartHook failed");
            self.kubelet.recorder.normal(&about, "Killing", "FailedPostStartHook");
            self.kubelet.cri.stop_container(id, pod.grace_period()).await?;
        }
        Ok(())
    }
}

/// The container whose processes an ephemeral container wants to see.
fn target<'a>(pod: &Pod, observed: &'a Observed, name: &str) -> Result<Option<&'a str>, String> {
    let asks = pod.ephemeral_containers().iter().find(|c| c.name == name);
    let Some(target) = asks.and_then(|c| c.target_container_name.as_deref()).filter(|target| !target.is_empty()) else { return Ok(None) };
    let found = observed.latest(target).map(|run| Some(run.id.as_str()));
    found.ok_or_else(|| format!("unable to find target container {target}"))
}
