//! Reading objects as trees, where no type fits: any kind, or a part of one.

use serde_json::Value;

/// The string at a JSON pointer, or "".
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The array at a JSON pointer, or nothing.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `metadata.KEY[NAME]` for labels and annotations.
pub fn meta_entry<'a>(value: &'a Value, field: &str, name: &str) -> Option<&'a str> {
    value.get("metadata")?.get(field)?.get(name)?.as_str()
}

pub fn is_being_deleted(value: &Value) -> bool {
    value.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null())
}
