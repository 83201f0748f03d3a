//! NodeName: `spec.nodeName` names the only node that will do. Upstream: plugins/nodename/node_name.go, v1.33.

use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject};
use crate::hints::ClusterEvent;

pub struct NodeName;

#[derive(Clone)]
struct Named<'c>(&'c str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        Ok(context.pod.node_name().map_or_else(PreFilter::skip, |name| PreFilter::filter(Named(name))))
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded(_))
    }
}

impl<'c> Filter<'c> for Named<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match node.name == self.0 {
            true => Ok(()),
            false => Err(Reject::unresolvable("node(s) didn't match the requested node name")),
        }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}
