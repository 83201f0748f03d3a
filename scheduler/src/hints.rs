//! Changes in the cluster that may make a waiting pod schedulable.
//!
//! Each plugin says for itself which events help a pod it rejected (`Plugin::helps`); every other event leaves the pod
//! asleep. Upstream: framework/events.go and the plugins' QueueingHints, v1.33.

use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Node;

use crate::cache::PodInfo;
use crate::resources::Resources;

#[derive(Clone, Debug)]
pub enum ClusterEvent {
    NodeAdded(Arc<Node>),
    /// Only if something a plugin could care about changed.
    NodeUpdated {
        old: Arc<Node>,
        new: Arc<Node>,
    },
    /// A pod got a node, here or by another hand.
    PodAssigned(Arc<PodInfo>),
    /// A pod that had a node changed its labels, asks for less, or began to terminate.
    PodChanged {
        old: Arc<PodInfo>,
        new: Arc<PodInfo>,
    },
    /// A pod that had a node is gone or finished.
    PodRemoved(Arc<PodInfo>),
    Namespace,
    Storage,
}

impl ClusterEvent {
    /// The node that appeared or changed.
    pub fn node(&self) -> Option<&Arc<Node>> {
        match self {
            ClusterEvent::NodeAdded(node) | ClusterEvent::NodeUpdated { new: node, .. } => Some(node),
            _ => None,
        }
    }
}

fn allocatable(node: &Node) -> Resources {
    node.status.as_ref().and_then(|s| s.allocatable.as_ref()).map(Resources::of).unwrap_or_default()
}

pub fn labels_changed(old: &Node, new: &Node) -> bool {
    old.metadata.labels != new.metadata.labels
}

pub fn taints_changed(old: &Node, new: &Node) -> bool {
    let spec = |node: &Node| node.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable.unwrap_or(false)));
    spec(old) != spec(new)
}

pub fn allocatable_changed(old: &Node, new: &Node) -> bool {
    allocatable(old) != allocatable(new)
}

/// Heartbeats change a node too, but wake nobody.
pub fn node_update_matters(old: &Node, new: &Node) -> bool {
    labels_changed(old, new) || taints_changed(old, new) || allocatable_changed(old, new)
}
