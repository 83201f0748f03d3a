//! An object as Go would have written it.
//!
//! Go's encoder drops an empty `omitempty` field, always writes a struct that is no pointer (`status: {}`, `resources: {}`), a zero time as
//! `null`, and a nil list without `omitempty` as `null`. Applying this to what we store makes our JSON the same as upstream's, and equal
//! objects equal. Idempotent. Wrong types are left alone (decoding reports them).

use api::key::Gvk;
use serde_json::{Map, Value};

use crate::scalar;
use crate::types::{Field, Kind, Type, lookup};

/// Objects of unknown kinds stay as they are.
pub fn normalize(gvk: &Gvk, object: &mut Value) {
    if let (Some(t), Value::Object(map)) = (lookup(gvk), object) {
        structure(map, t);
    }
}

pub(crate) fn structure(map: &mut Map<String, Value>, t: &Type) {
    t.for_each_field(&mut |field| match map.get_mut(field.name) {
        Some(value) if !value.is_null() => {
            of_kind(value, field.kind);
            if droppable(field, value) {
                map.remove(field.name);
            } else if forgotten(field, value) {
                *value = Value::Null;
            }
        }
        found => match zero_field(field) {
            Some(zero) => drop(map.insert(field.name.to_owned(), zero)),
            None if found.is_some() => drop(map.remove(field.name)),
            None => {}
        },
    });
}

fn of_kind(value: &mut Value, kind: Kind) {
    match (kind, value) {
        (Kind::Struct(_), Value::Object(map)) => {
            if let Some(t) = kind.as_struct() {
                structure(map, t);
            }
        }
        (Kind::List(element), Value::Array(items)) => items.iter_mut().for_each(|item| element_of(item, *element)),
        (Kind::Map(element), Value::Object(map)) => {
            map.values_mut().for_each(|item| element_of(item, *element));
            if matches!(*element, Kind::Quantity) {
                map.values_mut().for_each(rounded);
            }
        }
        (Kind::PropsOrBool | Kind::PropsOrArray | Kind::PropsOrStrings, Value::Object(map)) => {
            if let Some(t) = props() {
                structure(map, t);
            }
        }
        (Kind::PropsOrArray, Value::Array(items)) => {
            items.iter_mut().for_each(|item| element_of(item, Kind::Struct(crate::generated::JSON_SCHEMA_PROPS)))
        }
        (_, value) => text(value, kind),
    }
}

fn text(value: &mut Value, kind: Kind) {
    let canonical = match (kind, &*value) {
        (Kind::Quantity, Value::Number(n)) => scalar::quantity(&n.to_string()),
        (Kind::Quantity, Value::String(s)) => scalar::quantity(s),
        (Kind::Time, Value::String(s)) => scalar::time(s),
        (Kind::MicroTime, Value::String(s)) => scalar::micro_time(s),
        (Kind::Bytes, Value::String(s)) => scalar::base64(s),
        _ => return,
    };
    if let Ok(canonical) = canonical
        && value.as_str() != Some(&canonical)
    {
        *value = Value::String(canonical);
    }
}

/// Amounts of resources count in thousandths and no finer: what is, is rounded up. Upstream: `SetDefaults_ResourceList`.
fn rounded(amount: &mut Value) {
    let finer = amount.as_str().filter(|text| text.ends_with(['n', 'u']));
    if let Some(parsed) = finer.and_then(|text| api::Quantity::parse(text).ok())
        && let Ok(milli) = i64::try_from(parsed.milli())
    {
        *amount = api::Quantity::from_milli(milli).to_string().into();
    }
}

fn element_of(item: &mut Value, kind: Kind) {
    if item.is_null() {
        *item = zero(kind);
    } else {
        of_kind(item, kind);
    }
}

pub(crate) fn props() -> Option<&'static Type> {
    Kind::Struct(crate::generated::JSON_SCHEMA_PROPS).as_struct()
}

/// What Go writes for a field that was never set; `None` if nothing.
fn zero_field(field: &Field) -> Option<Value> {
    match field.kind {
        _ if field.pointer => (!field.omitempty).then_some(Value::Null),
        Kind::Struct(_) | Kind::Time | Kind::MicroTime | Kind::Quantity | Kind::IntOrString | Kind::Duration | Kind::Raw => {
            Some(zero(field.kind))
        }
        Kind::List(_) | Kind::Map(_) | Kind::Bytes | Kind::Items if !field.omitempty => Some(Value::Null),
        kind if !field.omitempty => Some(zero(kind)),
        _ => None,
    }
}

/// The zero value of a kind.
pub(crate) fn zero(kind: Kind) -> Value {
    match kind {
        Kind::Bool => Value::Bool(false),
        Kind::Int32 | Kind::Int64 | Kind::Float64 | Kind::IntOrString => Value::from(0),
        Kind::String | Kind::Bytes => Value::from(""),
        Kind::Quantity => Value::from("0"),
        Kind::Duration => Value::from("0s"),
        Kind::Struct(_) => {
            let mut map = Map::new();
            if let Some(t) = kind.as_struct() {
                structure(&mut map, t);
            }
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// Upstream stores protobuf, which does not tell an empty list from none.
fn forgotten(field: &Field, value: &Value) -> bool {
    let list = matches!(field.kind, Kind::List(_)) && value.as_array().is_some_and(Vec::is_empty);
    let map = matches!(field.kind, Kind::Map(_)) && value.as_object().is_some_and(Map::is_empty);
    (list || map) && !field.omitempty && !field.pointer
}

/// `omitempty` applies: an empty scalar, list or map that is no pointer.
fn droppable(field: &Field, value: &Value) -> bool {
    if !field.omitempty || field.pointer {
        return false;
    }
    match (field.kind, value) {
        (Kind::Struct(_) | Kind::IntOrString | Kind::Quantity | Kind::Raw, _) => false,
        (_, Value::Bool(b)) => !b,
        (_, Value::Number(n)) => n.as_f64() == Some(0.0),
        (_, Value::String(s)) => s.is_empty(),
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::Object(map)) => map.is_empty(),
        (_, Value::Null) => true,
    }
}
