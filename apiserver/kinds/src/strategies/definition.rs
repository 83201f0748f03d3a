//! Custom resource definitions: names, versions, and schemas that say everything once.
//!
//! Upstream keeps what all versions agree on above the versions, and names it there in its complaints; so do the paths here.
//! Upstream: `apiextensions-apiserver/pkg/{registry/customresourcedefinition/strategy.go,apis/apiextensions/validation,apiserver/schema}` (v1.33).

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::names;
use regex::Regex;
use serde_json::{Value, json};

use super::extension::{review_versions, webhook_service, webhook_url};
use crate::meta::validate_object_meta_update;
use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{immutable, one_of, optional_one_of, required};
use crate::value::{child, flag, is_set, list, map, set, text};
use crate::{Kind, Strategy};

const APPROVAL: &str = "api-approved.kubernetes.io";

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
        let name = text(object, "/metadata/name");
        let wanted = format!("{}.{}", text(object, "/spec/names/plural"), text(object, "/spec/group"));
        let mut errors = Vec::new();
        if !name.is_empty() && name != wanted {
            let detail = r#"must be spec.names.plural+"."+spec.group"#;
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, detail));
        }
        errors.extend(definition(object));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("spec");
        let field = |object: &Value, pointer: &str| object.pointer(pointer).cloned().unwrap_or(Value::Null);
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(definition(new));
        if is_established(old) {
            errors.extend(immutable(&path.child("scope"), &field(new, "/spec/scope"), &field(old, "/spec/scope")));
            let kind = path.child("names").child("kind");
            errors.extend(immutable(&kind, &field(new, "/spec/names/kind"), &field(old, "/spec/names/kind")));
        }
        errors.extend(immutable(&path.child("group"), &field(new, "/spec/group"), &field(old, "/spec/group")));
        let plural = path.child("names").child("plural");
        errors.extend(immutable(&plural, &field(new, "/spec/names/plural"), &field(old, "/spec/names/plural")));
        errors
    }
}

fn is_established(object: &Value) -> bool {
    list(object, "/status/conditions").iter().any(|c| text(c, "/type") == "Established" && text(c, "/status") == "True")
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

fn definition(object: &Value) -> ErrorList {
    let mut errors = spec(&Path::new("spec"), object);
    let stored = Path::new("status").child("storedVersions");
    let names: Vec<&str> = list(object, "/spec/versions").iter().map(|version| text(version, "/name")).collect();
    let versions = list(object, "/status/storedVersions");
    if versions.is_empty() {
        errors.push(Error::invalid(&stored, versions.to_vec(), "must have at least one stored version"));
    }
    for (index, version) in versions.iter().filter_map(Value::as_str).enumerate().filter(|(_, version)| !names.contains(version)) {
        errors.push(Error::invalid(&stored.index(index), version, "must appear in spec.versions"));
    }
    let group = text(object, "/spec/group");
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|domain| group == *domain || group.ends_with(&format!(".{domain}")));
    if protected && object["metadata"]["annotations"].get(APPROVAL).is_none() {
        let detail = format!(
            "protected groups must have approval annotation {APPROVAL:?}, see https://github.com/kubernetes/enhancements/pull/1111"
        );
        errors.push(Error::required(&Path::new("metadata").child("annotations").key(APPROVAL), detail));
    }
    if flag(object, "/spec/preserveUnknownFields") {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(Error::invalid(&Path::new("spec").child("preserveUnknownFields"), true, detail));
    }
    errors
}

/// Complaints about one value, in one error.
fn joined(path: &Path, value: &str, messages: Vec<String>, before: &str) -> ErrorList {
    if messages.is_empty() { Vec::new() } else { vec![Error::invalid(path, value, format!("{before}{}", messages.join(",")))] }
}

fn spec(path: &Path, object: &Value) -> ErrorList {
    let group = text(object, "/spec/group");
    let versions = list(object, "/spec/versions");
    let mut errors = match group {
        "" => required(&path.child("group"), ""),
        _ => joined(&path.child("group"), group, names::is_dns1123_subdomain(group), ""),
    };
    if errors.is_empty() && !group.contains('.') {
        errors.push(Error::invalid(&path.child("group"), group, "should be a domain with at least one dot"));
    }
    errors.extend(one_of(&path.child("scope"), Some(text(object, "/spec/scope")), &["Cluster", "Namespaced"]));
    for (index, _) in versions.iter().enumerate().filter(|(_, version)| !is_set(version, "/schema/openAPIV3Schema")) {
        let path = path.child("versions").index(index).child("schema").child("openAPIV3Schema");
        errors.push(Error::required(&path, "schemas are required"));
    }
    errors.extend(self::versions(path, versions));
    errors.extend(resource_names(&path.child("names"), &object["spec"]["names"]));
    errors.extend(shared(path, versions));
    errors.extend(conversion(&path.child("conversion"), &object["spec"]["conversion"]));
    errors
}

/// The parts of a version, where upstream keeps one that all versions have alike, and how each is judged.
type Part = (&'static str, &'static str, fn(&Path, &Value, bool) -> ErrorList);
const PARTS: [Part; 3] = [
    ("schema", "validation", |path, schema, with_status| validation(path, schema, with_status)),
    ("subresources", "subresources", |path, subresources, _| self::subresources(path, subresources)),
    ("additionalPrinterColumns", "additionalPrinterColumns", |path, columns, _| {
        let columns = columns.as_array().into_iter().flatten().enumerate();
        columns.flat_map(|(index, item)| column(&path.index(index), item)).collect()
    }),
];

fn is_shared(versions: &[Value], part: &str) -> bool {
    let first = versions.first().and_then(|version| version.get(part)).filter(|value| !value.is_null());
    first.is_some() && versions.iter().all(|version| version.get(part) == first)
}

fn versions(path: &Path, versions: &[Value]) -> ErrorList {
    let all = path.child("versions");
    let mut errors = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let (path, name) = (all.index(index), text(version, "/name"));
        errors.extend(joined(&path.child("name"), name, names::is_dns1035_label(name), ""));
        if version.get("deprecationWarning").is_some_and(Value::is_string) && !flag(version, "/deprecated") {
            let value = version["deprecationWarning"].clone();
            errors.push(Error::invalid(&path.child("deprecationWarning"), value, "can only be set for deprecated versions"));
        }
        for (part, _, check) in PARTS.iter().filter(|(part, ..)| !is_shared(versions, part)) {
            if let Some(value) = version.get(*part).filter(|value| !value.is_null()) {
                errors.extend(check(&path.child(part), value, is_set(version, "/subresources/status")));
            }
        }
    }
    let names: Vec<&str> = versions.iter().map(|version| text(version, "/name")).collect();
    if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
        errors.push(Error::invalid(&all, versions.to_vec(), "must contain unique version names"));
    }
    if versions.iter().filter(|version| flag(version, "/storage")).count() != 1 {
        errors.push(Error::invalid(&all, versions.to_vec(), "must have exactly one version marked as storage version"));
    }
    if let Some(first) = names.first().filter(|name| !name.is_empty()) {
        errors.extend(joined(&path.child("version"), first, names::is_dns1035_label(first), ""));
    }
    errors
}

/// What all versions have alike.
fn shared(path: &Path, versions: &[Value]) -> ErrorList {
    let mut errors = Vec::new();
    for (part, above, check) in PARTS.iter().filter(|(part, ..)| is_shared(versions, part)) {
        let with_status = versions.iter().any(|version| is_set(version, "/subresources/status"));
        errors.extend(check(&path.child(above), &versions[0][*part], with_status));
    }
    errors
}

fn resource_names(path: &Path, given: &Value) -> ErrorList {
    const MIXED: &str = "may have mixed case, but should otherwise match: ";
    let field = |name: &str| text(given, &format!("/{name}"));
    let all = ["plural", "singular", "kind", "listKind"];
    let mut errors: ErrorList = all.iter().flat_map(|name| required(&path.child(name), field(name))).collect();
    for name in all.iter().filter(|name| !field(name).is_empty()) {
        let (value, mixed) = (field(name), name.to_lowercase().ends_with("kind"));
        let messages = names::is_dns1035_label(&if mixed { value.to_lowercase() } else { value.to_owned() });
        errors.extend(joined(&path.child(name), value, messages, if mixed { MIXED } else { "" }));
    }
    let words = |name: &str| -> ErrorList {
        let values = list(given, &format!("/{name}")).iter().filter_map(Value::as_str).enumerate();
        values.flat_map(|(index, value)| joined(&path.child(name).index(index), value, names::is_dns1035_label(value), "")).collect()
    };
    errors.extend(words("shortNames"));
    if !field("kind").is_empty() && field("kind") == field("listKind") {
        errors.push(Error::invalid(&path.child("listKind"), field("listKind"), "kind and listKind may not be the same"));
    }
    errors.extend(words("categories"));
    errors
}

fn simple_path(path: &Path, value: &str) -> ErrorList {
    if value.starts_with('.') { Vec::new() } else { vec![Error::invalid(path, value, "must be a simple json path starting with .")] }
}

fn column(path: &Path, column: &Value) -> ErrorList {
    const TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
    const FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    let (kind, format, json_path) = (text(column, "/type"), text(column, "/format"), text(column, "/jsonPath"));
    let mut errors = required(&path.child("name"), text(column, "/name"));
    let known = format!("must be one of {}", TYPES.join(","));
    match kind {
        "" => errors.push(Error::required(&path.child("type"), known)),
        kind if !TYPES.contains(&kind) => errors.push(Error::invalid(&path.child("type"), kind, known)),
        _ => {}
    }
    if !format.is_empty() && !FORMATS.contains(&format) {
        errors.push(Error::invalid(&path.child("format"), format, format!("must be one of {}", FORMATS.join(","))));
    }
    let path = path.child("JSONPath");
    errors.extend(if json_path.is_empty() { required(&path, "") } else { simple_path(&path, json_path) });
    errors
}

fn subresources(path: &Path, subresources: &Value) -> ErrorList {
    if !is_set(subresources, "/scale") {
        return Vec::new();
    }
    const RULES: [(&str, bool, &[&str], &str); 3] = [
        ("specReplicasPath", true, &[".spec."], "should be a json path under .spec"),
        ("statusReplicasPath", true, &[".status."], "should be a json path under .status"),
        ("labelSelectorPath", false, &[".spec.", ".status."], "should be a json path under either .spec or .status"),
    ];
    let mut errors = Vec::new();
    for (field, needed, prefixes, detail) in RULES {
        let (path, value) = (path.child("scale").child(field), text(subresources, &format!("/scale/{field}")));
        match simple_path(&path, value) {
            _ if value.is_empty() && needed => errors.push(Error::required(&path, "")),
            _ if value.is_empty() => {}
            wrong if !wrong.is_empty() => errors.extend(wrong),
            _ if !prefixes.iter().any(|prefix| value.starts_with(prefix)) => errors.push(Error::invalid(&path, value, detail)),
            _ => {}
        }
    }
    errors
}

fn conversion(path: &Path, conversion: &Value) -> ErrorList {
    if conversion.is_null() {
        return Vec::new();
    }
    let mut errors = one_of(&path.child("strategy"), Some(text(conversion, "/strategy")), &["None", "Webhook"]);
    let (client_path, versions_path) = (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    let (client, versions) = (&conversion["webhook"]["clientConfig"], list(conversion, "/webhook/conversionReviewVersions"));
    if text(conversion, "/strategy") != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        let set = [(!client.is_null(), client_path), (!versions.is_empty(), versions_path)];
        errors.extend(set.iter().filter(|(set, _)| *set).map(|(_, path)| Error::forbidden(path, detail)));
        return errors;
    }
    match (client.get("url").and_then(Value::as_str), is_set(client, "/service")) {
        _ if client.is_null() => errors.push(Error::required(&client_path, "required when strategy is set to Webhook")),
        (Some(url), false) => errors.extend(webhook_url(&client_path.child("url"), url)),
        (None, true) => errors.extend(webhook_service(&client_path.child("service"), &client["service"])),
        _ => errors.push(Error::required(&client_path, "exactly one of url or service is required")),
    }
    errors.extend(if versions.is_empty() { required(&versions_path, "") } else { review_versions(&versions_path, versions) });
    errors
}

fn validation(path: &Path, validation: &Value, with_status: bool) -> ErrorList {
    let schema = &validation["openAPIV3Schema"];
    if schema.is_null() {
        return Vec::new();
    }
    let path = path.child("openAPIV3Schema");
    let mut errors = Vec::new();
    if with_status && !matches!(text(schema, "/type"), "" | "object") {
        let detail = r#"only "object" is allowed as the type at the root of the schema if the status subresource is enabled"#;
        errors.push(Error::invalid(&path.child("type"), text(schema, "/type"), detail));
    }
    if flag(schema, "/nullable") {
        errors.push(Error::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    errors.extend(each_schema(&path, schema, &known_terms));
    let mut structural = structural(&path, schema, Level::Root);
    structural.sort_by_cached_key(ToString::to_string);
    errors.extend(structural);
    errors
}

/// The schema and all that are in it.
fn each_schema(path: &Path, schema: &Value, check: &dyn Fn(&Path, &Value) -> ErrorList) -> ErrorList {
    let mut errors = check(path, schema);
    for (name, property) in map(schema, "/properties").into_iter().flatten() {
        errors.extend(each_schema(&path.child("properties").key(name), property, check));
    }
    for name in ["items", "additionalProperties", "not"] {
        if let Some(inner) = schema.get(name).filter(|inner| inner.is_object()) {
            errors.extend(each_schema(&path.child(name), inner, check));
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, inner) in list(schema, &format!("/{name}")).iter().enumerate() {
            errors.extend(each_schema(&path.child(name).index(index), inner, check));
        }
    }
    errors
}

/// Types that exist, and none of the terms of JSON Schema that Kubernetes does without.
fn known_terms(path: &Path, schema: &Value) -> ErrorList {
    const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
    let kind = Some(text(schema, "/type")).filter(|kind| !kind.is_empty());
    let mut errors = optional_one_of(&path.child("type"), kind, TYPES);
    if flag(schema, "/uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(Error::forbidden(&path.child("uniqueItems"), detail));
    }
    if is_set(schema, "/additionalProperties") && map(schema, "/properties").is_some_and(|properties| !properties.is_empty()) {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.push(Error::forbidden(&path.child("additionalProperties"), detail));
    }
    for name in ["definitions", "dependencies", "patternProperties"] {
        if map(schema, &format!("/{name}")).is_some_and(|terms| !terms.is_empty()) {
            errors.push(Error::forbidden(&path.child(name), format!("{name} is not supported")));
        }
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(false)) {
        errors.push(Error::invalid(&path.child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined"));
    }
    if let Some(map_type) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) {
        errors.extend(has_type(path, schema, "object", "must be object if x-kubernetes-map-type is specified"));
        errors.extend(one_of(&path.child("x-kubernetes-map-type"), Some(map_type), &["atomic", "granular"]));
    }
    errors.extend(list_terms(path, schema));
    errors
}

fn has_type(path: &Path, schema: &Value, wanted: &str, why: &str) -> Option<Error> {
    let path = path.child("type");
    match text(schema, "/type") {
        "" => Some(Error::required(&path, why)),
        kind => (kind != wanted).then(|| Error::invalid(&path, kind, why)),
    }
}

/// What makes of a list a set, or a map by some of its items' fields.
fn list_terms(path: &Path, schema: &Value) -> ErrorList {
    let list_type = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    let (type_path, keys_path) = (path.child("x-kubernetes-list-type"), path.child("x-kubernetes-list-map-keys"));
    let (items, items_path) = (&schema["items"], path.child("items"));
    let keys: Vec<&str> = list(schema, "/x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).collect();
    let mut errors = Vec::new();
    if list_type.is_some() {
        errors.extend(has_type(path, schema, "array", "must be array if x-kubernetes-list-type is specified"));
    }
    if list_type == Some("set") && errors.is_empty() {
        let (inner, default) = match text(items, "/type") {
            "array" => ("x-kubernetes-list-type", "atomic"),
            "object" => ("x-kubernetes-map-type", "granular"),
            _ => ("", "atomic"),
        };
        if items.get(inner).and_then(Value::as_str).unwrap_or(default) != "atomic" {
            let value = items.get("x-kubernetes-list-type").cloned().unwrap_or_default();
            errors.push(Error::invalid(
                &items_path.child(inner),
                value,
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            ));
        }
    }
    errors.extend(optional_one_of(&type_path, list_type, &["atomic", "map", "set"]));
    let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
    match list_type {
        None if !keys.is_empty() => errors.push(Error::required(&type_path, detail)),
        Some(other) if other != "map" && !keys.is_empty() => errors.push(Error::invalid(&type_path, other, detail)),
        _ => {}
    }
    if list_type == Some("map") {
        if keys.is_empty() {
            errors.push(Error::required(&keys_path, "must not be empty if x-kubernetes-list-type is map"));
        }
        errors.extend(map_items(items, &items_path, &keys, &keys_path));
    }
    if matches!(list_type, Some("map" | "set")) && flag(items, "/nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {}", list_type.unwrap_or_default());
        errors.push(Error::forbidden(&items_path.child("nullable"), detail));
    }
    if list_type == Some("map") {
        errors.extend(keys.iter().flat_map(|key| key_is_given(items, &items_path, key)));
    }
    errors
}

/// The items of a list that is a map are objects, and have the keys as scalars.
fn map_items(items: &Value, path: &Path, keys: &[&str], keys_path: &Path) -> ErrorList {
    if !items.is_object() {
        return vec![Error::required(path, "must have a schema if x-kubernetes-list-type is map")];
    }
    let kind = text(items, "/type");
    if kind != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        return vec![Error::invalid(&path.child("type"), kind, detail)];
    }
    let mut errors = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        match items["properties"].get(key) {
            Some(property) if matches!(text(property, "/type"), "array" | "object") => {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(Error::invalid(&path.child("properties").key(key).child("type"), kind, detail));
            }
            Some(_) => {}
            None => errors.push(Error::invalid(keys_path, json!(keys), "entries must all be names of item properties")),
        }
        if keys[..index].contains(key) {
            errors.push(Error::invalid(keys_path, json!(keys), "must not contain duplicate entries"));
        }
    }
    errors
}

/// A key is required or has a default, and is never null.
fn key_is_given(items: &Value, path: &Path, key: &str) -> ErrorList {
    let Some(property) = items["properties"].get(key) else { return Vec::new() };
    let path = path.child("properties").key(key);
    let mut errors = Vec::new();
    if !list(items, "/required").iter().any(|name| name == key) && !is_set(property, "/default") {
        let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
        errors.push(Error::required(&path.child("default"), detail));
    }
    if flag(property, "/nullable") {
        let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        errors.push(Error::forbidden(&path.child("nullable"), detail));
    }
    errors
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Every field and item has its type where it is specified, not in a condition on it.
fn structural(path: &Path, schema: &Value, level: Level) -> ErrorList {
    let kind = text(schema, "/type");
    let mut errors = Vec::new();
    if kind == "array" && !is_set(schema, "/items") {
        errors.push(Error::required(&path.child("items"), "must be specified"));
    }
    if is_set(schema, "/items") {
        errors.extend(structural(&path.child("items"), &schema["items"], Level::Item));
    }
    for (name, property) in map(schema, "/properties").into_iter().flatten() {
        errors.extend(structural(&path.child("properties").key(name), property, Level::Field));
    }
    if is_set(schema, "/additionalProperties") {
        if level == Level::Root {
            errors.push(Error::forbidden(&path.child("additionalProperties"), "must not be used at the root"));
        }
        if schema["additionalProperties"].is_object() {
            errors.extend(structural(&path.child("additionalProperties"), &schema["additionalProperties"], Level::Field));
        }
    }
    let free = flag(schema, "/x-kubernetes-int-or-string") || flag(schema, "/x-kubernetes-preserve-unknown-fields");
    if kind.is_empty() && !free {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(Error::required(&path.child("type"), detail));
    }
    if level == Level::Root && !matches!(kind, "" | "object") {
        errors.push(Error::invalid(&path.child("type"), kind, "must be object at the root"));
    }
    errors.extend(pattern(path, schema));
    errors.extend(conditions(path, schema, flag(schema, "/x-kubernetes-int-or-string")));
    errors
}

fn pattern(path: &Path, schema: &Value) -> ErrorList {
    let pattern = text(schema, "/pattern");
    match Regex::new(pattern) {
        Ok(_) => Vec::new(),
        Err(error) => {
            let detail = format!("must be a valid regular expression, but isn't: {error}");
            vec![Error::invalid(&path.child("pattern"), pattern, detail)]
        }
    }
}

/// Conditions on a value may not say what it is. Only "a number or a string" is said so.
fn conditions(path: &Path, schema: &Value, int_or_string: bool) -> ErrorList {
    let mut errors = Vec::new();
    for name in ["anyOf", "allOf", "oneOf"] {
        for (index, inner) in list(schema, &format!("/{name}")).iter().enumerate() {
            if !(int_or_string && name != "oneOf") {
                errors.extend(condition(&path.child(name).index(index), inner));
            }
        }
    }
    if is_set(schema, "/not") {
        errors.extend(condition(&path.child("not"), &schema["not"]));
    }
    errors
}

fn condition(path: &Path, schema: &Value) -> ErrorList {
    const EMPTY: &str = "must be empty to be structural";
    const UNDEFINED: &str = "must be undefined to be structural";
    let mut errors = conditions(path, schema, false);
    errors.extend(pattern(path, schema));
    for (name, property) in map(schema, "/properties").into_iter().flatten() {
        errors.extend(condition(&path.child("properties").key(name), property));
    }
    if is_set(schema, "/items") {
        errors.extend(condition(&path.child("items"), &schema["items"]));
    }
    for (name, detail) in
        [("type", EMPTY), ("additionalProperties", UNDEFINED), ("default", UNDEFINED), ("title", EMPTY), ("description", EMPTY)]
    {
        if is_set(schema, &format!("/{name}")) && schema[name] != json!("") {
            errors.push(Error::forbidden(&path.child(name), detail));
        }
    }
    for name in ["nullable", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string"] {
        if flag(schema, &format!("/{name}")) {
            errors.push(Error::forbidden(&path.child(name), "must be false to be structural"));
        }
    }
    errors
}
