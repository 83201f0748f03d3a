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
use crate::thresholds::Thresholds;
use crate::tokens::Tokens;
use crate::{apparmor, resources, sysctls};

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
    pub eviction_hard: Thresholds,
    pub allowed_unsafe_sysctls: Vec<String>,
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
        self.machine.allocatable(self.config.max_pods, self.config.eviction_hard)
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
        if let Some(why) = sysctls::forbidden(pod, &self.config.allowed_unsafe_sysctls) {
            return Some(("SysctlForbidden".to_owned(), why));
        }
        if apparmor::is_required(pod) && !apparmor::is_enabled() {
            return Some(("AppArmor".to_owned(), "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned()));
        }
        if let Some(node) = self.node()
            && !selected(pod, &node)
        {
            return Some(refusal("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
        }
        let alive = |p: &&Arc<Pod>| p.uid() != pod.uid() && !matches!(p.phase(), "Succeeded" | "Failed");
        let others: Vec<Arc<Pod>> = self.pods.list().iter().filter(alive).cloned().collect();
        // Those that came first have the room.
        let earlier =
            |p: &Arc<Pod>| p.metadata.creation_timestamp.as_ref().map(|t| t.0) <= pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let others: Vec<&Arc<Pod>> = others.iter().filter(|p| earlier(p) && p.status().start_time.is_some()).collect();
        if host_ports(pod).any(|wanted| others.iter().any(|other| host_ports(other).any(|taken| clash(wanted, taken)))) {
            return Some(refusal("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
        }
        for (resource, capacity) in self.allocatable() {
            let (requested, used) = match resource.as_str() {
                "pods" => (1, others.len() as i64),
                _ => (resources::pod_request(pod, &resource), others.iter().map(|p| resources::pod_request(p, &resource)).sum()),
            };
            let capacity = if resource == "cpu" { i64::try_from(milli(&capacity)).unwrap_or(i64::MAX) } else { value(&capacity) };
            if requested > 0 && requested + used > capacity {
                let message =
                    format!("Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}");
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

fn refusal(predicate: &str, why: &str) -> (String, String) {
    (predicate.to_owned(), format!("Predicate {predicate} failed: {why}"))
}

/// Address, protocol and port of the host that each container takes.
type HostPort<'a> = (&'a str, &'a str, i32);

fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort<'_>> {
    let ports = pod.spec().containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| {
        let address = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        Some((address, port.protocol.as_deref().unwrap_or("TCP"), port.host_port.filter(|port| *port > 0)?))
    })
}

/// The unspecified address is all of them.
fn clash(a: HostPort<'_>, b: HostPort<'_>) -> bool {
    (a.1, a.2) == (b.1, b.2) && (a.0 == b.0 || a.0 == "0.0.0.0" || b.0 == "0.0.0.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_clash_by_address_protocol_and_number() {
        let any = ("0.0.0.0", "TCP", 80);
        assert!(clash(any, ("10.0.0.1", "TCP", 80)) && clash(any, any));
        assert!(!clash(any, ("0.0.0.0", "UDP", 80)) && !clash(any, ("0.0.0.0", "TCP", 81)));
        assert!(!clash(("10.0.0.1", "TCP", 80), ("10.0.0.2", "TCP", 80)));
    }
}
