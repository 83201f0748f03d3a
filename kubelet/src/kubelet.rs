//! What all of a node's workers share, and the kubelet's own admission of pods.
//!
//! Upstream: `pkg/kubelet/kubelet.go`, `pkg/kubelet/lifecycle/predicate.go`, v1.33.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::cause::Cause;
use api::key::Key;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use machinery::events::Recorder;
use machinery::{CancellationToken, Informer};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cgroups::Cgroups;
use crate::cri::Cri;
use crate::dns::ClusterDns;
use crate::gc::Limits;
use crate::images::Images;
use crate::machine::Machine;
use crate::objects::Objects;
use crate::pod::{PodExt, milli, value};
use crate::resources;
use crate::tokens::Tokens;

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ip: IpAddr,
    pub bind_address: IpAddr,
    pub port: u16,
    pub runtime_endpoint: String,
    pub root_dir: PathBuf,
    pub cert_dir: PathBuf,
    pub client_ca: Option<PathBuf>,
    /// A serving certificate from files, in place of one by CSR.
    pub tls_files: Option<(PathBuf, PathBuf)>,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dir: PathBuf,
    pub cgroup_root: String,
    pub pause_image: String,
    pub status_frequency: std::time::Duration,
    pub labels: BTreeMap<String, String>,
    /// `key=value:Effect`
    pub taints: Vec<String>,
    pub max_pods: u32,
    pub image_limits: Limits,
}

/// How a pod's worker is woken, by uid.
#[derive(Default)]
pub struct Wakes(Mutex<HashMap<String, Arc<Notify>>>);

impl Wakes {
    pub fn add(&self, uid: &str, wake: Arc<Notify>) {
        self.0.lock().insert(uid.to_owned(), wake);
    }

    pub fn remove(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    pub fn wake(&self, uid: &str) {
        if let Some(wake) = self.0.lock().get(uid) {
            wake.notify_one();
        }
    }
}

pub struct Kubelet {
    pub config: Config,
    pub client: Client,
    pub cri: Cri,
    pub recorder: Recorder,
    pub objects: Objects,
    pub tokens: Tokens,
    pub images: Images,
    pub cgroups: Cgroups,
    pub services: Informer<Service>,
    pub nodes: Informer<Node>,
    pub pods: Informer<Pod>,
    pub dns: ClusterDns,
    pub machine: Machine,
    pub host_ips: Vec<String>,
    pub wakes: Arc<Wakes>,
    pub token: CancellationToken,
    /// Sandbox or container id → pod uid, for the runtime's events.
    pub owners: Mutex<HashMap<String, String>>,
}

impl Kubelet {
    pub fn host_ip(&self) -> &str {
        self.host_ips.first().map(String::as_str).unwrap_or_default()
    }

    pub fn node(&self) -> Option<Arc<Node>> {
        self.nodes.get(&Key::cluster(&self.config.node_name))
    }

    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.machine.allocatable(self.config.max_pods)
    }

    pub fn remember<'a>(&self, ids: impl IntoIterator<Item = &'a String>, uid: &str) {
        let mut owners = self.owners.lock();
        for id in ids {
            if !owners.contains_key(id) {
                owners.insert(id.clone(), uid.to_owned());
            }
        }
    }

    pub fn forget(&self, uid: &str) {
        self.owners.lock().retain(|_, owner| owner != uid);
        self.tokens.forget(uid);
        self.objects.hold(uid, None);
    }

    /// Writes a line into the API server's journal, without waiting for it.
    pub fn note(&self, cause: Cause, text: &str) {
        let (client, text) = (self.client.clone(), text.to_owned());
        tokio::spawn(async move { machinery::cause::note(&client, &cause, &text).await });
    }

    /// Why this node does not take the pod: `(reason, message)`. Pods that were here before (they have a sandbox) stay.
    pub async fn admit(&self, pod: &Pod, new: bool) -> Option<(String, String)> {
        if !new {
            return None;
        }
        if let Some(node) = self.node()
            && !selected(pod, &node)
        {
            return Some(("NodeAffinity".into(), "Predicate NodeAffinity failed".into()));
        }
        let alive = |p: &&Arc<Pod>| p.uid() != pod.uid() && !matches!(p.phase(), "Succeeded" | "Failed");
        let others: Vec<Arc<Pod>> = self.pods.list().iter().filter(alive).cloned().collect();
        // Those that came first have the room.
        let earlier = |p: &Arc<Pod>| p.metadata.creation_timestamp.as_ref().map(|t| t.0) <= pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let others: Vec<&Arc<Pod>> = others.iter().filter(|p| earlier(p) && p.status().start_time.is_some()).collect();
        for (resource, capacity) in self.allocatable() {
            let (requested, used) = match resource.as_str() {
                "pods" => (1, others.len() as i64),
                _ => (resources::pod_request(pod, &resource), others.iter().map(|p| resources::pod_request(p, &resource)).sum()),
            };
            let capacity = if resource == "cpu" { i64::try_from(milli(&capacity)).unwrap_or(i64::MAX) } else { value(&capacity) };
            if requested > 0 && requested + used > capacity {
                let message = format!("Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}");
                return Some((format!("OutOf{resource}"), message));
            }
        }
        None
    }
}

fn selected(pod: &Pod, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    pod.spec().node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}
