//! Disruption budgets, autoscalers and priorities.
//!
//! Upstream: `pkg/apis/{policy,autoscaling,scheduling}/validation/validation.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler as Hpa;
use api::k8s_openapi::api::policy::v1::PodDisruptionBudget as Pdb;
use api::names;
use serde_json::{Value, json};

use crate::validation::field::{
    immutable, invalid, json as to_json, label_selector, non_negative, not_over_100_percent, optional_one_of,
    positive_int_or_percent, with,
};
use crate::value::{int, is_set, list, text};
use crate::{Kind, Strategy};

pub struct DisruptionBudget;

impl Strategy for DisruptionBudget {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |budget: &Pdb| {
            let path = Path::new("spec");
            let Some(spec) = &budget.spec else { return Vec::new() };
            let mut errors = Vec::new();
            if spec.min_available.is_some() && spec.max_unavailable.is_some() {
                errors.push(Error::invalid(&path, to_json(spec), "minAvailable and maxUnavailable cannot be both set"));
            }
            for (name, amount) in [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)] {
                let Some(amount) = amount else { continue };
                errors.extend(positive_int_or_percent(&path.child(name), amount));
                errors.extend(not_over_100_percent(&path.child(name), amount));
            }
            errors.extend(label_selector(&path.child("selector"), spec.selector.as_ref()));
            let policy = spec.unhealthy_pod_eviction_policy.as_deref();
            errors.extend(optional_one_of(&path.child("unhealthyPodEvictionPolicy"), policy, &["AlwaysAllow", "IfHealthyBudget"]));
            errors
        })
    }

    fn validate_status_update(&self, _kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        let path = Path::new("status");
        let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
        counts.iter().flat_map(|name| non_negative(&path.child(name), int(new, &format!("/status/{name}")))).collect()
    }
}

pub struct Autoscaler;

impl Strategy for Autoscaler {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |autoscaler: &Hpa| {
            let path = Path::new("spec");
            let Some(spec) = &autoscaler.spec else { return Vec::new() };
            let mut errors = Vec::new();
            if let Some(min) = spec.min_replicas {
                if min < 1 {
                    errors.push(Error::invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1"));
                }
                if spec.max_replicas < min {
                    let detail = "must be greater than or equal to `minReplicas`";
                    errors.push(Error::invalid(&path.child("maxReplicas"), spec.max_replicas, detail));
                }
            }
            if spec.max_replicas < 1 {
                errors.push(Error::invalid(&path.child("maxReplicas"), spec.max_replicas, "must be greater than 0"));
            }
            let target = path.child("scaleTargetRef");
            for (name, value) in [("kind", &spec.scale_target_ref.kind), ("name", &spec.scale_target_ref.name)] {
                if value.is_empty() {
                    errors.push(Error::required(&target.child(name), ""));
                } else {
                    errors.extend(invalid(&target.child(name), value, names::is_path_segment_name(value)));
                }
            }
            for (index, metric) in list(object, "/spec/metrics").iter().enumerate() {
                errors.extend(self::metric(&path.child("metrics").index(index), metric));
            }
            let scales_to_zero = |metric: &Value| matches!(text(metric, "/type"), "Object" | "External");
            if spec.min_replicas == Some(0) && !list(object, "/spec/metrics").iter().any(scales_to_zero) {
                let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
                errors.push(Error::forbidden(&path.child("metrics"), detail));
            }
            errors
        })
    }

    fn validate_status_update(&self, _kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        let path = Path::new("status");
        let counts = ["currentReplicas", "desiredReplicas"];
        counts.iter().flat_map(|name| non_negative(&path.child(name), int(new, &format!("/status/{name}")))).collect()
    }
}

/// One source, the one its type names, with a target.
fn metric(path: &Path, metric: &Value) -> ErrorList {
    const SOURCES: [(&str, &str); 5] = [
        ("Object", "object"),
        ("Pods", "pods"),
        ("Resource", "resource"),
        ("ContainerResource", "containerResource"),
        ("External", "external"),
    ];
    let kind = text(metric, "/type");
    if kind.is_empty() {
        return vec![Error::required(&path.child("type"), "must specify a metric source type")];
    }
    let Some((_, source)) = SOURCES.iter().find(|(name, _)| *name == kind) else {
        let mut known: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        return vec![Error::not_supported(&path.child("type"), kind, &known)];
    };
    let mut errors = Vec::new();
    for (_, other) in SOURCES.iter().filter(|(_, other)| other != source && metric.get(other).is_some_and(|v| !v.is_null())) {
        let detail = "must populate the given metric source only";
        errors.push(Error::forbidden(&path.child(other), detail));
    }
    if metric.get(source).is_none_or(Value::is_null) {
        let detail = "must populate information for the given metric source";
        errors.push(Error::required(&path.child(source), detail));
        return errors;
    }
    let path = path.child(source);
    if source.to_lowercase().ends_with("resource") && text(&metric[source], "/name").is_empty() {
        errors.push(Error::required(&path.child("name"), "must specify a resource name"));
    }
    let target = &metric[source]["target"];
    let path = path.child("target");
    match text(target, "/type") {
        "" => errors.push(Error::required(&path.child("type"), "must specify a metric target type")),
        "Utilization" | "Value" | "AverageValue" => {}
        other => errors.push(Error::invalid(&path.child("type"), other, "must be either Utilization, Value, or AverageValue")),
    }
    if is_set(target, "/averageUtilization") && int(target, "/averageUtilization") < 1 {
        let value = int(target, "/averageUtilization");
        errors.push(Error::invalid(&path.child("averageUtilization"), value, "must be greater than 0"));
    }
    errors
}

pub struct PriorityClass;

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM: [(&str, i64); 2] = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

impl Strategy for PriorityClass {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let (name, value) = (text(object, "/metadata/name"), int(object, "/value"));
        let mut errors = Vec::new();
        if name.starts_with("system-") {
            let reason = match SYSTEM.iter().find(|(system, _)| *system == name) {
                Some((_, reserved)) if *reserved == value => None,
                Some((_, reserved)) => Some(format!("value of {name} PriorityClass must be {reserved}")),
                None => Some(format!("{name} is not a known system priority class")),
            };
            if let Some(reason) = reason {
                let detail = format!("priority class names with 'system-' prefix are reserved for system use only. error: {reason}");
                errors.push(Error::forbidden(&Path::new("metadata").child("name"), detail));
            }
        } else if value > HIGHEST_USER_PRIORITY {
            let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
            errors.push(Error::forbidden(&Path::new("value"), detail));
        }
        let policies = ["Never", "PreemptLowerPriority"];
        let policy = object.get("preemptionPolicy").and_then(Value::as_str);
        errors.extend(optional_one_of(&Path::new("preemptionPolicy"), policy, &policies));
        errors
    }

    fn validate_update(&self, _kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = Vec::new();
        if int(new, "/value") != int(old, "/value") {
            errors.push(Error::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        let default = json!("PreemptLowerPriority");
        let policy = |object: &Value| object.get("preemptionPolicy").filter(|v| !v.is_null()).unwrap_or(&default).clone();
        errors.extend(immutable(&Path::new("preemptionPolicy"), &policy(new), &policy(old)));
        errors
    }
}
