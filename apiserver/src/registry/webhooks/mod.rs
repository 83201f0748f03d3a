//! Admission webhooks: programs outside the API server that change or refuse writes.
//!
//! ```text
//! plugins ─▶ mutating webhooks, one after another ─▶ (changed? plugins and webhooks once more) ─▶ validate ─▶ validating webhooks, at once
//! ```
//! Invariants: a webhook sees the object whole, defaulted, in a version it asked for; what it changes is decoded and defaulted as a client's
//! body is; `failurePolicy` alone decides what a webhook that can't be reached means. Absent so far: `matchConditions`.
//! Upstream: `apiserver/pkg/admission/plugin/webhook/{mutating,validating}/dispatcher.go` (v1.33).

mod call;
mod review;
mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{GroupKind, GroupResource, Status};
use auth::Lookup;
use auth::admission::{self, Operation, Refusal};
use auth::lookup::LookupExt;
use kinds::convert;
use schema::FieldValidation;
use serde_json::{Value, json};

use super::reviews::user_info;
use super::tree::{items, text};
use super::{Caller, Registry, Target, WriteOptions};
use rules::{Form, Subject};

const GROUP: &str = "admissionregistration.k8s.io";
const DEFAULT_TIMEOUT: u64 = 10;

/// A write under way, as its webhooks are told of it.
pub struct Write<'a> {
    pub caller: &'a Caller,
    pub target: &'a Target,
    pub request: &'a admission::Request<'a>,
}

/// One webhook of a configuration. Its place in all of them is its identity.
struct Hook {
    config: Arc<Value>,
    index: usize,
}

impl Hook {
    fn spec(&self) -> &Value {
        &self.config["webhooks"][self.index]
    }

    fn name(&self) -> &str {
        text(self.spec(), "/name")
    }
}

/// A webhook that has to be asked, and the form in which it wants the object.
struct Invocation {
    form: Form,
    subject: Subject,
}

enum Failure {
    /// The webhook gave no answer that counts: `failurePolicy` decides.
    Call(String),
    Refused(Status),
}

impl Registry {
    /// The mutating phase: our own plugins, then webhooks; both again if a webhook changed the object.
    pub(super) async fn mutate(&self, write: &Write<'_>, object: &mut Value) -> Result<(), Refusal> {
        admission::mutate(write.request, object)?;
        let hooks = self.hooks(write, "mutatingwebhookconfigurations");
        if hooks.is_empty() {
            return Ok(());
        }
        normalize(write, object);
        let mut again = BTreeSet::new();
        let mut repeatable = Vec::new();
        let mut changed = false;
        for (place, hook) in hooks.iter().enumerate() {
            let Some(invocation) = self.invocation(write, hook, object)? else { continue };
            if self.call_mutating(write, hook, &invocation, object).await? {
                changed = true;
                again.extend(repeatable.iter().copied());
            }
            if text(hook.spec(), "/reinvocationPolicy") == "IfNeeded" {
                repeatable.push(place);
            }
        }
        if !changed {
            return Ok(());
        }
        let before = object.clone();
        admission::mutate(write.request, object)?;
        normalize(write, object);
        if *object != before {
            again.extend(repeatable);
        }
        for place in again {
            if let Some(invocation) = self.invocation(write, &hooks[place], object)? {
                self.call_mutating(write, &hooks[place], &invocation, object).await?;
            }
        }
        Ok(())
    }

    /// Validating webhooks, all at once; the first refusal in their order is the answer.
    pub(super) async fn validate_by_webhooks(&self, write: &Write<'_>, object: &Value) -> Result<(), Refusal> {
        let hooks = self.hooks(write, "validatingwebhookconfigurations");
        let mut calls = Vec::new();
        for hook in &hooks {
            if let Some(invocation) = self.invocation(write, hook, object)? {
                calls.push(async move { self.settle(hook, self.ask(write, hook, &invocation, object).await).map(drop) });
            }
        }
        futures::future::join_all(calls).await.into_iter().collect::<Result<(), Status>>().map_err(Refusal::from)
    }

    /// Admission of a connection to a pod, a service or a node: `options` are what the client asked for, of kind `kind`.
    pub async fn admit_connect(&self, caller: &Caller, target: &Target, kind: &str, options: Value) -> Result<(), Status> {
        let (resource, body) = (target.resource(), GroupKind::new("", kind));
        let request = self.request(caller, Operation::Connect, &body, &resource, target, &target.key.name, None, &WriteOptions::default());
        let (write, mut options) = (Write { caller, target, request: &request }, options);
        self.mutate(&write, &mut options).await.map_err(Refusal::status)?;
        self.validate_by_webhooks(&write, &options).await.map_err(Refusal::status)?;
        admission::validate(&request, &options).map_err(Refusal::status)?;
        Ok(())
    }

    fn hooks(&self, write: &Write<'_>, configurations: &str) -> Vec<Hook> {
        if rules::is_exempt(write.target.kind) {
            return Vec::new();
        }
        let configs = self.cache.list(&GroupResource::new(GROUP, configurations), None);
        let hooks = |config: Arc<Value>| (0..items(&config, "/webhooks").len()).map(move |index| Hook { config: config.clone(), index });
        configs.into_iter().flat_map(hooks).collect()
    }

    fn invocation(&self, write: &Write<'_>, hook: &Hook, object: &Value) -> Result<Option<Invocation>, Status> {
        let subject = subject(write);
        let Some(form) = rules::form(hook.spec(), write.target, &subject) else { return Ok(None) };
        let wanted = rules::selects_namespace(hook.spec(), || self.namespace_labels(&subject, object))?
            && rules::selects_object(hook.spec(), object, write.request.old)?;
        Ok(wanted.then_some(Invocation { form, subject }))
    }

    /// None for what lives in no namespace.
    fn namespace_labels(&self, subject: &Subject, object: &Value) -> Result<Option<Value>, Status> {
        if rules::is_namespace(subject) && subject.subresource.is_empty() && object.is_object() {
            return Ok(Some(object["metadata"]["labels"].clone()));
        }
        if subject.namespace.is_empty() {
            return Ok(None);
        }
        let found = self.cache.core("namespaces", "", &subject.namespace);
        let namespace = found.ok_or_else(|| Status::not_found(&GroupResource::new("", "namespaces"), &subject.namespace))?;
        Ok(Some(namespace["metadata"]["labels"].clone()))
    }

    /// Returns whether the object was changed.
    async fn call_mutating(&self, write: &Write<'_>, hook: &Hook, invocation: &Invocation, object: &mut Value) -> Result<bool, Status> {
        let asked = self.ask(write, hook, invocation, object).await;
        let Some(answer) = self.settle(hook, asked)? else { return Ok(false) };
        let Some(patch) = answer.patch.filter(|patch| patch != b"[]") else { return Ok(false) };
        if !object.is_object() {
            let name = hook.name();
            return Err(Status::internal(format!(
                "admission webhook {name:?} attempted to modify the object, which is not supported for this operation"
            )));
        }
        let api_version = text(object, "/apiVersion").to_owned();
        let mut patched = convert(object.clone(), &invocation.form.api_version());
        schema::patch::json(&mut patched, &serde_json::from_slice(&patch).map_err(Status::internal)?).map_err(Status::internal)?;
        let gvk = write.target.storage().storage_gvk();
        let patched = convert(patched, &api_version);
        let (mut patched, _) = schema::decode_value(patched, &gvk, FieldValidation::Ignore).map_err(Status::internal)?;
        schema::default(&gvk, &mut patched);
        schema::normalize(&gvk, &mut patched);
        let changed = patched != *object;
        *object = patched;
        Ok(changed)
    }

    async fn ask(&self, write: &Write<'_>, hook: &Hook, invocation: &Invocation, object: &Value) -> Result<review::Answer, Failure> {
        let (spec, name) = (hook.spec(), hook.name());
        if write.request.dry_run && !matches!(text(spec, "/sideEffects"), "None" | "NoneOnDryRun") {
            return Err(Failure::Refused(Status::bad_request(format!("admission webhook {name:?} does not support dry run"))));
        }
        let seconds = spec["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT);
        let timeout = Duration::from_secs(seconds);
        let api_version = review::version(spec).map_err(Failure::Call)?;
        let uid = uuid::Uuid::new_v4().to_string();
        let question = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": question(write, invocation, object, &uid)});
        let config = &spec["clientConfig"];
        let place = call::place(config, timeout, &self.cache).map_err(Failure::Call)?;
        let body = super::record::encode(&question);
        let answer = call::post(&place, text(config, "/caBundle"), body, timeout).await.map_err(Failure::Call)?;
        let mut answer = review::read(name, &api_version, &uid, &answer).map_err(Failure::Call)?;
        std::mem::take(&mut answer.warnings).into_iter().for_each(|warning| write.caller.warn(warning));
        match answer.denied.take() {
            Some(status) => Err(Failure::Refused(status)),
            None => Ok(answer),
        }
    }

    /// What an answer, or none, means for the write.
    fn settle(&self, hook: &Hook, asked: Result<review::Answer, Failure>) -> Result<Option<review::Answer>, Status> {
        match asked {
            Ok(answer) => Ok(Some(answer)),
            Err(Failure::Refused(status)) => Err(status),
            Err(Failure::Call(why)) => {
                let why = format!("failed calling webhook {:?}: {why}", hook.name());
                if text(hook.spec(), "/failurePolicy") == "Ignore" {
                    tracing::warn!("{why}; ignored, as its failurePolicy says");
                    return Ok(None);
                }
                Err(Status::internal(why))
            }
        }
    }
}

fn normalize(write: &Write<'_>, object: &mut Value) {
    if object.is_object() && write.request.operation != Operation::Connect {
        schema::normalize(&write.target.storage().storage_gvk(), object);
    }
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn subject(write: &Write<'_>) -> Subject {
    let (kind, request) = (write.target.kind, write.request);
    let is_namespace = kind.group.is_empty() && kind.plural == "namespaces";
    Subject {
        operation: operation(request.operation),
        group: kind.group.to_owned(),
        version: write.target.version.to_owned(),
        resource: kind.plural.to_owned(),
        subresource: write.target.subresource.clone(),
        namespace: if is_namespace { request.name } else { request.namespace }.to_owned(),
    }
}

/// `AdmissionRequest`.
fn question(write: &Write<'_>, invocation: &Invocation, object: &Value, uid: &str) -> Value {
    let (request, subject, form) = (write.request, &invocation.subject, invocation.form);
    let kind = |form: Form| match request.operation {
        Operation::Connect => json!({"group": "", "version": "v1", "kind": request.kind.kind}),
        _ => json!({"group": form.kind.group, "version": form.version, "kind": form.kind.kind}),
    };
    let resource = |form: Form| json!({"group": form.kind.group, "version": form.version, "resource": form.kind.plural});
    let shown = |object: &Value| match request.operation {
        Operation::Connect => object.clone(),
        _ if object.is_object() => convert(object.clone(), &form.api_version()),
        _ => Value::Null,
    };
    let asked = Form::of(write.target);
    let mut question = json!({
        "uid": uid,
        "kind": kind(form), "resource": resource(form),
        "requestKind": kind(asked), "requestResource": resource(asked),
        "operation": subject.operation,
        "userInfo": user_info(&write.caller.user),
        "object": shown(object),
        "oldObject": request.old.map_or(Value::Null, shown),
        "dryRun": request.dry_run,
        "options": options(request),
    });
    let optional = [
        ("name", request.name),
        ("namespace", &subject.namespace),
        ("subResource", &subject.subresource),
        ("requestSubResource", &subject.subresource),
    ];
    for (field, value) in optional.into_iter().filter(|(_, value)| !value.is_empty()) {
        question[field] = json!(value);
    }
    question
}

fn options(request: &admission::Request<'_>) -> Value {
    let kind = match request.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if request.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    options
}
