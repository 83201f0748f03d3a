//! Disruption budgets, autoscalers and priorities.
//!
//! Upstream: `pkg/apis/{policy,autoscaling,scheduling}/validation/validation.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler as Hpa;
use api::k8s_openapi::api::policy::v1::PodDisruptionBudget as Pdb;
use api::names;
use serde_json::{Value, json};

use crate::meta::{validate_object_meta, validate_object_meta_update};
use crate::validation::container::container_resource_name;
use crate::validation::field::{
    immutable, invalid, json as to_json, label_selector, non_negative, not_over_100_percent, one_of, optional_one_of,
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

    /// Upstream asks a budget's metadata nothing of its own.
    fn validate_whole(&self, kind: &Kind, object: &Value) -> ErrorList {
        let errors = self.validate(kind, object);
        if errors.is_empty() { validate_object_meta(kind, object) } else { errors }
    }

    fn validate_update(&self, kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        self.validate(kind, new)
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
            if let Some(min) = spec.min_replicas.filter(|min| *min < 1) {
                errors.push(Error::invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1"));
            }
            if spec.max_replicas < 1 {
                errors.push(Error::invalid(&path.child("maxReplicas"), spec.max_replicas, "must be greater than 0"));
            }
            if spec.min_replicas.is_some_and(|min| spec.max_replicas < min) {
                let detail = "must be greater than or equal to `minReplicas`";
                errors.push(Error::invalid(&path.child("maxReplicas"), spec.max_replicas, detail));
            }
            errors.extend(reference(&path.child("scaleTargetRef"), &object["spec"]["scaleTargetRef"]));
            for (index, metric) in list(object, "/spec/metrics").iter().enumerate() {
                errors.extend(self::metric(&path.child("metrics").index(index), metric));
            }
            let scales_to_zero = |metric: &Value| matches!(text(metric, "/type"), "Object" | "External");
            if spec.min_replicas == Some(0) && !list(object, "/spec/metrics").iter().any(scales_to_zero) {
                let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
                errors.push(Error::forbidden(&path.child("metrics"), detail));
            }
            for direction in ["scaleUp", "scaleDown"] {
                if let Some(rules) = object.pointer(&format!("/spec/behavior/{direction}")).filter(|rules| !rules.is_null()) {
                    errors.extend(scaling_rules(&path.child("behavior").child(direction), rules));
                }
            }
            errors
        })
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("status");
        let counts = ["currentReplicas", "desiredReplicas"];
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(counts.iter().flat_map(|name| non_negative(&path.child(name), int(new, &format!("/status/{name}")))));
        errors
    }
}

/// An object of any kind, by kind and name.
fn reference(path: &Path, reference: &Value) -> ErrorList {
    let mut errors = Vec::new();
    for field in ["kind", "name"] {
        match text(reference, &format!("/{field}")) {
            "" => errors.push(Error::required(&path.child(field), "")),
            value => errors.extend(invalid(&path.child(field), value, names::is_path_segment_name(value))),
        }
    }
    errors
}

const MAX_WINDOW: i64 = 3600;
const MAX_PERIOD: i64 = 1800;

fn scaling_rules(path: &Path, rules: &Value) -> ErrorList {
    let mut errors = Vec::new();
    let window = int(rules, "/stabilizationWindowSeconds");
    if window < 0 {
        errors.push(Error::invalid(&path.child("stabilizationWindowSeconds"), window, "must be greater than or equal to zero"));
    }
    if window > MAX_WINDOW {
        errors.push(Error::invalid(
            &path.child("stabilizationWindowSeconds"),
            window,
            format!("must be less than or equal to {MAX_WINDOW}"),
        ));
    }
    let policy = rules.get("selectPolicy").and_then(Value::as_str);
    errors.extend(optional_one_of(&path.child("selectPolicy"), policy, &["Disabled", "Max", "Min"]));
    let path = path.child("policies");
    let policies = list(rules, "/policies");
    if policies.is_empty() {
        errors.push(Error::required(&path, "must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        let path = path.index(index);
        errors.extend(optional_one_of(&path.child("type"), Some(text(policy, "/type")), &["Percent", "Pods"]));
        let (value, period) = (int(policy, "/value"), int(policy, "/periodSeconds"));
        for (name, value) in [("value", value), ("periodSeconds", period)] {
            if value <= 0 {
                errors.push(Error::invalid(&path.child(name), value, "must be greater than zero"));
            }
        }
        if period > MAX_PERIOD {
            errors.push(Error::invalid(&path.child("periodSeconds"), period, format!("must be less than or equal to {MAX_PERIOD}")));
        }
    }
    errors
}

/// Types of metrics and the field each is in, in the order in which upstream looks for them.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

/// One source, the one its type names, with a target.
fn metric(path: &Path, metric: &Value) -> ErrorList {
    const KNOWN: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
    let kind = text(metric, "/type");
    let mut errors = Vec::new();
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), "must specify a metric source type"));
    }
    if !KNOWN.contains(&kind) {
        errors.push(Error::not_supported(&path.child("type"), kind, KNOWN));
    }
    let present: Vec<&str> = SOURCES.iter().map(|(_, field)| *field).filter(|field| is_set(metric, &format!("/{field}"))).collect();
    if let Some(first) = present.first() {
        errors.extend(metric_source(&path.child(first), first, &metric[*first]));
    }
    let wanted = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, field)| *field);
    match wanted {
        Some(field) if !present.contains(&field) => {
            errors.push(Error::required(&path.child(field), "must populate information for the given metric source"));
        }
        Some(_) => {}
        None => errors.push(Error::not_supported(&path.child("type"), kind, KNOWN)),
    }
    if present.len() != 1 {
        let others = present.iter().filter(|field| Some(**field) != wanted);
        errors.extend(others.map(|field| Error::forbidden(&path.child(field), "must populate the given metric source only")));
    }
    errors
}

fn metric_source(path: &Path, field: &str, source: &Value) -> ErrorList {
    let mut errors = Vec::new();
    match field {
        "resource" | "containerResource" => {
            let name = text(source, "/name");
            if name.is_empty() {
                errors.push(Error::required(&path.child("name"), "must specify a resource name"));
            } else if field == "containerResource" {
                errors.extend(container_resource_name(&path.child("name"), name));
            }
            if field == "containerResource" {
                match text(source, "/container") {
                    "" => errors.push(Error::required(&path.child("container"), "must specify a container")),
                    container => errors.extend(invalid(&path.child("container"), container, names::is_dns1123_label(container))),
                }
            }
        }
        _ => {
            if field == "object" {
                errors.extend(reference(&path.child("describedObject"), &source["describedObject"]));
            }
            let path = path.child("metric").child("name");
            match text(source, "/metric/name") {
                "" => errors.push(Error::required(&path, "must specify a metric name")),
                name => errors.extend(invalid(&path, name, names::is_path_segment_name(name))),
            }
        }
    }
    errors.extend(metric_target(&path.child("target"), &source["target"]));
    errors.extend(target_of(&path.child("target"), field, &source["target"]));
    errors
}

fn metric_target(path: &Path, target: &Value) -> ErrorList {
    let mut errors = Vec::new();
    let kind = text(target, "/type");
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errors.push(Error::invalid(&path.child("type"), kind, "must be either Utilization, Value, or AverageValue"));
    }
    for name in ["value", "averageValue"] {
        let amount = target.get(name).and_then(Value::as_str);
        if let Some(amount) = amount.filter(|amount| api::Quantity::parse(amount).is_ok_and(|q| q.is_negative() || q.is_zero())) {
            errors.push(Error::invalid(&path.child(name), amount, "must be positive"));
        }
    }
    let utilization = int(target, "/averageUtilization");
    if is_set(target, "/averageUtilization") && utilization < 1 {
        errors.push(Error::invalid(&path.child("averageUtilization"), utilization, "must be greater than 0"));
    }
    errors
}

/// Which numbers a source's target has, and which exclude each other.
fn target_of(path: &Path, field: &str, target: &Value) -> ErrorList {
    let has = |name: &str| is_set(target, &format!("/{name}"));
    let mut errors = Vec::new();
    match field {
        "object" if !has("value") && !has("averageValue") => {
            errors.push(Error::required(&path.child("averageValue"), "must set either a target value or averageValue"));
        }
        "external" if !has("value") && !has("averageValue") => {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.push(Error::required(&path.child("averageValue"), detail));
        }
        "external" if has("value") && has("averageValue") => {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.push(Error::forbidden(&path.child("value"), detail));
        }
        "pods" if !has("averageValue") => {
            errors.push(Error::required(&path.child("averageValue"), "must specify a positive target averageValue"));
        }
        "resource" | "containerResource" if !has("averageUtilization") && !has("averageValue") => {
            let detail = "must set either a target raw value or a target utilization";
            errors.push(Error::required(&path.child("averageUtilization"), detail));
        }
        "resource" | "containerResource" if has("averageUtilization") && has("averageValue") => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.push(Error::forbidden(&path.child("averageValue"), detail));
        }
        _ => {}
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
        let policies = ["PreemptLowerPriority", "Never"];
        let policy = object.get("preemptionPolicy").and_then(Value::as_str);
        errors.extend(policy.map_or(Vec::new(), |policy| one_of(&Path::new("preemptionPolicy"), Some(policy), &policies)));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        if int(new, "/value") != int(old, "/value") {
            errors.push(Error::forbidden(&Path::new("Value"), "may not be changed in an update."));
        }
        let default = json!("PreemptLowerPriority");
        let policy = |object: &Value| object.get("preemptionPolicy").filter(|v| !v.is_null()).unwrap_or(&default).clone();
        errors.extend(immutable(&Path::new("preemptionPolicy"), &policy(new), &policy(old)));
        errors
    }
}
