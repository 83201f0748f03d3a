//! Taints that say what is wrong with a node, and which of its pods must go for it.
//!
//! Pure; used by node lifecycle (which sets the taints) and taint eviction (which acts on them).
//! Upstream: `pkg/controller/nodelifecycle/node_lifecycle_controller.go`, `pkg/controller/tainteviction`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

use crate::shared::conditions;
use crate::shared::meta::time;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NO_SCHEDULE: &str = "NoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

/// Condition, its bad value, the NoSchedule taint for it.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The taints the node is to have. `evict` is false while evicting would do more harm than good.
pub fn wanted(node: &Node, evict: bool, now: Timestamp) -> Vec<Taint> {
    let all = node.status.as_ref().map(|status| &status.conditions);
    let is = |type_: &str, value: &str| all.and_then(|all| conditions::find(all, type_)).is_some_and(|c| c.status == value);
    let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let mut due: Vec<(&str, &str)> =
        BY_CONDITION.iter().filter(|(condition, value, _)| is(condition, value)).map(|(_, _, taint)| (*taint, NO_SCHEDULE)).collect();
    if unschedulable {
        due.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let ready = all.and_then(|all| conditions::find(all, "Ready"));
    match ready.map(|ready| ready.status.as_str()) {
        Some("False") if evict => due.push((NOT_READY, NO_EXECUTE)),
        Some("Unknown") if evict => due.push((UNREACHABLE, NO_EXECUTE)),
        _ => {}
    }
    let managed = |taint: &Taint| match taint.effect.as_str() {
        NO_SCHEDULE => taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key),
        NO_EXECUTE => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    };
    let is_due = |taint: &&Taint| !managed(taint) || due.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut list: Vec<Taint> = taints(node).iter().filter(is_due).cloned().collect();
    for (key, effect) in due {
        if !list.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let time_added = Some(time(now));
            list.push(Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added });
        }
    }
    list
}

/// What NoExecute taints mean for a pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Stay,
    LeaveAt(Timestamp),
}

/// Each taint must be tolerated; the shortest tolerationSeconds decides, counted from when its taint was added.
pub fn verdict(pod: &Pod, taints: &[Taint], now: Timestamp) -> Verdict {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut leave = None;
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let mut tolerating = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let at = match tolerating.peek() {
            None => Some(now),
            Some(_) => tolerating
                .filter_map(|toleration| toleration.toleration_seconds)
                .min()
                .and_then(|seconds| since.checked_add(Duration::from_secs(seconds.max(0).unsigned_abs())).ok()),
        };
        leave = leave.into_iter().chain(at).min();
    }
    leave.map_or(Verdict::Stay, Verdict::LeaveAt)
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => !key.is_empty() && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::conditions::Condition;
    use crate::shared::pods::fixtures::{at, pod};
    use k8s_openapi::api::core::v1::{NodeCondition, NodeSpec, NodeStatus};

    fn node(ready: &str) -> Node {
        let conditions = Some(vec![NodeCondition::new("Ready", ready, "", "", at(0))]);
        Node { status: Some(NodeStatus { conditions, ..NodeStatus::default() }), ..Node::default() }
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints.iter().map(|taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)).collect()
    }

    #[test]
    fn taints_follow_the_conditions() {
        assert_eq!(wanted(&node("True"), true, at(1)), []);
        assert_eq!(keys(&wanted(&node("Unknown"), true, at(1))), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
        assert_eq!(keys(&wanted(&node("Unknown"), false, at(1))), ["unreachable:NoSchedule"]);
        let mut back = node("False");
        let custom = Taint { key: "mine".into(), effect: NO_EXECUTE.into(), ..Taint::default() };
        let taints = [vec![custom], wanted(&node("Unknown"), true, at(1))].concat();
        back.spec = Some(NodeSpec { taints: Some(taints), unschedulable: Some(true), ..NodeSpec::default() });
        assert_eq!(
            keys(&wanted(&back, true, at(2))),
            ["mine:NoExecute", "not-ready:NoSchedule", "unschedulable:NoSchedule", "not-ready:NoExecute"]
        );
    }

    #[test]
    fn pods_leave_when_their_patience_ends() {
        let taints = wanted(&node("Unknown"), true, at(10));
        let tolerate = |seconds| Toleration {
            key: Some(UNREACHABLE.into()),
            operator: Some("Exists".into()),
            effect: Some(NO_EXECUTE.into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        let with = |list: Vec<Toleration>| {
            let mut pod = pod("a").0;
            pod.spec.get_or_insert_default().tolerations = Some(list);
            pod
        };
        assert_eq!(verdict(&with(vec![]), &taints, at(20)), Verdict::LeaveAt(at(20)));
        assert_eq!(verdict(&with(vec![tolerate(Some(300))]), &taints, at(20)), Verdict::LeaveAt(at(310)));
        assert_eq!(verdict(&with(vec![tolerate(None)]), &taints, at(20)), Verdict::Stay);
        assert_eq!(verdict(&with(vec![]), &[], at(20)), Verdict::Stay);
    }
}
