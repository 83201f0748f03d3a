//! Where a pod may run: affinity, tolerations, spreading; and taints, their counterpart.

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Taint, Toleration, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};
use api::names;

use super::field::{invalid, json, label_selector, optional_one_of};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const NOT_POSITIVE: &str = "must be greater than zero";
const WEIGHT: &str = "must be in the range 1-100";

pub fn affinity(path: &Path, affinity: &Affinity) -> ErrorList {
    let mut errors = Vec::new();
    if let Some(node) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            errors.extend(node_selector(&path.child("requiredDuringSchedulingIgnoredDuringExecution"), selector));
        }
        let path = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (index, term) in node.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
            let path = path.index(index);
            errors.extend(weight(&path, term.weight));
            errors.extend(node_selector_term(&path.child("preference"), &term.preference));
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let path = path.child("podAffinity");
        errors.extend(required_terms(&path, pods.required_during_scheduling_ignored_during_execution.as_deref()));
        errors.extend(preferred_terms(&path, pods.preferred_during_scheduling_ignored_during_execution.as_deref()));
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let path = path.child("podAntiAffinity");
        errors.extend(required_terms(&path, pods.required_during_scheduling_ignored_during_execution.as_deref()));
        errors.extend(preferred_terms(&path, pods.preferred_during_scheduling_ignored_during_execution.as_deref()));
    }
    errors
}

fn weight(path: &Path, weight: i32) -> ErrorList {
    if (1..=100).contains(&weight) { Vec::new() } else { vec![Error::invalid(&path.child("weight"), weight, WEIGHT)] }
}

fn required_terms(path: &Path, terms: Option<&[PodAffinityTerm]>) -> ErrorList {
    let path = path.child("requiredDuringSchedulingIgnoredDuringExecution");
    terms.into_iter().flatten().enumerate().flat_map(|(i, term)| pod_affinity_term(&path.index(i), term)).collect()
}

fn preferred_terms(path: &Path, terms: Option<&[WeightedPodAffinityTerm]>) -> ErrorList {
    let path = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    let mut errors = Vec::new();
    for (index, term) in terms.into_iter().flatten().enumerate() {
        errors.extend(weight(&path.index(index), term.weight));
        errors.extend(pod_affinity_term(&path.index(index).child("podAffinityTerm"), &term.pod_affinity_term));
    }
    errors
}

fn pod_affinity_term(path: &Path, term: &PodAffinityTerm) -> ErrorList {
    let mut errors = label_selector(&path.child("labelSelector"), term.label_selector.as_ref());
    errors.extend(label_selector(&path.child("namespaceSelector"), term.namespace_selector.as_ref()));
    for namespace in term.namespaces.iter().flatten() {
        errors.extend(invalid(&path.child("namespace"), namespace, names::is_dns1123_label(namespace)));
    }
    if term.topology_key.is_empty() {
        errors.push(Error::required(&path.child("topologyKey"), "can not be empty"));
    }
    errors.extend(invalid(&path.child("topologyKey"), &term.topology_key, names::is_qualified_name(&term.topology_key)));
    errors
}

pub fn node_selector(path: &Path, selector: &NodeSelector) -> ErrorList {
    let path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        return vec![Error::required(&path, "must have at least one node selector term")];
    }
    let terms = selector.node_selector_terms.iter().enumerate();
    terms.flat_map(|(index, term)| node_selector_term(&path.index(index), term)).collect()
}

fn node_selector_term(path: &Path, term: &NodeSelectorTerm) -> ErrorList {
    let mut errors = Vec::new();
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        errors.extend(node_requirement(&path, requirement));
        errors.extend(invalid(&path.child("key"), &requirement.key, names::is_qualified_name(&requirement.key)));
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(index);
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.len() != 1 => errors.push(Error::required(
                &path.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            )),
            "In" | "NotIn" => {}
            other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
        if requirement.key == "metadata.name" {
            for (i, value) in values.iter().enumerate() {
                errors.extend(invalid(&path.child("values").index(i), value, names::is_dns1123_subdomain(value)));
            }
        } else {
            let detail = "not a valid field selector key";
            errors.push(Error::invalid(&path.child("key"), requirement.key.as_str(), detail));
        }
    }
    errors
}

fn node_requirement(path: &Path, requirement: &NodeSelectorRequirement) -> ErrorList {
    let values = requirement.values.as_deref().unwrap_or_default();
    let path_values = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            vec![Error::required(&path_values, "must be specified when `operator` is 'In' or 'NotIn'")]
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            vec![Error::forbidden(&path_values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")]
        }
        "Gt" | "Lt" if values.len() != 1 => {
            vec![Error::required(&path_values, "must be specified single value when `operator` is 'Lt' or 'Gt'")]
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => Vec::new(),
        other => vec![Error::invalid(&path.child("operator"), other, "not a valid selector operator")],
    }
}

pub fn tolerations(path: &Path, tolerations: &[Toleration]) -> ErrorList {
    let mut errors = Vec::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let key = toleration.key.as_deref().unwrap_or("");
        let operator = toleration.operator.as_deref().unwrap_or("");
        let value = toleration.value.as_deref().unwrap_or("");
        let effect = toleration.effect.as_deref().unwrap_or("");
        if !key.is_empty() {
            errors.extend(invalid(&path.child("key"), key, names::is_qualified_name(key)));
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(&path.child("operator"), operator, detail));
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(&path.child("effect"), effect, detail));
        }
        match operator {
            "Equal" | "" => {
                let messages = names::is_valid_label_value(value);
                if !messages.is_empty() {
                    errors.push(Error::invalid(&path.child("operator"), value, messages.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(Error::invalid(&path.child("operator"), json(toleration), detail));
            }
            "Exists" => {}
            other => errors.push(Error::not_supported(&path.child("operator"), other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            errors.extend(optional_one_of(&path.child("effect"), Some(effect), EFFECTS));
        }
    }
    errors
}

pub fn taints(path: &Path, taints: &[Taint]) -> ErrorList {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        let value = taint.value.as_deref().unwrap_or("");
        errors.extend(invalid(&path.child("key"), &taint.key, names::is_qualified_name(&taint.key)));
        let messages = names::is_valid_label_value(value);
        if !messages.is_empty() {
            errors.push(Error::invalid(&path.child("value"), value, messages.join(";")));
        }
        match taint.effect.as_str() {
            "" => errors.push(Error::required(&path.child("effect"), "")),
            effect => errors.extend(optional_one_of(&path.child("effect"), Some(effect), EFFECTS)),
        }
        if !seen.insert((taint.key.as_str(), taint.effect.as_str())) {
            let mut error = Error::duplicate(&path, json(taint));
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    errors
}

pub fn spread_constraints(path: &Path, constraints: &[TopologySpreadConstraint]) -> ErrorList {
    let mut errors = Vec::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        if constraint.max_skew <= 0 {
            errors.push(Error::invalid(&path.child("maxSkew"), constraint.max_skew, NOT_POSITIVE));
        }
        if constraint.topology_key.is_empty() {
            errors.push(Error::required(&path.child("topologyKey"), "can not be empty"));
        } else {
            let key = &constraint.topology_key;
            errors.extend(invalid(&path.child("topologyKey"), key, names::is_qualified_name(key)));
        }
        let when = constraint.when_unsatisfiable.as_str();
        errors.extend(optional_one_of(&path.child("whenUnsatisfiable"), Some(when), &["DoNotSchedule", "ScheduleAnyway"]));
        let repeated =
            constraints[index + 1..].iter().any(|other| other.topology_key == constraint.topology_key && other.when_unsatisfiable == when);
        if repeated {
            let pair = format!("{{{}, {when}}}", constraint.topology_key);
            errors.push(Error::duplicate(&path.child("{topologyKey, whenUnsatisfiable}"), pair));
        }
        if let Some(min) = constraint.min_domains {
            if min <= 0 {
                errors.push(Error::invalid(&path.child("minDomains"), min, NOT_POSITIVE));
            } else if when != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
                errors.push(Error::invalid(&path.child("minDomains"), min, detail));
            }
        }
        for (name, policy) in
            [("nodeAffinityPolicy", &constraint.node_affinity_policy), ("nodeTaintsPolicy", &constraint.node_taints_policy)]
        {
            errors.extend(optional_one_of(&path.child(name), policy.as_deref(), &["Ignore", "Honor"]));
        }
        errors.extend(label_selector(&path.child("labelSelector"), constraint.label_selector.as_ref()));
    }
    errors
}
