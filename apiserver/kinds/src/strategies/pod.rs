//! Pods, their templates and bindings.
//!
//! Upstream: `pkg/registry/core/pod/strategy.go`, `pkg/apis/core/v1/helper/qos/qos.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use crate::meta::{validate_object_meta, validate_object_meta_update};
use crate::strategy::{prepare_for_create, prepare_for_status_update};
use crate::validation::field::{with, with_both};
use crate::validation::pod;
use crate::value::{child, copy_field, list, set, text};
use crate::{Kind, Strategy};

pub struct Pod;

impl Strategy for Pod {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(object)});
        if !list(object, "/spec/schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        set(object, "status", status);
    }

    fn prepare_for_status_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_status_update(kind, new, old);
        copy_field(child(new, "metadata"), &old["metadata"], "ownerReferences");
        if text(new, "/status/qosClass").is_empty() {
            copy_field(child(new, "status"), &old["status"], "qosClass");
        }
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors: ErrorList = with(object, pod::pod);
        if !list(object, "/spec/ephemeralContainers").is_empty() {
            errors.push(Error::forbidden(&Path::new("spec").child("ephemeralContainers"), "cannot be set on create"));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(validate_object_meta(kind, new));
        errors.extend(with(new, pod::pod));
        errors.extend(with_both(new, old, pod::update));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        if text(new, "/spec/nodeName") != text(old, "/spec/nodeName") {
            errors.push(Error::forbidden(&Path::new("status").child("nodeName"), "may not be changed directly"));
        }
        errors
    }

    /// A pod that no kubelet holds, or that has ended, goes at once.
    fn default_grace_period(&self, object: &Value) -> Option<i64> {
        let ended = matches!(text(object, "/status/phase"), "Failed" | "Succeeded");
        if text(object, "/spec/nodeName").is_empty() || ended {
            return Some(0);
        }
        let seconds = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
        Some(if seconds < 0 { 1 } else { seconds })
    }
}

/// What is wrong with a pod whose ephemeral containers were set through their subresource.
pub fn validate_ephemeral_update(new: &Value, old: &Value) -> ErrorList {
    with_both(new, old, pod::ephemeral_update)
}

/// Guaranteed if every container's cpu and memory are limited and requested alike, BestEffort if none asks
/// for any, else Burstable.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers"));
    let (mut any, mut all) = (false, true);
    let amount = |container: &Value, side: &str, name: &str| -> Option<api::Quantity> {
        let text = container["resources"][side][name].as_str()?;
        api::Quantity::parse(text).ok().filter(|amount| !amount.is_zero())
    };
    for container in containers {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(container, "requests", name), amount(container, "limits", name));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |object: &core::PodTemplate| pod::template(&Path::new("template"), &object.template.clone().unwrap_or_default()))
    }
}

pub struct Binding;

impl Strategy for Binding {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("target");
        let mut errors = Vec::new();
        if !matches!(text(object, "/target/kind"), "" | "Node") {
            errors.push(Error::not_supported(&path.child("kind"), text(object, "/target/kind"), &["Node", "<empty>"]));
        }
        if text(object, "/target/name").is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_follows_resources() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        let full = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"limits": full}))), "Guaranteed");
        assert_eq!(qos_class(&pod(json!({"limits": full, "requests": {"cpu": "1000m", "memory": "1024Mi"}}))), "Guaranteed");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
    }

    #[test]
    fn grace_is_for_pods_on_nodes() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node}, "status": {"phase": phase}});
        assert_eq!(Pod.default_grace_period(&pod("n1", "Running")), Some(30));
        assert_eq!(Pod.default_grace_period(&pod("", "Pending")), Some(0));
        assert_eq!(Pod.default_grace_period(&pod("n1", "Failed")), Some(0));
    }
}
