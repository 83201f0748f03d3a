//! The OpenAPI documents: v2 whole, v3 by group and version, gzip'd, and their index as Rust source.
//!
//! Definitions come from the same table of types as everything else, so list types, merge keys and patch strategies are complete:
//! kubectl computes its patches from them. Upstream: `kube-openapi/pkg/generators/openapi.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::gnostic;
use crate::paths::{self, Dialect};
use crate::types::{Field, Type, Types, group_version};

/// Types whose JSON is not that of a struct: Go name, schema.
fn special(go: &str) -> Option<Value> {
    Some(match go {
        "meta/v1.Time" => json!({"type": "string", "format": "date-time", "description": "Time is a wrapper around time.Time which supports correct marshaling to YAML and JSON.  Wrappers are provided for many of the factory methods that the time package offers."}),
        "meta/v1.MicroTime" => json!({"type": "string", "format": "date-time", "description": "MicroTime is version of Time with microsecond level precision."}),
        "meta/v1.Duration" => json!({"type": "string", "description": "Duration is a wrapper around time.Duration which supports correct marshaling to YAML and JSON. In particular, it marshals into strings, which can be used as map keys in json."}),
        "meta/v1.FieldsV1" => json!({"type": "object", "description": "FieldsV1 stores a set of fields in a data structure like a Trie, in JSON format."}),
        "meta/v1.Patch" => json!({"type": "object", "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body."}),
        "runtime.RawExtension" => json!({"type": "object", "description": "RawExtension is used to hold extensions in external versions."}),
        "resource.Quantity" => json!({"type": "string", "description": "Quantity is a fixed-point representation of a number."}),
        "intstr.IntOrString" => json!({"type": "string", "format": "int-or-string", "description": "IntOrString is a type that can hold an int32 or a string."}),
        "apiextensions/v1.JSON" => json!({"description": "JSON represents any valid JSON value. These types are supported: bool, int64, float64, string, []interface{}, map[string]interface{} and nil."}),
        "apiextensions/v1.JSONSchemaPropsOrBool" => json!({"description": "JSONSchemaPropsOrBool represents JSONSchemaProps or a boolean value. Defaults to true for the boolean property."}),
        "apiextensions/v1.JSONSchemaPropsOrArray" => json!({"description": "JSONSchemaPropsOrArray represents a value that can either be a JSONSchemaProps or an array of JSONSchemaProps. Mainly here for serialization purposes."}),
        "apiextensions/v1.JSONSchemaPropsOrStringArray" => json!({"description": "JSONSchemaPropsOrStringArray represents a JSONSchemaProps or a string array."}),
        _ => return None,
    })
}

const SPECIAL: &[&str] = &[
    "meta/v1.Time", "meta/v1.MicroTime", "meta/v1.Duration", "meta/v1.FieldsV1", "meta/v1.Patch", "runtime.RawExtension", "resource.Quantity",
    "intstr.IntOrString", "apiextensions/v1.JSON", "apiextensions/v1.JSONSchemaPropsOrBool", "apiextensions/v1.JSONSchemaPropsOrArray",
    "apiextensions/v1.JSONSchemaPropsOrStringArray",
];

/// `core/v1.Pod` → `io.k8s.api.core.v1.Pod`.
pub fn definition_name(go: &str) -> String {
    let (package, name) = go.rsplit_once('.').unwrap_or(("", go));
    let prefix = match package.split('/').next().unwrap_or_default() {
        "meta" => "io.k8s.apimachinery.pkg.apis.",
        "runtime" => "io.k8s.apimachinery.pkg.",
        "resource" => "io.k8s.apimachinery.pkg.api.",
        "intstr" => "io.k8s.apimachinery.pkg.util.",
        "version" => "io.k8s.apimachinery.pkg.",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis.",
        "apiregistration" => "io.k8s.kube-aggregator.pkg.apis.",
        _ => "io.k8s.api.",
    };
    format!("{prefix}{}.{name}", package.replace('/', "."))
}

/// Meta types that every group serves as its own.
const EVERYWHERE: &[&str] = &["meta/v1.DeleteOptions", "meta/v1.WatchEvent"];

pub fn write(types: &Types, schema: &Path) -> Result<()> {
    let folder = schema.join("openapi");
    std::fs::create_dir_all(&folder)?;
    let mut index = String::from("//! The OpenAPI documents. Written by `schema-gen`; do not edit.\n\nuse super::Document;\n\n");
    let all = definitions(types, Dialect::V2);
    let v2 = json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths::of(types, None, Dialect::V2),
        "definitions": all,
        "securityDefinitions": {"BearerToken": {"description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header"}},
        "security": [{"BearerToken": []}],
    });
    let entry = save(&folder, "", "v2.json", v2.to_string().as_bytes())?;
    let _ = writeln!(index, "#[rustfmt::skip]\npub static V2: Document = {entry};\n");
    let entry = save(&folder, "", "v2.pb", &gnostic::encode(&v2)?)?;
    let _ = writeln!(index, "/// The same as gnostic's `openapi.v2.Document`.\n#[rustfmt::skip]\npub static V2_PROTOBUF: Document = {entry};\n");
    index.push_str("/// By path below `/openapi/v3/`.\n#[rustfmt::skip]\npub static V3: &[Document] = &[\n");
    let definitions = definitions(types, Dialect::V3);
    for (group, version) in paths::group_versions() {
        let (path, file) = if group.is_empty() { (format!("api/{version}"), format!("api.{version}")) } else { (format!("apis/{group}/{version}"), format!("{group}.{version}")) };
        let document = document(types, &definitions, &group, &version);
        let _ = writeln!(index, "    {},", save(&folder, &path, &format!("{file}.json"), document.to_string().as_bytes())?);
    }
    index.push_str("];\n");
    std::fs::create_dir_all(schema.join("src/openapi"))?;
    std::fs::write(schema.join("src/openapi/documents.rs"), index).context("write the index of documents")
}

/// Write the bytes, compressed; their entry in the index.
fn save(folder: &Path, path: &str, file: &str, bytes: &[u8]) -> Result<String> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    std::fs::write(folder.join(format!("{file}.gz")), encoder.finish()?).with_context(|| format!("write {file}"))?;
    let hash: String = Sha512::digest(bytes).iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(format!("Document {{ path: {path:?}, hash: {hash:?}, gzip: include_bytes!(\"../../openapi/{file}.gz\") }}"))
}

/// One group and version: its paths, and every definition that they or its kinds reach.
fn document(types: &Types, definitions: &Map<String, Value>, group: &str, version: &str) -> Value {
    let paths = paths::of(types, Some((group, version)), Dialect::V3);
    let mut wanted = BTreeSet::new();
    references(&paths, &mut wanted);
    for (go, t) in types {
        let package = go.rsplit_once('.').map_or("", |(package, _)| package);
        if t.kind && !package.starts_with("meta/") && group_version(package) == (group.to_owned(), version.to_owned()) {
            wanted.insert(definition_name(go));
        }
    }
    let mut schemas = Map::new();
    while let Some(name) = wanted.pop_first() {
        if let (false, Some(definition)) = (schemas.contains_key(&name), definitions.get(&name)) {
            references(definition, &mut wanted);
            schemas.insert(name, definition.clone());
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
        },
    })
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| match (key.as_str(), value) {
            ("$ref", Value::String(target)) => drop(found.insert(target.rsplit('/').next().unwrap_or_default().to_owned())),
            _ => references(value, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn definitions(types: &Types, dialect: Dialect) -> Map<String, Value> {
    let mut all: Map<String, Value> = SPECIAL.iter().filter_map(|go| Some((definition_name(go), special(go)?))).collect();
    if dialect == Dialect::V3 {
        // v3 can say what v2 can't: a string or a number.
        for (go, format) in [("intstr.IntOrString", Some("int-or-string")), ("resource.Quantity", None)] {
            let name = definition_name(go);
            let number = if format.is_some() { "integer" } else { "number" };
            let mut schema = json!({"oneOf": [{"type": "string"}, {"type": number}], "description": all[&name]["description"]});
            if let Some(format) = format {
                schema["format"] = json!(format);
            }
            all.insert(name, schema);
        }
    }
    for (go, t) in types.iter().filter(|(go, _)| special(go).is_none()) {
        all.insert(definition_name(go), definition(go, t, types, dialect));
    }
    all
}

fn definition(go: &str, t: &Type, types: &Types, dialect: Dialect) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    fields(t, types, dialect, &mut properties, &mut required);
    let mut body = json!({"type": "object"});
    if !t.description.is_empty() {
        body["description"] = json!(t.description);
    }
    if t.kind {
        for (name, description) in [
            ("apiVersion", "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"),
            ("kind", "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
        ] {
            properties.entry(name).or_insert_with(|| json!({"type": "string", "description": description}));
        }
        body["x-kubernetes-group-version-kind"] = json!(group_version_kinds(go));
    }
    if !properties.is_empty() {
        body["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        required.sort();
        body["required"] = json!(required);
    }
    if t.atomic {
        body["x-kubernetes-map-type"] = json!("atomic");
    }
    body
}

fn group_version_kinds(go: &str) -> Vec<Value> {
    let (package, kind) = go.rsplit_once('.').unwrap_or(("", go));
    let one = |group: &str, version: &str| json!({"group": group, "version": version, "kind": kind});
    if EVERYWHERE.contains(&go) {
        return paths::group_versions().iter().map(|(group, version)| one(group, version)).collect();
    }
    let (group, version) = group_version(package);
    vec![one(&group, &version)]
}

fn fields(t: &Type, types: &Types, dialect: Dialect, properties: &mut Map<String, Value>, required: &mut Vec<String>) {
    for field in &t.fields {
        if field.inline {
            if let Some(inlined) = types.get(&field.go) {
                fields(inlined, types, dialect, properties, required);
            }
            continue;
        }
        properties.insert(field.json.clone(), property(field, dialect));
        if !field.optional && !field.omitempty {
            required.push(field.json.clone());
        }
    }
}

fn property(field: &Field, dialect: Dialect) -> Value {
    let mut schema = value_schema(&field.go, dialect);
    let mut extras: BTreeMap<&str, Value> = BTreeMap::new();
    if !field.description.is_empty() {
        extras.insert("description", json!(field.description));
    }
    if let Some(default) = field.default.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        extras.insert("default", default);
    }
    if !field.list_type.is_empty() {
        extras.insert("x-kubernetes-list-type", json!(field.list_type));
    }
    if !field.map_keys.is_empty() {
        extras.insert("x-kubernetes-list-map-keys", json!(field.map_keys));
    }
    if field.atomic && !field.go.starts_with("[]") {
        extras.insert("x-kubernetes-map-type", json!("atomic"));
    }
    if !field.merge_key.is_empty() {
        extras.insert("x-kubernetes-patch-merge-key", json!(field.merge_key));
    }
    if !field.strategy.is_empty() {
        extras.insert("x-kubernetes-patch-strategy", json!(field.strategy));
    }
    // In v3 nothing may stand beside a reference.
    if dialect == Dialect::V3 && schema.get("$ref").is_some() && !extras.is_empty() {
        schema = json!({"allOf": [schema]});
    }
    extras.into_iter().for_each(|(key, value)| schema[key] = value);
    schema
}

/// The schema of a Go type expression.
fn value_schema(go: &str, dialect: Dialect) -> Value {
    let go = go.trim_start_matches('*');
    if let Some(element) = go.strip_prefix("[]") {
        return json!({"type": "array", "items": value_schema(element, dialect)});
    }
    if let Some((_, element)) = go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        return json!({"type": "object", "additionalProperties": value_schema(element, dialect)});
    }
    match go {
        "bool" => json!({"type": "boolean"}),
        "int32" => json!({"type": "integer", "format": "int32"}),
        "int64" => json!({"type": "integer", "format": "int64"}),
        "float64" => json!({"type": "number", "format": "double"}),
        "string" => json!({"type": "string"}),
        "bytes" => json!({"type": "string", "format": "byte"}),
        "interface {}" => json!({"type": "object"}),
        _ if go.ends_with("=string") => json!({"type": "string"}),
        _ if go.ends_with("=slice") => json!({"type": "array", "items": {"type": "string"}}),
        _ => dialect.reference(&definition_name(go)),
    }
}
