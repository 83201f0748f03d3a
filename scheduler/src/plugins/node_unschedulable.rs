//! NodeUnschedulable: a cordoned node takes only pods that tolerate its unschedulable taint.
//!
//! Upstream: plugins/nodeunschedulable/node_unschedulable.go, v1.33.

use api::k8s_openapi::api::core::v1::Taint;

use super::untolerated;
use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject};
use crate::hints::{self, ClusterEvent};

pub struct NodeUnschedulable;

#[derive(Clone)]
struct Cordoned;

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = Taint { key: "node.kubernetes.io/unschedulable".into(), value: None, effect: "NoSchedule".into(), time_added: None };
    untolerated(&[taint], pod.spec().tolerations.as_deref().unwrap_or_default(), &["NoSchedule"]).is_none()
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        Ok(if tolerates_cordon(context.pod) { PreFilter::skip() } else { PreFilter::filter(Cordoned) })
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        let schedulable = event.node().is_some_and(|n| !n.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false));
        match event {
            ClusterEvent::NodeUpdated { old, new } => schedulable && hints::taints_changed(old, new),
            _ => schedulable,
        }
    }
}

impl<'c> Filter<'c> for Cordoned {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match node.unschedulable() {
            true => Err(Reject::unresolvable("node(s) were unschedulable")),
            false => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}
