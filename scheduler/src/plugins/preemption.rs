//! DefaultPreemption: which pods of lower priority would have to go for this one to run?
//!
//! Decides on copies of a node and of the filters; nothing is evicted here. A node is worth trying only if its rejection
//! was resolvable. Disruption budgets are respected where possible, never guaranteed: upstream's rule.
//! Upstream: plugins/defaultpreemption/default_preemption.go, framework/preemption/preemption.go, v1.33.

use std::sync::Arc;

use crate::affinity::compile;
use crate::cache::{NodeInfo, PodInfo};
use crate::cycle::{self, Filters};
use crate::framework::{Context, Diagnosis, Nomination, Plugin, PostFilter, Reject};

pub struct DefaultPreemption;

/// Candidates to compare: a tenth of the nodes, but never less than this.
const MIN_CANDIDATES: usize = 100;

struct Candidate {
    node: String,
    /// The most important first.
    victims: Vec<Arc<PodInfo>>,
    /// How many of them a disruption budget would have kept.
    violations: usize,
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn post_filter<'c>(&self, context: Context<'c>, filters: &Filters<'c>, diagnosis: &Diagnosis) -> Option<PostFilter> {
        let message = |text: &str| PostFilter { message: format!("preemption: {text}"), nomination: None };
        if let Some(why) = not_eligible(context, diagnosis) {
            return Some(message(why));
        }
        let mut rejected = Vec::new();
        let mut candidates = Vec::new();
        let enough = (context.cache.nodes().len() / 10).max(MIN_CANDIDATES);
        for (index, _) in diagnosis.rejected.iter().filter(|(_, reject)| reject.resolvable) {
            match victims_on(context, filters, &context.cache.nodes()[*index]) {
                Ok(candidate) => candidates.push(candidate),
                Err(reject) => rejected.push((*index, reject)),
            }
            if candidates.len() >= enough {
                break;
            }
        }
        let Some(best) = candidates.into_iter().min_by_key(cost) else {
            let absent = Some("Preemption is not helpful for scheduling".into());
            let reasons = Diagnosis { rejected, absent, ..Diagnosis::default() };
            return Some(message(&reasons.message(context.cache.nodes().len(), None)));
        };
        Some(PostFilter { message: String::new(), nomination: Some(Nomination { node: best.node, victims: best.victims }) })
    }
}

fn not_eligible(context: Context<'_>, diagnosis: &Diagnosis) -> Option<&'static str> {
    let pod = context.pod;
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let node = context.cache.node(pod.nominated_node()?)?;
    let hopeless = diagnosis.rejected.iter().any(|(index, reject)| *index == node.index && !reject.resolvable);
    let leaving = |entry: &crate::cache::PodEntry| entry.info.is_terminating() && entry.info.priority < pod.priority;
    (!hopeless && node.pods.iter().any(leaving)).then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Takes away everything less important, then gives back whatever still leaves room.
fn victims_on<'c>(context: Context<'c>, filters: &Filters<'c>, node: &'c NodeInfo) -> Result<Candidate, Reject> {
    let lower = node.pods.iter().map(|e| e.info.clone()).filter(|p| p.priority < context.pod.priority);
    let mut lower: Vec<Arc<PodInfo>> = lower.collect();
    if lower.is_empty() {
        return Err(Reject::unresolvable("No preemption victims found for incoming pod"));
    }
    lower.sort_by_key(|pod| importance(pod));
    let (mut node, mut filters) = (node.clone(), cycle::fork(filters));
    for pod in &lower {
        cycle::remove_pod(&mut filters, pod, &mut node);
    }
    cycle::passes_with_nominated(context, &filters, &node).map_err(|(_, reject)| reject)?;
    let (protected, free): (Vec<_>, Vec<_>) = split_by_budgets(context, lower);
    let mut candidate = Candidate { node: node.name.clone(), victims: Vec::new(), violations: 0 };
    for (pod, is_protected) in protected.into_iter().map(|p| (p, true)).chain(free.into_iter().map(|p| (p, false))) {
        cycle::add_pod(&mut filters, &pod, &mut node);
        if cycle::passes_with_nominated(context, &filters, &node).is_err() {
            cycle::remove_pod(&mut filters, &pod, &mut node);
            candidate.victims.push(pod);
            candidate.violations += usize::from(is_protected);
        }
    }
    candidate.victims.sort_by_key(|pod| importance(pod));
    Ok(candidate)
}

/// Sorts the most important first: high priority, then long running.
fn importance(pod: &PodInfo) -> (i64, i64) {
    (-i64::from(pod.priority), started(pod))
}

/// Microseconds; a pod that has not started counts as the youngest.
fn started(pod: &PodInfo) -> i64 {
    let start = pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    start.map_or(i64::MAX, |time| time.0.as_microsecond())
}

/// Pods whose eviction would break a disruption budget, and the others.
fn split_by_budgets(context: Context<'_>, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut namespaces: Vec<&str> = pods.iter().map(|p| p.key.namespace.as_str()).collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    let budgets: Vec<_> = namespaces.into_iter().flat_map(|n| context.world.disruption_budgets(n)).collect();
    let mut allowed: Vec<i32> = budgets.iter().map(|b| b.status.as_ref().map_or(0, |s| s.disruptions_allowed)).collect();
    let mut breaks = |pod: &PodInfo| {
        let mut broken = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let covers = budget.metadata.namespace.as_deref() == Some(&pod.key.namespace)
                && selector.is_some_and(|s| compile(s).matches(pod.labels()));
            let counted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref()).is_some_and(|d| d.contains_key(&pod.key.name));
            if covers && !counted {
                *allowed -= 1;
                broken |= *allowed < 0;
            }
        }
        broken
    };
    pods.into_iter().partition(|pod| breaks(pod))
}

/// The least cost wins: budgets kept, unimportant victims, few of them, young ones.
fn cost(candidate: &Candidate) -> (usize, i64, i64, usize, i64) {
    let highest = candidate.victims.first().map_or(i64::MIN, |p| i64::from(p.priority));
    // Shifted, so that many victims of negative priority don't count as cheap.
    let sum = candidate.victims.iter().map(|p| i64::from(p.priority) + i64::from(i32::MAX) + 1).sum();
    let of_highest = candidate.victims.iter().filter(|p| i64::from(p.priority) == highest);
    let earliest = of_highest.map(|p| started(p)).min().unwrap_or(i64::MAX);
    (candidate.violations, highest, sum, candidate.victims.len(), -earliest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::cycle::Cycles;
    use crate::fixtures::{NodeFixture, PodFixture, TestWorld, node, pod};

    fn preempt(
        nodes: Vec<NodeFixture>,
        running: Vec<PodFixture>,
        pod: PodFixture,
        world: TestWorld,
    ) -> Result<(String, Vec<String>), String> {
        let mut cache = Cache::default();
        nodes.into_iter().for_each(|n| cache.set_node(n.build()));
        running.into_iter().for_each(|p| cache.set_pod(Arc::new(p.info())));
        let pod = pod.info();
        let unfit = Cycles::new(1).schedule(Context { pod: &pod, cache: &cache, world: &world }).unwrap_err();
        match unfit.post_filter.clone().and_then(|p| p.nomination) {
            Some(n) => Ok((n.node, n.victims.iter().map(|v| v.key.name.clone()).collect())),
            None => Err(unfit.message),
        }
    }

    fn victims(node: &str, names: &[&str]) -> Result<(String, Vec<String>), String> {
        Ok((node.to_owned(), names.iter().map(|n| (*n).to_owned()).collect()))
    }

    #[test]
    fn as_few_and_as_unimportant_as_possible() {
        let nodes = || vec![node("n1").cpu("4"), node("n2").cpu("4")];
        let low = |name: &str, on: &str, cpu: &str, priority: i32| pod(name).on(on).cpu(cpu).priority(priority);
        let running = vec![low("a", "n1", "1", 1), low("b", "n1", "3", 2), low("c", "n2", "2", 1), low("d", "n2", "2", 1)];
        assert_eq!(preempt(nodes(), running, pod("web").cpu("2").priority(10), TestWorld::default()), victims("n2", &["d"]));
        let running = vec![low("a", "n1", "4", 5), low("b", "n2", "4", 3)];
        assert_eq!(preempt(nodes(), running, pod("web").cpu("2").priority(10), TestWorld::default()), victims("n2", &["b"]));
    }

    #[test]
    fn budgets_are_kept_where_possible() {
        let budget = serde_json::json!({"metadata": {"namespace": "default", "name": "b"}, "spec": {"selector": {"matchLabels": {"app": "db"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let world = TestWorld { budgets: vec![Arc::new(serde_json::from_value(budget).unwrap())], ..TestWorld::default() };
        let running = vec![pod("db").on("n1").cpu("4").label("app", "db"), pod("web").on("n2").cpu("4").priority(1)];
        let nodes = vec![node("n1").cpu("4"), node("n2").cpu("4")];
        assert_eq!(preempt(nodes, running, pod("new").cpu("4").priority(10), world), victims("n2", &["web"]));
    }

    #[test]
    fn when_it_cannot_help() {
        let never = pod("web").cpu("2").priority(10).spec(|s| s.preemption_policy = Some("Never".into()));
        let running = || vec![pod("a").on("n1").cpu("1")];
        let message = preempt(vec![node("n1").cpu("2")], running(), never, TestWorld::default()).unwrap_err();
        assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.");
        let large = pod("web").cpu("3").priority(10);
        let message = preempt(vec![node("n1").cpu("2")], running(), large, TestWorld::default()).unwrap_err();
        assert_eq!(
            message,
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
    }
}
