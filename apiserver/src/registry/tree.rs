//! Small reads and writes of an object's tree, and the metadata that every write shapes the same way.
//!
//! Upstream counterparts: `apiserver/pkg/registry/rest/{meta,create,update}.go`.

use api::Key;
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value, json};

pub fn text<'a>(tree: &'a Value, pointer: &str) -> &'a str {
    tree.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub fn number(tree: &Value, pointer: &str) -> Option<i64> {
    tree.pointer(pointer).and_then(Value::as_i64)
}

pub fn items<'a>(tree: &'a Value, pointer: &str) -> &'a [Value] {
    tree.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The object at a field, made when it is absent.
pub fn object<'a>(tree: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !tree.is_object() {
        *tree = json!({});
    }
    let slot = &mut tree[field];
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

pub fn meta(tree: &mut Value) -> &mut Map<String, Value> {
    object(tree, "metadata")
}

pub fn key_of(tree: &Value) -> Key {
    Key::new(text(tree, "/metadata/namespace"), text(tree, "/metadata/name"))
}

/// A time as objects carry it: RFC 3339, whole seconds, UTC.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub fn is_being_deleted(tree: &Value) -> bool {
    tree.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null())
}

/// The last moment `metadata.resourceVersion` is in the tree: stored objects don't carry it.
pub fn take_resource_version(tree: &mut Value) -> String {
    match meta(tree).remove("resourceVersion") {
        Some(Value::String(version)) => version,
        _ => String::new(),
    }
}

/// The revision a client's object names, and the managers it brings, for a change that takes little else from it.
pub fn take_identity(object: &mut Value, from: &Value) {
    for field in ["resourceVersion", "managedFields"] {
        match from["metadata"].get(field) {
            Some(value) => meta(object).insert(field.into(), value.clone()),
            None => meta(object).remove(field),
        };
    }
}

/// What the system alone decides about a new object.
pub fn stamp_new(tree: &mut Value, now: Timestamp) {
    let meta = meta(tree);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        meta.remove(field);
    }
    meta.insert("creationTimestamp".into(), rfc3339(now).into());
    meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
}

/// What an update can't change, taken from the stored object where the new one is silent.
pub fn stamp_update(new: &mut Value, old: &Value) {
    let kept = &old["metadata"];
    let meta = meta(new);
    meta.remove("selfLink");
    if let Some(created) = kept.get("creationTimestamp") {
        meta.insert("creationTimestamp".into(), created.clone());
    }
    for field in ["uid", "namespace", "name", "generateName"] {
        let silent = meta.get(field).is_none_or(|v| v.is_null() || v == "");
        if let (true, Some(value)) = (silent, kept.get(field)) {
            meta.insert(field.into(), value.clone());
        }
    }
    // The generation is the system's; what a client says of its own deletion, validation refuses.
    match kept.get("generation") {
        Some(value) => meta.insert("generation".into(), value.clone()),
        None => meta.remove("generation"),
    };
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        let asked = field == "deletionGracePeriodSeconds" && meta.get(field).is_some_and(|value| !value.is_null());
        if let (Some(value), false) = (kept.get(field), asked) {
            meta.insert(field.into(), value.clone());
        }
    }
}

/// A name for `generateName`: its head and five letters that spell no words.
/// Upstream: `apiserver/pkg/storage/names/generate.go`.
pub fn generate_name(base: &str) -> String {
    const MAX_HEAD: usize = 63 - 5;
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let head = &base[..base.floor_char_boundary(MAX_HEAD)];
    let mut rng = rand::rng();
    let tail: String = (0..5).map(|_| LETTERS[rng.random_range(0..LETTERS.len())] as char).collect();
    format!("{head}{tail}")
}
