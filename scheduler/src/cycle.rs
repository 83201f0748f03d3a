//! One scheduling cycle: a pod in, a node or the reasons out. Synchronous and without I/O.
//!
//! Upstream: pkg/scheduler/schedule_one.go (schedulePod, findNodesThatFitPod, prioritizeNodes, selectHost), v1.33.

use std::collections::HashSet;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Diagnosis, Filter, PostFilter, Reason, Reject};
use crate::plugins::PLUGINS;

/// A cluster of at most this many nodes is always searched wholly.
const MIN_FEASIBLE_NODES: usize = 100;
/// In a very large cluster, still look for this share of nodes (percent).
const MIN_PERCENTAGE: usize = 5;

/// A plugin's filter with its place in the table.
pub type Filters<'c> = Vec<(usize, Box<dyn Filter<'c> + 'c>)>;

/// Why a cycle found no node, and what preemption could do about it.
#[derive(Debug)]
pub struct Unfit {
    pub message: String,
    pub diagnosis: Diagnosis,
    pub post_filter: Option<PostFilter>,
}

/// What outlives a cycle: where the next search starts, and the dice for ties.
pub struct Cycles {
    next_start: usize,
    dice: SmallRng,
}

impl Cycles {
    pub fn new(seed: u64) -> Self {
        Cycles { next_start: 0, dice: SmallRng::seed_from_u64(seed) }
    }

    /// The name of the best node for the pod.
    pub fn schedule(&mut self, context: Context<'_>) -> Result<String, Box<Unfit>> {
        let mut diagnosis = Diagnosis::default();
        if context.cache.nodes().is_empty() {
            return Err(unfit(context, diagnosis, &Vec::new()));
        }
        let (filters, only_nodes) = match pre_filter(context, &mut diagnosis) {
            Some(prepared) => prepared,
            None => return Err(unfit(context, diagnosis, &Vec::new())),
        };
        let feasible = self.feasible(context, &filters, only_nodes.as_ref(), &mut diagnosis);
        match feasible.as_slice() {
            [] => Err(unfit(context, diagnosis, &filters)),
            [only] => Ok(only.name.clone()),
            nodes => {
                let scores = prioritize(context, nodes);
                Ok(nodes[self.select(&scores)].name.clone())
            }
        }
    }

    /// Nodes that pass every filter, until there are enough of them to choose from.
    fn feasible<'c>(
        &mut self,
        context: Context<'c>,
        filters: &Filters<'c>,
        only: Option<&HashSet<String>>,
        diagnosis: &mut Diagnosis,
    ) -> Vec<&'c NodeInfo> {
        let cache = context.cache;
        let mut feasible = Vec::new();
        if let Some(only) = only {
            for node in only.iter().filter_map(|name| cache.node(name)) {
                examine(context, filters, node, &mut feasible, diagnosis);
            }
            return feasible;
        }
        let (order, total) = (cache.order(), cache.order().len());
        let enough = feasible_nodes_to_find(total);
        let mut seen = 0;
        while seen < total && feasible.len() < enough {
            let node = &cache.nodes()[order[(self.next_start + seen) % total]];
            examine(context, filters, node, &mut feasible, diagnosis);
            seen += 1;
        }
        self.next_start = (self.next_start + seen) % total;
        feasible
    }

    /// The index of the highest score; any of them with equal chance.
    fn select(&mut self, scores: &[i64]) -> usize {
        let (mut best, mut ties) = (0, 1);
        for (index, score) in scores.iter().enumerate().skip(1) {
            if *score > scores[best] {
                (best, ties) = (index, 1);
            } else if *score == scores[best] {
                ties += 1;
                if self.dice.random_range(0..ties) == 0 {
                    best = index;
                }
            }
        }
        best
    }
}

fn feasible_nodes_to_find(total: usize) -> usize {
    if total <= MIN_FEASIBLE_NODES {
        return total;
    }
    let percentage = 50_usize.saturating_sub(total / 125).max(MIN_PERCENTAGE);
    (total * percentage / 100).max(MIN_FEASIBLE_NODES)
}

/// Every plugin's filter for this pod, and the nodes they narrow the search to. `None`: rejected for all nodes.
fn pre_filter<'c>(context: Context<'c>, diagnosis: &mut Diagnosis) -> Option<(Filters<'c>, Option<HashSet<String>>)> {
    let mut filters = Filters::with_capacity(PLUGINS.len());
    let mut only: Option<HashSet<String>> = None;
    let mut narrowed_by = Vec::new();
    for (index, row) in PLUGINS.iter().enumerate() {
        match row.plugin.pre_filter(context) {
            Err(reject) => {
                diagnosis.plugins.insert(index);
                diagnosis.pre_filter = Some(Reason::Owned(reject.reasons.join(", ")));
                diagnosis.pre_filter_resolvable = reject.resolvable;
                return None;
            }
            Ok(prepared) => {
                filters.extend(prepared.filter.map(|filter| (index, filter)));
                if let Some(nodes) = prepared.only_nodes {
                    narrowed_by.push(row.plugin.name());
                    diagnosis.plugins.insert(index);
                    only = Some(only.map_or_else(|| nodes.clone(), |only| &only & &nodes));
                }
            }
        }
    }
    if only.is_some() {
        diagnosis.absent = Some(format!("node(s) didn't satisfy plugin(s) [{}]", narrowed_by.join(" ")).into());
    }
    Some((filters, only))
}

fn examine<'c>(
    context: Context<'c>,
    filters: &Filters<'c>,
    node: &'c NodeInfo,
    feasible: &mut Vec<&'c NodeInfo>,
    diagnosis: &mut Diagnosis,
) {
    match passes_with_nominated(context, filters, node) {
        Ok(()) => feasible.push(node),
        Err((plugin, reject)) => {
            diagnosis.plugins.insert(plugin);
            diagnosis.rejected.push((node.index, reject));
        }
    }
}

/// The first plugin that rejects the node speaks for it.
pub fn passes(filters: &Filters<'_>, node: &NodeInfo) -> Result<(), (usize, Reject)> {
    filters.iter().try_for_each(|(plugin, filter)| filter.filter(node).map_err(|reject| (*plugin, reject)))
}

/// A node that pods of equal or higher priority are about to take must do with them and without them.
pub fn passes_with_nominated(context: Context<'_>, filters: &Filters<'_>, node: &NodeInfo) -> Result<(), (usize, Reject)> {
    let nominated = context.cache.nominated_on(&node.name).iter();
    let others: Vec<&PodInfo> =
        nominated.map(|p| &**p).filter(|p| p.priority >= context.pod.priority && p.uid != context.pod.uid).collect();
    if !others.is_empty() {
        let (mut filters, mut node) = (fork(filters), node.clone());
        for pod in others {
            add_pod(&mut filters, pod, &mut node);
        }
        passes(&filters, &node)?;
    }
    passes(filters, node)
}

pub fn fork<'c>(filters: &Filters<'c>) -> Filters<'c> {
    filters.iter().map(|(plugin, filter)| (*plugin, filter.fork())).collect()
}

pub fn add_pod(filters: &mut Filters<'_>, pod: &PodInfo, node: &mut NodeInfo) {
    node.add_pod(crate::cache::PodEntry { info: std::sync::Arc::new(pod.clone()), class: crate::classes::NO_CLASS });
    filters.iter_mut().for_each(|(_, filter)| filter.add_pod(pod, node));
}

pub fn remove_pod(filters: &mut Filters<'_>, pod: &PodInfo, node: &mut NodeInfo) {
    node.remove_pod(&pod.uid);
    filters.iter_mut().for_each(|(_, filter)| filter.remove_pod(pod, node));
}

/// The weighted sum of all plugins' scores.
fn prioritize(context: Context<'_>, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    let mut scores = vec![0; nodes.len()];
    for row in PLUGINS.iter().filter(|row| row.weight > 0) {
        let Some(scorer) = row.plugin.pre_score(context, nodes) else { continue };
        for (score, node) in scores.iter_mut().zip(nodes) {
            *score = scorer.score(node);
        }
        scorer.normalize(nodes, &mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            *total += row.weight * score;
        }
    }
    totals
}

fn unfit<'c>(context: Context<'c>, diagnosis: Diagnosis, filters: &Filters<'c>) -> Box<Unfit> {
    let post_filter = match context.cache.nodes().is_empty() {
        true => None,
        false => PLUGINS.iter().find_map(|row| row.plugin.post_filter(context, filters, &diagnosis)),
    };
    let message = diagnosis.message(context.cache.nodes().len(), post_filter.as_ref().map(|p| p.message.as_str()));
    Box::new(Unfit { message, diagnosis, post_filter })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::fixtures::{NodeFixture, PodFixture, TestWorld, node, pod};
    use std::sync::Arc;

    fn schedule(nodes: Vec<NodeFixture>, running: Vec<PodFixture>, pod: PodFixture) -> Result<String, String> {
        let mut cache = Cache::default();
        nodes.into_iter().for_each(|n| cache.set_node(n.build()));
        running.into_iter().for_each(|p| cache.set_pod(Arc::new(p.info())));
        let (pod, world) = (pod.info(), TestWorld::default());
        let context = Context { pod: &pod, cache: &cache, world: &world };
        Cycles::new(1).schedule(context).map_err(|unfit| unfit.message)
    }

    #[test]
    fn the_emptier_node_wins() {
        let placed = schedule(vec![node("n1").cpu("4"), node("n2").cpu("4")], vec![pod("busy").cpu("2").on("n1")], pod("web").cpu("1"));
        assert_eq!(placed.as_deref(), Ok("n2"));
    }

    #[test]
    fn reasons_are_counted_per_node() {
        let unfit = schedule(
            vec![node("n1").cpu("1"), node("n2").taint("k", "v", "NoSchedule"), node("n3").cordoned(), node("n4").label("a", "b")],
            vec![pod("busy").cpu("1").on("n1").priority(10)],
            pod("web").cpu("500m"),
        );
        // n4 fits, so the pod is placed there.
        assert_eq!(unfit.as_deref(), Ok("n4"));
        let unfit = schedule(
            vec![node("n1").cpu("1"), node("n2").taint("k", "v", "NoSchedule"), node("n3").cordoned()],
            vec![pod("busy").cpu("1").on("n1").priority(10)],
            pod("web").cpu("500m"),
        );
        assert_eq!(
            unfit.unwrap_err(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable. \
             preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn a_daemon_pod_looks_at_its_node_only() {
        let unfit = schedule(vec![node("n1").cpu("1"), node("n2"), node("n3")], vec![], pod("daemon").cpu("2").only_on_node("n1"));
        assert_eq!(
            unfit.unwrap_err(),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]. \
             preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        );
        assert_eq!(schedule(vec![], vec![], pod("web")).unwrap_err(), "no nodes available to schedule pods");
    }

    #[test]
    fn a_sample_is_enough_in_a_large_cluster() {
        for (total, expected) in [(10, 10), (100, 100), (125, 100), (1000, 420), (5000, 500), (6000, 300)] {
            assert_eq!(feasible_nodes_to_find(total), expected, "{total}");
        }
    }
}
