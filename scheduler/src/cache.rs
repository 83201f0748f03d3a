//! The cluster as the scheduler sees it: nodes, the pods on them, what is free.
//!
//! The scheduling task owns the cache; informer events and cycles touch it in turn, so there is no lock and no snapshot.
//! Pods of equal namespace and labels form a *class*; a node counts its pods by class, so that spreading and affinity
//! cost one selector match per class instead of one per pod.
//!
//! Invariants:
//! - a pod is on at most one node, and its requests are counted exactly once;
//! - an assumed pod counts like a bound one until the API server confirms it or its binding fails;
//! - pods of a node that is not (yet) known wait in `orphans`.
//!
//! Upstream: pkg/scheduler/backend/cache/{cache,node_tree}.go, framework/types.go (NodeInfo), v1.33.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::Key;
use api::k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint};

use crate::affinity::{Labels, PodAffinities};
use crate::classes::{ClassId, Classes};
use crate::resources::{Resources, pod_requests, pod_requests_for_scoring};

/// A port a pod takes on its node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// `0.0.0.0` for all addresses.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let wildcard = |ip: &str| ip == "0.0.0.0";
        self.port == other.port && self.protocol == other.protocol && (self.ip == other.ip || wildcard(&self.ip) || wildcard(&other.ip))
    }
}

/// A pod with everything the inner loop needs, computed when the pod arrived.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: Key,
    pub uid: String,
    pub priority: i32,
    pub requests: Resources,
    /// CPU (milli) and memory with defaults for what is not requested; for scores only.
    pub scoring_requests: (i64, i64),
    pub ports: Vec<HostPort>,
    pub affinities: PodAffinities,
    /// Names of the claims the pod mounts, generic ephemeral volumes included.
    pub claims: Vec<String>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let key = Key::of(&*pod);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        PodInfo {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            requests: pod_requests(&pod, spec),
            scoring_requests: pod_requests_for_scoring(spec),
            ports: host_ports(spec),
            affinities: PodAffinities::new(spec.affinity.as_ref(), &key.namespace, &labels),
            claims: claims(spec, &key.name),
            key,
            pod,
        }
    }

    /// The pod's spec; the API server stores no pod without one.
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    pub fn labels(&self) -> &Labels {
        static EMPTY: Labels = BTreeMap::new();
        self.pod.metadata.labels.as_ref().unwrap_or(&EMPTY)
    }

    pub fn node_name(&self) -> Option<&str> {
        self.spec().node_name.as_deref().filter(|n| !n.is_empty())
    }

    pub fn nominated_node(&self) -> Option<&str> {
        self.pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
    }

    pub fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self.pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let host_port = |port: &api::k8s_openapi::api::core::v1::ContainerPort| {
        let number = port.host_port.filter(|p| *p > 0)?;
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
        Some(HostPort { ip, protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port: number })
    };
    ports.filter_map(host_port).collect()
}

fn claims(spec: &PodSpec, pod_name: &str) -> Vec<String> {
    let claim = |volume: &api::k8s_openapi::api::core::v1::Volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod_name}-{}", volume.name)),
        _ => None,
    };
    spec.volumes.iter().flatten().filter_map(claim).collect()
}

/// A pod as its node holds it.
#[derive(Clone, Debug)]
pub struct PodEntry {
    pub info: Arc<PodInfo>,
    pub class: ClassId,
}

/// A node with the sums over its pods. Plain data: preemption clones one to try things out.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Position in [`Cache::nodes`].
    pub index: usize,
    pub name: String,
    pub node: Arc<Node>,
    pub allocatable: Resources,
    pub requested: Resources,
    pub scoring_requested: (i64, i64),
    pub pods: Vec<PodEntry>,
    pub ports: Vec<HostPort>,
    /// How many pods of each class; no zero counts.
    pub classes: Vec<(ClassId, u32)>,
    /// How many of the pods have affinity terms of any kind.
    pub with_affinity: usize,
    /// Bytes by image name.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    fn new(index: usize, node: Arc<Node>) -> Self {
        let mut info = NodeInfo {
            index,
            name: node.metadata.name.clone().unwrap_or_default(),
            node: node.clone(),
            allocatable: Resources::default(),
            requested: Resources::default(),
            scoring_requested: (0, 0),
            pods: Vec::new(),
            ports: Vec::new(),
            classes: Vec::new(),
            with_affinity: 0,
            images: HashMap::new(),
        };
        info.set_node(node);
        info
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        self.allocatable = status.and_then(|s| s.allocatable.as_ref()).map(Resources::of).unwrap_or_default();
        let images = status.and_then(|s| s.images.as_deref()).unwrap_or_default();
        let names = |image: &api::k8s_openapi::api::core::v1::ContainerImage| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.clone().unwrap_or_default().into_iter().map(move |name| (name, size))
        };
        self.images = images.iter().flat_map(names).collect();
        self.node = node;
    }

    pub fn labels(&self) -> &Labels {
        static EMPTY: Labels = BTreeMap::new();
        self.node.metadata.labels.as_ref().unwrap_or(&EMPTY)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().get(key).map(String::as_str)
    }

    pub fn taints(&self) -> &[Taint] {
        self.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
    }

    pub fn unschedulable(&self) -> bool {
        self.node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false)
    }

    pub fn add_pod(&mut self, entry: PodEntry) {
        let pod = &entry.info;
        self.requested.add(&pod.requests);
        self.scoring_requested.0 += pod.scoring_requests.0;
        self.scoring_requested.1 += pod.scoring_requests.1;
        self.ports.extend(pod.ports.iter().cloned());
        self.with_affinity += usize::from(!pod.affinities.is_empty());
        match self.classes.iter_mut().find(|(class, _)| *class == entry.class) {
            Some((_, count)) => *count += 1,
            None => self.classes.push((entry.class, 1)),
        }
        self.pods.push(entry);
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<PodEntry> {
        let position = self.pods.iter().position(|p| p.info.uid == uid)?;
        let entry = self.pods.swap_remove(position);
        let pod = &entry.info;
        self.requested.subtract(&pod.requests);
        self.scoring_requested.0 -= pod.scoring_requests.0;
        self.scoring_requested.1 -= pod.scoring_requests.1;
        self.with_affinity -= usize::from(!pod.affinities.is_empty());
        for port in &pod.ports {
            if let Some(position) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(position);
            }
        }
        if let Some(position) = self.classes.iter().position(|(class, _)| *class == entry.class) {
            self.classes[position].1 -= 1;
            if self.classes[position].1 == 0 {
                self.classes.swap_remove(position);
            }
        }
        Some(entry)
    }
}

struct PodState {
    node: String,
    assumed: bool,
}

#[derive(Default)]
pub struct Cache {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    pods: HashMap<String, PodState>,
    orphans: HashMap<String, Vec<PodEntry>>,
    pub classes: Classes,
    /// How many nodes have each image.
    image_nodes: HashMap<String, usize>,
    /// Indices of `nodes`, zones taken in turn; rebuilt when nodes come or go.
    order: Vec<usize>,
    /// Pods with affinity terms in the whole cluster: zero lets InterPodAffinity skip most pods.
    pub with_affinity: usize,
    /// Pods that preempted others and wait for their node, by that node.
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
}

impl Cache {
    pub fn nominated_on(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map_or(&[], Vec::as_slice)
    }

    /// The pod waits for this node, or for none any more.
    pub fn nominate(&mut self, info: &Arc<PodInfo>, node: Option<&str>) {
        self.nominated.retain(|_, pods| {
            pods.retain(|p| p.uid != info.uid);
            !pods.is_empty()
        });
        if let Some(node) = node {
            self.nominated.entry(node.to_owned()).or_default().push(info.clone());
        }
    }

    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|index| &self.nodes[*index])
    }

    /// Node indices in the order a cycle visits them.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        if let Some(index) = self.by_name.get(&name).copied() {
            self.count_images(index, -1);
            let zone_before = zone(&self.nodes[index]);
            self.nodes[index].set_node(node);
            self.count_images(index, 1);
            if zone(&self.nodes[index]) != zone_before {
                self.rebuild_order();
            }
            return;
        }
        let index = self.nodes.len();
        let mut info = NodeInfo::new(index, node);
        for entry in self.orphans.remove(&name).unwrap_or_default() {
            info.add_pod(entry);
        }
        self.nodes.push(info);
        self.by_name.insert(name, index);
        self.count_images(index, 1);
        self.rebuild_order();
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(index) = self.by_name.remove(name) else { return };
        self.count_images(index, -1);
        let removed = self.nodes.swap_remove(index);
        if let Some(moved) = self.nodes.get_mut(index) {
            moved.index = index;
            self.by_name.insert(moved.name.clone(), index);
        }
        if !removed.pods.is_empty() {
            self.orphans.insert(removed.name, removed.pods);
        }
        self.rebuild_order();
    }

    fn count_images(&mut self, index: usize, change: isize) {
        for name in self.nodes[index].images.keys() {
            let count = self.image_nodes.entry(name.clone()).or_default();
            *count = count.saturating_add_signed(change);
        }
        if change < 0 {
            self.image_nodes.retain(|_, count| *count > 0);
        }
    }

    /// Round robin over zones, so that a sample of nodes is a fair one.
    fn rebuild_order(&mut self) {
        let mut zones: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for node in &self.nodes {
            zones.entry(zone(node)).or_default().push(node.index);
        }
        self.order.clear();
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        for round in 0..longest {
            self.order.extend(zones.values().filter_map(|zone| zone.get(round)));
        }
    }

    /// Adds or replaces a pod that has a node. Confirms an assumed one.
    pub fn set_pod(&mut self, info: Arc<PodInfo>) {
        let Some(node) = info.node_name().map(str::to_owned) else { return };
        self.remove_pod(&info.uid);
        self.place(info, node, false);
    }

    /// Counts the pod on the node before the API server knows.
    pub fn assume(&mut self, info: Arc<PodInfo>, node: &str) {
        self.remove_pod(&info.uid);
        self.place(info, node.to_owned(), true);
    }

    /// Takes back an assumption. A pod that was confirmed meanwhile stays.
    pub fn forget(&mut self, uid: &str) -> bool {
        let assumed = self.is_assumed(uid);
        if assumed {
            self.remove_pod(uid);
        }
        assumed
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|state| state.assumed)
    }

    pub fn has_pod(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    fn place(&mut self, info: Arc<PodInfo>, node: String, assumed: bool) {
        self.with_affinity += usize::from(!info.affinities.is_empty());
        let class = self.classes.acquire(&info.key.namespace, info.labels(), info.is_terminating());
        self.pods.insert(info.uid.clone(), PodState { node: node.clone(), assumed });
        let entry = PodEntry { info, class };
        match self.by_name.get(&node) {
            Some(index) => self.nodes[*index].add_pod(entry),
            None => self.orphans.entry(node).or_default().push(entry),
        }
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let state = self.pods.remove(uid)?;
        let entry = match self.by_name.get(&state.node) {
            Some(index) => self.nodes[*index].remove_pod(uid),
            None => self.orphans.get_mut(&state.node).and_then(|pods| {
                let position = pods.iter().position(|p| p.info.uid == uid)?;
                Some(pods.swap_remove(position))
            }),
        }?;
        if self.orphans.get(&state.node).is_some_and(Vec::is_empty) {
            self.orphans.remove(&state.node);
        }
        self.classes.release(entry.class);
        self.with_affinity -= usize::from(!entry.info.affinities.is_empty());
        Some(entry.info)
    }
}

fn zone(node: &NodeInfo) -> String {
    let region = node.label("topology.kubernetes.io/region").unwrap_or_default();
    let zone = node.label("topology.kubernetes.io/zone").unwrap_or_default();
    format!("{region}:{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{node, pod};

    #[test]
    fn assumed_pods_count_until_forgotten_and_confirmed_ones_stay() {
        let mut cache = Cache::default();
        cache.set_node(node("n1").cpu("4").build());
        let web = Arc::new(pod("web").cpu("1").info());
        cache.assume(web.clone(), "n1");
        assert_eq!(cache.node("n1").unwrap().requested.milli_cpu, 1000);
        assert!(cache.forget(&web.uid));
        assert_eq!(cache.node("n1").unwrap().requested.milli_cpu, 0);

        cache.assume(web.clone(), "n1");
        cache.set_pod(Arc::new(pod("web").cpu("1").on("n1").info()));
        assert!(!cache.forget(&web.uid));
        assert_eq!(cache.node("n1").unwrap().requested.milli_cpu, 1000);
    }

    #[test]
    fn pods_may_come_before_their_node_and_outlive_it() {
        let mut cache = Cache::default();
        cache.set_pod(Arc::new(pod("web").cpu("1").on("n1").info()));
        cache.set_node(node("n1").cpu("4").build());
        assert_eq!(cache.node("n1").unwrap().pods.len(), 1);
        cache.remove_node("n1");
        cache.set_node(node("n1").cpu("4").build());
        assert_eq!(cache.node("n1").unwrap().requested.milli_cpu, 1000);
        cache.remove_pod("uid-web");
        assert_eq!(cache.node("n1").unwrap().requested, Resources::default());
        assert!(cache.node("n1").unwrap().classes.is_empty());
    }

    #[test]
    fn zones_take_turns() {
        let mut cache = Cache::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")] {
            cache.set_node(node(name).label("topology.kubernetes.io/zone", zone).build());
        }
        let names: Vec<&str> = cache.order().iter().map(|i| cache.nodes()[*i].name.as_str()).collect();
        assert_eq!(names, ["a1", "b1", "c1", "a2"]);
        cache.remove_node("a1");
        assert_eq!(cache.order().len(), 3);
        assert_eq!(cache.node("c1").unwrap().index, 0);
    }
}
