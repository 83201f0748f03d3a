//! RuntimeClass: a pod carries its runtime's overhead and goes where that runtime is.
//!
//! Upstream: `plugin/pkg/admission/runtimeclass/admission.go`, `pkg/util/tolerations` (v1.33).

use std::sync::Arc;

use api::{GroupResource, Key, Quantity};
use serde_json::{Map, Value};

use super::object::{is_unset, list, map, slot};
use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::{items, text};

pub struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Refusal> {
        let Some(class) = find(request, pod)? else { return Ok(()) };
        if let Some(overhead) = overhead(&class) {
            if !is_unset(pod.pointer("/spec/overhead")) && !same_resources(pod.pointer("/spec/overhead"), Some(overhead)) {
                return Err(request.forbidden(pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
            }
            slot(pod, "spec")["overhead"] = overhead.clone();
        }
        for (key, wanted) in class.pointer("/scheduling/nodeSelector").and_then(Value::as_object).into_iter().flatten() {
            let wanted = wanted.as_str().unwrap_or_default();
            let selector = map(slot(pod, "spec"), "nodeSelector");
            if let Some(other) = selector.get(key).and_then(Value::as_str).filter(|other| *other != wanted) {
                let why =
                    format!("conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {other}");
                return Err(request.forbidden(pod, why));
            }
            selector.insert(key.clone(), wanted.into());
        }
        for toleration in items(&class, "/scheduling/tolerations") {
            let held = list(slot(pod, "spec"), "tolerations");
            if !held.contains(toleration) {
                held.push(toleration.clone());
            }
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, pod: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        if !request.is("pods") || request.operation != Operation::Create {
            return Ok(());
        }
        let class = find(request, pod)?;
        let (wanted, held) = (class.as_deref().and_then(overhead), pod.pointer("/spec/overhead"));
        if wanted.is_some() && !same_resources(wanted, held) {
            return Err(request.forbidden(pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        if wanted.is_none() && !is_unset(held) {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(request.forbidden(pod, why));
        }
        Ok(())
    }
}

/// The class of a pod being created, if it names one.
fn find(request: &Request<'_>, pod: &Value) -> Result<Option<Arc<Value>>, Refusal> {
    let name = text(pod, "/spec/runtimeClassName");
    if !request.is("pods") || request.operation != Operation::Create || name.is_empty() {
        return Ok(None);
    }
    let found = request.lookup.get(&GroupResource::new("node.k8s.io", "runtimeclasses"), &Key::cluster(name));
    found.map(Some).ok_or_else(|| request.forbidden(pod, format!("pod rejected: RuntimeClass {name:?} not found")))
}

fn overhead(class: &Value) -> Option<&Value> {
    class.pointer("/overhead/podFixed").filter(|fixed| !is_unset(Some(fixed)))
}

/// By value: `1000m` is `1`.
fn same_resources(a: Option<&Value>, b: Option<&Value>) -> bool {
    let parse = |value: Option<&Value>| -> Vec<(String, Option<Quantity>)> {
        let empty = Map::new();
        let map = value.and_then(Value::as_object).unwrap_or(&empty);
        map.iter().map(|(k, v)| (k.clone(), v.as_str().and_then(|text| Quantity::parse(text).ok()))).collect()
    };
    parse(a) == parse(b)
}
