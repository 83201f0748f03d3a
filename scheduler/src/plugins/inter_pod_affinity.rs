//! InterPodAffinity: pods that want to be near others, or away from them, in a topology.
//!
//! Counts are kept per topology value (`zone=a`), so a node is judged by look-ups. Selectors are evaluated once per
//! class of pods, not once per pod.
//! Upstream: plugins/interpodaffinity/{filtering,scoring}.go, v1.33.

use std::collections::HashMap;

use crate::affinity::{AffinityTerm, Labels};
use crate::cache::{NodeInfo, PodInfo};
use crate::classes::Matching;
use crate::framework::{Context, Filter, MAX_NODE_SCORE, Plugin, PreFilter, Reject, Score};
use crate::hints::{self, ClusterEvent};
use crate::world::World;

pub struct InterPodAffinity;

/// What a running pod's required affinity is worth to a new one it would like.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// Topology key → value → number.
#[derive(Clone, Default)]
struct Counts(HashMap<String, HashMap<String, i64>>);

impl Counts {
    fn add(&mut self, key: &str, node: &NodeInfo, number: i64) {
        let Some(value) = node.label(key).filter(|_| number != 0) else { return };
        if !self.0.contains_key(key) {
            self.0.insert(key.to_owned(), HashMap::new());
        }
        if let Some(values) = self.0.get_mut(key) {
            match values.get_mut(value) {
                Some(count) => *count += number,
                None => drop(values.insert(value.to_owned(), number)),
            }
        }
    }

    fn get(&self, key: &str, value: &str) -> i64 {
        self.0.get(key).and_then(|values| values.get(value)).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.values().flat_map(HashMap::values).all(|count| *count == 0)
    }
}

fn matches(term: &AffinityTerm, namespace: &str, labels: &Labels, world: &dyn World) -> bool {
    term.matches(namespace, labels, || world.namespace_labels(namespace))
}

fn pod_matches(term: &AffinityTerm, pod: &PodInfo, world: &dyn World) -> bool {
    matches(term, &pod.key.namespace, pod.labels(), world)
}

#[derive(Clone)]
struct Terms<'c> {
    pod: &'c PodInfo,
    world: &'c dyn World,
    /// Running pods whose anti-affinity this pod would offend.
    offended: Counts,
    /// Pods that all of this pod's affinity terms match.
    near: Counts,
    /// Pods that this pod's anti-affinity terms match.
    away: Counts,
    /// The pod would satisfy its own affinity, so it may be the first.
    likes_itself: bool,
}

impl<'c> Terms<'c> {
    fn new(context: Context<'c>) -> Self {
        let (pod, world) = (context.pod, context.world);
        let likes_itself = pod.affinities.required.iter().all(|term| pod_matches(term, pod, world));
        let mut terms = Terms { pod, world, offended: Counts::default(), near: Counts::default(), away: Counts::default(), likes_itself };
        let affinities = &pod.affinities;
        let class_matches = |term: &AffinityTerm| context.cache.classes.matching(|c| matches(term, &c.namespace, &c.labels, world));
        let near: Option<Matching> = (!affinities.required.is_empty())
            .then(|| context.cache.classes.matching(|c| affinities.required.iter().all(|t| matches(t, &c.namespace, &c.labels, world))));
        let away: Vec<(&AffinityTerm, Matching)> = affinities.required_anti.iter().map(|t| (t, class_matches(t))).collect();
        let ask_running = context.cache.with_affinity > 0;
        if near.is_none() && away.is_empty() && !ask_running {
            return terms;
        }
        for node in context.cache.nodes() {
            if let Some(near) = &near {
                let count = near.count(&node.classes);
                affinities.required.iter().for_each(|term| terms.near.add(&term.topology_key, node, count));
            }
            for (term, matching) in &away {
                terms.away.add(&term.topology_key, node, matching.count(&node.classes));
            }
            if node.with_affinity > 0 {
                node.pods.iter().for_each(|entry| terms.count_offended(&entry.info, node, 1));
            }
        }
        terms
    }

    fn count_offended(&mut self, running: &PodInfo, node: &NodeInfo, number: i64) {
        for term in running.affinities.required_anti.iter().filter(|t| pod_matches(t, self.pod, self.world)) {
            self.offended.add(&term.topology_key, node, number);
        }
    }

    fn count(&mut self, other: &PodInfo, node: &NodeInfo, number: i64) {
        self.count_offended(other, node, number);
        let (affinities, world) = (&self.pod.affinities, self.world);
        if !affinities.required.is_empty() && affinities.required.iter().all(|t| pod_matches(t, other, world)) {
            affinities.required.iter().for_each(|term| self.near.add(&term.topology_key, node, number));
        }
        for term in affinities.required_anti.iter().filter(|t| pod_matches(t, other, world)) {
            self.away.add(&term.topology_key, node, number);
        }
    }

    fn near_enough(&self, node: &NodeInfo) -> bool {
        let terms = &self.pod.affinities.required;
        let values: Option<Vec<&str>> = terms.iter().map(|term| node.label(&term.topology_key)).collect();
        let Some(values) = values else { return false };
        let all = terms.iter().zip(values).all(|(term, value)| self.near.get(&term.topology_key, value) > 0);
        all || (self.near.is_empty() && self.likes_itself)
    }
}

impl<'c> Filter<'c> for Terms<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        if !self.near_enough(node) {
            return Err(Reject::unresolvable("node(s) didn't match pod affinity rules"));
        }
        let taken = |term: &AffinityTerm| node.label(&term.topology_key).is_some_and(|v| self.away.get(&term.topology_key, v) > 0);
        if self.pod.affinities.required_anti.iter().any(taken) {
            return Err(Reject::unschedulable("node(s) didn't match pod anti-affinity rules"));
        }
        let offends = |(key, values): (&String, &HashMap<String, i64>)| {
            node.label(key).is_some_and(|value| values.get(value).is_some_and(|count| *count > 0))
        };
        if self.offended.0.iter().any(offends) {
            return Err(Reject::unschedulable("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.count(pod, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.count(pod, node, -1);
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

struct Likes(Counts);

fn likes(context: Context<'_>) -> Counts {
    let (pod, world, mut counts) = (context.pod, context.world, Counts::default());
    let class_matches = |term: &AffinityTerm| context.cache.classes.matching(|c| matches(term, &c.namespace, &c.labels, world));
    let near = pod.affinities.preferred.iter().map(|(weight, term)| (*weight, term));
    let away = pod.affinities.preferred_anti.iter().map(|(weight, term)| (-weight, term));
    let wanted: Vec<(i64, &AffinityTerm, Matching)> = near.chain(away).map(|(w, t)| (w, t, class_matches(t))).collect();
    if wanted.is_empty() && context.cache.with_affinity == 0 {
        return counts;
    }
    for node in context.cache.nodes() {
        for (weight, term, matching) in &wanted {
            counts.add(&term.topology_key, node, weight * matching.count(&node.classes));
        }
        if node.with_affinity == 0 {
            continue;
        }
        for running in node.pods.iter().map(|e| &e.info.affinities).filter(|a| !a.is_empty()) {
            let hard = running.required.iter().map(|term| (HARD_AFFINITY_WEIGHT, term));
            let soft = running.preferred.iter().map(|(weight, term)| (*weight, term));
            let anti = running.preferred_anti.iter().map(|(weight, term)| (-weight, term));
            for (weight, term) in hard.chain(soft).chain(anti).filter(|(_, t)| pod_matches(t, pod, world)) {
                counts.add(&term.topology_key, node, weight);
            }
        }
    }
    counts
}

impl<'c> Score<'c> for Likes {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.0.iter().filter_map(|(key, values)| values.get(node.label(key)?)).sum()
    }

    /// The best node gets 100, the worst 0.
    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let (low, high) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if high > low { MAX_NODE_SCORE * (*score - low) / (high - low) } else { 0 };
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        let terms = Terms::new(context);
        let affinities = &context.pod.affinities;
        let nothing = affinities.required.is_empty() && affinities.required_anti.is_empty() && terms.offended.is_empty();
        // A nominated pod's anti-affinity may still be offended: then the filter has to be there.
        if nothing && context.cache.with_affinity == 0 { Ok(PreFilter::skip()) } else { Ok(PreFilter::filter(terms)) }
    }

    fn pre_score<'c>(&self, context: Context<'c>, _nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        let counts = likes(context);
        (!counts.0.is_empty()).then(|| Box::new(Likes(counts)) as Box<dyn Score<'c> + 'c>)
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::PodAssigned(_) | ClusterEvent::PodRemoved(_) | ClusterEvent::NodeAdded(_) | ClusterEvent::Namespace => true,
            ClusterEvent::PodChanged { old, new } => old.labels() != new.labels(),
            ClusterEvent::NodeUpdated { old, new } => hints::labels_changed(old, new),
            ClusterEvent::Storage => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::cycle::Cycles;
    use crate::fixtures::{PodFixture, TestWorld, node, pod};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn schedule(running: Vec<PodFixture>, pod: PodFixture) -> Result<String, String> {
        let mut cache = Cache::default();
        for (name, zone) in [("n1", "a"), ("n2", "b")] {
            cache.set_node(node(name).zone(zone).build());
        }
        running.into_iter().for_each(|p| cache.set_pod(Arc::new(p.info())));
        let (pod, world) = (pod.info(), TestWorld::default());
        Cycles::new(1).schedule(Context { pod: &pod, cache: &cache, world: &world }).map_err(|u| u.message)
    }

    fn term(app: &str) -> Value {
        json!({"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn affinity(kind: &str, app: &str) -> Value {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term(app)]}})
    }

    fn preferred(kind: &str, app: &str) -> Value {
        json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term(app)}]}})
    }

    #[test]
    fn near_and_away() {
        let db = || vec![pod("db").label("app", "db").on("n2")];
        assert_eq!(schedule(db(), pod("web").affinity(affinity("podAffinity", "db"))).as_deref(), Ok("n2"));
        assert_eq!(schedule(db(), pod("web").affinity(affinity("podAntiAffinity", "db"))).as_deref(), Ok("n1"));
        assert_eq!(schedule(db(), pod("web").affinity(preferred("podAffinity", "db"))).as_deref(), Ok("n2"));
        assert_eq!(schedule(db(), pod("web").affinity(preferred("podAntiAffinity", "db"))).as_deref(), Ok("n1"));
        let guard = vec![pod("db").label("app", "db").on("n2").affinity(affinity("podAntiAffinity", "web"))];
        assert_eq!(schedule(guard, pod("web").label("app", "web")).as_deref(), Ok("n1"));
    }

    #[test]
    fn the_first_of_a_group_may_start_it() {
        assert!(schedule(vec![], pod("web").label("app", "web").affinity(affinity("podAffinity", "web"))).is_ok());
        let message = schedule(vec![], pod("web").affinity(affinity("podAffinity", "db"))).unwrap_err();
        assert_eq!(
            message,
            "0/2 nodes are available: 2 node(s) didn't match pod affinity rules. \
             preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
        );
    }
}
