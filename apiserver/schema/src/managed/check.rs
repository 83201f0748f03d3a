//! Whether an applied configuration fits its type, in upstream's words.
//!
//! Stricter than decoding: an unknown field is an error whatever `fieldValidation` says, and so is a list item without its key.
//! Upstream: `structured-merge-diff/typed/validate.go`.

use serde_json::{Map, Value};

use super::set::Step;
use super::walk::Node;
use crate::patch::go_map;
use crate::types::{Kind, ListType};

/// Errors: what is wrong and where, one line for one fault.
pub fn check(node: Node, value: &Value) -> Result<(), String> {
    let mut faults = Vec::new();
    visit(node, value, "", &mut faults);
    match faults.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n  {}", many.join("\n  "))),
    }
}

fn visit(node: Node, value: &Value, path: &str, faults: &mut Vec<String>) {
    let Node::Of { kind, list, .. } = node else { return };
    let mut fault = |what: String| faults.push(if path.is_empty() { what } else { format!("{path}: {what}") });
    match (kind, value) {
        (_, Value::Null) | (Kind::Raw | Kind::PropsOrBool | Kind::PropsOrArray | Kind::PropsOrStrings, _) => {}
        (Kind::Bool, Value::Bool(_)) | (Kind::Int32 | Kind::Int64 | Kind::Float64, Value::Number(_)) => {}
        (Kind::String | Kind::Bytes | Kind::Duration, Value::String(_)) => {}
        (Kind::Time | Kind::MicroTime | Kind::Quantity | Kind::IntOrString, Value::Bool(_) | Value::Number(_) | Value::String(_)) => {}
        (Kind::Bool, _) => fault(format!("expected boolean, got &{{{}}}", go_map(value))),
        (Kind::Int32 | Kind::Int64 | Kind::Float64, _) => fault(format!("expected numeric (int or float), got {}", go_type(value))),
        (Kind::String | Kind::Bytes | Kind::Duration, _) => {
            fault(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(value)))
        }
        (Kind::Time | Kind::MicroTime | Kind::Quantity | Kind::IntOrString, _) => {
            fault(format!("expected any scalar, got &{{{}}}", go_map(value)))
        }
        (Kind::List(_) | Kind::Items, Value::Array(items)) => visit_items(node, list, items, path, faults),
        (Kind::List(_) | Kind::Items, _) => fault(format!("expected list, got &{{{}}}", go_map(value))),
        (Kind::Struct(_) | Kind::Map(_), Value::Object(map)) => visit_fields(node, kind, map, path, faults),
        (Kind::Struct(_) | Kind::Map(_), _) => fault(format!("expected map, got &{{{}}}", go_map(value))),
    }
}

fn visit_fields(node: Node, kind: Kind, map: &Map<String, Value>, path: &str, faults: &mut Vec<String>) {
    let declared = |name: &str| match kind.as_struct() {
        Some(t) => t.field(name).is_some() || t.is_kind() && matches!(name, "apiVersion" | "kind"),
        None => true,
    };
    for (name, value) in map {
        let path = format!("{path}.{name}");
        if declared(name) {
            visit(node.field(name).0, value, &path, faults);
        } else {
            faults.push(format!("{path}: field not declared in schema"));
        }
    }
}

fn visit_items(node: Node, list: ListType, items: &[Value], path: &str, faults: &mut Vec<String>) {
    let mut seen: Vec<Step> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        if let Some(why) = unkeyed(node, list, i, item) {
            faults.push(format!("{path}: element {i}: {why}"));
            return;
        }
        let step = node.step(i, item);
        if seen.contains(&step) {
            faults.push(format!("{path}: duplicate entries for key {step}"));
        }
        visit(node.item(), item, &format!("{path}{step}"), faults);
        seen.push(step);
    }
}

/// Why an item of a set or of a map can't be told from the others.
fn unkeyed(node: Node, list: ListType, index: usize, item: &Value) -> Option<String> {
    match (list, item) {
        (ListType::Set, Value::Null) => Some("associative list without keys has an element that's an explicit null".to_owned()),
        (ListType::Set, Value::Object(_)) => Some("associative list without keys has an element that's a map type".to_owned()),
        (ListType::Map(_), Value::Null) => Some("associative list with keys may not have a null element".to_owned()),
        (ListType::Map(keys), Value::Object(_)) => {
            let Step::Key(found) = node.step(index, item) else { return None };
            let missing = keys.iter().find(|key| !found.contains_key(**key))?;
            Some(format!("associative list with keys has an element that omits key field {missing:?} (and doesn't have default value)"))
        }
        (ListType::Map(_), _) => Some("associative list with keys may not have non-map elements".to_owned()),
        _ => None,
    }
}

/// As Go's `%T` prints it.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// As Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::Array(items) => format!("[]interface {{}}{{{}}}", list(items.iter().map(go_syntax).collect())),
        Value::Object(map) => {
            let pairs = map.iter().map(|(name, value)| format!("{name:?}:{}", go_syntax(value))).collect();
            format!("map[string]interface {{}}{{{}}}", list(pairs))
        }
        scalar => scalar.to_string(),
    }
}
