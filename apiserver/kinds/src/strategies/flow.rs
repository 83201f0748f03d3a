//! Flow schemas and priority levels: who waits for whom at the API server's door.
//!
//! Upstream: `pkg/apis/flowcontrol/validation/validation.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::Value;

use crate::validation::field::{invalid, json, required};
use crate::value::{flag, int, is_set, list, text};
use crate::{Kind, Strategy};

const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const MEMBER: &str = "each member of this list must be '*' or a DNS-1123 label; ";

pub struct FlowSchema;

impl Strategy for FlowSchema {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = precedence(&path.child("matchingPrecedence"), object);
        let method = &object["spec"]["distinguisherMethod"];
        if !method.is_null() && !matches!(text(method, "/type"), "ByNamespace" | "ByUser") {
            errors.push(Error::not_supported(&path.child("distinguisherMethod").child("type"), method.clone(), &["ByNamespace", "ByUser"]));
        }
        let level = path.child("priorityLevelConfiguration").child("name");
        match text(object, "/spec/priorityLevelConfiguration/name") {
            "" => errors.push(Error::required(&level, "must reference a priority level")),
            name => errors.extend(invalid(&level, name, names::is_dns1123_subdomain(name))),
        }
        for (index, item) in list(object, "/spec/rules").iter().enumerate() {
            errors.extend(rule(&path.child("rules").index(index), item));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        self.validate_whole(kind, new)
    }
}

fn precedence(path: &Path, schema: &Value) -> ErrorList {
    let value = int(schema, "/spec/matchingPrecedence");
    let mut errors = Vec::new();
    if value <= 0 {
        errors.push(Error::invalid(path, value, "must be a positive value"));
    }
    if value > MAX_PRECEDENCE {
        errors.push(Error::invalid(path, value, format!("must not be greater than {MAX_PRECEDENCE}")));
    }
    if value == 1 && text(schema, "/metadata/name") != "exempt" {
        errors.push(Error::invalid(path, value, "only the schema named 'exempt' may have matchingPrecedence 1"));
    }
    errors
}

fn rule(path: &Path, rule: &Value) -> ErrorList {
    let (subjects, resources, others) = (list(rule, "/subjects"), list(rule, "/resourceRules"), list(rule, "/nonResourceRules"));
    let mut errors = Vec::new();
    if subjects.is_empty() {
        errors.push(Error::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (index, item) in subjects.iter().enumerate() {
        errors.extend(subject(&path.child("subjects").index(index), item));
    }
    if resources.is_empty() && others.is_empty() {
        errors.push(Error::required(path, "at least one of resourceRules and nonResourceRules has to be non-empty"));
    }
    for (index, item) in resources.iter().enumerate() {
        errors.extend(resource_rule(&path.child("resourceRules").index(index), item));
    }
    for (index, item) in others.iter().enumerate() {
        errors.extend(path_rule(&path.child("nonResourceRules").index(index), item));
    }
    errors
}

/// The kinds of subjects, and the field each has.
const SUBJECTS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];

fn subject(path: &Path, subject: &Value) -> ErrorList {
    let kind = text(subject, "/kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(known, _)| *known == kind) else {
        return vec![Error::not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"])];
    };
    let mut errors = Vec::new();
    if is_set(subject, &format!("/{own}")) {
        errors.extend(subject_of(&path.child(own), kind, &subject[*own]));
    } else {
        errors.push(Error::required(&path.child(own), format!("{own} is required when subject kind is '{kind}'")));
    }
    for (other, field) in SUBJECTS.iter().filter(|(_, field)| field != own && is_set(subject, &format!("/{field}"))) {
        errors.push(Error::forbidden(&path.child(field), format!("{field} is forbidden when subject kind is not '{other}'")));
    }
    errors
}

fn subject_of(path: &Path, kind: &str, who: &Value) -> ErrorList {
    let name = text(who, "/name");
    let mut errors = required(&path.child("name"), name);
    if kind != "ServiceAccount" {
        return errors;
    }
    if !matches!(name, "" | "*") {
        errors.extend(invalid(&path.child("name"), name, names::is_dns1123_subdomain(name)));
    }
    match text(who, "/namespace") {
        "" => errors.push(Error::required(&path.child("namespace"), "must specify namespace for service account")),
        namespace => errors.extend(invalid(&path.child("namespace"), namespace, names::is_dns1123_label(namespace))),
    }
    errors
}

fn texts<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    list(rule, &format!("/{field}")).iter().filter_map(Value::as_str).collect()
}

/// A list that says either `*` or several things.
fn wildcard(path: &Path, values: &[&str], others: &str) -> ErrorList {
    if values.len() > 1 && values.contains(&"*") {
        return vec![Error::invalid(path, json(&values), format!("if '*' is present, must not specify other {others}"))];
    }
    Vec::new()
}

fn verbs(path: &Path, values: &[&str]) -> ErrorList {
    if values.is_empty() {
        return vec![Error::required(path, "verbs must contain at least one value")];
    }
    if values.contains(&"*") {
        return wildcard(path, values, "verbs");
    }
    let known = values.iter().all(|verb| VERBS.contains(verb));
    if known { Vec::new() } else { vec![Error::not_supported(path, json(&values), VERBS)] }
}

fn resource_rule(path: &Path, rule: &Value) -> ErrorList {
    let mut errors = verbs(&path.child("verbs"), &texts(rule, "verbs"));
    for (field, one, others) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
        let values = texts(rule, field);
        if values.is_empty() {
            errors.push(Error::required(&path.child(field), format!("resource rules must supply at least one {one}")));
        }
        errors.extend(wildcard(&path.child(field), &values, others));
    }
    let path = path.child("namespaces");
    let namespaces = texts(rule, "namespaces");
    if namespaces.is_empty() && !flag(rule, "/clusterScope") {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(Error::required(&path, detail));
    } else if namespaces.contains(&"*") {
        errors.extend(wildcard(&path, &namespaces, "namespaces"));
    } else {
        for (index, namespace) in namespaces.iter().enumerate() {
            let messages = names::is_dns1123_label(namespace).into_iter().map(|message| format!("{MEMBER}{message}")).collect();
            errors.extend(invalid(&path.index(index), namespace, messages));
        }
    }
    errors
}

fn path_rule(path: &Path, rule: &Value) -> ErrorList {
    let mut errors = verbs(&path.child("verbs"), &texts(rule, "verbs"));
    let path = path.child("nonResourceURLs");
    let urls = texts(rule, "nonResourceURLs");
    if urls.is_empty() {
        errors.push(Error::required(&path, "nonResourceURLs must contain at least one value"));
    } else if urls.contains(&"*") {
        errors.extend(wildcard(&path, &urls, "non-resource URLs"));
    } else {
        errors.extend(urls.iter().enumerate().flat_map(|(index, url)| url_path(&path.index(index), url)));
    }
    errors
}

fn url_path(path: &Path, url: &str) -> ErrorList {
    let wrong = if url.is_empty() {
        "must not be empty"
    } else if url == "/" {
        return Vec::new();
    } else if !url.starts_with('/') {
        "must start with slash"
    } else if url.contains(' ') {
        "must not contain white-space"
    } else if url.contains("//") {
        "must not contain double slash"
    } else if url[..url.len() - 1].contains('*') {
        "wildcard can only do suffix matching"
    } else if url.ends_with('*') && !url.ends_with("/*") {
        "wildcard must be the only character in a segment"
    } else {
        return Vec::new();
    };
    vec![Error::invalid(path, url, wrong)]
}

pub struct PriorityLevel;

impl Strategy for PriorityLevel {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let kind = text(object, "/spec/type");
        let limited = path.child("limited");
        let mut errors = Vec::new();
        if (text(object, "/metadata/name") == "exempt") != (kind == "Exempt") {
            errors.push(Error::invalid(&path.child("type"), kind, "type must be 'Exempt' if and only if name is 'exempt'"));
        }
        match (kind, is_set(object, "/spec/limited")) {
            ("Exempt", true) => errors.push(Error::forbidden(&limited, "must be nil if the type is not Limited")),
            ("Limited", false) => errors.push(Error::required(&limited, "must not be empty when type is Limited")),
            ("Limited", true) => errors.extend(limits(&limited, &object["spec"]["limited"])),
            ("Exempt", false) => {}
            _ => errors.push(Error::not_supported(&path.child("type"), kind, &["Exempt", "Limited"])),
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        self.validate_whole(kind, new)
    }
}

fn limits(path: &Path, limited: &Value) -> ErrorList {
    let shares = int(limited, "/nominalConcurrencyShares");
    let mut errors = Vec::new();
    if shares < 0 {
        errors.push(Error::invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer"));
    }
    let path = path.child("limitResponse");
    let queuing = path.child("queuing");
    let response = &limited["limitResponse"];
    match (text(response, "/type"), is_set(response, "/queuing")) {
        ("Reject", true) => errors.push(Error::forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited")),
        ("Queue", false) => errors.push(Error::required(&queuing, "must not be empty if limited.limitResponse.type is Limited")),
        ("Queue", true) => errors.extend(queues(&queuing, &response["queuing"])),
        ("Reject", false) => {}
        (other, _) => errors.push(Error::not_supported(&path.child("type"), other, &["Queue", "Reject"])),
    }
    errors
}

fn queues(path: &Path, queuing: &Value) -> ErrorList {
    let field = |name: &str| int(queuing, &format!("/{name}"));
    let (length, count, hand) = (field("queueLengthLimit"), field("queues"), field("handSize"));
    let mut errors = Vec::new();
    for (name, value) in [("queueLengthLimit", length), ("queues", count)] {
        if value <= 0 {
            errors.push(Error::invalid(&path.child(name), value, "must be positive"));
        }
    }
    if count > MAX_QUEUES {
        errors.push(Error::invalid(&path.child("queues"), count, format!("must not be greater than {MAX_QUEUES}")));
    }
    if hand <= 0 {
        errors.push(Error::invalid(&path.child("handSize"), hand, "must be positive"));
    } else if hand > count {
        errors.push(Error::invalid(&path.child("handSize"), hand, format!("should not be greater than queues ({count})")));
    }
    errors
}
