//! ServiceAccount: every pod runs as an account, and its containers find that account's token.
//!
//! Upstream: `plugin/pkg/admission/serviceaccount/admission.go` (v1.33).

use std::collections::BTreeSet;

use rand::Rng;
use serde_json::{Value, json};
use std::sync::Arc;

use super::object::{is_unset, list, slot};
use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::authz::ReferenceKind;
use crate::lookup::{LookupExt, items, meta_entry, text};

pub struct ServiceAccount;

const DEFAULT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Of the projected token, in seconds: the value that gets pod-bound tokens extended (see `token::issue`).
const TOKEN_SECONDS: i64 = 3607;
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Refusal> {
        if !request.is("pods") || request.operation != Operation::Create {
            return Ok(());
        }
        if is_mirror(pod) {
            return check_mirror_pod(request, pod);
        }
        let name = [text(pod, "/spec/serviceAccountName"), text(pod, "/spec/serviceAccount"), DEFAULT]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or(DEFAULT)
            .to_owned();
        let spec = slot(pod, "spec");
        spec["serviceAccountName"] = name.clone().into();
        spec["serviceAccount"] = name.clone().into();
        let account = find(request, pod, &name)?;
        if automounts(&account, pod) {
            mount_token(pod);
        }
        let pull_secrets = items(&account, "/imagePullSecrets");
        if is_unset(pod.pointer("/spec/imagePullSecrets")) && !pull_secrets.is_empty() {
            slot(pod, "spec")["imagePullSecrets"] = pull_secrets.iter().map(|s| json!({"name": text(s, "/name")})).collect();
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, pod: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        if !request.is("pods") || request.operation != Operation::Create {
            return check_ephemeral_containers(request, pod);
        }
        if is_mirror(pod) {
            return check_mirror_pod(request, pod);
        }
        let account = find(request, pod, text(pod, "/spec/serviceAccountName"))?;
        limit_secrets(request, &account, pod)
    }
}

fn is_mirror(pod: &Value) -> bool {
    meta_entry(pod, "annotations", "kubernetes.io/config.mirror").is_some()
}

/// The `default` account is made by a controller right after its namespace: worth waiting for.
fn find(request: &Request<'_>, pod: &Value, name: &str) -> Result<Arc<Value>, Refusal> {
    let namespace = request.namespace;
    request.lookup.core("serviceaccounts", namespace, name).ok_or_else(|| {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        let refusal = request.forbidden(pod, why);
        if name == DEFAULT { Refusal::Transient(refusal.status()) } else { refusal }
    })
}

/// The pod's wish wins over its account's; without any, yes.
fn automounts(account: &Value, pod: &Value) -> bool {
    let wish = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_bool);
    wish(pod, "/spec/automountServiceAccountToken").or_else(|| wish(account, "/automountServiceAccountToken")).unwrap_or(true)
}

/// Mounts the token volume into every container that has nothing at its path.
fn mount_token(pod: &mut Value) {
    let existing = items(pod, "/spec/volumes").iter().map(|v| text(v, "/name")).find(|name| name.starts_with(VOLUME_PREFIX));
    let (name, add_volume) = match existing {
        Some(name) => (name.to_owned(), false),
        None => (format!("{VOLUME_PREFIX}{}", random_suffix()), true),
    };
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        let Some(containers) = pod.pointer_mut("/spec").and_then(|spec| spec.get_mut(field)).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers {
            let mounts = list(container, "volumeMounts");
            if mounts.iter().all(|mount| text(mount, "/mountPath") != MOUNT_PATH) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if add_volume && mounted {
        list(slot(pod, "spec"), "volumes").push(token_volume(&name));
    }
}

/// With its defaults filled in: this runs after defaulting.
fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {
        "defaultMode": 420,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ],
    }})
}

/// Five characters that spell no words: upstream's alphabet for generated names.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| ALPHABET[random.random_range(0..ALPHABET.len())] as char).collect()
}

fn names<'a>(object: &'a Value, pointer: &str) -> BTreeSet<&'a str> {
    items(object, pointer).iter().map(|item| text(item, "/name")).collect()
}

/// For accounts that say so, a pod may only use the secrets its account lists.
fn limit_secrets(request: &Request<'_>, account: &Value, pod: &Value) -> Result<(), Refusal> {
    if !matches!(meta_entry(account, "annotations", ENFORCE_MOUNTABLE), Some("1" | "t" | "T" | "true" | "TRUE" | "True")) {
        return Ok(());
    }
    let owner = text(account, "/metadata/name");
    let mountable = names(account, "/secrets");
    let reference = format!("is not allowed because service account {owner} does not reference that");
    for volume in items(pod, "/spec/volumes") {
        let name = text(volume, "/secret/secretName");
        if volume.get("secret").is_some() && !mountable.contains(name) {
            return Err(request.forbidden(pod, format!("volume with secret.secretName={name:?} {reference} secret")));
        }
    }
    limit_container_secrets(request, account, pod, &mountable)?;
    let pull = names(account, "/imagePullSecrets");
    for (index, secret) in items(pod, "/spec/imagePullSecrets").iter().enumerate() {
        let name = text(secret, "/name");
        if !pull.contains(name) {
            return Err(request.forbidden(pod, format!("imagePullSecrets[{index}].name={name:?} {reference} imagePullSecret")));
        }
    }
    Ok(())
}

fn limit_container_secrets(request: &Request<'_>, account: &Value, pod: &Value, mountable: &BTreeSet<&str>) -> Result<(), Refusal> {
    let owner = text(account, "/metadata/name");
    let kinds = [
        ("/spec/initContainers", "init container"),
        ("/spec/containers", "container"),
        ("/spec/ephemeralContainers", "ephemeral container"),
    ];
    for (pointer, kind) in kinds {
        for container in items(pod, pointer) {
            let place = format!("{kind} {}", text(container, "/name"));
            let refuse = |what: String, secret: &str| {
                let why = format!(
                    "{place} with {what} referencing secret.secretName={secret:?} is not allowed because service account {owner} does not reference that secret"
                );
                Err(request.forbidden(pod, why))
            };
            for env in items(container, "/env") {
                let name = text(env, "/valueFrom/secretKeyRef/name");
                if !name.is_empty() && !mountable.contains(name) {
                    return refuse(format!("envVar {}", text(env, "/name")), name);
                }
            }
            for source in items(container, "/envFrom") {
                let name = text(source, "/secretRef/name");
                if !name.is_empty() && !mountable.contains(name) {
                    return refuse("envFrom".to_owned(), name);
                }
            }
        }
    }
    Ok(())
}

fn check_ephemeral_containers(request: &Request<'_>, pod: &Value) -> Result<(), Refusal> {
    if !(request.is_any("pods") && request.subresource == "ephemeralcontainers" && request.operation == Operation::Update) || is_mirror(pod)
    {
        return Ok(());
    }
    let account = find(request, pod, text(pod, "/spec/serviceAccountName"))?;
    if meta_entry(&account, "annotations", ENFORCE_MOUNTABLE) != Some("true") {
        return Ok(());
    }
    limit_container_secrets(request, &account, pod, &names(&account, "/secrets"))
}

fn check_mirror_pod(request: &Request<'_>, pod: &Value) -> Result<(), Refusal> {
    let refuse = |what: &str| Err(request.forbidden(pod, format!("a mirror pod may not {what}")));
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return refuse("reference service accounts");
    }
    if super::refers_to(pod, ReferenceKind::Secret) {
        return refuse("reference secrets");
    }
    let projects_token = items(pod, "/spec/volumes")
        .iter()
        .flat_map(|volume| items(volume, "/projected/sources"))
        .any(|source| source.get("serviceAccountToken").is_some());
    if projects_token {
        return refuse("use ServiceAccountToken volume projections");
    }
    Ok(())
}
