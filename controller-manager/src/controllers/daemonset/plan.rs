//! The decision: on which nodes to make pods, which pods to delete, and the status.
//!
//! Upstream: `pkg/controller/daemon/{daemon_controller,update}.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::nodes::{node_of, should_run};
use crate::shared::percent::{self, Round};
use crate::shared::revisions::HASH_LABEL;
use crate::shared::{meta, pods};

/// A failed pod is replaced no sooner than this after its making, lest a bad node be hammered.
const FAILED_REST: Duration = Duration::from_secs(10);

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Names of nodes.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Of `delete`, those that failed: told in an event.
    pub failed: Vec<Arc<Pod>>,
    pub status: DaemonSetStatus,
    pub again: Option<Timestamp>,
}

/// A node and the pods of the set on it.
struct Place<'a> {
    node: &'a str,
    should_run: bool,
    may_stay: bool,
    pods: Vec<Arc<Pod>>,
}

/// `hash`: the current revision.
pub fn plan(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>], hash: &str, now: Timestamp) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let places = places(spec, nodes, pods);
    let mut plan = Plan { status: status(set, spec, &places, hash, now), ..Plan::default() };
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    plan.again = pods::next_available(pods, min_ready, now);
    if meta::is_deleting(set) {
        return plan;
    }
    let desired = plan.status.desired_number_scheduled;
    let (surge, unavailable) = limits(spec, desired);
    places.iter().for_each(|place| tend(&mut plan, place, surge > 0, hash, now));
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    if rolling && plan.create.is_empty() && plan.delete.is_empty() {
        match surge {
            0 => replace(&mut plan, &places, hash, unavailable, |pod| pods::is_available(pod, min_ready, now)),
            surge => replace_with_surge(&mut plan, &places, hash, surge, |pod| pods::is_available(pod, min_ready, now)),
        }
    }
    plan
}

fn places<'a>(spec: &DaemonSetSpec, nodes: &'a [Arc<Node>], pods: &[Arc<Pod>]) -> Vec<Place<'a>> {
    let mut by_node: BTreeMap<&str, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = node_of(pod) {
            by_node.entry(node).or_default().push(pod.clone());
        }
    }
    let template = spec.template.spec.clone().unwrap_or_default();
    let place = |node: &'a Arc<Node>| {
        let (should_run, may_stay) = should_run(&template, node);
        let mut pods = by_node.get(meta::name(&**node)).cloned().unwrap_or_default();
        pods.sort_by_key(|pod| (!pods::is_ready(pod), meta::created(&**pod), meta::name(&**pod).to_owned()));
        Place { node: meta::name(&**node), should_run, may_stay, pods }
    };
    nodes.iter().map(place).collect()
}

fn limits(spec: &DaemonSetSpec, desired: i32) -> (i32, i32) {
    let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let count = |value: Option<&_>| value.and_then(|value| percent::of(value, desired, Round::Up));
    let surge = count(rolling.and_then(|rolling| rolling.max_surge.as_ref())).unwrap_or(0);
    let unavailable = count(rolling.and_then(|rolling| rolling.max_unavailable.as_ref())).unwrap_or(1);
    (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
}

fn is_current(pod: &Pod, hash: &str) -> bool {
    meta::label(pod, HASH_LABEL) == Some(hash)
}

/// One pod where one should be (with surge: one of the old and one of the new), none elsewhere.
fn tend(plan: &mut Plan, place: &Place, surge: bool, hash: &str, now: Timestamp) {
    let living = || place.pods.iter().filter(|pod| !meta::is_deleting(&***pod));
    if !place.may_stay {
        return plan.delete.extend(living().cloned());
    }
    let mut kept = 0;
    let (mut old, mut new) = (0, 0);
    for pod in living() {
        if pods::is_finished(pod) {
            let rested = meta::created(&**pod).checked_add(FAILED_REST).unwrap_or(now);
            if rested > now {
                plan.again = plan.again.into_iter().chain([rested]).min();
                kept += 1;
            } else {
                plan.delete.push(pod.clone());
                plan.failed.push(pod.clone());
            }
            continue;
        }
        let slot = if surge && is_current(pod, hash) { &mut new } else { &mut old };
        *slot += 1;
        if *slot > 1 {
            plan.delete.push(pod.clone());
        }
        kept += 1;
    }
    // A pod on its way out still holds the place (ports, host paths), unless surging.
    let leaving = place.pods.iter().any(|pod| meta::is_deleting(&**pod) && !pods::is_finished(pod));
    if place.should_run && kept == 0 && (surge || !leaving) {
        plan.create.push(place.node.to_owned());
    }
}

/// The living pod of the old and of the current revision.
fn old_and_new<'a>(place: &'a Place, hash: &str) -> (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>) {
    let living = || place.pods.iter().filter(|pod| pods::is_active(pod));
    (living().find(|pod| !is_current(pod, hash)), living().find(|pod| is_current(pod, hash)))
}

/// Deletes old pods: broken ones at once, working ones as far as `max_unavailable` allows.
fn replace(plan: &mut Plan, places: &[Place], hash: &str, max_unavailable: i32, available: impl Fn(&Pod) -> bool) {
    let (mut unavailable, mut broken, mut working) = (0, Vec::new(), Vec::new());
    for place in places.iter().filter(|place| place.should_run) {
        match old_and_new(place, hash) {
            (_, Some(new)) => unavailable += i32::from(!available(new)),
            (None, None) => unavailable += 1,
            (Some(old), None) if available(old) => working.push(old.clone()),
            (Some(old), None) => {
                broken.push(old.clone());
                unavailable += 1;
            }
        }
    }
    plan.delete.extend(broken);
    let room = usize::try_from(max_unavailable - unavailable).unwrap_or(0);
    plan.delete.extend(working.into_iter().take(room));
}

/// Makes new pods beside old ones, up to `max_surge`, and deletes an old one when its successor is available.
fn replace_with_surge(plan: &mut Plan, places: &[Place], hash: &str, max_surge: i32, available: impl Fn(&Pod) -> bool) {
    let (mut surging, mut candidates) = (0, Vec::new());
    for place in places.iter().filter(|place| place.should_run) {
        match old_and_new(place, hash) {
            (Some(old), Some(new)) if available(new) => plan.delete.push(old.clone()),
            (Some(_), Some(_)) => surging += 1,
            (Some(old), None) if available(old) => candidates.push(place.node.to_owned()),
            (Some(_), None) => plan.create.push(place.node.to_owned()),
            _ => {}
        }
    }
    let room = usize::try_from(max_surge - surging).unwrap_or(0);
    plan.create.extend(candidates.into_iter().take(room));
}

fn status(set: &DaemonSet, spec: &DaemonSetSpec, places: &[Place], hash: &str, now: Timestamp) -> DaemonSetStatus {
    let before = set.status.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for place in places {
        if !place.should_run {
            status.number_misscheduled += i32::from(!place.pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(pod) = place.pods.first() else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pods::is_ready(pod));
        available += i32::from(pods::is_available(pod, min_ready, now));
        updated += i32::from(place.pods.iter().any(|pod| is_current(pod, hash)));
    }
    let some = |count: i32| Some(count).filter(|count| *count != 0);
    status.updated_number_scheduled = some(updated);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::pods::fixtures::{Fixture, at, pod};
    use k8s_openapi::api::apps::v1::{DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn set(surge: i32, unavailable: i32) -> DaemonSet {
        let rolling =
            RollingUpdateDaemonSet { max_surge: Some(IntOrString::Int(surge)), max_unavailable: Some(IntOrString::Int(unavailable)) };
        let strategy = DaemonSetUpdateStrategy { type_: Some("RollingUpdate".into()), rolling_update: Some(rolling) };
        let spec = DaemonSetSpec { update_strategy: Some(strategy), ..DaemonSetSpec::default() };
        DaemonSet { spec: Some(spec), ..DaemonSet::default() }
    }

    fn nodes(count: usize) -> Vec<Arc<Node>> {
        let node = |i: usize| {
            let mut node = Node::default();
            node.metadata.name = Some(format!("n{i}"));
            Arc::new(node)
        };
        (1..=count).map(node).collect()
    }

    fn daemon(node: &str, hash: &str) -> Fixture {
        pod(&format!("{node}-{hash}")).on(node).label(HASH_LABEL, hash)
    }

    fn names(plan: &Plan) -> (Vec<String>, Vec<String>) {
        (plan.create.clone(), plan.delete.iter().map(|pod| meta::name(&**pod).to_owned()).collect())
    }

    fn planned(set: &DaemonSet, count: usize, pods: &[Arc<Pod>]) -> (Vec<String>, Vec<String>) {
        names(&plan(set, &nodes(count), pods, "new", at(100)))
    }

    #[test]
    fn every_node_has_one() {
        let pods = [daemon("n1", "new").ready(1).arc(), daemon("n3", "new").phase("Failed").arc()];
        let plan = plan(&set(0, 1), &nodes(3), &pods, "new", at(100));
        assert_eq!(names(&plan), (vec!["n2".into(), "n3".into()], vec!["n3-new".into()]));
        assert_eq!((plan.status.desired_number_scheduled, plan.status.current_number_scheduled), (3, 2));
        assert_eq!((plan.status.number_ready, plan.status.number_unavailable), (1, Some(2)));
    }

    #[test]
    fn updates_keep_to_max_unavailable() {
        let old = |node: &str| daemon(node, "old").ready(1).arc();
        let pods = [old("n1"), old("n2"), old("n3")];
        assert_eq!(planned(&set(0, 1), 3, &pods), (vec![], vec!["n1-old".into()]));
        assert_eq!(planned(&set(0, 2), 3, &pods).1.len(), 2);
        let broken = [old("n1"), daemon("n2", "old").arc(), old("n3")];
        assert_eq!(planned(&set(0, 1), 3, &broken), (vec![], vec!["n2-old".into()]));
    }

    #[test]
    fn updates_may_surge() {
        let old = |node: &str| daemon(node, "old").ready(1).arc();
        let pods = [old("n1"), old("n2")];
        assert_eq!(planned(&set(1, 0), 2, &pods), (vec!["n1".into()], vec![]));
        let starting = [old("n1"), daemon("n1", "new").arc(), old("n2")];
        assert_eq!(planned(&set(1, 0), 2, &starting), (vec![], vec![]));
        let started = [old("n1"), daemon("n1", "new").ready(1).arc(), old("n2")];
        assert_eq!(planned(&set(1, 0), 2, &started), (vec!["n2".into()], vec!["n1-old".into()]));
    }
}
