//! The `scale` subresource: one shape (`autoscaling/v1 Scale`) over everything that has replicas. The row says where they are.
//!
//! Upstream counterpart: `pkg/registry/apps/deployment/storage` (`ScaleREST`, v1.33).

use api::{Gvk, LabelSelector, Status};
use kinds::ScalePaths;
use serde_json::{Value, json};

use super::Target;
use super::record::Record;
use super::tree::{self, number};

pub fn gvk() -> Gvk {
    Gvk::new("autoscaling", "v1", "Scale")
}

/// The object as a Scale.
pub fn show(target: &Target, record: &Record) -> Result<Value, Status> {
    Ok(of(paths(target)?, &record.value()))
}

fn paths(target: &Target) -> Result<&'static ScalePaths, Status> {
    target.storage().scale.ok_or_else(Status::no_such_resource)
}

fn of(paths: &ScalePaths, tree: &Value) -> Value {
    let meta = &tree["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {},
        "status": {"replicas": number(tree, paths.status_replicas).unwrap_or(0)},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(field) {
            scale["metadata"][field] = value.clone();
        }
    }
    // `omitempty` in Go: a Scale to zero says nothing.
    if let Some(replicas) = number(tree, paths.spec_replicas).filter(|n| *n != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    if let Some(selector) = selector(tree.pointer(paths.selector)) {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

fn selector(selector: Option<&Value>) -> Option<String> {
    let selector = selector?;
    let is_plain = selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
    let full = if is_plain { json!({"matchLabels": selector}) } else { selector.clone() };
    let parsed = serde_json::from_value(full).ok()?;
    LabelSelector::from_k8s(Some(&parsed)).ok().map(|s| s.to_string())
}

/// What an update of the Scale makes of the object. `edit` changes the Scale as shown.
pub fn rescale(target: &Target, stored: &Value, edit: impl Fn(Value) -> Result<Value, Status>) -> Result<Value, Status> {
    let paths = paths(target)?;
    let scale = edit(of(paths, stored))?;
    let replicas = replicas(target, &scale)?;
    let (wanted, uid) = (tree::text(&scale, "/metadata/uid"), tree::text(stored, "/metadata/uid"));
    if !wanted.is_empty() && wanted != uid {
        let mut resource = target.resource();
        resource.resource.push_str("/scale");
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(Status::conflict(&resource, &target.key.name, why));
    }
    let mut object = stored.clone();
    let version = scale["metadata"].get("resourceVersion").cloned().unwrap_or(Value::Null);
    tree::meta(&mut object).insert("resourceVersion".into(), version);
    if let Some(slot) = object.pointer_mut(paths.spec_replicas) {
        *slot = replicas.into();
    } else {
        tree::object(&mut object, "spec").insert("replicas".into(), replicas.into());
    }
    Ok(object)
}

fn replicas(target: &Target, scale: &Value) -> Result<i64, Status> {
    let replicas = number(scale, "/spec/replicas").unwrap_or(0);
    if replicas >= 0 {
        return Ok(replicas);
    }
    let path = api::field::Path::new("spec").child("replicas");
    let error = api::field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
    Err(Status::invalid(&api::GroupKind::new("autoscaling", "Scale"), &target.key.name, vec![error]))
}

/// What a Scale that is applied says of its parent.
pub fn as_parent(target: &Target, scale: &Value) -> Result<Value, Status> {
    let (wanted, parent) = (gvk(), target.gvk());
    if scale["apiVersion"] != wanted.api_version() || scale["kind"] != wanted.kind {
        let (group, version) = api::key::parse_api_version(tree::text(scale, "/apiVersion"));
        return Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={}", tree::text(scale, "/kind"))));
    }
    let mut configuration = json!({"apiVersion": parent.api_version(), "kind": parent.kind, "metadata": scale["metadata"]});
    if scale["spec"].get("replicas").is_some() {
        configuration["spec"] = json!({"replicas": replicas(target, scale)?});
    }
    Ok(configuration)
}
