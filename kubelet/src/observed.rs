//! What the runtime says about one pod: its sandboxes and containers, newest first.
//!
//! Everything the kubelet must know after a restart is in here, by upstream's labels and annotations.
//! Upstream: `pkg/kubelet/container/runtime.go` (PodStatus), `kuberuntime_container.go` (toKubeContainerStatus), v1.33.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_cri::v1 as cri;

use crate::cri::{Cri, Error};
use crate::pod::{ANNOTATION_HASH, ANNOTATION_RESTART_COUNT, LABEL_CONTAINER_NAME, LABEL_POD_UID};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Arc<Instance>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    /// Empty on the host's network, and before the network is made.
    pub ips: Vec<String>,
    pub host_network: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    pub id: String,
    pub sandbox: String,
    pub name: String,
    pub restarts: i32,
    pub state: State,
    pub created_at: Timestamp,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_id: String,
    pub hash: String,
    pub log_path: String,
    pub annotations: BTreeMap<String, String>,
    pub mounts: Vec<(String, String)>,
}

impl Observed {
    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    pub fn latest(&self, name: &str) -> Option<&Arc<Instance>> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The runs of a container, newest first.
    pub fn runs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Instance>> + 'a {
        self.containers.iter().filter(move |c| c.name == name)
    }

    pub fn running(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.containers.iter().filter(|c| c.state == State::Running || c.state == State::Unknown)
    }
}

/// Remembers exited instances, whose status never changes again, so that a crash-looping pod costs one status call.
pub type Exited = HashMap<String, Arc<Instance>>;

pub async fn observe(runtime: &Cri, uid: &str, exited: &mut Exited) -> Result<Observed, Error> {
    let selector = HashMap::from([(LABEL_POD_UID.to_owned(), uid.to_owned())]);
    let (sandboxes, containers) = tokio::try_join!(runtime.list_sandboxes(selector.clone()), runtime.list_containers(selector))?;
    let mut observed = Observed::default();
    for sandbox in sandboxes {
        if let Some(found) = sandbox_of(runtime, sandbox).await? {
            observed.sandboxes.push(found);
        }
    }
    for container in containers {
        if let Some(known) = exited.get(&container.id) {
            observed.containers.push(known.clone());
            continue;
        }
        let status = match runtime.container_status(&container.id).await {
            Ok(status) => status,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let instance = Arc::new(instance(container.pod_sandbox_id, status));
        if instance.state == State::Exited {
            exited.insert(instance.id.clone(), instance.clone());
        }
        observed.containers.push(instance);
    }
    exited.retain(|id, _| observed.containers.iter().any(|c| c.id == *id));
    observed.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
    observed.containers.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(b.restarts.cmp(&a.restarts)));
    Ok(observed)
}

async fn sandbox_of(runtime: &Cri, listed: cri::PodSandbox) -> Result<Option<Sandbox>, Error> {
    let mut sandbox = Sandbox {
        attempt: listed.metadata.as_ref().map(|m| m.attempt).unwrap_or_default(),
        ready: listed.state == cri::PodSandboxState::SandboxReady as i32,
        created_at: nanos(listed.created_at),
        ips: Vec::new(),
        host_network: false,
        id: listed.id,
    };
    if !sandbox.ready {
        return Ok(Some(sandbox));
    }
    let status = match runtime.sandbox_status(&sandbox.id).await {
        Ok(status) => status,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Some(status) = status {
        sandbox.ready = status.state == cri::PodSandboxState::SandboxReady as i32;
        let options = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options);
        sandbox.host_network = options.is_some_and(|o| o.network == cri::NamespaceMode::Node as i32);
        if let Some(network) = status.network {
            let more = network.additional_ips.into_iter().map(|ip| ip.ip);
            sandbox.ips = std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect();
        }
    }
    Ok(Some(sandbox))
}

fn instance(sandbox: String, status: cri::ContainerStatus) -> Instance {
    let metadata = status.metadata.unwrap_or_default();
    let state = match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running,
        Ok(cri::ContainerState::ContainerExited) => State::Exited,
        _ => State::Unknown,
    };
    let annotations: BTreeMap<String, String> = status.annotations.into_iter().collect();
    let restarts = annotations.get(ANNOTATION_RESTART_COUNT).and_then(|n| n.parse().ok());
    Instance {
        sandbox,
        name: status.labels.get(LABEL_CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        restarts: restarts.unwrap_or(i32::try_from(metadata.attempt).unwrap_or_default()),
        state,
        created_at: nanos(status.created_at),
        started_at: nanos(status.started_at),
        finished_at: nanos(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: status.image.map(|i| i.image).unwrap_or_default(),
        image_id: if status.image_ref.is_empty() { status.image_id } else { status.image_ref },
        hash: annotations.get(ANNOTATION_HASH).cloned().unwrap_or_default(),
        log_path: status.log_path,
        annotations,
        mounts: status.mounts.into_iter().map(|m| (m.container_path, m.host_path)).collect(),
        id: status.id,
    }
}

fn nanos(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}
