//! PodTopologySpread: keeps the pods of a workload evenly over zones, nodes, or any topology.
//!
//! Pods without constraints of their own are spread by default, softly, over hosts and zones, as members of their
//! Services and controllers.
//! Upstream: plugins/podtopologyspread/{filtering,scoring,common}.go, plugins/helper/spread.go, v1.33.

use std::collections::HashMap;

use api::Key;
use api::k8s_openapi::api::core::v1::TopologySpreadConstraint;
use api::selector::LabelSelector;

use super::untolerated;
use crate::affinity::{compile, pod_matches_node, with_pod_label_keys};
use crate::cache::{NodeInfo, PodInfo};
use crate::classes::Matching;
use crate::framework::{Context, Filter, MAX_NODE_SCORE, Plugin, PreFilter, Reject, Score};
use crate::hints::{self, ClusterEvent};
use crate::world::World;

pub struct PodTopologySpread;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Clone)]
struct Constraint {
    max_skew: i64,
    key: String,
    selectors: Vec<LabelSelector>,
    min_domains: i64,
    honor_affinity: bool,
    honor_taints: bool,
    /// Whether the pod itself counts.
    counts_self: bool,
}

impl Constraint {
    fn new(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
        let selector = constraint.label_selector.as_ref().map(|s| compile(&with_pod_label_keys(s, keys, &[], pod.labels())));
        let selectors = vec![selector.unwrap_or_else(LabelSelector::nothing)];
        Constraint {
            max_skew: i64::from(constraint.max_skew),
            key: constraint.topology_key.clone(),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            counts_self: selectors.iter().all(|s| s.matches(pod.labels())),
            selectors,
        }
    }

    fn default(max_skew: i64, key: &str, selectors: &[LabelSelector]) -> Self {
        let (key, selectors) = (key.to_owned(), selectors.to_vec());
        Constraint { max_skew, key, selectors, min_domains: 1, honor_affinity: true, honor_taints: false, counts_self: true }
    }

    /// Whether pods on the node count for this constraint.
    fn includes(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let spec = pod.spec();
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        (!self.honor_affinity || pod_matches_node(spec, &node.name, node.labels()))
            && (!self.honor_taints || untolerated(node.taints(), tolerations, &["NoSchedule", "NoExecute"]).is_none())
    }

    fn matching(&self, context: Context<'_>) -> Matching {
        let namespace = &context.pod.key.namespace;
        context
            .cache
            .classes
            .matching(|c| !c.terminating && c.namespace == *namespace && self.selectors.iter().all(|s| s.matches(&c.labels)))
    }

    fn counts(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        !other.is_terminating() && other.key.namespace == pod.key.namespace && self.selectors.iter().all(|s| s.matches(other.labels()))
    }
}

fn constraints(pod: &PodInfo, when: &str) -> Vec<Constraint> {
    let all = pod.spec().topology_spread_constraints.iter().flatten();
    all.filter(|c| c.when_unsatisfiable == when).map(|c| Constraint::new(c, pod)).collect()
}

fn has_all_keys(constraints: &[Constraint], node: &NodeInfo) -> bool {
    constraints.iter().all(|c| node.label(&c.key).is_some())
}

#[derive(Clone)]
struct Hard<'c> {
    pod: &'c PodInfo,
    constraints: Vec<Constraint>,
    /// For each constraint: matching pods by topology value.
    counts: Vec<HashMap<String, i64>>,
    /// For each constraint: the smallest of them.
    least: Vec<i64>,
}

impl<'c> Hard<'c> {
    fn new(context: Context<'c>, constraints: Vec<Constraint>) -> Self {
        let matching: Vec<Matching> = constraints.iter().map(|c| c.matching(context)).collect();
        let mut counts: Vec<HashMap<String, i64>> = vec![HashMap::new(); constraints.len()];
        for node in context.cache.nodes().iter().filter(|n| has_all_keys(&constraints, n)) {
            for ((constraint, matching), counts) in constraints.iter().zip(&matching).zip(&mut counts) {
                let Some(value) = node.label(&constraint.key).filter(|_| constraint.includes(context.pod, node)) else { continue };
                let count = matching.count(&node.classes);
                match counts.get_mut(value) {
                    Some(sum) => *sum += count,
                    None => drop(counts.insert(value.to_owned(), count)),
                }
            }
        }
        let mut hard = Hard { pod: context.pod, constraints, counts, least: Vec::new() };
        hard.find_least();
        hard
    }

    /// With fewer domains than asked for, an imagined empty one makes the minimum zero.
    fn find_least(&mut self) {
        let least = |(constraint, counts): (&Constraint, &HashMap<String, i64>)| {
            let enough = i64::try_from(counts.len()).unwrap_or(i64::MAX) >= constraint.min_domains;
            if enough { counts.values().copied().min().unwrap_or(0) } else { 0 }
        };
        self.least = self.constraints.iter().zip(&self.counts).map(least).collect();
    }

    fn count(&mut self, other: &PodInfo, node: &NodeInfo, number: i64) {
        if !has_all_keys(&self.constraints, node) {
            return;
        }
        for (constraint, counts) in self.constraints.iter().zip(&mut self.counts) {
            if constraint.counts(self.pod, other)
                && constraint.includes(self.pod, node)
                && let Some(sum) = node.label(&constraint.key).and_then(|value| counts.get_mut(value))
            {
                *sum += number;
            }
        }
        self.find_least();
    }
}

impl<'c> Filter<'c> for Hard<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        for ((constraint, counts), least) in self.constraints.iter().zip(&self.counts).zip(&self.least) {
            let Some(value) = node.label(&constraint.key) else {
                return Err(Reject::unresolvable("node(s) didn't match pod topology spread constraints (missing required label)"));
            };
            let skew = counts.get(value).copied().unwrap_or(0) + i64::from(constraint.counts_self) - least;
            if skew > constraint.max_skew {
                return Err(Reject::unschedulable("node(s) didn't match pod topology spread constraints"));
            }
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

/// The selectors of everything that claims the pod: its Services and its controller.
fn default_selectors(pod: &PodInfo, world: &dyn World) -> Vec<LabelSelector> {
    let mut selectors = Vec::new();
    for service in world.services(&pod.key.namespace) {
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
        selectors.extend(selector.map(LabelSelector::from_map).filter(|s| s.matches(pod.labels())));
    }
    let owners = pod.pod.metadata.owner_references.iter().flatten();
    for owner in owners.filter(|o| o.controller == Some(true)) {
        let key = Key::new(pod.key.namespace.clone(), owner.name.clone());
        let selector = match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("v1", "ReplicationController") => {
                let map = world.replication_controller(&key).and_then(|rc| rc.spec.as_ref()?.selector.clone());
                map.map(|map| LabelSelector::from_map(&map))
            }
            ("apps/v1", "ReplicaSet") => world.replica_set(&key).and_then(|rs| Some(compile(&rs.spec.as_ref()?.selector))),
            ("apps/v1", "StatefulSet") => world.stateful_set(&key).and_then(|ss| Some(compile(&ss.spec.as_ref()?.selector))),
            _ => None,
        };
        selectors.extend(selector);
    }
    selectors
}

struct Soft {
    constraints: Vec<Constraint>,
    matching: Vec<Matching>,
    /// For each constraint: matching pods by topology value; unused for hostnames, where the node itself is asked.
    counts: Vec<HashMap<String, i64>>,
    weights: Vec<f64>,
    /// Nodes that lack a key of an explicit constraint are not ranked.
    need_all_keys: bool,
}

impl Soft {
    fn new(context: Context<'_>, nodes: &[&NodeInfo]) -> Option<Self> {
        let explicit = context.pod.spec().topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty());
        let constraints = if explicit { constraints(context.pod, "ScheduleAnyway") } else { Self::defaults(context) };
        if constraints.is_empty() {
            return None;
        }
        let matching: Vec<Matching> = constraints.iter().map(|c| c.matching(context)).collect();
        let mut soft =
            Soft { counts: vec![HashMap::new(); constraints.len()], constraints, matching, weights: Vec::new(), need_all_keys: explicit };
        let ranked: Vec<&&NodeInfo> = nodes.iter().filter(|n| soft.ranks(n)).collect();
        for (constraint, counts) in soft.constraints.iter().zip(&mut soft.counts).filter(|(c, _)| c.key != HOSTNAME) {
            counts.extend(ranked.iter().filter_map(|n| Some((n.label(&constraint.key)?.to_owned(), 0))));
        }
        let size = |(constraint, counts): (&Constraint, &HashMap<String, i64>)| {
            let size = if constraint.key == HOSTNAME { ranked.len() } else { counts.len() };
            (size as f64 + 2.0).ln()
        };
        soft.weights = soft.constraints.iter().zip(&soft.counts).map(size).collect();
        soft.count_all(context);
        Some(soft)
    }

    fn defaults(context: Context<'_>) -> Vec<Constraint> {
        let selectors = default_selectors(context.pod, context.world);
        if selectors.is_empty() {
            return Vec::new();
        }
        vec![Constraint::default(3, HOSTNAME, &selectors), Constraint::default(5, ZONE, &selectors)]
    }

    fn ranks(&self, node: &NodeInfo) -> bool {
        !self.need_all_keys || has_all_keys(&self.constraints, node)
    }

    fn count_all(&mut self, context: Context<'_>) {
        if self.counts.iter().all(HashMap::is_empty) {
            return;
        }
        for node in context.cache.nodes().iter().filter(|n| !self.need_all_keys || has_all_keys(&self.constraints, n)) {
            for ((constraint, matching), counts) in self.constraints.iter().zip(&self.matching).zip(&mut self.counts) {
                if let Some(sum) = node.label(&constraint.key).and_then(|value| counts.get_mut(value))
                    && constraint.includes(context.pod, node)
                {
                    *sum += matching.count(&node.classes);
                }
            }
        }
    }
}

impl<'c> Score<'c> for Soft {
    /// How crowded the node's domains are.
    fn score(&self, node: &NodeInfo) -> i64 {
        if !self.ranks(node) {
            return 0;
        }
        let mut sum = 0.0;
        for (index, constraint) in self.constraints.iter().enumerate() {
            let Some(value) = node.label(&constraint.key) else { continue };
            let count = match constraint.key == HOSTNAME {
                true => self.matching[index].count(&node.classes),
                false => self.counts[index].get(value).copied().unwrap_or(0),
            };
            sum += count as f64 * self.weights[index] + (constraint.max_skew - 1) as f64;
        }
        sum.round() as i64
    }

    /// The least crowded node is the best; nodes that are not ranked get nothing.
    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let ranked = || nodes.iter().zip(scores.iter()).filter(|(n, _)| self.ranks(n)).map(|(_, s)| *s);
        let (low, high) = (ranked().min().unwrap_or(0), ranked().max().unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores) {
            *score = match (self.ranks(node), high) {
                (false, _) => 0,
                (true, 0) => MAX_NODE_SCORE,
                (true, high) => MAX_NODE_SCORE * (high + low - *score) / high,
            };
        }
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        let constraints = constraints(context.pod, "DoNotSchedule");
        Ok(if constraints.is_empty() { PreFilter::skip() } else { PreFilter::filter(Hard::new(context, constraints)) })
    }

    fn pre_score<'c>(&self, context: Context<'c>, nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        Soft::new(context, nodes).map(|soft| Box::new(soft) as Box<dyn Score<'c> + 'c>)
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let counts = |other: &PodInfo| other.key.namespace == pod.key.namespace;
        match event {
            ClusterEvent::PodAssigned(other) | ClusterEvent::PodRemoved(other) => counts(other),
            ClusterEvent::PodChanged { old, new } => counts(new) && (old.labels() != new.labels() || new.is_terminating()),
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => hints::labels_changed(old, new) || hints::taints_changed(old, new),
            ClusterEvent::Namespace | ClusterEvent::Storage => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::cycle::Cycles;
    use crate::fixtures::{PodFixture, TestWorld, node, pod};
    use serde_json::json;
    use std::sync::Arc;

    fn schedule(running: &[(&str, &str)], pod: PodFixture, world: &TestWorld) -> Result<String, String> {
        let mut cache = Cache::default();
        for (name, zone) in [("a1", "a"), ("b1", "b"), ("b2", "b")] {
            cache.set_node(node(name).zone(zone).build());
        }
        for (name, on) in running {
            cache.set_pod(Arc::new(crate::fixtures::pod(name).label("app", "web").on(on).info()));
        }
        let pod = pod.label("app", "web").info();
        Cycles::new(1).schedule(Context { pod: &pod, cache: &cache, world }).map_err(|u| u.message)
    }

    fn spread(when: &str, key: &str, min_domains: Option<i32>) -> PodFixture {
        let constraint = json!([{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when, "minDomains": min_domains, "labelSelector": {"matchLabels": {"app": "web"}}}]);
        pod("new").spec(|s| s.topology_spread_constraints = Some(serde_json::from_value(constraint).unwrap()))
    }

    #[test]
    fn hard_constraints() {
        let world = TestWorld::default();
        let one_in_b = [("x", "b1")];
        assert_eq!(schedule(&one_in_b, spread("DoNotSchedule", ZONE, None), &world).as_deref(), Ok("a1"));
        let message = schedule(&[("x", "b1"), ("y", "a1")], spread("DoNotSchedule", ZONE, Some(3)), &world).unwrap_err();
        assert!(message.starts_with("0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints."), "{message}");
        let message = schedule(&[], spread("DoNotSchedule", "rack", None), &world).unwrap_err();
        assert!(message.contains("3 node(s) didn't match pod topology spread constraints (missing required label)."), "{message}");
    }

    #[test]
    fn soft_constraints_and_defaults() {
        let world = TestWorld::default();
        assert_eq!(schedule(&[("x", "b1"), ("y", "a1")], spread("ScheduleAnyway", HOSTNAME, None), &world).as_deref(), Ok("b2"));
        let service = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"selector": {"app": "web"}}});
        let world = TestWorld { services: vec![Arc::new(serde_json::from_value(service).unwrap())], ..TestWorld::default() };
        assert_eq!(schedule(&[("x", "b1"), ("y", "b2")], pod("new"), &world).as_deref(), Ok("a1"));
    }
}
