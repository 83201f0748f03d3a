//! Priority: class names become numbers; and there is one default class.
//!
//! Upstream: `plugin/pkg/admission/priority/admission.go` (v1.33).

use api::{GroupResource, Key};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::Value;

use super::object::{is_unset, slot};
use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::{LookupExt, text};

pub struct Priority;

fn classes() -> GroupResource {
    GroupResource::new("scheduling.k8s.io", "priorityclasses")
}

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Refusal> {
        match request.operation {
            _ if !request.is("pods") => Ok(()),
            Operation::Create => resolve(request, pod),
            Operation::Update => {
                keep(request, pod);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn validate(&self, request: &Request<'_>, class: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        let applies = matches!(request.operation, Operation::Create | Operation::Update);
        let is_default = class.get("globalDefault") == Some(&Value::Bool(true));
        if !request.is("priorityclasses.scheduling.k8s.io") || !applies || !is_default {
            return Ok(());
        }
        let Some(other) = default_class(request).and_then(|class| class.metadata.name) else { return Ok(()) };
        if request.operation == Operation::Create || other != text(class, "/metadata/name") {
            let why = format!("PriorityClass {other} is already marked as default. Only one default can exist");
            return Err(request.forbidden(class, why));
        }
        Ok(())
    }
}

/// Of several defaults (a race made them) the lowest.
fn default_class(request: &Request<'_>) -> Option<PriorityClass> {
    let all = request.lookup.typed_list::<PriorityClass>(&classes(), None);
    all.into_iter().filter(|class| class.global_default == Some(true)).min_by_key(|class| class.value)
}

fn resolve(request: &Request<'_>, pod: &mut Value) -> Result<(), Refusal> {
    let name = text(pod, "/spec/priorityClassName").to_owned();
    let class = if name.is_empty() {
        default_class(request)
    } else {
        let found = request.lookup.typed::<PriorityClass>(&classes(), &Key::cluster(name.clone()));
        Some(found.ok_or_else(|| request.forbidden(pod, format!("no PriorityClass with name {name} was found")))?)
    };
    let (value, policy) = class.as_ref().map_or((0, "PreemptLowerPriority".to_owned()), |class| {
        (class.value, class.preemption_policy.clone().unwrap_or_else(|| "PreemptLowerPriority".to_owned()))
    });
    let asked = pod.pointer("/spec/priority").and_then(Value::as_i64);
    if let Some(asked) = asked.filter(|asked| *asked != i64::from(value)) {
        let why = format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    let asked = text(pod, "/spec/preemptionPolicy");
    if !asked.is_empty() && asked != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    let spec = slot(pod, "spec");
    if let Some(name) = class.and_then(|class| class.metadata.name) {
        spec["priorityClassName"] = name.into();
    }
    spec["priority"] = value.into();
    spec["preemptionPolicy"] = policy.into();
    Ok(())
}

/// Clients that do not know these fields drop them in an update.
fn keep(request: &Request<'_>, pod: &mut Value) {
    for field in ["priority", "preemptionPolicy"] {
        let old = request.old.and_then(|old| old.get("spec")?.get(field)).filter(|value| !value.is_null());
        if let Some(old) = old
            && is_unset(pod.pointer("/spec").and_then(|spec| spec.get(field)))
        {
            slot(pod, "spec")[field] = old.clone();
        }
    }
}
