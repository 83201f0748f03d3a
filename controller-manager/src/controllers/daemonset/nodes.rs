//! Which nodes a DaemonSet's pods belong on, and how a pod is tied to its node.
//!
//! Upstream: `pkg/controller/daemon/{daemon_controller,util/daemonset_util}.go`.

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::shared::meta::{self, Labels};
use crate::shared::{pods, taints};

const NODE_NAME: &str = "metadata.name";
/// Daemons run where others don't: what every one of them tolerates.
const TOLERATED: [(&str, &str); 6] = [
    (taints::NOT_READY, "NoExecute"),
    (taints::UNREACHABLE, "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

/// Should a pod be made here; may one that is here stay?
pub fn should_run(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let elsewhere = spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != meta::name(node));
    if elsewhere || !selects(spec, node) {
        return (false, false);
    }
    let tolerations = tolerations(spec);
    let untolerated = |effects: &[&str]| {
        taints::taints(node)
            .iter()
            .any(|taint| effects.contains(&taint.effect.as_str()) && !tolerations.iter().any(|t| taints::tolerates(t, taint)))
    };
    if untolerated(&["NoSchedule", "NoExecute"]) { (false, !untolerated(&["NoExecute"])) } else { (true, true) }
}

fn selects(spec: &PodSpec, node: &Node) -> bool {
    let empty = Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let plain = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = required(spec);
    plain && required.is_none_or(|selector| api::nodes::selector_matches(selector, meta::name(node), labels))
}

fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    spec.affinity.as_ref()?.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
}

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = (spec.host_network == Some(true)).then_some((NETWORK_UNAVAILABLE, "NoSchedule"));
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Ties a pod to its node: the scheduler still decides when, no longer where.
pub fn pin(pod: &mut Pod, node: &str) {
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let requirement = NodeSelectorRequirement { key: NODE_NAME.to_owned(), operator: "In".to_owned(), values: Some(vec![node.to_owned()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    node_affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node a pod is on or tied to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    let bound = pods::node(pod);
    if !bound.is_empty() {
        return Some(bound);
    }
    let fields = required(pod.spec.as_ref()?)?.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut names = fields.filter(|field| field.key == NODE_NAME && field.operator == "In");
    names.next()?.values.as_ref()?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};

    fn node(zone: &str, taints: &[(&str, &str)]) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some("n1".into());
        node.metadata.labels = Some(Labels::from([("zone".into(), zone.into())]));
        let taint = |(key, effect): &(&str, &str)| Taint { key: (*key).into(), effect: (*effect).into(), ..Taint::default() };
        node.spec = Some(NodeSpec { taints: Some(taints.iter().map(taint).collect()), ..NodeSpec::default() });
        node
    }

    #[test]
    fn daemons_run_where_they_are_selected_and_tolerated() {
        let plain = PodSpec::default();
        let west = PodSpec { node_selector: Some(Labels::from([("zone".into(), "west".into())])), ..PodSpec::default() };
        assert_eq!(should_run(&plain, &node("west", &[])), (true, true));
        assert_eq!(should_run(&west, &node("east", &[])), (false, false));
        assert_eq!(should_run(&plain, &node("", &[(taints::NOT_READY, "NoExecute")])), (true, true));
        assert_eq!(should_run(&plain, &node("", &[("mine", "NoSchedule")])), (false, true));
        assert_eq!(should_run(&plain, &node("", &[("mine", "NoExecute")])), (false, false));
    }

    #[test]
    fn a_pinned_pod_knows_its_node() {
        let mut pod = Pod::default();
        assert_eq!(node_of(&pod), None);
        pin(&mut pod, "n1");
        assert_eq!(node_of(&pod), Some("n1"));
        assert_eq!(should_run(pod.spec.as_ref().unwrap(), &node("", &[])), (true, true));
        let mut other = node("", &[]);
        other.metadata.name = Some("n2".into());
        assert_eq!(should_run(pod.spec.as_ref().unwrap(), &other), (false, false));
    }
}
