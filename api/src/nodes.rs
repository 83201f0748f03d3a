//! Node selectors: which nodes a pod or a volume may be on.
//!
//! Upstream: `component-helpers/scheduling/corev1/nodeaffinity/nodeaffinity.go`, v1.33.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

type Labels = BTreeMap<String, String>;

/// Whether one requirement holds for a value (absent: `None`).
fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let contains = |value: &str| values.iter().any(|v| v == value);
    let compare = |holds: fn(i64, i64) -> bool| {
        let (Some(value), [bound]) = (value, values) else { return false };
        matches!((value.parse(), bound.parse()), (Ok(value), Ok(bound)) if holds(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(contains),
        "NotIn" => value.is_none_or(|v| !contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}

/// A term without any requirement matches no node.
pub fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &Labels) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_matches(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| requirement_matches(r, (r.key == "metadata.name").then_some(name)))
}

pub fn selector_matches(selector: &NodeSelector, name: &str, labels: &Labels) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, name, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        let values = values.iter().map(|v| (*v).to_owned()).collect();
        NodeSelectorRequirement { key: key.to_owned(), operator: operator.to_owned(), values: Some(values) }
    }

    #[test]
    fn operators() {
        let cases: &[(&str, &[&str], Option<&str>, bool)] = &[
            ("In", &["a", "b"], Some("b"), true),
            ("In", &["a"], None, false),
            ("NotIn", &["a"], None, true),
            ("NotIn", &["a"], Some("a"), false),
            ("Exists", &[], Some(""), true),
            ("DoesNotExist", &[], Some(""), false),
            ("Gt", &["3"], Some("4"), true),
            ("Gt", &["3"], Some("x"), false),
            ("Lt", &["3"], Some("3"), false),
            ("Lt", &["3"], None, false),
        ];
        for (operator, values, value, expected) in cases {
            assert_eq!(requirement_matches(&requirement("k", operator, values), *value), *expected, "{operator} {values:?} {value:?}");
        }
    }

    #[test]
    fn an_empty_term_matches_nothing_and_terms_are_alternatives() {
        let labels = Labels::from([("zone".to_owned(), "a".to_owned())]);
        let empty = NodeSelectorTerm::default();
        let by_name = NodeSelectorTerm { match_fields: Some(vec![requirement("metadata.name", "In", &["n1"])]), ..Default::default() };
        assert!(!term_matches(&empty, "n1", &labels));
        let selector = NodeSelector { node_selector_terms: vec![empty, by_name] };
        assert!(selector_matches(&selector, "n1", &labels));
        assert!(!selector_matches(&selector, "n2", &labels));
    }
}
