//! The API's own extension points.
//!
//! Upstream: `apiextensions-apiserver/pkg/{registry/customresourcedefinition/strategy.go,apis/apiextensions/validation}`,
//! `pkg/apis/admissionregistration/validation`, `kube-aggregator/pkg/apis/apiregistration/validation` (v1.33).

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::{Value, json};

use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{immutable, invalid, one_of, optional_one_of, required};
use crate::value::{child, flag, is_set, list, set, text};
use crate::{Kind, Strategy};

pub struct ApiService;

impl Strategy for ApiService {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let (group, version) = (text(object, "/spec/group"), text(object, "/spec/version"));
        let mut errors = Vec::new();
        let name = text(object, "/metadata/name");
        let wanted = format!("{version}.{group}");
        if name != wanted {
            let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, detail));
        }
        if !group.is_empty() {
            errors.extend(invalid(&path.child("group"), group, names::is_dns1123_subdomain(group)));
        }
        errors.extend(invalid(&path.child("version"), version, names::is_dns1035_label(version)));
        for (field, pointer, max) in [("groupPriorityMinimum", "/spec/groupPriorityMinimum", 20_000), ("versionPriority", "/spec/versionPriority", 1_000)] {
            let value = crate::value::int(object, pointer);
            if !(1..=max).contains(&value) {
                let detail = format!("must be positive and less than {max}");
                errors.push(Error::invalid(&path.child(field), value, detail));
            }
        }
        if is_set(object, "/spec/service") {
            for field in ["name", "namespace"] {
                errors.extend(required(&path.child("service").child(field), text(object, &format!("/spec/service/{field}"))));
            }
        }
        errors
    }
}

/// Mutating and validating configurations alike.
pub struct Webhooks;

impl Strategy for Webhooks {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = Vec::new();
        let mut seen = BTreeSet::new();
        for (index, hook) in list(object, "/webhooks").iter().enumerate() {
            let path = Path::new("webhooks").index(index);
            let name = text(hook, "/name");
            errors.extend(invalid(&path.child("name"), name, names::is_fully_qualified_domain_name(name)));
            if !seen.insert(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            errors.extend(webhook(&path, hook));
        }
        errors
    }
}

fn webhook(path: &Path, hook: &Value) -> ErrorList {
    let mut errors = Vec::new();
    let field = |name: &str| hook.get(name).and_then(Value::as_str);
    if list(hook, "/admissionReviewVersions").is_empty() {
        let detail = "must specify one of v1, v1beta1";
        errors.push(Error::required(&path.child("admissionReviewVersions"), detail));
    }
    errors.extend(one_of(&path.child("sideEffects"), field("sideEffects"), &["None", "NoneOnDryRun"]));
    errors.extend(optional_one_of(&path.child("failurePolicy"), field("failurePolicy"), &["Fail", "Ignore"]));
    errors.extend(optional_one_of(&path.child("matchPolicy"), field("matchPolicy"), &["Equivalent", "Exact"]));
    if let Some(seconds) = hook.get("timeoutSeconds").and_then(Value::as_i64).filter(|s| !(1..=30).contains(s)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(Error::invalid(&path.child("timeoutSeconds"), seconds, detail));
    }
    let client = path.child("clientConfig");
    match (is_set(hook, "/clientConfig/url"), is_set(hook, "/clientConfig/service")) {
        (true, false) | (false, true) => {}
        _ => errors.push(Error::required(&client, "exactly one of url or service is required")),
    }
    for (index, rule) in list(hook, "/rules").iter().enumerate() {
        let path = path.child("rules").index(index);
        for name in ["operations", "apiGroups", "apiVersions", "resources"] {
            if list(rule, &format!("/{name}")).is_empty() {
                errors.push(Error::required(&path.child(name), ""));
            }
        }
    }
    errors
}

pub struct ResourceDefinition;

impl Strategy for ResourceDefinition {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        remember_storage_version(object);
    }

    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        remember_storage_version(new);
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let (name, group) = (text(object, "/metadata/name"), text(object, "/spec/group"));
        let wanted = format!("{}.{group}", text(object, "/spec/names/plural"));
        let mut errors = Vec::new();
        if name != wanted {
            let detail = r#"must be spec.names.plural+"."+spec.group"#;
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, detail));
        }
        if group.is_empty() {
            errors.push(Error::required(&path.child("group"), ""));
        } else {
            errors.extend(invalid(&path.child("group"), group, names::is_dns1123_subdomain(group)));
            if !group.contains('.') {
                errors.push(Error::invalid(&path.child("group"), group, "should be a domain with at least one dot"));
            }
        }
        let scope = object.pointer("/spec/scope").and_then(Value::as_str);
        errors.extend(one_of(&path.child("scope"), scope, &["Cluster", "Namespaced"]));
        errors.extend(versions(&path.child("versions"), list(object, "/spec/versions")));
        for field in ["plural", "singular", "kind", "listKind"] {
            let value = text(object, &format!("/spec/names/{field}"));
            let lower = value.to_lowercase();
            let path = path.child("names").child(field);
            errors.extend(if value.is_empty() { required(&path, "") } else { invalid(&path, value, names::is_dns1035_label(&lower)) });
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(kind, new);
        for pointer in ["group", "scope"] {
            errors.extend(immutable(&Path::new("spec").child(pointer), &new["spec"][pointer], &old["spec"][pointer]));
        }
        errors
    }
}

/// Objects may still be stored in every version that ever was the storage version.
fn remember_storage_version(object: &mut Value) {
    let storage = list(object, "/spec/versions").iter().find(|version| flag(version, "/storage"));
    let Some(name) = storage.map(|version| version["name"].clone()) else { return };
    let mut stored = list(object, "/status/storedVersions").to_vec();
    if !stored.contains(&name) {
        stored.push(name);
        set(child(object, "status"), "storedVersions", json!(stored));
    }
}

fn versions(path: &Path, versions: &[Value]) -> ErrorList {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        let name = text(version, "/name");
        errors.extend(invalid(&path.child("name"), name, names::is_dns1035_label(name)));
        if !seen.insert(name) {
            errors.push(Error::invalid(&path.child("name"), name, "must contain unique version names"));
        }
        if !is_set(version, "/schema/openAPIV3Schema") {
            errors.push(Error::required(&path.child("schema").child("openAPIV3Schema"), "schemas are required"));
        }
    }
    let storage = versions.iter().filter(|version| flag(version, "/storage")).count();
    if storage != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(Error::invalid(path, Value::Array(versions.to_vec()), detail));
    }
    errors
}
