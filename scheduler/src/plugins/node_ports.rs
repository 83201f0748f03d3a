//! NodePorts: host ports are taken once per node. Upstream: plugins/nodeports/node_ports.go, v1.33.

use crate::cache::{HostPort, NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject};
use crate::hints::ClusterEvent;

pub struct NodePorts;

#[derive(Clone)]
struct Wanted<'c>(&'c [HostPort]);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        Ok(match context.pod.ports.as_slice() {
            [] => PreFilter::skip(),
            ports => PreFilter::filter(Wanted(ports)),
        })
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodRemoved(gone) => gone.ports.iter().any(|g| pod.ports.iter().any(|p| p.conflicts(g))),
            _ => false,
        }
    }
}

impl<'c> Filter<'c> for Wanted<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match self.0.iter().any(|wanted| node.ports.iter().any(|taken| taken.conflicts(wanted))) {
            true => Err(Reject::unschedulable("node(s) didn't have free ports for the requested pod ports")),
            false => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}
