//! Pods and nodes that read as sentences, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Key;
use api::k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use api::k8s_openapi::api::core::v1::*;
use api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use api::k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::cache::PodInfo;
use crate::world::World;

pub struct PodFixture(pub Pod);
pub struct NodeFixture(pub Node);

pub fn pod(name: &str) -> PodFixture {
    let mut pod = Pod { spec: Some(PodSpec { containers: vec![Container::default()], ..Default::default() }), ..Default::default() };
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    pod.metadata.uid = Some(format!("uid-{name}"));
    PodFixture(pod)
}

impl PodFixture {
    pub fn spec(mut self, change: impl FnOnce(&mut PodSpec)) -> Self {
        change(self.0.spec.as_mut().unwrap());
        self
    }

    pub fn request(self, resource: &str, quantity: &str) -> Self {
        self.spec(|spec| {
            let resources = spec.containers[0].resources.get_or_insert_default();
            resources.requests.get_or_insert_default().insert(resource.to_owned(), Quantity(quantity.to_owned()));
        })
    }

    pub fn cpu(self, quantity: &str) -> Self {
        self.request("cpu", quantity)
    }

    pub fn on(self, node: &str) -> Self {
        self.spec(|spec| spec.node_name = Some(node.to_owned()))
    }

    pub fn priority(self, priority: i32) -> Self {
        self.spec(|spec| spec.priority = Some(priority))
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// As the DaemonSet controller pins its pods.
    pub fn only_on_node(self, name: &str) -> Self {
        let json = serde_json::json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]}}});
        self.affinity(json)
    }

    pub fn affinity(self, json: serde_json::Value) -> Self {
        self.spec(|spec| spec.affinity = Some(serde_json::from_value(json).unwrap()))
    }

    pub fn info(self) -> PodInfo {
        PodInfo::new(Arc::new(self.0))
    }
}

/// A node of 32 cores, 64 GiB and 110 pods, with its hostname label.
pub fn node(name: &str) -> NodeFixture {
    let quantity = |text: &str| Quantity(text.to_owned());
    let allocatable =
        BTreeMap::from([("cpu".to_owned(), quantity("32")), ("memory".to_owned(), quantity("64Gi")), ("pods".to_owned(), quantity("110"))]);
    let mut node = Node {
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus { allocatable: Some(allocatable), ..Default::default() }),
        ..Default::default()
    };
    node.metadata.name = Some(name.to_owned());
    NodeFixture(node).label("kubernetes.io/hostname", name)
}

impl NodeFixture {
    pub fn cpu(mut self, quantity: &str) -> Self {
        let allocatable = self.0.status.as_mut().unwrap().allocatable.as_mut().unwrap();
        allocatable.insert("cpu".to_owned(), Quantity(quantity.to_owned()));
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn zone(self, zone: &str) -> Self {
        self.label("topology.kubernetes.io/zone", zone)
    }

    pub fn taint(mut self, key: &str, value: &str, effect: &str) -> Self {
        let taint = Taint { key: key.to_owned(), value: Some(value.to_owned()), effect: effect.to_owned(), time_added: None };
        self.0.spec.as_mut().unwrap().taints.get_or_insert_default().push(taint);
        self
    }

    pub fn cordoned(mut self) -> Self {
        self.0.spec.as_mut().unwrap().unschedulable = Some(true);
        self
    }

    pub fn build(self) -> Arc<Node> {
        Arc::new(self.0)
    }
}

#[derive(Default)]
pub struct TestWorld {
    pub namespaces: Vec<Arc<Namespace>>,
    pub services: Vec<Arc<Service>>,
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
}

fn named<K: api::k8s_openapi::Metadata<Ty = api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>>(
    all: &[Arc<K>],
    key: &Key,
) -> Option<Arc<K>> {
    all.iter().find(|o| Key::of(&***o) == *key).cloned()
}

impl World for TestWorld {
    fn node(&self, _: &str) -> Option<Arc<Node>> {
        None
    }
    fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        named(&self.namespaces, &Key::cluster(name))
    }
    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.services.iter().filter(|s| s.metadata.namespace.as_deref() == Some(namespace)).cloned().collect()
    }
    fn replication_controller(&self, _: &Key) -> Option<Arc<ReplicationController>> {
        None
    }
    fn replica_set(&self, _: &Key) -> Option<Arc<ReplicaSet>> {
        None
    }
    fn stateful_set(&self, _: &Key) -> Option<Arc<StatefulSet>> {
        None
    }
    fn disruption_budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.iter().filter(|b| b.metadata.namespace.as_deref() == Some(namespace)).cloned().collect()
    }
    fn claim(&self, key: &Key) -> Option<Arc<PersistentVolumeClaim>> {
        named(&self.claims, key)
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        named(&self.volumes, &Key::cluster(name))
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.clone()
    }
    fn storage_class(&self, name: &str) -> Option<Arc<StorageClass>> {
        named(&self.classes, &Key::cluster(name))
    }
    fn csi_node(&self, _: &str) -> Option<Arc<CSINode>> {
        None
    }
}
