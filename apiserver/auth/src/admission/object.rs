//! Reading and writing fields of objects in flight.
//!
//! Plugins edit the JSON tree itself: a round trip through a typed struct would rewrite the rest of the object.

use serde_json::{Map, Value};

/// `object[field]` as a map, made if it is absent or null.
pub fn map<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let slot = slot(object, field);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made a map above"),
    }
}

/// `object[field]` as a list, made if it is absent or null.
pub fn list<'a>(object: &'a mut Value, field: &str) -> &'a mut Vec<Value> {
    let slot = slot(object, field);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    match slot {
        Value::Array(list) => list,
        _ => unreachable!("made a list above"),
    }
}

/// `object[field]`, made null if it is absent. Admission only sees decoded objects, so a non-map here is a map in the making.
pub fn slot<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    &mut object[field]
}

/// Adds `item` to `metadata.finalizers` once.
pub fn add_finalizer(object: &mut Value, finalizer: &str) {
    let finalizers = list(slot(object, "metadata"), "finalizers");
    if !finalizers.iter().any(|f| f == finalizer) {
        finalizers.push(finalizer.into());
    }
}

/// Null, absent and empty mean the same to Go.
pub fn is_unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}
