//! What a pod is: finished, ready, available; and which pod to delete first.
//!
//! Upstream: `pkg/api/v1/pod/util.go`, `pkg/controller/controller_utils.go` (ActivePodsWithRanks).

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use super::conditions;
use super::meta::{self, created};

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Succeeded or Failed: no container of it will run again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts as a replica: neither finished nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !meta::is_deleting(pod)
}

pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    conditions::find(&pod.status.as_ref()?.conditions, type_)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0)
}

/// Ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// From when on a ready pod counts as available; none for a pod that is not ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Timestamp::UNIX_EPOCH);
    }
    ready_since(pod)?.checked_add(Duration::from_secs(min_ready_seconds.unsigned_abs().into())).ok()
}

/// The next moment at which one of these pods becomes available by the mere passing of time.
pub fn next_available<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>, min_ready_seconds: i32, now: Timestamp) -> Option<Timestamp> {
    pods.into_iter().filter_map(|pod| available_at(pod, min_ready_seconds)).filter(|at| *at > now).min()
}

pub fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    containers.unwrap_or_default().iter().map(|container| container.restart_count).max().unwrap_or_default()
}

fn deletion_cost(pod: &Pod) -> i32 {
    meta::annotation(pod, "controller.kubernetes.io/pod-deletion-cost").and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The `count` pods to delete first. `related` are the pods that share the load, whose number on a node makes that
/// node's pods more dispensable.
pub fn to_delete(mut pods: Vec<Arc<Pod>>, related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    if count < pods.len() {
        let mut per_node: HashMap<&str, usize> = HashMap::new();
        related.iter().filter(|pod| is_active(pod)).for_each(|pod| *per_node.entry(node(pod)).or_default() += 1);
        let rank = |pod: &Pod| per_node.get(node(pod)).copied().unwrap_or_default();
        pods.sort_by(|a, b| dispensability(a, b, rank, now));
        pods.truncate(count);
    }
    pods
}

/// Less = deleted sooner.
fn dispensability(a: &Pod, b: &Pod, rank: impl Fn(&Pod) -> usize, now: Timestamp) -> Ordering {
    let phase_order = |pod: &Pod| match phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let assigned = |pod: &Pod| !node(pod).is_empty();
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_order(a).cmp(&phase_order(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| Reverse(rank(a)).cmp(&Reverse(rank(b))))
        .then_with(|| {
            let (a, b) = (ready_since(a).filter(|_| is_ready(a)), ready_since(b).filter(|_| is_ready(b)));
            a.zip(b).map_or(Ordering::Equal, |(a, b)| age_bucket(a, now).cmp(&age_bucket(b, now)))
        })
        .then_with(|| Reverse(restarts(a)).cmp(&Reverse(restarts(b))))
        .then_with(|| age_bucket(created(a), now).cmp(&age_bucket(created(b), now)))
        .then_with(|| meta::uid(a).cmp(meta::uid(b)))
}

/// Ages in powers of two, so that of pods about equally old not always the newest goes (LogarithmicScaleDown).
fn age_bucket(since: Timestamp, now: Timestamp) -> i64 {
    let age = now.as_second() - since.as_second();
    if age <= 0 { -1 } else { i64::from(age.ilog2()) }
}

#[cfg(test)]
pub mod fixtures {
    //! Pods that read as sentences: `pod("a").on("n1").ready(10)`.
    use super::super::conditions::Condition;
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

    pub fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    pub struct Fixture(pub Pod);

    pub fn pod(name: &str) -> Fixture {
        let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("default".into());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.metadata.creation_timestamp = Some(meta::time(at(0)));
        pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
        Fixture(pod)
    }

    impl Fixture {
        pub fn on(mut self, node: &str) -> Self {
            self.0.spec.get_or_insert_default().node_name = Some(node.into());
            self
        }
        pub fn phase(mut self, phase: &str) -> Self {
            self.0.status.get_or_insert_default().phase = Some(phase.into());
            self
        }
        /// Running and ready since that second.
        pub fn ready(self, since: i64) -> Self {
            let mut fixture = self.phase("Running");
            let ready = PodCondition::new("Ready", "True", "", "", at(since));
            conditions::set(&mut fixture.0.status.get_or_insert_default().conditions, ready);
            fixture
        }
        pub fn label(mut self, key: &str, value: &str) -> Self {
            self.0.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
            self
        }
        pub fn annotation(mut self, key: &str, value: &str) -> Self {
            self.0.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
            self
        }
        pub fn deleting(mut self) -> Self {
            self.0.metadata.deletion_timestamp = Some(meta::time(at(0)));
            self
        }
        pub fn arc(self) -> Arc<Pod> {
            Arc::new(self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{at, pod};
    use super::*;

    fn first(pods: Vec<Arc<Pod>>) -> String {
        let related = pods.clone();
        to_delete(pods, &related, 1, at(1000))[0].metadata.name.clone().unwrap()
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let ready = || pod("ready").on("n1").ready(10).arc();
        assert_eq!(first(vec![ready(), pod("unassigned").arc()]), "unassigned");
        assert_eq!(first(vec![ready(), pod("pending").on("n1").arc()]), "pending");
        assert_eq!(first(vec![ready(), pod("unready").on("n1").phase("Running").arc()]), "unready");
        let cheap = pod("cheap").on("n1").ready(10).annotation("controller.kubernetes.io/pod-deletion-cost", "-5");
        assert_eq!(first(vec![ready(), cheap.arc()]), "cheap");
        assert_eq!(first(vec![ready(), pod("young").on("n1").ready(990).arc()]), "young");
        let crowded = [pod("a").on("n2").ready(10).arc(), pod("b").on("n2").ready(10).arc()];
        assert_eq!(first([vec![ready()], crowded.to_vec()].concat()), "a");
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let pod = pod("a").ready(100).arc();
        assert!(is_available(&pod, 0, at(100)));
        assert!(!is_available(&pod, 10, at(109)));
        assert!(is_available(&pod, 10, at(110)));
        assert_eq!(next_available([&pod], 10, at(101)), Some(at(110)));
    }
}
