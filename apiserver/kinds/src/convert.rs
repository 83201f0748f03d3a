//! One object in another version, or another group's form, of its kind.
//!
//! Upstream: `pkg/apis/autoscaling/v1/conversion.go`, `pkg/apis/events/v1/conversion.go` (v1.33).

use serde_json::{Map, Value, json};

use crate::value::{child, is_set, list, remove, set, text};

/// The object as `api_version` shows it. Kinds whose versions agree in shape only change their apiVersion.
pub fn convert(mut object: Value, api_version: &str) -> Value {
    let from = text(&object, "/apiVersion").to_owned();
    match (from.as_str(), api_version, text(&object, "/kind")) {
        (from, to, _) if from == to => return object,
        ("v1", "events.k8s.io/v1", "Event") => rename(&mut object, |(core, new)| (core, new)),
        ("events.k8s.io/v1", "v1", "Event") => rename(&mut object, |(core, new)| (new, core)),
        ("autoscaling/v2", "autoscaling/v1", _) => autoscaler_to_v1(&mut object),
        ("autoscaling/v1", "autoscaling/v2", _) => autoscaler_to_v2(&mut object),
        _ => {}
    }
    set(&mut object, "apiVersion", json!(api_version));
    object
}

/// An event's fields in the core group and in events.k8s.io; the others are called alike.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("involvedObject", "regarding"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
];

fn rename(event: &mut Value, direction: fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(fields) = event.as_object_mut() else { return };
    for (from, to) in EVENT_FIELDS.map(direction) {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

/// Annotations under which autoscaling/v1 keeps what it has no field for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu_utilization(metric: &Value, side: &str) -> bool {
    text(metric, "/type") == "Resource"
        && text(metric, "/resource/name") == "cpu"
        && is_set(metric, &format!("/resource/{side}/averageUtilization"))
}

fn autoscaler_to_v1(object: &mut Value) {
    let mut annotations = Vec::new();
    for (part, field, side, cpu_field, annotation) in [
        ("spec", "metrics", "target", "targetCPUUtilizationPercentage", METRICS),
        ("status", "currentMetrics", "current", "currentCPUUtilizationPercentage", CURRENT_METRICS),
    ] {
        let all = list(&object[part], &format!("/{field}")).to_vec();
        let (cpu, others): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|m| is_cpu_utilization(m, side));
        remove(&mut object[part], field);
        if let Some(last) = cpu.last() {
            set(child(object, part), cpu_field, last["resource"][side]["averageUtilization"].clone());
        }
        if !others.is_empty() {
            let flat: Vec<Value> = others.iter().map(|metric| flatten(metric, side)).collect();
            annotations.push((annotation, json!(flat)));
        }
    }
    for (part, field, annotation) in [("status", "conditions", CONDITIONS), ("spec", "behavior", BEHAVIOR)] {
        let value = object[part][field].clone();
        remove(&mut object[part], field);
        if !value.is_null() && value != json!([]) {
            annotations.push((annotation, value));
        }
    }
    if object["status"].is_object() && !is_set(object, "/status/currentReplicas") {
        set(child(object, "status"), "currentReplicas", json!(0));
    }
    for (name, value) in annotations {
        set(child(child(object, "metadata"), "annotations"), name, json!(value.to_string()));
    }
}

fn autoscaler_to_v2(object: &mut Value) {
    if object["status"]["currentReplicas"] == json!(0) {
        remove(&mut object["status"], "currentReplicas");
    }
    for (part, field, side, cpu_field, annotation) in [
        ("spec", "metrics", "target", "targetCPUUtilizationPercentage", METRICS),
        ("status", "currentMetrics", "current", "currentCPUUtilizationPercentage", CURRENT_METRICS),
    ] {
        let mut metrics = Vec::new();
        let cpu = object[part][cpu_field].clone();
        remove(&mut object[part], cpu_field);
        if !cpu.is_null() {
            let kind = if side == "target" {
                json!({"type": "Utilization", "averageUtilization": cpu})
            } else {
                json!({"averageUtilization": cpu})
            };
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", side: kind}}));
        }
        if let Some(Value::Array(flat)) = take_annotation(object, annotation) {
            metrics.extend(flat.iter().map(|metric| unflatten(metric, side)));
        }
        if !metrics.is_empty() {
            set(child(object, part), field, Value::Array(metrics));
        }
    }
    for (part, field, annotation) in [("status", "conditions", CONDITIONS), ("spec", "behavior", BEHAVIOR)] {
        if let Some(value) = take_annotation(object, annotation) {
            set(child(object, part), field, value);
        }
    }
}

/// The parsed annotation, removed. One that is no JSON is dropped, as upstream drops it.
fn take_annotation(object: &mut Value, name: &str) -> Option<Value> {
    let annotations = object.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
    let value = annotations.remove(name)?;
    if annotations.is_empty() {
        remove(&mut object["metadata"], "annotations");
    }
    serde_json::from_str(value.as_str()?).ok()
}

/// How v1 calls a target's or a current value's fields, beside the source itself.
fn flat_names(source: &str, side: &str) -> [(&'static str, &'static str); 3] {
    match (source, side) {
        ("object", "target") => [("value", "targetValue"), ("averageValue", "averageValue"), ("", "")],
        ("object", _) => [("value", "currentValue"), ("averageValue", "averageValue"), ("", "")],
        (_, "target") => {
            [("value", "targetValue"), ("averageValue", "targetAverageValue"), ("averageUtilization", "targetAverageUtilization")]
        }
        _ => [("value", "currentValue"), ("averageValue", "currentAverageValue"), ("averageUtilization", "currentAverageUtilization")],
    }
}

const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

fn source_of(metric: &Value) -> Option<&'static str> {
    SOURCES.iter().find(|(kind, _)| *kind == text(metric, "/type")).map(|(_, source)| *source)
}

/// A v2 metric in v1's flat form.
fn flatten(metric: &Value, side: &str) -> Value {
    let Some(source) = source_of(metric) else { return metric.clone() };
    let nested = &metric[source];
    let mut flat = Map::new();
    let selector = if source == "external" { "metricSelector" } else { "selector" };
    for (from, to) in [
        ("/name", "name"),
        ("/container", "container"),
        ("/metric/name", "metricName"),
        ("/metric/selector", selector),
        ("/describedObject", "target"),
    ] {
        if let Some(value) = nested.pointer(from) {
            flat.insert(to.to_owned(), value.clone());
        }
    }
    for (from, to) in flat_names(source, side) {
        if let Some(value) = nested[side].get(from) {
            flat.insert(to.to_owned(), value.clone());
        }
    }
    json!({"type": metric["type"], source: flat})
}

/// The inverse of [`flatten`].
fn unflatten(metric: &Value, side: &str) -> Value {
    let Some(source) = source_of(metric) else { return metric.clone() };
    let flat = &metric[source];
    let mut nested = json!({});
    for name in ["name", "container"] {
        if let Some(value) = flat.get(name) {
            set(&mut nested, name, value.clone());
        }
    }
    if let Some(name) = flat.get("metricName") {
        set(child(&mut nested, "metric"), "name", name.clone());
    }
    if let Some(selector) = flat.get("selector").or_else(|| flat.get("metricSelector")) {
        set(child(&mut nested, "metric"), "selector", selector.clone());
    }
    if let Some(target) = flat.get("target") {
        set(&mut nested, "describedObject", target.clone());
    }
    for (to, from) in flat_names(source, side) {
        let Some(value) = flat.get(from) else { continue };
        let slot = child(&mut nested, side);
        set(slot, to, value.clone());
        if side == "target" {
            let kind = match to {
                "averageUtilization" => "Utilization",
                "averageValue" => "AverageValue",
                _ => "Value",
            };
            set(slot, "type", json!(kind));
        }
    }
    json!({"type": metric["type"], source: nested})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_everything() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "a"}, "message": "m", "count": 2, "reason": "r"});
        let new = convert(core.clone(), "events.k8s.io/v1");
        assert_eq!(
            new,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "a"}, "note": "m",
            "deprecatedCount": 2, "reason": "r"})
        );
        assert_eq!(convert(new, "v1"), core);
    }

    #[test]
    fn autoscalers_keep_everything() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}}]},
            "status": {"conditions": [{"type": "AbleToScale"}]}});
        let v1 = convert(v2.clone(), "autoscaling/v1");
        assert_eq!(v1["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(
            v1["metadata"]["annotations"][METRICS],
            json!(r#"[{"pods":{"metricName":"rps","targetAverageValue":"10"},"type":"Pods"}]"#)
        );
        assert_eq!(convert(v1, "autoscaling/v2"), v2);
    }
}
