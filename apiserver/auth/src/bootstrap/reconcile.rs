//! What to write so that a stored object holds at least the default.

use serde_json::{Value, json};

use crate::authz::{Rule, escalation};
use crate::lookup::meta_entry;

pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// `None`: nothing to write. A binding whose `roleRef` differs has to be deleted first (it is immutable):
/// the returned object then has no `metadata.resourceVersion`.
pub fn reconcile(wanted: &Value, stored: Option<&Value>) -> Option<Value> {
    let Some(stored) = stored else { return Some(wanted.clone()) };
    if wanted.get("roleRef").is_none() && wanted.get("rules").is_none() {
        return None;
    }
    if meta_entry(stored, "annotations", AUTO_UPDATE) == Some("false") {
        return None;
    }
    if wanted.get("roleRef") != stored.get("roleRef") {
        return Some(wanted.clone());
    }
    let mut result = stored.clone();
    for field in ["labels", "annotations"] {
        let entries = wanted["metadata"][field].as_object().into_iter().flatten();
        for (key, value) in entries {
            if result["metadata"][field].get(key).is_none() {
                result["metadata"][field][key] = value.clone();
            }
        }
    }
    match wanted.get("aggregationRule").filter(|rule| !rule.is_null()) {
        // An aggregated role's rules are its controller's.
        Some(rule) if stored.get("aggregationRule").is_none_or(Value::is_null) => result["aggregationRule"] = rule.clone(),
        Some(_) => {}
        None => add_missing_rules(&mut result, wanted),
    }
    add_missing_subjects(&mut result, wanted);
    (result != *stored).then_some(result)
}

fn add_missing_rules(result: &mut Value, wanted: &Value) {
    let rules =
        |object: &Value| -> Vec<Rule> { object.get("rules").and_then(|r| serde_json::from_value(r.clone()).ok()).unwrap_or_default() };
    let missing = escalation::missing(&rules(result), &rules(wanted));
    if missing.is_empty() {
        return;
    }
    match result.get_mut("rules").and_then(Value::as_array_mut) {
        Some(list) => list.extend(missing.iter().map(|rule| json!(rule))),
        None => result["rules"] = json!(missing),
    }
}

fn add_missing_subjects(result: &mut Value, wanted: &Value) {
    let Some(subjects) = wanted.get("subjects").and_then(Value::as_array) else { return };
    let held = result.get("subjects").and_then(Value::as_array).cloned().unwrap_or_default();
    let missing = subjects.iter().filter(|subject| !held.contains(subject)).cloned();
    let all: Vec<Value> = held.iter().cloned().chain(missing).collect();
    if all.len() > held.len() {
        result["subjects"] = all.into();
    }
}
