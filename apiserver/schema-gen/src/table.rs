//! The table of types as Rust source.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::types::{Field, Types, group_version};

/// Types whose JSON form is their own, by Go name.
const SPECIAL: &[(&str, &str)] = &[
    ("bool", "Bool"),
    ("int32", "Int32"),
    ("int64", "Int64"),
    ("float64", "Float64"),
    ("string", "String"),
    ("bytes", "Bytes"),
    ("meta/v1.Time", "Time"),
    ("meta/v1.MicroTime", "MicroTime"),
    ("meta/v1.Duration", "Duration"),
    ("meta/v1.FieldsV1", "Raw"),
    ("runtime.RawExtension", "Raw"),
    ("apiextensions/v1.JSON", "Raw"),
    ("interface {}", "Raw"),
    ("resource.Quantity", "Quantity"),
    ("intstr.IntOrString", "IntOrString"),
    ("apiextensions/v1.JSONSchemaPropsOrBool", "PropsOrBool"),
    ("apiextensions/v1.JSONSchemaPropsOrArray", "PropsOrArray"),
    ("apiextensions/v1.JSONSchemaPropsOrStringArray", "PropsOrStrings"),
    ("meta/v1.Verbs=slice", "Items"),
    ("authentication/v1.ExtraValue=slice", "Items"),
    ("authorization/v1.ExtraValue=slice", "Items"),
    ("certificates/v1.ExtraValue=slice", "Items"),
];

pub fn emit(types: &Types) -> String {
    let index: BTreeMap<&str, usize> = types.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut out = String::from(
        "//! Every built-in type of v1.33, sorted by Go name. Written by `schema-gen`; do not edit.\n\n\
         use crate::types::Kind::*;\nuse crate::types::{Field, Type, field, kind, ty};\n\n",
    );
    if let Some(props) = index.get("apiextensions/v1.JSONSchemaProps") {
        let _ = writeln!(out, "pub const JSON_SCHEMA_PROPS: u16 = {props};\n");
    }
    let _ = writeln!(out, "#[rustfmt::skip]\npub static TYPES: [Type; {}] = [", types.len());
    for (name, t) in types {
        let head = if t.kind {
            let (group, version) = group_version(name.rsplit_once('.').map_or("", |(package, _)| package));
            format!("kind({name:?}, {group:?}, {version:?}, ")
        } else {
            format!("ty({name:?}, ")
        };
        let _ = writeln!(out, "    {head}{}, &[", t.atomic);
        for field in &t.fields {
            let _ = writeln!(out, "        {},", emit_field(field, &index));
        }
        out.push_str("    ]),\n");
    }
    out.push_str("];\n\n#[allow(dead_code, reason = \"keeps the import used in an empty table\")]\ntype Unused = Field;\n");
    out
}

fn emit_field(field: &Field, index: &BTreeMap<&str, usize>) -> String {
    let mut text = format!("field({:?}, {}, {:?}, {})", field.json, field.tag, go_name(&field.go), kind_of(&field.go, index));
    for (on, call) in [(field.pointer, ".pointer()"), (field.omitempty, ".omitempty()"), (field.inline, ".inline()"), (field.optional, ".optional()"), (field.atomic, ".atomic()")] {
        if on {
            text.push_str(call);
        }
    }
    if !field.strategy.is_empty() {
        let _ = write!(text, ".patch({:?}, {:?})", field.strategy, field.merge_key);
    }
    match field.list_type.as_str() {
        "map" => {
            let _ = write!(text, ".map_list(&{:?})", field.map_keys);
        }
        "set" => text.push_str(".set()"),
        "atomic" => text.push_str(".atomic()"),
        _ => {}
    }
    if let Some(default) = &field.default {
        let _ = write!(text, ".default({default:?})");
    }
    text
}

fn kind_of(go: &str, index: &BTreeMap<&str, usize>) -> String {
    let go = go.trim_start_matches('*');
    if let Some(rest) = go.strip_prefix("[]") {
        return format!("List(&{})", kind_of(rest, index));
    }
    if let Some((_, value)) = go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        return format!("Map(&{})", kind_of(value, index));
    }
    if let Some((_, kind)) = SPECIAL.iter().find(|(name, _)| *name == go) {
        return (*kind).to_owned();
    }
    if go.ends_with("=string") {
        return "String".to_owned();
    }
    let i = index.get(go).unwrap_or_else(|| panic!("unknown Go type {go}"));
    format!("Struct({i})")
}

/// As Go prints the type: the package's last element, a dot, the name.
fn go_name(go: &str) -> String {
    if let Some(rest) = go.strip_prefix("[]") {
        return format!("[]{}", go_name(rest));
    }
    if let Some(rest) = go.strip_prefix('*') {
        return format!("*{}", go_name(rest));
    }
    if let Some((key, value)) = go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        return format!("map[{}]{}", go_name(key), go_name(value));
    }
    let name = go.split('=').next().unwrap_or(go);
    match name {
        "bytes" => "[]uint8".to_owned(),
        _ => name.rsplit('/').next().unwrap_or(name).to_owned(),
    }
}
