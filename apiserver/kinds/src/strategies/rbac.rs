//! Roles, their bindings, and questions about access.
//!
//! Upstream: `pkg/apis/rbac/validation/validation.go`, `pkg/apis/authorization/validation/validation.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::rbac::v1 as rbac;
use api::names;
use serde_json::Value;

use crate::meta::validate_object_meta_update;
use crate::validation::field::{invalid, json, label_selector, parsed_selector, with};
use crate::value::{is_set, list, text};
use crate::{Kind, Strategy};

const GROUP: &str = "rbac.authorization.k8s.io";

fn rules(rules: Option<&[rbac::PolicyRule]>, namespaced: bool) -> ErrorList {
    let each = rules.into_iter().flatten().enumerate();
    each.flat_map(|(index, item)| rule(&Path::new("rules").index(index), item, namespaced)).collect()
}

fn rule(path: &Path, rule: &rbac::PolicyRule, namespaced: bool) -> ErrorList {
    let empty = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    let mut errors = Vec::new();
    if rule.verbs.is_empty() {
        errors.push(Error::required(&path.child("verbs"), "verbs must contain at least one value"));
    }
    if !empty(&rule.non_resource_urls) {
        let path = path.child("nonResourceURLs");
        let urls = json(&rule.non_resource_urls);
        if namespaced {
            errors.push(Error::invalid(&path, urls.clone(), "namespaced rules cannot apply to non-resource URLs"));
        }
        if !empty(&rule.api_groups) || !empty(&rule.resources) || !empty(&rule.resource_names) {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(Error::invalid(&path, urls, detail));
        }
        return errors;
    }
    if empty(&rule.api_groups) {
        errors.push(Error::required(&path.child("apiGroups"), "resource rules must supply at least one api group"));
    }
    if empty(&rule.resources) {
        errors.push(Error::required(&path.child("resources"), "resource rules must supply at least one resource"));
    }
    errors
}

/// Upstream's updates of roles and bindings begin so.
fn twice_whole(strategy: &dyn Strategy, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
    let mut errors = strategy.validate_whole(kind, new);
    errors.extend(strategy.validate_whole(kind, new));
    errors.extend(validate_object_meta_update(kind, new, old));
    errors
}

pub struct Role;

impl Strategy for Role {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |role: &rbac::Role| rules(role.rules.as_deref(), true))
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        twice_whole(self, kind, new, old)
    }
}

pub struct ClusterRole;

impl Strategy for ClusterRole {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |role: &rbac::ClusterRole| {
            let mut errors = rules(role.rules.as_deref(), false);
            let Some(aggregation) = &role.aggregation_rule else { return errors };
            let path = Path::new("aggregationRule").child("clusterRoleSelectors");
            let selectors = aggregation.cluster_role_selectors.as_deref().unwrap_or_default();
            if selectors.is_empty() {
                errors.push(Error::required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil"));
            }
            for (index, selector) in selectors.iter().enumerate() {
                errors.extend(label_selector(&path.index(index), Some(selector)));
                if parsed_selector(Some(selector)).is_none() {
                    errors.push(Error::invalid(&path.index(index), Value::Null, "invalid label selector."));
                }
            }
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        twice_whole(self, kind, new, old)
    }
}

fn binding(object: &Value, kinds: &[&str], namespaced: bool) -> ErrorList {
    let path = Path::new("roleRef");
    let mut errors = Vec::new();
    let (group, kind, name) = (text(object, "/roleRef/apiGroup"), text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
    if group != GROUP {
        errors.push(Error::not_supported(&path.child("apiGroup"), group, &[GROUP]));
    }
    if !kinds.contains(&kind) {
        errors.push(Error::not_supported(&path.child("kind"), kind, kinds));
    }
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        errors.extend(invalid(&path.child("name"), name, names::is_path_segment_name(name)));
    }
    for (index, item) in list(object, "/subjects").iter().enumerate() {
        errors.extend(subject(&Path::new("subjects").index(index), item, namespaced));
    }
    errors
}

fn subject(path: &Path, subject: &Value, namespaced: bool) -> ErrorList {
    let (kind, name, group) = (text(subject, "/kind"), text(subject, "/name"), text(subject, "/apiGroup"));
    let mut errors = Vec::new();
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    match kind {
        "ServiceAccount" => {
            if !name.is_empty() {
                errors.extend(invalid(&path.child("name"), name, names::is_dns1123_subdomain(name)));
            }
            if !group.is_empty() {
                errors.push(Error::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "/namespace").is_empty() {
                errors.push(Error::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" if group != GROUP => {
            errors.push(Error::not_supported(&path.child("apiGroup"), group, &[GROUP]));
        }
        "User" | "Group" => {}
        other => errors.push(Error::not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"])),
    }
    errors
}

fn binding_update(new: &Value, old: &Value) -> ErrorList {
    if new["roleRef"] == old["roleRef"] {
        return Vec::new();
    }
    vec![Error::invalid(&Path::new("roleRef"), new["roleRef"].clone(), "cannot change roleRef")]
}

pub struct RoleBinding;

impl Strategy for RoleBinding {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        binding(object, &["Role", "ClusterRole"], true)
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = twice_whole(self, kind, new, old);
        errors.extend(binding_update(new, old));
        errors
    }
}

pub struct ClusterRoleBinding;

impl Strategy for ClusterRoleBinding {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        binding(object, &["ClusterRole"], false)
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = twice_whole(self, kind, new, old);
        errors.extend(binding_update(new, old));
        errors
    }
}

/// Exactly one question: about a resource or about a path.
fn attributes(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let resource = is_set(object, "/spec/resourceAttributes");
    match (resource, is_set(object, "/spec/nonResourceAttributes")) {
        (true, true) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            vec![Error::invalid(&path.child("nonResourceAttributes"), object["spec"]["nonResourceAttributes"].clone(), detail)]
        }
        (false, false) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            vec![Error::invalid(&path.child("resourceAttributes"), Value::Null, detail)]
        }
        _ => Vec::new(),
    }
}

fn someone(object: &Value) -> ErrorList {
    if text(object, "/spec/user").is_empty() && list(object, "/spec/groups").is_empty() {
        let detail = "at least one of user or group must be specified";
        return vec![Error::invalid(&Path::new("spec").child("user"), "", detail)];
    }
    Vec::new()
}

/// A question has no metadata.
fn no_metadata(object: &Value, but: &[&str], detail: &str) -> ErrorList {
    let blank = |value: &Value| value.is_null() || value == "";
    let fields = object["metadata"].as_object().into_iter().flatten();
    let set = fields.filter(|(name, value)| name.as_str() != "managedFields" && !but.contains(&name.as_str()) && !blank(value)).count();
    if set == 0 { Vec::new() } else { vec![Error::invalid(&Path::new("metadata"), object["metadata"].clone(), detail)] }
}

pub struct SelfAccessReview;

impl Strategy for SelfAccessReview {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = attributes(object);
        errors.extend(no_metadata(object, &[], "must be empty"));
        errors
    }
}

pub struct AccessReview;

impl Strategy for AccessReview {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = attributes(object);
        errors.extend(someone(object));
        errors.extend(no_metadata(object, &[], "must be empty"));
        errors
    }
}

pub struct LocalAccessReview;

impl Strategy for LocalAccessReview {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = attributes(object);
        errors.extend(someone(object));
        errors.extend(no_metadata(object, &["namespace"], "must be empty except for namespace"));
        let namespace = text(object, "/metadata/namespace");
        if is_set(object, "/spec/resourceAttributes") && text(object, "/spec/resourceAttributes/namespace") != namespace {
            let path = Path::new("spec").child("resourceAttributes").child("namespace");
            errors.push(Error::invalid(&path, text(object, "/spec/resourceAttributes/namespace"), "must match metadata.namespace"));
        }
        if is_set(object, "/spec/nonResourceAttributes") {
            let path = Path::new("spec").child("nonResourceAttributes");
            let value = object["spec"]["nonResourceAttributes"].clone();
            errors.push(Error::invalid(&path, value, "disallowed on this kind of request"));
        }
        errors
    }
}
