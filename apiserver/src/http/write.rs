//! POST, PUT, PATCH and DELETE, of objects and of their subresources.
//!
//! Upstream counterparts: `endpoints/handlers/{create,update,patch,delete}.go`, the `rest.Storage` of each subresource (v1.33).

use std::sync::Arc;

use api::{Gvk, Status};
use kinds::Served;
use serde_json::{Value, json};

use super::info::RequestInfo;
use super::negotiate::{self, Want};
use super::read::show;
use super::respond::{self, Answer};
use super::{App, Call, authorize, read};
use crate::registry::delete::Deleted;
use crate::registry::patch::{Patch, PatchType};
use crate::registry::record::{self, Record};
use crate::registry::write::{Change, Part, check_name, check_namespace, replacement, to_storage};
use crate::registry::{Target, WriteOptions, scale, tree};

/// Another client may create or delete the object while it is being applied.
const APPLY_TRIES: usize = 5;

impl Call {
    /// The body as `expected`, with decoding warnings passed on.
    fn decode(&self, expected: &Gvk) -> Result<Value, Status> {
        let media = negotiate::content(&self.headers)?;
        // What can't be read is refused below, with the kind that was expected.
        let has = schema::peek_gvk(&self.body, media).unwrap_or_else(|_| expected.clone());
        let declared = !has.version.is_empty() && !has.kind.is_empty();
        if declared && kinds::by_gvk(&has).is_some() && (has.group != expected.group || has.version != expected.version) {
            let message = format!(
                "the API version in the data ({}) does not match the expected API version ({})",
                has.api_version(),
                expected.api_version()
            );
            return Err(Status::bad_request(message));
        }
        let (object, warnings) = schema::decode(&self.body, media, expected, self.validation())?;
        warnings.into_iter().for_each(|w| self.caller.warn(w));
        Ok(object)
    }
}

fn gvk_of(served: &Served) -> Gvk {
    Gvk::new(served.group, served.version, served.kind)
}

pub async fn create(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    if !target.subresource.is_empty() {
        return create_subresource(app, call, target).await;
    }
    if !target.key.name.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let options = call.write_options("CreateOptions")?;
    let body = call.decode(&target.gvk())?;
    if target.kind.kind == "Binding" {
        let pods = kinds::by_resource("", "pods").ok_or_else(Status::no_such_resource)?;
        let mut pod =
            Target::stored(pods, api::Key::new(target.key.namespace.clone(), body["metadata"]["name"].as_str().unwrap_or_default()));
        pod.subresource = "binding".into();
        app.registry.bind(&call.caller, &pod, &body, &options).await?;
        return Ok(success(201, call));
    }
    if let Some(answer) = app.registry.review(&call.caller, &app.authenticator, target, &body)? {
        return Ok(respond::tree(201, &answer, call.want));
    }
    let record = app.registry.create(&call.caller, target, body, &options).await?;
    Ok(show(target, &record, call.want, &call.query, 201))
}

fn success(code: u16, call: &Call) -> Answer {
    respond::tree(code, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code}), call.want)
}

async fn create_subresource(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let sub = target.kind.subresource(&target.subresource).ok_or_else(Status::no_such_resource)?;
    let served = sub.served.as_ref().ok_or_else(Status::method_not_allowed)?;
    let options = call.write_options("CreateOptions")?;
    let body = call.decode(&gvk_of(served))?;
    if matches!(served.kind, "Binding" | "Eviction") && tree::text(&body, "/metadata/name") != target.key.name {
        return Err(Status::bad_request(format!("name in URL does not match name in {} object", served.kind)));
    }
    match target.subresource.as_str() {
        "binding" => {
            app.registry.bind(&call.caller, target, &body, &options).await?;
            Ok(success(201, call))
        }
        "eviction" => {
            app.registry.evict(&call.caller, target, &body, &options).await?;
            Ok(success(201, call))
        }
        "token" => token(app, call, target, body),
        _ => Err(Status::method_not_allowed()),
    }
}

fn token(app: &App, call: &Call, target: &Target, body: Value) -> Result<Answer, Status> {
    let body = serde_json::from_value(with_spec(body)).map_err(|e| Status::bad_request(e.to_string()))?;
    let request = auth::token::Request { namespace: &target.key.namespace, name: &target.key.name, body, now: call.caller.now };
    let issued = app.issuer.issue(request, &*app.registry.cache)?;
    Ok(respond::tree(201, &serde_json::to_value(&issued.body).map_err(Status::internal)?, call.want))
}

/// A TokenRequest may come without a spec; what it says of a status is nothing.
fn with_spec(mut body: Value) -> Value {
    if let Some(body) = body.as_object_mut() {
        body.remove("status");
    }
    if !body["spec"].is_object() {
        body["spec"] = json!({});
    }
    if !body["spec"]["audiences"].is_array() {
        body["spec"]["audiences"] = json!([]);
    }
    body
}

pub async fn update(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let (registry, options) = (&app.registry, call.write_options("UpdateOptions")?);
    if target.subresource == "scale" {
        let body = named_scale(target, call.decode(&scale::gvk())?)?;
        return rescale(app, call, target, &options, &|old| scale::rescale(target, old, |_| Ok(body.clone()))).await;
    }
    let object = replacement(target, call.decode(&target.gvk())?)?;
    let change = |_: &Value| Ok(object.clone());
    let record = match target.subresource.as_str() {
        "" => match registry.update(&call.caller, target, Part::Main, &options, &change).await {
            Err(status) if status.is_not_found() && target.kind.allow_create_on_update && registry.find(target).is_err() => {
                may_create(app, call)?;
                let body = call.decode(&target.gvk())?;
                let record = registry.create(&call.caller, target, body, &options).await?;
                return Ok(show(target, &record, call.want, &call.query, 201));
            }
            outcome => outcome?,
        },
        _ => update_part(app, call, target, &options, &change).await?,
    };
    Ok(show(target, &record, call.want, &call.query, 200))
}

async fn update_part(app: &App, call: &Call, target: &Target, options: &WriteOptions, change: &Change<'_>) -> Result<Arc<Record>, Status> {
    let registry = &app.registry;
    match target.subresource.as_str() {
        "status" => registry.update(&call.caller, target, Part::Status, options, change).await,
        "ephemeralcontainers" => registry.set_ephemeral_containers(&call.caller, target, options, change).await,
        "resize" => registry.resize(&call.caller, target, options, change).await,
        "finalize" => {
            let finalize = |old: &Value| Ok(keep_status(change(old)?, old));
            registry.update(&call.caller, target, Part::Raw, options, &finalize).await
        }
        "approval" => {
            let approve = |old: &Value| {
                let mut new = change(old)?;
                kinds::strategies::certificate::prepare_for_approval(target.storage(), &mut new, old);
                Ok(stamp_conditions(new, old, call.caller.now))
            };
            registry.update(&call.caller, target, Part::Raw, options, &approve).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

fn keep_status(mut new: Value, old: &Value) -> Value {
    if let Some(status) = old.get("status") {
        new["status"] = status.clone();
    }
    new
}

/// Conditions that came without times get them now. Upstream: `populateConditionTimestamps`.
fn stamp_conditions(mut object: Value, old: &Value, now: jiff::Timestamp) -> Value {
    let now = tree::rfc3339(now);
    let had = old.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    for condition in object.pointer_mut("/status/conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        if had.contains(condition) {
            continue;
        }
        for field in ["lastUpdateTime", "lastTransitionTime"] {
            if condition.get(field).is_none_or(Value::is_null) {
                condition[field] = json!(now);
            }
        }
    }
    object
}

async fn rescale(app: &App, call: &Call, target: &Target, options: &WriteOptions, change: &Change<'_>) -> Result<Answer, Status> {
    let record = app.registry.update(&call.caller, target, Part::Main, options, change).await?;
    let shown = scale::show(target, &record)?;
    Ok(respond::tree(200, &shown, call.want))
}

pub async fn patch(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let (patch, options) = call.patch()?;
    if target.subresource == "scale" {
        return rescale(app, call, target, &options, &|old| patch_scale(call, &patch, target, old)).await;
    }
    let change = |old: &Value| patch.apply(&call.caller, target, old);
    let (record, code) = match target.subresource.as_str() {
        "" if patch.patch_type == PatchType::Apply => apply(app, call, target, &patch, &options).await?,
        "" => (app.registry.update(&call.caller, target, Part::Main, &options, &change).await?, 200),
        _ => (update_part(app, call, target, &options, &change).await?, 200),
    };
    Ok(show(target, &record, call.want, &call.query, code))
}

/// Server-side apply makes what is missing.
async fn apply(app: &App, call: &Call, target: &Target, patch: &Patch<'_>, options: &WriteOptions) -> Result<(Arc<Record>, u16), Status> {
    let change = |old: &Value| patch.apply(&call.caller, target, old);
    for _ in 0..APPLY_TRIES {
        if app.registry.find(target).is_err() {
            may_create(app, call)?;
            match app.registry.create(&call.caller, target, patch.fresh(&call.caller, target)?, options).await {
                Err(status) if status.is_already_exists() => app.registry.catch_up().await?,
                outcome => return Ok((outcome?, 201)),
            }
        }
        match app.registry.update(&call.caller, target, Part::Main, options, &change).await {
            Err(status) if status.is_not_found() && app.registry.find(target).is_err() => {}
            outcome => return Ok((outcome?, 200)),
        }
    }
    Err(Status::modified(&target.resource(), &target.key.name))
}

/// Who makes an object by PUT or apply must also be allowed to create it.
fn may_create(app: &App, call: &Call) -> Result<(), Status> {
    let info = RequestInfo { verb: "create".into(), ..call.info.clone() };
    authorize(app, &info, &call.query, &call.caller.user)
}

/// The parent, for a patch of its Scale.
fn patch_scale(call: &Call, patch: &Patch<'_>, target: &Target, old: &Value) -> Result<Value, Status> {
    let how = match patch.patch_type {
        PatchType::Change(how) => how,
        PatchType::Apply => {
            let configuration = scale::as_parent(target, &patch.configuration(&call.caller)?)?;
            let live = kinds::convert(old.clone(), &target.gvk().api_version());
            return Ok(to_storage(target, patch.lay_over(&call.caller, target, Some(&live), &configuration)?));
        }
    };
    scale::rescale(target, old, |scale| named_scale(target, patch.change(&call.caller, how, &scale::gvk(), &scale)?))
}

/// A Scale of the object that the URL names.
fn named_scale(target: &Target, mut scale: Value) -> Result<Value, Status> {
    check_namespace(target, &mut scale)?;
    check_name(target, &scale)?;
    Ok(scale)
}

/// Kinds whose DELETE answers with the object. Upstream: `ReturnDeletedObject` in their stores.
const ANSWERS_WITH_OBJECT: [&str; 11] = [
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "persistentvolumes",
    "persistentvolumeclaims",
    "storageclasses",
    "volumeattachments",
    "csidrivers",
    "csinodes",
];

pub async fn delete(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let options = call.delete_options()?;
    if !target.subresource.is_empty() {
        return Err(Status::method_not_allowed());
    }
    match app.registry.delete(&call.caller, target, &options).await? {
        Deleted::Gone(record) if ANSWERS_WITH_OBJECT.contains(&target.kind.plural) => {
            Ok(show(target, &record, call.want, &call.query, 200))
        }
        Deleted::Gone(record) => Ok(respond::tree(
            200,
            &json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": details(target, &record),
            }),
            call.want,
        )),
        Deleted::Waiting(record) => {
            let accepted = options.orphan_dependents == Some(false);
            Ok(show(target, &record, call.want, &call.query, if accepted { 202 } else { 200 }))
        }
    }
}

fn details(target: &Target, record: &Record) -> Value {
    let mut details = json!({"name": record.key.name, "kind": target.kind.plural, "uid": record.uid});
    if !target.kind.group.is_empty() {
        details["group"] = target.kind.group.into();
    }
    details
}

pub async fn delete_collection(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let options = call.delete_options()?;
    let selection = read::selection(call, target)?;
    app.registry.catch_up().await?;
    let all = Target { key: api::Key::new(target.key.namespace.clone(), ""), ..target.clone() };
    let records = app.registry.delete_collection(&call.caller, &all, &selection, &options).await?;
    let form = read::form(target, Want::JSON);
    let items: Vec<Value> = records.iter().map(|r| record::project(r.value(), form)).collect();
    Ok(respond::tree(
        200,
        &json!({
            "kind": format!("{}List", target.kind.kind),
            "apiVersion": target.kind.api_version(target.version),
            "metadata": {"resourceVersion": app.registry.cache.applied().to_string()},
            "items": items,
        }),
        call.want,
    ))
}

/// GET of a subresource that has a shape of its own.
pub fn show_scale(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let record = app.registry.find(target)?;
    Ok(respond::tree(200, &scale::show(target, &record)?, call.want))
}
