//! Node selectors and pod affinity terms, compiled once per pod.
//!
//! Upstream: component-helpers/scheduling/corev1/nodeaffinity/nodeaffinity.go, pkg/scheduler/framework/types.go (AffinityTerm), v1.33.

use std::collections::BTreeMap;

use api::k8s_openapi::api::core::v1::{Affinity, NodeSelector, PodAffinityTerm, PodSpec};
use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sLabelSelector;
pub use api::nodes::{selector_matches, term_matches};
use api::selector::LabelSelector;

pub type Labels = BTreeMap<String, String>;

/// `spec.nodeSelector` and the required node affinity together.
pub fn pod_matches_node(spec: &PodSpec, name: &str, labels: &Labels) -> bool {
    let by_selector = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    by_selector && required_node_affinity(spec).is_none_or(|selector| selector_matches(selector, name, labels))
}

pub fn required_node_affinity(spec: &PodSpec) -> Option<&NodeSelector> {
    spec.affinity.as_ref()?.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
}

/// A pod (anti-)affinity term with its selectors compiled.
#[derive(Clone, Debug)]
pub struct AffinityTerm {
    pub selector: LabelSelector,
    pub namespaces: Vec<String>,
    /// `None`: the term has no namespace selector.
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

impl AffinityTerm {
    /// A term whose selector does not compile matches nothing.
    fn new(term: &PodAffinityTerm, namespace: &str, pod_labels: &Labels) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        let selector = match &term.label_selector {
            None => LabelSelector::nothing(),
            Some(selector) => compile(&with_pod_label_keys(
                selector,
                term.match_label_keys.as_deref().unwrap_or_default(),
                term.mismatch_label_keys.as_deref().unwrap_or_default(),
                pod_labels,
            )),
        };
        let namespace_selector = term.namespace_selector.as_ref().map(compile);
        AffinityTerm { selector, namespaces, namespace_selector, topology_key: term.topology_key.clone() }
    }

    /// `namespace_labels` is asked only when the term selects namespaces by label.
    pub fn matches(&self, namespace: &str, labels: &Labels, namespace_labels: impl FnOnce() -> Option<Labels>) -> bool {
        let in_namespace = self.namespaces.iter().any(|n| n == namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| namespace_labels().is_some_and(|l| s.matches(&l)));
        in_namespace && self.selector.matches(labels)
    }
}

pub fn compile(selector: &K8sLabelSelector) -> LabelSelector {
    LabelSelector::from_k8s(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing())
}

/// Adds `key in (value)` (or `notin`) for each of the pod's own labels that is named. The API server does the same when
/// a pod is created; repeating it changes nothing.
pub fn with_pod_label_keys(selector: &K8sLabelSelector, same: &[String], different: &[String], pod_labels: &Labels) -> K8sLabelSelector {
    use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
    let mut selector = selector.clone();
    for (keys, operator) in [(same, "In"), (different, "NotIn")] {
        for key in keys {
            let Some(value) = pod_labels.get(key) else { continue };
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
    selector
}

/// All affinity and anti-affinity terms of one pod.
#[derive(Clone, Debug, Default)]
pub struct PodAffinities {
    pub required: Vec<AffinityTerm>,
    pub required_anti: Vec<AffinityTerm>,
    pub preferred: Vec<(i64, AffinityTerm)>,
    pub preferred_anti: Vec<(i64, AffinityTerm)>,
}

impl PodAffinities {
    pub fn new(affinity: Option<&Affinity>, namespace: &str, labels: &Labels) -> Self {
        let term = |t: &PodAffinityTerm| AffinityTerm::new(t, namespace, labels);
        let mut terms = PodAffinities::default();
        if let Some(affinity) = affinity.and_then(|a| a.pod_affinity.as_ref()) {
            terms.required = affinity.required_during_scheduling_ignored_during_execution.iter().flatten().map(term).collect();
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            terms.preferred = preferred.map(|w| (i64::from(w.weight), term(&w.pod_affinity_term))).collect();
        }
        if let Some(anti) = affinity.and_then(|a| a.pod_anti_affinity.as_ref()) {
            terms.required_anti = anti.required_during_scheduling_ignored_during_execution.iter().flatten().map(term).collect();
            let preferred = anti.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            terms.preferred_anti = preferred.map(|w| (i64::from(w.weight), term(&w.pod_affinity_term))).collect();
        }
        terms
    }

    /// Terms that count when this pod runs and another one is placed.
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.required_anti.is_empty() && self.preferred.is_empty() && self.preferred_anti.is_empty()
    }
}
