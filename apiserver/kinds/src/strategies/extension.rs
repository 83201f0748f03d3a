//! The API's own extension points: webhooks and aggregated servers.
//!
//! Upstream: `pkg/apis/admissionregistration/validation`, `kube-aggregator/pkg/apis/apiregistration/validation` (v1.33).

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use api::names;
use serde_json::Value;

use crate::meta::validate_object_meta_update;
use crate::validation::field::{invalid, label_selector, optional_one_of, required, with};
use crate::value::{flag, int, is_set, list, text};
use crate::{Kind, Strategy};

pub struct ApiService;

impl Strategy for ApiService {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let (group, version) = (text(object, "/spec/group"), text(object, "/spec/version"));
        let mut errors = Vec::new();
        let name = text(object, "/metadata/name");
        let wanted = format!("{version}.{group}");
        if !name.is_empty() && name != wanted {
            let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, detail));
        }
        if !group.is_empty() {
            errors.extend(invalid(&path.child("group"), group, names::is_dns1123_subdomain(group)));
        } else if version != "v1" {
            let detail = "only v1 may have an empty group and it better be legacy kube";
            errors.push(Error::required(&path.child("group"), detail));
        }
        errors.extend(invalid(&path.child("version"), version, names::is_dns1035_label(version)));
        for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
            let value = int(object, &format!("/spec/{field}"));
            if !(1..=max).contains(&value) {
                errors.push(Error::invalid(&path.child(field), value, format!("must be positive and less than {max}")));
            }
        }
        errors.extend(aggregated(&path, object));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(self.validate_whole(kind, new));
        errors
    }
}

/// Where another server serves the group, how to trust it; where this one does, nothing of the kind.
fn aggregated(path: &Path, object: &Value) -> ErrorList {
    let (bundle, insecure) = (text(object, "/spec/caBundle"), flag(object, "/spec/insecureSkipTLSVerify"));
    let mut errors = Vec::new();
    if !is_set(object, "/spec/service") {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.trim_end_matches('=').len() * 3 / 4);
            errors.push(Error::invalid(&path.child("caBundle"), shown, "local APIServices may not have a caBundle"));
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(Error::invalid(&path.child("insecureSkipTLSVerify"), true, detail));
        }
        return errors;
    }
    let service = path.child("service");
    for field in ["namespace", "name"] {
        errors.extend(required(&service.child(field), text(object, &format!("/spec/service/{field}"))));
    }
    errors.extend(service_port(&service, int(object, "/spec/service/port")));
    if insecure && !bundle.is_empty() {
        errors.push(Error::invalid(&path.child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present"));
    }
    errors
}

fn service_port(service: &Path, port: i64) -> ErrorList {
    let messages = names::is_valid_port_num(port);
    if messages.is_empty() {
        return Vec::new();
    }
    vec![Error::invalid(&service.child("port"), port, format!("port is not valid: {}", messages.join(", ")))]
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
            errors.extend(fully_qualified(&path.child("name"), name));
            errors.extend(webhook(&path, hook));
            errors.extend(review_versions(&path.child("admissionReviewVersions"), list(hook, "/admissionReviewVersions")));
            if !name.is_empty() && !seen.insert(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        self.validate_whole(kind, new)
    }
}

/// Three labels or more.
fn fully_qualified(path: &Path, name: &str) -> ErrorList {
    if name.is_empty() {
        return required(path, "");
    }
    let messages = names::is_dns1123_subdomain(name);
    if !messages.is_empty() {
        return invalid(path, name, messages);
    }
    let whole = name.split('.').count() >= 3;
    if whole { Vec::new() } else { vec![Error::invalid(path, name, "should be a domain with at least three segments separated by dots")] }
}

pub(super) fn review_versions(path: &Path, versions: &[Value]) -> ErrorList {
    if versions.is_empty() {
        return vec![Error::required(path, "must specify one of v1, v1beta1")];
    }
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().filter_map(Value::as_str).enumerate() {
        if !seen.insert(version) {
            errors.push(Error::invalid(&path.index(index), version, "duplicate version"));
            continue;
        }
        errors.extend(invalid(&path.index(index), version, names::is_dns1035_label(version)));
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        errors.push(Error::invalid(path, versions.to_vec(), "must include at least one of v1, v1beta1"));
    }
    errors
}

fn webhook(path: &Path, hook: &Value) -> ErrorList {
    let field = |name: &str| hook.get(name).and_then(Value::as_str);
    let mut errors = Vec::new();
    for (index, item) in list(hook, "/rules").iter().enumerate() {
        errors.extend(webhook_rule(&path.child("rules").index(index), item));
    }
    errors.extend(optional_one_of(&path.child("failurePolicy"), field("failurePolicy"), &["Fail", "Ignore"]));
    errors.extend(optional_one_of(&path.child("matchPolicy"), field("matchPolicy"), &["Equivalent", "Exact"]));
    errors.extend(match field("sideEffects") {
        None => vec![Error::required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun")],
        effects => optional_one_of(&path.child("sideEffects"), effects, &["None", "NoneOnDryRun"]),
    });
    if let Some(seconds) = hook.get("timeoutSeconds").and_then(Value::as_i64).filter(|s| !(1..=30).contains(s)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(Error::invalid(&path.child("timeoutSeconds"), seconds, detail));
    }
    for name in ["namespaceSelector", "objectSelector"] {
        if let Some(selector) = hook.get(name).filter(|selector| !selector.is_null()) {
            errors.extend(with(selector, |selector: &LabelSelector| label_selector(&path.child(name), Some(selector))));
        }
    }
    errors.extend(optional_one_of(&path.child("reinvocationPolicy"), field("reinvocationPolicy"), &["IfNeeded", "Never"]));
    let client = path.child("clientConfig");
    match (hook.pointer("/clientConfig/url").and_then(Value::as_str), is_set(hook, "/clientConfig/service")) {
        (Some(url), false) => errors.extend(webhook_url(&client.child("url"), url)),
        (None, true) => errors.extend(webhook_service(&client.child("service"), &hook["clientConfig"]["service"])),
        _ => errors.push(Error::required(&client, "exactly one of url or service is required")),
    }
    errors
}

fn webhook_rule(path: &Path, rule: &Value) -> ErrorList {
    const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let mut errors = Vec::new();
    for (name, others) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let (path, values) = (path.child(name), list(rule, &format!("/{name}")));
        if values.is_empty() {
            errors.push(Error::required(&path, ""));
        }
        if values.len() > 1 && values.iter().any(|value| value == "*") {
            errors.push(Error::invalid(&path, values.to_vec(), format!("if '*' is present, must not specify other {others}")));
        }
        for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
            match name {
                "operations" => errors.extend(optional_one_of(&path.index(index), Some(value), OPERATIONS)),
                "apiVersions" => errors.extend(required(&path.index(index), value)),
                _ => {}
            }
        }
    }
    errors.extend(rule_resources(&path.child("resources"), list(rule, "/resources")));
    let scope = rule.get("scope").and_then(Value::as_str);
    errors.extend(optional_one_of(&path.child("scope"), scope, &["*", "Cluster", "Namespaced"]));
    errors
}

/// `pods`, `pods/log`, `*/scale`, `pods/*`: no entry may be covered by another.
fn rule_resources(path: &Path, resources: &[Value]) -> ErrorList {
    let mut errors = if resources.is_empty() { required(path, "") } else { Vec::new() };
    let (mut all_of, mut all_with) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    let names: Vec<&str> = resources.iter().filter_map(Value::as_str).collect();
    for (index, name) in names.iter().enumerate() {
        let path = path.index(index);
        if name.is_empty() {
            errors.push(Error::required(&path, ""));
            continue;
        }
        let Some((resource, sub)) = name.split_once('/') else {
            plain = *name != "*";
            continue;
        };
        if all_of.contains(resource) {
            errors.push(Error::invalid(&path, *name, format!("if '{resource}/*' is present, must not specify {name}")));
        }
        if all_with.contains(sub) {
            errors.push(Error::invalid(&path, *name, format!("if '*/{sub}' is present, must not specify {name}")));
        }
        if sub == "*" {
            all_of.insert(resource);
        }
        if resource == "*" {
            all_with.insert(sub);
        }
    }
    if names.len() > 1 && names.contains(&"*/*") {
        errors.push(Error::invalid(path, resources.to_vec(), "if '*/*' is present, must not specify other resources"));
    }
    if plain && names.contains(&"*") {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(path, resources.to_vec(), detail));
    }
    errors
}

pub(super) fn webhook_url(path: &Path, url: &str) -> ErrorList {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut errors = Vec::new();
    if scheme != "https" {
        errors.push(Error::invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    if host.is_empty() {
        errors.push(Error::invalid(path, host, format!("host must be provided{FORM}")));
    }
    for (part, what) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errors.push(Error::invalid(path, part, what));
        }
    }
    errors
}

pub(super) fn webhook_service(path: &Path, service: &Value) -> ErrorList {
    let mut errors = Vec::new();
    // Upstream's caller hands the two over in the wrong order; both texts stay right, their places change.
    for (field, from) in [("name", "/namespace"), ("namespace", "/name")] {
        if text(service, from).is_empty() {
            errors.push(Error::required(&path.child(field), format!("service {field} is required")));
        }
    }
    errors.extend(service_port(path, service.get("port").and_then(Value::as_i64).unwrap_or(443)));
    let url = text(service, "/path");
    let path = path.child("path");
    if matches!(url, "" | "/") {
        return errors;
    }
    if url == "//" {
        errors.push(Error::invalid(&path, url, "segment[0] may not be empty"));
        return errors;
    }
    if !url.starts_with('/') {
        errors.push(Error::invalid(&path, url, "must start with a '/'"));
    }
    let mut characters = url.chars();
    characters.next();
    let steps = characters.as_str();
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            errors.push(Error::invalid(&path, url, format!("segment[{index}] may not be empty")));
            continue;
        }
        let messages = names::is_dns1123_subdomain(step);
        errors.extend(messages.into_iter().map(|m| Error::invalid(&path, url, format!("segment[{index}]: {m}"))));
    }
    errors
}
