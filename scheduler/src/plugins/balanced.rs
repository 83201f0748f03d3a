//! NodeResourcesBalancedAllocation: prefers nodes where CPU and memory would be used to the same degree.
//!
//! Upstream: plugins/noderesources/balanced_allocation.go, v1.33.

use crate::cache::NodeInfo;
use crate::framework::{Context, MAX_NODE_SCORE, Plugin, Score};

pub struct NodeResourcesBalancedAllocation;

/// CPU (milli) and memory (bytes) the pod really requests.
struct Balance(i64, i64);

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    /// A pod without requests would change no node's balance.
    fn pre_score<'c>(&self, context: Context<'c>, _nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        let requests = &context.pod.requests;
        let any = requests.milli_cpu > 0 || requests.memory > 0;
        any.then(|| Box::new(Balance(requests.milli_cpu, requests.memory)) as Box<dyn Score<'c> + 'c>)
    }
}

/// 100 minus the standard deviation of the used fractions, in percent.
fn balance(cpu: (i64, i64), memory: (i64, i64)) -> i64 {
    let fraction = |(used, size): (i64, i64)| (size > 0).then(|| (used as f64 / size as f64).min(1.0));
    let deviation = match (fraction(cpu), fraction(memory)) {
        (Some(cpu), Some(memory)) => ((cpu - memory) / 2.0).abs(),
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
}

impl<'c> Score<'c> for Balance {
    fn score(&self, node: &NodeInfo) -> i64 {
        balance((node.requested.milli_cpu + self.0, node.allocatable.milli_cpu), (node.requested.memory + self.1, node.allocatable.memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balances() {
        assert_eq!(balance((50, 100), (50, 100)), 100);
        assert_eq!(balance((100, 100), (0, 100)), 50);
        assert_eq!(balance((300, 100), (100, 100)), 100);
        assert_eq!(balance((30, 100), (0, 0)), 100);
    }
}
