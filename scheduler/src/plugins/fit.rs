//! NodeResourcesFit: what the pod requests must be free; the emptier node is better (LeastAllocated).
//!
//! Upstream: plugins/noderesources/{fit,least_allocated}.go, v1.33.

use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, MAX_NODE_SCORE, Plugin, PreFilter, Reason, Reject, Score};
use crate::hints::{self, ClusterEvent};
use crate::resources::Resources;

pub struct NodeResourcesFit;

#[derive(Clone)]
struct Fit<'c>(&'c Resources);

struct LeastAllocated((i64, i64));

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        Ok(PreFilter::filter(Fit(&context.pod.requests)))
    }

    fn pre_score<'c>(&self, context: Context<'c>, _nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        Some(Box::new(LeastAllocated(context.pod.scoring_requests)))
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::PodRemoved(_) => true,
            ClusterEvent::PodChanged { old, new } => old.requests != new.requests,
            ClusterEvent::NodeAdded(node) => could_fit(pod, node),
            ClusterEvent::NodeUpdated { old, new } => hints::allocatable_changed(old, new) && could_fit(pod, new),
            _ => false,
        }
    }
}

/// Whether the node would be large enough if it were empty.
fn could_fit(pod: &PodInfo, node: &api::k8s_openapi::api::core::v1::Node) -> bool {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref()).map(Resources::of).unwrap_or_default();
    insufficient(&pod.requests, &allocatable, &Resources::default(), 0).reasons.is_empty()
}

/// What is missing; not resolvable if even an empty node of this size would not do.
fn insufficient(pod: &Resources, allocatable: &Resources, requested: &Resources, pods: usize) -> Reject {
    let mut reject = Reject { resolvable: true, reasons: Vec::new() };
    if i64::try_from(pods).unwrap_or(i64::MAX) + 1 > allocatable.pods {
        reject.reasons.push("Too many pods".into());
    }
    let mut check = |wanted: i64, size: i64, used: i64, reason: &dyn Fn() -> Reason| {
        if wanted > 0 && wanted > size - used {
            reject.reasons.push(reason());
            reject.resolvable &= wanted <= size;
        }
    };
    check(pod.milli_cpu, allocatable.milli_cpu, requested.milli_cpu, &|| "Insufficient cpu".into());
    check(pod.memory, allocatable.memory, requested.memory, &|| "Insufficient memory".into());
    check(pod.ephemeral_storage, allocatable.ephemeral_storage, requested.ephemeral_storage, &|| "Insufficient ephemeral-storage".into());
    for (name, wanted) in &pod.scalars {
        check(*wanted, allocatable.scalar(name), requested.scalar(name), &|| format!("Insufficient {name}").into());
    }
    reject
}

impl<'c> Filter<'c> for Fit<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let reject = insufficient(self.0, &node.allocatable, &node.requested, node.pods.len());
        if reject.reasons.is_empty() { Ok(()) } else { Err(reject) }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

fn least_requested(requested: i64, capacity: i64) -> i64 {
    if capacity == 0 || requested > capacity { 0 } else { (capacity - requested) * MAX_NODE_SCORE / capacity }
}

impl<'c> Score<'c> for LeastAllocated {
    /// The mean of what stays free of CPU and memory; a resource the node does not have is left out.
    fn score(&self, node: &NodeInfo) -> i64 {
        let cpu = (node.scoring_requested.0 + self.0.0, node.allocatable.milli_cpu);
        let memory = (node.scoring_requested.1 + self.0.1, node.allocatable.memory);
        let scores = [cpu, memory].into_iter().filter(|(_, capacity)| *capacity > 0);
        let (sum, count) = scores.fold((0, 0), |(sum, count), (used, size)| (sum + least_requested(used, size), count + 1));
        if count == 0 { 0 } else { sum / count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(cpu: i64, memory: i64, pods: i64) -> Resources {
        Resources { milli_cpu: cpu, memory, pods, ..Default::default() }
    }

    #[test]
    fn what_is_missing() {
        // (pod, used, pods on the node, reasons, resolvable); the node has 10 cpu, 20 memory, 2 pods.
        let cases: &[(Resources, Resources, usize, &[&str], bool)] = &[
            (size(5, 5, 0), size(5, 5, 0), 1, &[], true),
            (size(6, 5, 0), size(5, 5, 0), 1, &["Insufficient cpu"], true),
            (size(11, 5, 0), size(5, 5, 0), 1, &["Insufficient cpu"], false),
            (size(6, 16, 0), size(5, 5, 0), 2, &["Too many pods", "Insufficient cpu", "Insufficient memory"], true),
            (size(0, 0, 0), size(50, 50, 0), 0, &[], true),
        ];
        for (pod, used, pods, reasons, resolvable) in cases {
            let reject = insufficient(pod, &size(10, 20, 2), used, *pods);
            assert_eq!(
                (reject.reasons.as_slice(), reject.resolvable),
                (reasons.iter().map(|r| Reason::from(*r)).collect::<Vec<_>>().as_slice(), *resolvable)
            );
        }
    }

    #[test]
    fn emptier_is_better() {
        assert_eq!(least_requested(0, 100), 100);
        assert_eq!(least_requested(25, 100), 75);
        assert_eq!(least_requested(101, 100), 0);
        assert_eq!(least_requested(1, 0), 0);
    }
}
