//! What a plugin is, and what it may say.
//!
//! A plugin is a stateless row of [`crate::plugins::PLUGINS`]. What it computes once per pod lives in the object its
//! `pre_filter` or `pre_score` returns, so the cycle state is typed and nothing is looked up by name:
//!
//! ```text
//! pre_enqueue → queue → pre_filter ─→ Filter::filter(node)… → [post_filter]
//!                       pre_score  ─→ Score::score(node)…, normalize
//!                       reserve → (own task) pre_bind → bind
//! ```
//! A plugin that has nothing to say about a pod returns `Skip`, and the inner loop never calls it.
//! Invariant: nothing here does I/O, except `pre_bind` and `bind`, which run outside the cycle.
//! Upstream: pkg/scheduler/framework/interface.go, v1.33.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::cache::{Cache, NodeInfo, PodInfo};
use crate::cycle::Filters;
use crate::hints::ClusterEvent;
use crate::world::World;

/// Highest score a plugin may give, before its weight is applied.
pub const MAX_NODE_SCORE: i64 = 100;

pub type Reason = Cow<'static, str>;

/// Why a pod can't run on a node, or at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Whether removing pods could change the verdict.
    pub resolvable: bool,
    pub reasons: Vec<Reason>,
}

impl Reject {
    pub fn unschedulable(reason: impl Into<Reason>) -> Self {
        Reject { resolvable: true, reasons: vec![reason.into()] }
    }

    pub fn unresolvable(reason: impl Into<Reason>) -> Self {
        Reject { resolvable: false, reasons: vec![reason.into()] }
    }
}

/// Everything a plugin may look at during one cycle. The cycle owns the cache, so no snapshot has to be made.
#[derive(Clone, Copy)]
pub struct Context<'c> {
    pub pod: &'c PodInfo,
    pub cache: &'c Cache,
    pub world: &'c dyn World,
}

/// One pod's verdict about nodes, with everything that does not depend on the node computed beforehand.
pub trait Filter<'c>: 'c {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject>;

    /// The pod is thought to run on the node too (a nominated pod, or a victim that is spared).
    fn add_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}

    /// The pod is thought to be gone from the node (a victim).
    fn remove_pod(&mut self, _pod: &PodInfo, _node: &NodeInfo) {}

    fn fork(&self) -> Box<dyn Filter<'c> + 'c>;
}

/// One pod's preference among nodes.
pub trait Score<'c>: 'c {
    fn score(&self, node: &NodeInfo) -> i64;

    /// Brings all scores into 0..=[`MAX_NODE_SCORE`]. `nodes` and `scores` run in step.
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// The answer of `pre_filter`.
#[derive(Default)]
pub struct PreFilter<'c> {
    /// `None`: every node passes.
    pub filter: Option<Box<dyn Filter<'c> + 'c>>,
    /// Only these nodes can pass; makes a DaemonSet's pod cost one node instead of all.
    pub only_nodes: Option<HashSet<String>>,
}

impl<'c> PreFilter<'c> {
    pub fn skip() -> Self {
        PreFilter::default()
    }

    pub fn filter(filter: impl Filter<'c>) -> Self {
        PreFilter { filter: Some(Box::new(filter)), only_nodes: None }
    }
}

/// What preemption found: words for the event, and the node it would free.
#[derive(Clone, Debug)]
pub struct PostFilter {
    pub message: String,
    pub nomination: Option<Nomination>,
}

/// The pod shall run here once the victims are gone.
#[derive(Clone, Debug)]
pub struct Nomination {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

/// What `bind` and `pre_bind` get: the pod's decision, to be carried out against the API server.
pub struct BindContext {
    pub client: kube::Client,
    pub world: Arc<dyn World>,
    /// Told of every change of a claim or volume.
    pub storage_changed: Arc<tokio::sync::Notify>,
}

/// One scheduler plugin. Every method has a default, so a plugin states only what it does.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// An error keeps the pod out of the queue until an update of the pod itself.
    fn pre_enqueue(&self, _pod: &PodInfo) -> Result<(), Reject> {
        Ok(())
    }

    fn pre_filter<'c>(&self, _context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        Ok(PreFilter::skip())
    }

    /// No node fits: can something be done about it?
    fn post_filter<'c>(&self, _context: Context<'c>, _filters: &Filters<'c>, _diagnosis: &Diagnosis) -> Option<PostFilter> {
        None
    }

    /// `nodes`: those that passed every filter. `None`: no preference.
    fn pre_score<'c>(&self, _context: Context<'c>, _nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        None
    }

    /// Whether the event may make a pod schedulable that this plugin rejected.
    fn helps(&self, _pod: &PodInfo, _event: &ClusterEvent) -> bool {
        false
    }

    /// Takes the pod's share of something the cache does not count. Undone by `unreserve`.
    fn reserve(&self, _context: Context<'_>, _node: &NodeInfo) -> Result<(), Reject> {
        Ok(())
    }

    fn unreserve(&self, _pod: &PodInfo, _node: &str) {}

    fn pre_bind<'a>(&'a self, _context: &'a BindContext, _pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// `None`: this plugin does not bind.
    fn bind<'a>(&'a self, _context: &'a BindContext, _pod: &'a PodInfo, _node: &'a str) -> Option<BoxFuture<'a, anyhow::Result<()>>> {
        None
    }
}

/// Plugins by position in the table; at most 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PluginSet(pub u64);

impl PluginSet {
    pub fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    pub fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Why no node fits, node by node.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// Rejections by node index in the cache.
    pub rejected: Vec<(usize, Reject)>,
    /// The verdict on every node that was not looked at.
    pub absent: Option<Reason>,
    /// Set when `pre_filter` rejected the pod for all nodes.
    pub pre_filter: Option<Reason>,
    pub pre_filter_resolvable: bool,
    pub plugins: PluginSet,
}

impl Diagnosis {
    /// The message of FailedScheduling and of the PodScheduled condition.
    pub fn message(&self, nodes: usize, post_filter: Option<&str>) -> String {
        if nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut text = format!("0/{nodes} nodes are available:");
        match &self.pre_filter {
            Some(reason) => text.push_str(&format!(" {reason}.")),
            None => {
                let histogram = self.histogram(nodes);
                if !histogram.is_empty() {
                    text.push_str(&format!(" {}.", histogram.join(", ")));
                }
            }
        }
        if let Some(post_filter) = post_filter.filter(|m| !m.is_empty()) {
            text.push(' ');
            text.push_str(post_filter);
        }
        text
    }

    /// `2 Insufficient cpu`, sorted as strings.
    fn histogram(&self, nodes: usize) -> Vec<String> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.rejected.iter().flat_map(|(_, reject)| &reject.reasons) {
            *counts.entry(reason).or_default() += 1;
        }
        if let Some(reason) = &self.absent
            && self.rejected.len() < nodes
        {
            *counts.entry(reason).or_default() += nodes - self.rejected.len();
        }
        let mut lines: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        lines.sort();
        lines
    }
}

/// Scales scores to 0..=[`MAX_NODE_SCORE`] by the highest; `reverse` makes the smallest raw score the best.
pub fn normalize_by_highest(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 { 0 } else { *score * MAX_NODE_SCORE / highest };
        *score = if reverse { MAX_NODE_SCORE - scaled } else { scaled };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_upstream() {
        let cpu = || Reject::unschedulable("Insufficient cpu");
        let taint = || Reject::unresolvable("node(s) had untolerated taint {k: v}");
        let mut diagnosis = Diagnosis { rejected: vec![(0, cpu()), (1, taint())], ..Default::default() };
        assert_eq!(
            diagnosis.message(2, Some("preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.")),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}. \
             preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
        );
        diagnosis.absent = Some("node(s) didn't satisfy plugin(s) [NodeAffinity]".into());
        assert_eq!(
            diagnosis.message(4, None),
            "0/4 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, \
             2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        );
        diagnosis.pre_filter = Some("pod has unbound immediate PersistentVolumeClaims".into());
        assert_eq!(diagnosis.message(4, None), "0/4 nodes are available: pod has unbound immediate PersistentVolumeClaims.");
        assert_eq!(Diagnosis::default().message(0, None), "no nodes available to schedule pods");
    }

    #[test]
    fn normalizing() {
        let mut scores = [0, 5, 10];
        normalize_by_highest(&mut scores, false);
        assert_eq!(scores, [0, 50, 100]);
        normalize_by_highest(&mut scores, true);
        assert_eq!(scores, [100, 50, 0]);
        let mut none = [0, 0];
        normalize_by_highest(&mut none, true);
        assert_eq!(none, [100, 100]);
    }
}
