//! What every object's metadata must be.
//!
//! Upstream: `apimachinery/pkg/api/validation/objectmeta.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::{Map, Value};

use crate::Kind;
use crate::validation::field::NOT_NEGATIVE;
use crate::value::{int, is_set, list, map, text};

const TOTAL_ANNOTATION_SIZE: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
/// What a change of an immutable field earns.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// Metadata of a new object.
pub fn validate_object_meta(kind: &Kind, object: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = validate_names(kind, object, &path);
    let namespace = text(object, "/metadata/namespace");
    if kind.namespaced {
        if namespace.is_empty() {
            errors.push(Error::required(&path.child("namespace"), ""));
        } else {
            let messages = names::is_dns1123_label(namespace);
            errors.extend(messages.into_iter().map(|m| Error::invalid(&path.child("namespace"), namespace, m)));
        }
    } else if !namespace.is_empty() {
        errors.push(Error::forbidden(&path.child("namespace"), "not allowed on this type"));
    }
    let generation = int(object, "/metadata/generation");
    if generation < 0 {
        errors.push(Error::invalid(&path.child("generation"), generation, NOT_NEGATIVE));
    }
    errors.extend(validate_labels(map(object, "/metadata/labels"), &path.child("labels")));
    errors.extend(validate_annotations(map(object, "/metadata/annotations"), &path.child("annotations")));
    errors.extend(validate_owners(list(object, "/metadata/ownerReferences"), &path.child("ownerReferences")));
    let path = path.child("finalizers");
    errors.extend(validate_finalizers(list(object, "/metadata/finalizers"), &path));
    errors.extend(standard_finalizers(kind, list(object, "/metadata/finalizers"), &path));
    errors
}

fn validate_names(kind: &Kind, object: &Value, path: &Path) -> ErrorList {
    let mut errors = Vec::new();
    let (name, prefix) = (text(object, "/metadata/name"), text(object, "/metadata/generateName"));
    if !prefix.is_empty() {
        let messages = kind.check_name(prefix, true);
        errors.extend(messages.into_iter().map(|m| Error::invalid(&path.child("generateName"), prefix, m)));
    }
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), "name or generateName is required"));
    } else {
        let messages = kind.check_name(name, false);
        errors.extend(messages.into_iter().map(|m| Error::invalid(&path.child("name"), name, m)));
    }
    errors
}

/// What is asked of every replacement, before its kind has its say. Upstream: `rest.validateCommonFields`.
pub fn validate_replacement(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = validate_labels(map(new, "/metadata/labels"), &path.child("labels"));
    errors.extend(validate_annotations(map(new, "/metadata/annotations"), &path.child("annotations")));
    errors.extend(validate_owners(list(new, "/metadata/ownerReferences"), &path.child("ownerReferences")));
    errors.extend(validate_finalizers(list(new, "/metadata/finalizers"), &path.child("finalizers")));
    errors.extend(meta_update(new, old));
    errors
}

/// The same and the rule for bare finalizers: what a kind's own check of an update begins with.
pub fn validate_object_meta_update(kind: &Kind, new: &Value, old: &Value) -> ErrorList {
    let mut errors = meta_update(new, old);
    errors.extend(standard_finalizers(kind, list(new, "/metadata/finalizers"), &Path::new("metadata").child("finalizers")));
    errors
}

/// Metadata of a replacement against what is stored.
fn meta_update(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    if is_set(old, "/metadata/deletionTimestamp") {
        let had = list(old, "/metadata/finalizers");
        let added: Vec<&str> = list(new, "/metadata/finalizers").iter().filter(|f| !had.contains(f)).filter_map(Value::as_str).collect();
        if !added.is_empty() {
            let detail =
                format!("no new finalizers can be added if the object is being deleted, found new finalizers {}", go_strings(&added));
            errors.push(Error::forbidden(&path.child("finalizers"), detail));
        }
    }
    for name in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let field = |object: &Value| object.pointer(&format!("/metadata/{name}")).filter(|v| !v.is_null()).cloned();
        let (now, was) = (field(new), field(old));
        if now != was {
            errors.push(Error::invalid(&path.child(name), now.unwrap_or(Value::Null), IMMUTABLE));
        }
    }
    errors.extend(validate_labels(map(new, "/metadata/labels"), &path.child("labels")));
    errors.extend(validate_annotations(map(new, "/metadata/annotations"), &path.child("annotations")));
    errors.extend(validate_owners(list(new, "/metadata/ownerReferences"), &path.child("ownerReferences")));
    errors
}

/// `[]string{"a", "b"}`: Go's `%#v`.
fn go_strings(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|v| api::field::go_quote(v)).collect();
    format!("[]string{{{}}}", quoted.join(", "))
}

pub(crate) fn validate_labels(labels: Option<&Map<String, Value>>, path: &Path) -> ErrorList {
    let mut errors = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        let value = value.as_str().unwrap_or("");
        errors.extend(names::is_qualified_name(key).into_iter().map(|m| Error::invalid(path, key.as_str(), m)));
        errors.extend(names::is_valid_label_value(value).into_iter().map(|m| Error::invalid(path, value, m)));
    }
    errors
}

pub(crate) fn validate_annotations(annotations: Option<&Map<String, Value>>, path: &Path) -> ErrorList {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        let messages = names::is_qualified_name(&key.to_lowercase());
        errors.extend(messages.into_iter().map(|m| Error::invalid(path, key.as_str(), m)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > TOTAL_ANNOTATION_SIZE {
        errors.push(Error::too_long(path, "", TOTAL_ANNOTATION_SIZE));
    }
    errors
}

fn validate_owners(owners: &[Value], path: &Path) -> ErrorList {
    let mut errors = Vec::new();
    let mut controller: Option<&str> = None;
    for owner in owners {
        errors.extend(validate_owner(owner, path));
        if owner["controller"].as_bool() != Some(true) {
            continue;
        }
        let name = text(owner, "/name");
        match controller {
            Some(first) => errors.push(Error::invalid(
                path,
                Value::Array(owners.to_vec()),
                format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"),
            )),
            None => controller = Some(name),
        }
    }
    errors
}

fn validate_owner(owner: &Value, path: &Path) -> ErrorList {
    let mut errors = Vec::new();
    let api_version = text(owner, "/apiVersion");
    let (group, version) = api::key::parse_api_version(api_version);
    // What is no apiVersion has no version.
    if version.is_empty() || version.contains('/') {
        errors.push(Error::invalid(&path.child("apiVersion"), api_version, "version must not be empty"));
    }
    for (field, what) in [("kind", "kind must not be empty"), ("name", "name must not be empty"), ("uid", "uid must not be empty")] {
        let value = owner[field].as_str().unwrap_or("");
        if value.is_empty() {
            errors.push(Error::invalid(&path.child(field), value, what));
        }
    }
    if group.is_empty() && version == "v1" && text(owner, "/kind") == "Event" {
        errors.push(Error::invalid(path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner"));
    }
    errors
}

fn validate_finalizers(finalizers: &[Value], path: &Path) -> ErrorList {
    let mut errors = Vec::new();
    let names: Vec<&str> = finalizers.iter().filter_map(Value::as_str).collect();
    for name in &names {
        errors.extend(names::is_qualified_name(name).into_iter().map(|m| Error::invalid(path, *name, m)));
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        let value = Value::Array(finalizers.to_vec());
        errors.push(Error::invalid(path, value, "finalizer orphan and foregroundDeletion cannot be both set"));
    }
    errors
}

/// A finalizer without a domain must be one of Kubernetes' own. Extension points, budgets and leases are not held to that.
fn standard_finalizers(kind: &Kind, finalizers: &[Value], path: &Path) -> ErrorList {
    const FREE: [&str; 5] =
        ["admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "coordination.k8s.io", "policy"];
    if FREE.contains(&kind.group) {
        return Vec::new();
    }
    let detail = "name is neither a standard finalizer name nor is it fully qualified";
    let names = finalizers.iter().filter_map(Value::as_str).enumerate();
    let bare = names.filter(|(_, name)| !name.contains('/') && !STANDARD_FINALIZERS.contains(name));
    bare.map(|(index, name)| Error::invalid(&path.index(index), name, detail)).collect()
}
