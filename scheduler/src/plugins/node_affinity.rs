//! NodeAffinity: `spec.nodeSelector`, required and preferred node affinity.
//!
//! Terms that name nodes (`metadata.name`, as DaemonSets write them) narrow the cycle to those nodes.
//! Upstream: plugins/nodeaffinity/node_affinity.go, v1.33.

use std::collections::HashSet;

use api::k8s_openapi::api::core::v1::{NodeSelectorTerm, PodSpec, PreferredSchedulingTerm};

use crate::affinity::{pod_matches_node, required_node_affinity, term_matches};
use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject, Score, normalize_by_highest};
use crate::hints::{self, ClusterEvent};

pub struct NodeAffinity;

#[derive(Clone)]
struct Required<'c>(&'c PodSpec);

struct Preferred<'c>(&'c [PreferredSchedulingTerm]);

/// Names a term allows, if it says so by `metadata.name In`.
fn named(term: &NodeSelectorTerm) -> Option<HashSet<String>> {
    let by_name = |r: &&api::k8s_openapi::api::core::v1::NodeSelectorRequirement| r.key == "metadata.name" && r.operator == "In";
    let sets = term.match_fields.iter().flatten().filter(by_name).map(|r| r.values.iter().flatten().cloned().collect());
    sets.reduce(|a: HashSet<String>, b| &a & &b)
}

/// The union over all terms; `None` if one of them names no node.
fn only_nodes(spec: &PodSpec) -> Option<HashSet<String>> {
    let terms = &required_node_affinity(spec)?.node_selector_terms;
    terms.iter().map(named).try_fold(HashSet::new(), |mut all, names| {
        all.extend(names?);
        Some(all)
    })
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        let spec = context.pod.spec();
        if required_node_affinity(spec).is_none() && spec.node_selector.as_ref().is_none_or(|s| s.is_empty()) {
            return Ok(PreFilter::skip());
        }
        let only_nodes = required_node_affinity(spec).filter(|s| !s.node_selector_terms.is_empty()).and_then(|_| only_nodes(spec));
        if only_nodes.as_ref().is_some_and(HashSet::is_empty) {
            return Err(Reject::unresolvable("pod affinity terms conflict"));
        }
        Ok(PreFilter { only_nodes, ..PreFilter::filter(Required(spec)) })
    }

    fn pre_score<'c>(&self, context: Context<'c>, _nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        let affinity = context.pod.spec().affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = affinity.preferred_during_scheduling_ignored_during_execution.as_deref().filter(|t| !t.is_empty())?;
        Some(Box::new(Preferred(terms)))
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let changed = match event {
            ClusterEvent::NodeUpdated { old, new } => hints::labels_changed(old, new),
            _ => true,
        };
        let Some(node) = event.node().filter(|_| changed) else { return false };
        let name = node.metadata.name.as_deref().unwrap_or_default();
        pod_matches_node(pod.spec(), name, node.metadata.labels.as_ref().unwrap_or(&Default::default()))
    }
}

impl<'c> Filter<'c> for Required<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match pod_matches_node(self.0, &node.name, node.labels()) {
            true => Ok(()),
            false => Err(Reject::unresolvable("node(s) didn't match Pod's node affinity/selector")),
        }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

impl<'c> Score<'c> for Preferred<'c> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let holds = |term: &&PreferredSchedulingTerm| {
            let preference = &term.preference;
            let empty = preference.match_expressions.as_ref().is_none_or(Vec::is_empty)
                && preference.match_fields.as_ref().is_none_or(Vec::is_empty);
            !empty && term_matches(preference, &node.name, node.labels())
        };
        self.0.iter().filter(holds).map(|term| i64::from(term.weight)).sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize_by_highest(scores, false);
    }
}
