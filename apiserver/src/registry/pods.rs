//! What may be asked of a pod beyond reading and writing it: binding, eviction, ephemeral containers, resize.
//!
//! Upstream counterparts: `pkg/registry/core/pod/storage/{storage,eviction}.go` (v1.33).

use std::sync::Arc;

use api::{GroupResource, LabelSelector, Status};
use serde_json::{Value, json};

use super::cache::Selection;
use super::delete::{DeleteOptions, Deleted, Preconditions};
use super::record::Record;
use super::tree::{self, items, number, object, rfc3339, text};
use super::write::Part;
use super::{Caller, Registry, Target, WriteOptions};

impl Registry {
    /// Assign the pod to the Binding's node, once.
    pub async fn bind(&self, caller: &Caller, target: &Target, binding: &Value, options: &WriteOptions) -> Result<Arc<Record>, Status> {
        let node = text(binding, "/target/name").to_owned();
        let kind = text(binding, "/target/kind");
        if node.is_empty() {
            return Err(Status::unclassified("target.name: Required value"));
        }
        if !matches!(kind, "" | "Node") {
            let why = format!("target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\"");
            return Err(Status::unclassified(why));
        }
        if target.key.name.is_empty() {
            return Err(Status::bad_request("Name parameter required."));
        }
        let wanted = text(binding, "/metadata/uid").to_owned();
        let resource = GroupResource::new("", "pods/binding");
        let (now, name) = (caller.now, target.key.name.clone());
        let conflict = |why: String| Err(Status::conflict(&resource, &name, why));
        self.update(caller, target, Part::Raw, &options.untracked(), &|pod| {
            let mut pod = pod.clone();
            let uid = text(&pod, "/metadata/uid").to_owned();
            if !wanted.is_empty() && wanted != uid {
                return conflict(format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"));
            }
            if tree::is_being_deleted(&pod) {
                return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            let at = text(&pod, "/spec/nodeName").to_owned();
            if !at.is_empty() {
                return conflict(format!("pod {name} is already assigned to node {at:?}"));
            }
            if !items(&pod, "/spec/schedulingGates").is_empty() {
                return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            object(&mut pod, "spec").insert("nodeName".into(), json!(node));
            for (name, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
                object(&mut pod["metadata"], "annotations").insert(name.clone(), value.clone());
            }
            set_condition(
                &mut pod,
                json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": rfc3339(now)}),
            );
            Ok(pod)
        })
        .await
    }

    /// Delete the pod if every disruption budget allows it.
    pub async fn evict(&self, caller: &Caller, target: &Target, eviction: &Value, options: &WriteOptions) -> Result<(), Status> {
        let asked: Option<DeleteOptions> =
            eviction.get("deleteOptions").filter(|o| !o.is_null()).and_then(|o| serde_json::from_value(o.clone()).ok());
        let mut delete = asked.unwrap_or_default();
        if options.dry_run {
            delete.dry_run = Some(vec!["All".into()]);
        }
        let pod = self.find(target)?;
        let tree = pod.value();
        let over = matches!(text(&tree, "/status/phase"), "Succeeded" | "Failed" | "Pending") || tree::is_being_deleted(&tree);
        if !over {
            self.charge_budget(caller, target, &pod, options).await?;
            let unchanged: &mut Preconditions = delete.preconditions.get_or_insert_default();
            unchanged.uid.get_or_insert_with(|| pod.uid.to_string());
        }
        let plain = Target { subresource: String::new(), ..target.clone() };
        match self.delete(caller, &plain, &delete).await? {
            Deleted::Gone(_) | Deleted::Waiting(_) => Ok(()),
        }
    }

    /// Take one disruption from the budget that covers the pod.
    async fn charge_budget(&self, caller: &Caller, target: &Target, pod: &Record, options: &WriteOptions) -> Result<(), Status> {
        let Some(kind) = kinds::by_resource("policy", "poddisruptionbudgets") else { return Ok(()) };
        let budgets = self.records(kind)?.list(&Selection::in_namespace(&pod.key.namespace), None, None, 0, 0);
        let covering: Vec<Arc<Record>> =
            budgets.map(|l| l.records).unwrap_or_default().into_iter().filter(|b| covers(&b.value(), pod)).collect();
        let budget = match covering.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => {
                return Err(Status::unclassified(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let mut at = Target::stored(kind, budget.key.clone());
        at.subresource = "status".into();
        let (name, now) = (target.key.name.clone(), caller.now);
        let change = |budget: &Value| spend(budget, &name, now);
        self.update(&Caller::system(), &at, Part::Raw, &options.untracked(), &change).await.map(drop)
    }

    /// Add ephemeral containers; the rest of the pod stays.
    pub async fn set_ephemeral_containers(
        &self,
        caller: &Caller,
        target: &Target,
        options: &WriteOptions,
        make: &super::write::Change<'_>,
    ) -> Result<Arc<Record>, Status> {
        self.update_part(caller, target, options, make, |pod, new| {
            let old = pod.clone();
            match new.pointer("/spec/ephemeralContainers") {
                Some(containers) => object(pod, "spec").insert("ephemeralContainers".into(), containers.clone()),
                None => object(pod, "spec").remove("ephemeralContainers"),
            };
            let errors = kinds::strategies::pod::validate_ephemeral_update(pod, &old);
            if !errors.is_empty() {
                return Err(Status::invalid(&target.storage().group_kind(), &target.key.name, errors));
            }
            Ok(())
        })
        .await
    }

    /// Change the resources of running containers; the rest of the pod stays.
    pub async fn resize(
        &self,
        caller: &Caller,
        target: &Target,
        options: &WriteOptions,
        make: &super::write::Change<'_>,
    ) -> Result<Arc<Record>, Status> {
        self.update_part(caller, target, options, make, |pod, new| {
            let wanted = items(new, "/spec/containers");
            for container in pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut).into_iter().flatten() {
                let Some(asked) = wanted.iter().find(|c| c["name"] == container["name"]) else { continue };
                for field in ["resources", "resizePolicy"] {
                    if let Some(value) = asked.get(field) {
                        container[field] = value.clone();
                    }
                }
            }
            Ok(())
        })
        .await
    }

    /// `take` moves its part of the pod that is asked for into the stored one.
    async fn update_part(
        &self,
        caller: &Caller,
        target: &Target,
        options: &WriteOptions,
        make: &super::write::Change<'_>,
        take: impl Fn(&mut Value, &Value) -> Result<(), Status> + Sync,
    ) -> Result<Arc<Record>, Status> {
        self.update(caller, target, Part::Raw, options, &|old| {
            let new = make(old)?;
            let mut pod = old.clone();
            tree::take_identity(&mut pod, &new);
            take(&mut pod, &new)?;
            bump_generation(&mut pod, old);
            Ok(pod)
        })
        .await
    }
}

fn bump_generation(pod: &mut Value, old: &Value) {
    if pod["spec"] != old["spec"] {
        let generation = number(old, "/metadata/generation").unwrap_or(0) + 1;
        tree::meta(pod).insert("generation".into(), generation.into());
    }
}

/// Put a condition in the place of the one of its type.
pub fn set_condition(object: &mut Value, condition: Value) {
    let status = self::object(object, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(slot) => *slot = condition,
        None => list.push(condition),
    }
}

fn covers(budget: &Value, pod: &Record) -> bool {
    let selector = budget.pointer("/spec/selector").and_then(|s| serde_json::from_value(s.clone()).ok());
    selector.is_some_and(|selector| LabelSelector::from_k8s(Some(&selector)).is_ok_and(|s| s.matches_by(|key| pod.label(key))))
}

/// Pure: the budget with one disruption less, or 429 in upstream's words.
fn spend(budget: &Value, pod: &str, now: jiff::Timestamp) -> Result<Value, Status> {
    let name = text(budget, "/metadata/name");
    let allowed = number(budget, "/status/disruptionsAllowed").unwrap_or(0);
    let (seen, generation) =
        (number(budget, "/status/observedGeneration").unwrap_or(0), number(budget, "/metadata/generation").unwrap_or(0));
    let refuse = |cause: String, retry: u32| {
        let status = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", retry);
        Err(status.with_cause("DisruptionBudget", "", cause))
    };
    if seen < generation {
        return refuse(format!("The disruption budget {name} is still being processed by the server."), 10);
    }
    if allowed <= 0 {
        let (desired, healthy) =
            (number(budget, "/status/desiredHealthy").unwrap_or(0), number(budget, "/status/currentHealthy").unwrap_or(0));
        return refuse(format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"), 0);
    }
    let mut budget = budget.clone();
    let status = object(&mut budget, "status");
    status.insert("disruptionsAllowed".into(), (allowed - 1).into());
    let disrupted = status.entry("disruptedPods").or_insert_with(|| json!({}));
    disrupted[pod] = json!(rfc3339(now));
    Ok(budget)
}
