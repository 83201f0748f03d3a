//! PodSecurity: the Pod Security Standards, by labels on the namespace.
//!
//! `pod-security.kubernetes.io/{enforce,warn,audit}: privileged|baseline|restricted`, each with a `-version`. Enforcing
//! is about pods; warning is about pod templates too. Every version is judged by the latest rules.
//!
//! Upstream: `k8s.io/pod-security-admission/{admission,api,policy}` (v1.33).

mod checks;

use api::{GroupKind, GroupResource, Status, field};
use serde_json::Value;

use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::{LookupExt, is_being_deleted, meta_entry, text};

pub struct PodSecurity;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "privileged" => Level::Privileged,
            "baseline" => Level::Baseline,
            "restricted" => Level::Restricted,
            _ => return None,
        })
    }
}

/// A level with the version it was asked for: `restricted:latest`.
#[derive(Clone, Debug, PartialEq)]
struct Policy {
    level: Level,
    label: String,
}

const PREFIX: &str = "pod-security.kubernetes.io/";

/// A namespace's policy in one mode. What can't be read is taken as the strictest, as upstream does.
fn policy(namespace: &Value, mode: &str) -> Policy {
    let level = meta_entry(namespace, "labels", &format!("{PREFIX}{mode}"));
    let version = meta_entry(namespace, "labels", &format!("{PREFIX}{mode}-version")).filter(|v| !v.is_empty()).unwrap_or("latest");
    let fallback = if mode == "enforce" { "restricted" } else { "privileged" };
    let (level, name) = match level.map(|name| (Level::parse(name), name)) {
        None => (Level::Privileged, "privileged"),
        Some((Some(level), name)) => (level, name),
        Some((None, _)) if mode == "enforce" => (Level::Restricted, fallback),
        Some((None, _)) => (Level::Privileged, fallback),
    };
    Policy { level, label: format!("{name}:{version}") }
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate(&self, request: &Request<'_>, object: &Value, outcome: &mut Outcome) -> Result<(), Refusal> {
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        if request.is("namespaces") {
            return check_namespace(request, object, outcome);
        }
        let template = template_pointer(request);
        let is_pod = request.is_any("pods") && matches!(request.subresource, "" | "ephemeralcontainers" | "resize");
        if !is_pod && template.is_none() {
            return Ok(());
        }
        let Some(namespace) = request.lookup.core("namespaces", "", request.namespace) else { return Ok(()) };
        match template {
            Some(pointer) => {
                let Some(pod) = object.pointer(pointer) else { return Ok(()) };
                warn(&policy(&namespace, "warn"), pod, outcome);
                Ok(())
            }
            None => check_pod(request, &namespace, object, outcome),
        }
    }
}

/// Where a workload keeps its pod template.
fn template_pointer(request: &Request<'_>) -> Option<&'static str> {
    if !request.subresource.is_empty() {
        return None;
    }
    match (request.resource.group.as_str(), request.resource.resource.as_str()) {
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => Some("/spec/template"),
        ("batch", "jobs") | ("", "replicationcontrollers") => Some("/spec/template"),
        ("batch", "cronjobs") => Some("/spec/jobTemplate/spec/template"),
        ("", "podtemplates") => Some("/template"),
        _ => None,
    }
}

fn check_pod(request: &Request<'_>, namespace: &Value, pod: &Value, outcome: &mut Outcome) -> Result<(), Refusal> {
    if let Some(old) = request.old
        && (is_being_deleted(old) || (request.subresource.is_empty() && !is_significant(old, pod)))
    {
        return Ok(());
    }
    let enforce = policy(namespace, "enforce");
    let violations = checks::violations(pod, enforce.level);
    if !violations.is_empty() {
        let why = format!("violates PodSecurity {:?}: {}", enforce.label, violations.join(", "));
        return Err(request.forbidden(pod, why));
    }
    warn(&policy(namespace, "warn"), pod, outcome);
    Ok(())
}

fn warn(policy: &Policy, pod: &Value, outcome: &mut Outcome) {
    let violations = checks::violations(pod, policy.level);
    if !violations.is_empty() {
        outcome.warnings.push(format!("would violate PodSecurity {:?}: {}", policy.label, violations.join(", ")));
    }
}

/// New images and amounts change nothing a policy looks at.
fn is_significant(old: &Value, new: &Value) -> bool {
    let relevant = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(map) = container.as_object_mut() {
                    map.remove("image");
                    map.remove("resources");
                }
            }
        }
        (spec, pod.pointer("/metadata/annotations").cloned())
    };
    relevant(old) != relevant(new)
}

/// Labels must be readable; and tightening tells which pods would no longer be let in.
fn check_namespace(request: &Request<'_>, namespace: &Value, outcome: &mut Outcome) -> Result<(), Refusal> {
    let errors = label_errors(namespace);
    if !errors.is_empty() {
        let name = text(namespace, "/metadata/name");
        return Err(Status::invalid(&GroupKind::new("", "Namespace"), name, errors).into());
    }
    let (Operation::Update, Some(old)) = (request.operation, request.old) else { return Ok(()) };
    let (before, after) = (policy(old, "enforce"), policy(namespace, "enforce"));
    if after.level <= before.level {
        return Ok(());
    }
    let name = text(namespace, "/metadata/name");
    let pods = request.lookup.list(&GroupResource::new("", "pods"), Some(name));
    let mut lines: Vec<String> = Vec::new();
    for pod in pods {
        let reasons = checks::violated_names(&pod, after.level);
        if !reasons.is_empty() {
            lines.push(format!("{}: {}", text(&pod, "/metadata/name"), reasons.join(", ")));
        }
    }
    if !lines.is_empty() {
        outcome.warnings.push(format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level {:?}", after.label));
        outcome.warnings.extend(lines);
    }
    Ok(())
}

fn label_errors(namespace: &Value) -> Vec<field::Error> {
    let labels = field::Path::new("metadata").child("labels");
    let mut errors = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("{PREFIX}{mode}");
        if let Some(level) = meta_entry(namespace, "labels", &key).filter(|level| Level::parse(level).is_none()) {
            errors.push(field::Error::invalid(&labels.key(&key), level, "must be one of privileged, baseline, restricted"));
        }
        let key = format!("{key}-version");
        if let Some(version) = meta_entry(namespace, "labels", &key).filter(|version| !is_version(version)) {
            errors.push(field::Error::invalid(&labels.key(&key), version, "must be \"latest\" or \"v1.x\""));
        }
    }
    errors
}

fn is_version(text: &str) -> bool {
    text == "latest" || text.strip_prefix("v1.").is_some_and(|minor| !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit()))
}
