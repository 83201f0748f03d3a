//! What plugins may ask about objects other than nodes and pods.
//!
//! In the running program the informers answer; in tests a plain struct does.

use std::sync::Arc;

use api::Key;
use api::k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use api::k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service};
use api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use api::k8s_openapi::api::storage::v1::{CSINode, StorageClass};

use crate::affinity::Labels;

/// Read access by name and by namespace; answers are what the informers hold at this moment.
pub trait World: Send + Sync {
    fn node(&self, name: &str) -> Option<Arc<Node>>;
    fn namespace(&self, name: &str) -> Option<Arc<Namespace>>;
    fn services(&self, namespace: &str) -> Vec<Arc<Service>>;
    fn replication_controller(&self, key: &Key) -> Option<Arc<ReplicationController>>;
    fn replica_set(&self, key: &Key) -> Option<Arc<ReplicaSet>>;
    fn stateful_set(&self, key: &Key) -> Option<Arc<StatefulSet>>;
    fn disruption_budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>>;
    fn claim(&self, key: &Key) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn storage_class(&self, name: &str) -> Option<Arc<StorageClass>>;
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>>;
}

impl dyn World + '_ {
    pub fn namespace_labels(&self, name: &str) -> Option<Labels> {
        Some(self.namespace(name)?.metadata.labels.clone().unwrap_or_default())
    }
}
