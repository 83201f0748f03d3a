//! The decision: the one next step (OrderedReady) or all of them (Parallel), and the status.
//!
//! Upstream: `pkg/controller/statefulset/stateful_set_control.go`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::identity::{in_order, revision_of};
use crate::shared::{meta, pods};

#[derive(Debug, PartialEq)]
pub enum Step {
    /// Of the current (not the update) revision if so.
    Create { ordinal: i32, current: bool },
    /// A finished pod, to be made anew.
    Recreate(Arc<Pod>),
    /// A pod of an old revision.
    Update(Arc<Pod>),
    /// A pod beyond the wished number.
    Condemn(Arc<Pod>),
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub status: StatefulSetStatus,
    pub again: Option<Timestamp>,
}

/// Names of the revision the set comes from and of the one it goes to.
pub struct Revisions<'a> {
    pub current: &'a str,
    pub update: &'a str,
}

pub fn plan(set: &StatefulSet, pods: &[Arc<Pod>], revisions: &Revisions, now: Timestamp) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut plan = Plan { again: pods::next_available(pods, min_ready, now), ..Plan::default() };
    if !meta::is_deleting(set) {
        let view = View::new(set, spec, pods, min_ready, now);
        let mut steps = Vec::new();
        view.steps(&mut steps);
        plan.steps = match (view.update(revisions), steps.is_empty()) {
            (Some(step), true) if !view.waits() => vec![step],
            _ => steps,
        };
    }
    plan.status = status(set, spec, pods, revisions, now);
    plan
}

struct View {
    ordered: bool,
    partition: i32,
    rolling: bool,
    /// Of each wished ordinal.
    wished: Vec<(i32, Option<Arc<Pod>>)>,
    /// Beyond them, the last first.
    condemned: Vec<Arc<Pod>>,
    min_ready: i32,
    now: Timestamp,
}

impl View {
    fn new(set: &StatefulSet, spec: &StatefulSetSpec, pods: &[Arc<Pod>], min_ready: i32, now: Timestamp) -> Self {
        let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        let range = start..start + spec.replicas.unwrap_or(1);
        let all = in_order(set, pods);
        let at = |ordinal: i32| all.iter().find(|(other, _)| *other == ordinal).map(|(_, pod)| pod.clone());
        let strategy = spec.update_strategy.as_ref();
        let partition = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or(0);
        View {
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            partition: start + partition,
            rolling: strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete"),
            wished: range.clone().map(|ordinal| (ordinal, at(ordinal))).collect(),
            condemned: all.iter().rev().filter(|(ordinal, _)| !range.contains(ordinal)).map(|(_, pod)| pod.clone()).collect(),
            min_ready,
            now,
        }
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        !meta::is_deleting(pod) && pods::is_available(pod, self.min_ready, self.now)
    }

    /// Creating upwards, deleting downwards; in order, each waits for the one before.
    fn steps(&self, steps: &mut Vec<Step>) {
        for (ordinal, pod) in &self.wished {
            match pod {
                None => steps.push(Step::Create { ordinal: *ordinal, current: self.rolling && *ordinal < self.partition }),
                Some(pod) if pods::is_finished(pod) && !meta::is_deleting(&**pod) => steps.push(Step::Recreate(pod.clone())),
                Some(pod) if self.is_healthy(pod) || !self.ordered => continue,
                Some(_) => return,
            }
            if self.ordered {
                return;
            }
        }
        let first_unhealthy = self.condemned.iter().rev().find(|pod| !self.is_healthy(pod));
        for pod in &self.condemned {
            if meta::is_deleting(&**pod) {
                if self.ordered {
                    return;
                }
                continue;
            }
            // In order an unhealthy pod is deleted only if it is the very one that holds the others up.
            if self.ordered && !pods::is_ready(pod) && first_unhealthy != Some(pod) {
                return;
            }
            steps.push(Step::Condemn(pod.clone()));
            if self.ordered {
                return;
            }
        }
    }

    /// Is something still on its way, in order?
    fn waits(&self) -> bool {
        self.ordered && !self.condemned.is_empty()
    }

    /// The last pod of an old revision, if all after it are well.
    fn update(&self, revisions: &Revisions) -> Option<Step> {
        if !self.rolling {
            return None;
        }
        for (ordinal, pod) in self.wished.iter().rev() {
            let pod = pod.as_ref().filter(|_| *ordinal >= self.partition)?;
            if revision_of(pod) != revisions.update && !meta::is_deleting(&**pod) {
                return Some(Step::Update(pod.clone()));
            }
            if !self.is_healthy(pod) {
                return None;
            }
        }
        None
    }
}

fn status(set: &StatefulSet, spec: &StatefulSetSpec, all: &[Arc<Pod>], revisions: &Revisions, now: Timestamp) -> StatefulSetStatus {
    let before = set.status.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let count = |test: &dyn Fn(&Pod) -> bool| i32::try_from(all.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX);
    let living = |pod: &Pod| !meta::is_deleting(pod);
    let ready = count(&pods::is_ready);
    let updated = count(&|pod| living(pod) && revision_of(pod) == revisions.update);
    let mut current = (revisions.current.to_owned(), count(&|pod| living(pod) && revision_of(pod) == revisions.current));
    let wished = spec.replicas.unwrap_or(1);
    if updated == wished && ready == wished && count(&|_| true) == wished {
        current = (revisions.update.to_owned(), updated);
    }
    let some = |count: i32| Some(count).filter(|count| *count != 0);
    StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: some(ready),
        available_replicas: Some(count(&|pod| pods::is_available(pod, min_ready, now))),
        current_replicas: some(current.1),
        updated_replicas: some(updated),
        current_revision: Some(current.0),
        update_revision: Some(revisions.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(before.collision_count.unwrap_or(0)),
        conditions: before.conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::pods::fixtures::{Fixture, at, pod};
    use crate::shared::revisions::HASH_LABEL;
    use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSetUpdateStrategy};

    fn set(replicas: i32, policy: &str, partition: i32) -> StatefulSet {
        let rolling = RollingUpdateStatefulSetStrategy { partition: Some(partition), max_unavailable: None };
        let strategy = StatefulSetUpdateStrategy { type_: Some("RollingUpdate".into()), rolling_update: Some(rolling) };
        let mut set = StatefulSet::default();
        set.metadata.name = Some("db".into());
        set.spec = Some(StatefulSetSpec {
            replicas: Some(replicas),
            pod_management_policy: Some(policy.into()),
            update_strategy: Some(strategy),
            ..StatefulSetSpec::default()
        });
        set
    }

    fn member(ordinal: i32, revision: &str) -> Fixture {
        pod(&format!("db-{ordinal}")).on("n1").label(HASH_LABEL, revision)
    }

    fn steps(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
        let revisions = Revisions { current: "old", update: "new" };
        let line = |step: &Step| match step {
            Step::Create { ordinal, current } => format!("create {ordinal} {}", if *current { "old" } else { "new" }),
            Step::Recreate(pod) => format!("recreate {}", meta::name(&**pod)),
            Step::Update(pod) => format!("update {}", meta::name(&**pod)),
            Step::Condemn(pod) => format!("condemn {}", meta::name(&**pod)),
        };
        plan(set, pods, &revisions, at(100)).steps.iter().map(line).collect()
    }

    #[test]
    fn in_order_one_after_the_other() {
        let set = |replicas| set(replicas, "OrderedReady", 0);
        let ready = |ordinal| member(ordinal, "new").ready(1).arc();
        assert_eq!(steps(&set(3), &[]), ["create 0 new"]);
        assert_eq!(steps(&set(3), &[member(0, "new").arc()]), [""; 0]);
        assert_eq!(steps(&set(3), &[ready(0)]), ["create 1 new"]);
        assert_eq!(steps(&set(3), &[ready(0), member(1, "new").phase("Failed").arc()]), ["recreate db-1"]);
        assert_eq!(steps(&set(1), &[ready(0), ready(1), ready(2)]), ["condemn db-2"]);
        assert_eq!(steps(&set(1), &[ready(0), ready(1), member(2, "new").deleting().arc()]), [""; 0]);
    }

    #[test]
    fn in_parallel_all_at_once() {
        let set = |replicas| set(replicas, "Parallel", 0);
        assert_eq!(steps(&set(2), &[]), ["create 0 new", "create 1 new"]);
        assert_eq!(steps(&set(0), &[member(0, "new").arc(), member(1, "new").arc()]), ["condemn db-1", "condemn db-0"]);
    }

    #[test]
    fn updates_go_down_to_the_partition() {
        let old = |ordinal| member(ordinal, "old").ready(1).arc();
        let new = |ordinal| member(ordinal, "new").ready(1).arc();
        let set = |partition| set(3, "OrderedReady", partition);
        assert_eq!(steps(&set(0), &[old(0), old(1), old(2)]), ["update db-2"]);
        assert_eq!(steps(&set(0), &[old(0), old(1), member(2, "new").arc()]), [""; 0]);
        assert_eq!(steps(&set(0), &[old(0), old(1), new(2)]), ["update db-1"]);
        assert_eq!(steps(&set(2), &[old(0), old(1), new(2)]), [""; 0]);
        assert_eq!(steps(&set(2), &[old(0)]), ["create 1 old"]);
    }

    #[test]
    fn the_update_revision_becomes_the_current_one() {
        let pods = [member(0, "new").ready(1).arc()];
        let revisions = Revisions { current: "old", update: "new" };
        let done = plan(&set(1, "OrderedReady", 0), &pods, &revisions, at(9)).status;
        assert_eq!((done.current_revision.as_deref(), done.current_replicas), (Some("new"), Some(1)));
    }
}
