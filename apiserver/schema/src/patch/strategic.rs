//! Strategic merge patch: a merge that knows which lists are maps by a key.
//!
//! Upstream: `apimachinery/pkg/util/strategicpatch/patch.go` (`mergeMap`, `mergeSlice`), step by step the same, so that kubectl's
//! client-side patches (`$patch`, `$retainKeys`, `$setElementOrder/x`, `$deleteFromPrimitiveList/x`) come out alike.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::go_map;
use crate::decode::json_type;

type Object = Map<String, Value>;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// What the merge must know of a type.
pub trait Shape: Copy {
    fn field(self, name: &str) -> FieldShape<Self>;
}

/// What the merge must know of a field.
#[derive(Clone, Copy, Debug)]
pub struct FieldShape<S> {
    /// The type of the field, or of a list's or map's elements; `None` where nothing more is known (scalars, free-form objects).
    pub element: Option<S>,
    /// Key by which elements of a list of objects are the same; empty if there is none.
    pub merge_key: &'static str,
    /// `patchStrategy` contains `merge`.
    pub merge: bool,
    /// `patchStrategy` contains `replace`.
    pub replace: bool,
}

impl<S> Default for FieldShape<S> {
    fn default() -> Self {
        FieldShape { element: None, merge_key: "", merge: false, replace: false }
    }
}

/// Why a patch can't be applied. Which are the client's fault is upstream's choice (`interpretStrategicMergePatchError`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    #[error("invalid patch format of setElementOrder list")]
    ElementOrder,
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: String, key: String },
    #[error("{0}")]
    Other(String),
}

type Result<T> = std::result::Result<T, PatchError>;

/// `original` with `patch` merged in. `shape` is the type of both, if known.
pub fn merge_map<S: Shape>(original: Object, patch: Object, shape: Option<S>) -> Result<Object> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return map_directive(directive, &patch);
    }
    let (mut original, mut patch) = (original, patch);
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        let (key, is_delete_list) = match key.strip_prefix(DELETE_FROM_LIST) {
            Some(field) => (field.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(old) = original.remove(&key) else {
            if !is_delete_list {
                original.insert(key, clean(value)?);
            }
            continue;
        };
        let merged = merge_field(old, value, field_of(shape, &key), is_delete_list)?;
        original.insert(key, merged);
    }
    Ok(original)
}

fn field_of<S: Shape>(shape: Option<S>, key: &str) -> FieldShape<S> {
    shape.map_or_else(FieldShape::default, |shape| shape.field(key))
}

fn merge_field<S: Shape>(old: Value, new: Value, field: FieldShape<S>, is_delete_list: bool) -> Result<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if !field.replace => Ok(Value::Object(merge_map(old, new, field.element)?)),
        (Value::Array(old), Value::Array(new)) if field.merge => Ok(Value::Array(merge_list(old, new, field, is_delete_list)?)),
        (old, _) if is_delete_list => Ok(old),
        (_, new @ Value::Array(_)) => Ok(new),
        (_, new) => clean(new),
    }
}

fn map_directive(directive: &Value, patch: &Object) -> Result<Object> {
    match directive.as_str() {
        Some("replace") => {
            let mut replacement = patch.clone();
            replacement.remove(DIRECTIVE);
            Ok(replacement)
        }
        Some("delete") => Ok(Object::new()),
        _ => Err(unknown_directive(directive, patch)),
    }
}

/// `$retainKeys`: of the original, only the listed keys stay (a union's other members go).
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or(PatchError::RetainKeys)?;
    let listed = |key: &str| keys.iter().any(|k| k == key);
    if patch.keys().any(|key| !key.starts_with('$') && !listed(key)) {
        return Err(PatchError::RetainKeys);
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// Lists that come with a `$setElementOrder`: merged, put in that order, and taken out of the patch.
fn merge_ordered_lists<S: Shape>(original: &mut Object, patch: &mut Object, shape: Option<S>) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let name = &directive[ELEMENT_ORDER.len()..];
        let Some(Value::Array(order)) = patch.remove(&directive) else { return Err(PatchError::ElementOrder) };
        let field = field_of(shape, name);
        let new = match patch.remove(name) {
            Some(Value::Array(new)) => Some(new),
            None => None,
            Some(_) => return Err(PatchError::ElementOrder),
        };
        if let Some(new) = &new {
            check_order(&order, new, field.merge_key)?;
        }
        let old = match original.remove(name) {
            Some(Value::Array(old)) => old,
            _ => Vec::new(),
        };
        let (new, had) = (new.unwrap_or_default(), !old.is_empty());
        let new = if had { new } else { new.into_iter().map(clean_element).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect() };
        let mut merged = if had && field.merge {
            merge_list(old.clone(), new, field, false)?
        } else if new.is_empty() {
            old.clone()
        } else {
            new
        };
        let delete_list = format!("{DELETE_FROM_LIST}{name}");
        if let Some(Value::Array(gone)) = patch.remove(&delete_list) {
            merged.retain(|item| !gone.contains(item));
        }
        let (listed, server_only): (Vec<_>, Vec<_>) =
            merged.into_iter().partition(|item| position(&order, item, field.merge_key).is_some());
        let merged = in_order(listed, server_only, &order, &old, field.merge_key);
        if had || !merged.is_empty() {
            original.insert(name.to_owned(), Value::Array(merged));
        }
    }
    Ok(())
}

/// Every element of the patch list stands in the order list, in the same relative order.
fn check_order(order: &[Value], patch: &[Value], merge_key: &str) -> Result<()> {
    let mut rest = order.iter();
    for item in patch {
        if item.get(DIRECTIVE).is_some() {
            continue;
        }
        if !rest.any(|listed| same(listed, item, merge_key)) {
            return Err(PatchError::ElementOrder);
        }
    }
    Ok(())
}

fn merge_list<S: Shape>(original: Vec<Value>, patch: Vec<Value>, field: FieldShape<S>, is_delete_list: bool) -> Result<Vec<Value>> {
    let Some(first) = original.first().or(patch.first()) else { return Ok(original) };
    alike(first, &original, &patch)?;
    if !first.is_object() {
        return merge_scalars(original, patch, is_delete_list);
    }
    if field.merge_key.is_empty() {
        return Err(PatchError::Other("cannot merge lists without merge key".to_owned()));
    }
    let server_order = original.clone();
    let (original, patch) = list_directives(original, patch, field.merge_key)?;
    let merged = merge_objects(original, &patch, field)?;
    let (listed, server_only) = merged.into_iter().partition(|item| position(&patch, item, field.merge_key).is_some());
    Ok(in_order(listed, server_only, &patch, &server_order, field.merge_key))
}

/// The elements of both lists are of one type, and that is not a list.
fn alike(first: &Value, original: &[Value], patch: &[Value]) -> Result<()> {
    if first.is_array() {
        return Err(PatchError::ListOfLists);
    }
    if original.iter().chain(patch).all(|item| json_type(item) == json_type(first)) {
        return Ok(());
    }
    let lists = go_map(&Value::Array(vec![original.to_vec().into(), patch.to_vec().into()]));
    Err(PatchError::Other(format!("list element types are not identical: {lists}")))
}

fn merge_scalars(original: Vec<Value>, patch: Vec<Value>, is_delete_list: bool) -> Result<Vec<Value>> {
    if patch.iter().any(|item| item.is_object() || item.is_array()) {
        return Err(PatchError::PrimitiveList);
    }
    if is_delete_list {
        return Ok(original.into_iter().filter(|item| !patch.contains(item)).collect());
    }
    let mut merged: Vec<Value> = Vec::new();
    for item in original.iter().chain(&patch) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    let (listed, server_only) = merged.into_iter().partition(|item| patch.contains(item));
    Ok(in_order(listed, server_only, &patch, &original, ""))
}

/// Carries out `$patch: delete` and `$patch: replace` elements and takes them out of the patch.
fn list_directives(mut original: Vec<Value>, patch: Vec<Value>, merge_key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut rest, mut replace) = (Vec::new(), false);
    for item in patch {
        match item.get(DIRECTIVE).map(|d| (d.as_str(), d)) {
            None => rest.push(item),
            Some((Some("delete"), _)) => {
                let key = item.get(merge_key).ok_or_else(|| no_merge_key(&item, merge_key))?;
                original.retain(|known| known.get(merge_key) != Some(key));
            }
            Some((Some("replace"), _)) => replace = true,
            Some((_, directive)) => return Err(unknown_directive(directive, item.as_object().unwrap_or(&Object::new()))),
        }
    }
    Ok(if replace { (rest, Vec::new()) } else { (original, rest) })
}

fn merge_objects<S: Shape>(mut merged: Vec<Value>, patch: &[Value], field: FieldShape<S>) -> Result<Vec<Value>> {
    for item in patch {
        let key = item.get(field.merge_key).ok_or_else(|| no_merge_key(item, field.merge_key))?;
        let Value::Object(changes) = item.clone() else { return Err(PatchError::PrimitiveList) };
        match merged.iter_mut().find(|known| known.get(field.merge_key) == Some(key)) {
            Some(Value::Object(known)) => *known = merge_map(std::mem::take(known), changes, field.element)?,
            _ => merged.push(clean(Value::Object(changes))?),
        }
    }
    Ok(merged)
}

fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() { a == b } else { a.get(merge_key).is_some() && a.get(merge_key) == b.get(merge_key) }
}

fn position(list: &[Value], item: &Value, merge_key: &str) -> Option<usize> {
    list.iter().position(|other| same(other, item, merge_key))
}

/// Upstream's `normalizeElementOrder`: the patch's elements in the patch's order, the server's own in theirs, interleaved by the server's order.
fn in_order(mut listed: Vec<Value>, mut server_only: Vec<Value>, order: &[Value], server_order: &[Value], merge_key: &str) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| position(list, item, merge_key).unwrap_or(usize::MAX);
    listed.sort_by_key(|item| place(order, item));
    server_only.sort_by_key(|item| place(server_order, item));
    let (mut left, mut right) = (server_only.into_iter().peekable(), listed.into_iter().peekable());
    let mut all = Vec::with_capacity(left.len() + right.len());
    while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
        let both = position(server_order, l, merge_key).zip(position(server_order, r, merge_key));
        let left_first = both.is_some_and(|(l, r)| l.cmp(&r) == Ordering::Less);
        all.extend(if left_first { left.next() } else { right.next() });
    }
    all.extend(left);
    all.extend(right);
    all
}

/// A value that is new to the object: without directives, and without the nulls that only mean "delete".
fn clean(value: Value) -> Result<Value> {
    match value {
        Value::Object(map) => clean_map(map).map(Value::Object),
        Value::Array(items) => {
            let items: Vec<Option<Value>> = items.into_iter().map(clean_element).collect::<Result<_>>()?;
            Ok(Value::Array(items.into_iter().flatten().collect()))
        }
        scalar => Ok(scalar),
    }
}

fn clean_map(mut map: Object) -> Result<Object> {
    match map.remove(DIRECTIVE) {
        None => {}
        Some(directive) => match directive.as_str() {
            Some("replace" | "merge") => {}
            Some("delete") => return Ok(Object::new()),
            _ => return Err(unknown_directive(&directive, &map)),
        },
    }
    let mut cleaned = Object::new();
    for (key, value) in map {
        let directive = key == RETAIN_KEYS || key.starts_with(ELEMENT_ORDER) || key.starts_with(DELETE_FROM_LIST);
        if !directive && !value.is_null() {
            cleaned.insert(key, clean(value)?);
        }
    }
    Ok(cleaned)
}

/// A list's element; `None` for one that is a directive only.
fn clean_element(item: Value) -> Result<Option<Value>> {
    match item.get(DIRECTIVE).and_then(Value::as_str) {
        Some("delete" | "replace") => Ok(None),
        _ => clean(item).map(Some),
    }
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::NoMergeKey { item: go_map(item), key: key.to_owned() }
}

fn unknown_directive(directive: &Value, map: &Object) -> PatchError {
    PatchError::Other(format!("unknown patch type: {} in map: {}", go_map(directive), go_map(&Value::Object(map.clone()))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A small type: `ports` merges by `port`, `finalizers` merges, `args` is atomic, `strategy` and `containers` nest.
    #[derive(Clone, Copy, Debug)]
    struct Toy;

    impl Shape for Toy {
        fn field(self, name: &str) -> FieldShape<Toy> {
            match name {
                "containers" | "env" => FieldShape { element: Some(Toy), merge_key: "name", merge: true, replace: false },
                "ports" => FieldShape { element: Some(Toy), merge_key: "port", merge: true, replace: false },
                "finalizers" => FieldShape { merge: true, ..FieldShape::default() },
                "whole" => FieldShape { replace: true, ..FieldShape::default() },
                _ => FieldShape { element: Some(Toy), ..FieldShape::default() },
            }
        }
    }

    fn merged(original: Value, patch: Value) -> Result<Value> {
        let (Value::Object(original), Value::Object(patch)) = (original, patch) else { panic!("objects") };
        merge_map(original, patch, Some(Toy)).map(Value::Object)
    }

    #[test]
    fn merges_as_upstream() {
        let cases = [
            ("scalars", json!({"a": 1, "b": 2}), json!({"a": 3, "b": null, "c": null}), json!({"a": 3})),
            ("nested", json!({"m": {"a": 1}}), json!({"m": {"b": 2}}), json!({"m": {"a": 1, "b": 2}})),
            ("replace strategy", json!({"whole": {"a": 1}}), json!({"whole": {"b": 2}}), json!({"whole": {"b": 2}})),
            ("$patch: replace", json!({"m": {"a": 1}}), json!({"m": {"$patch": "replace", "b": 2}}), json!({"m": {"b": 2}})),
            ("$patch: delete", json!({"m": {"a": 1}}), json!({"m": {"$patch": "delete"}}), json!({"m": {}})),
            ("atomic list", json!({"args": [1, 2]}), json!({"args": [3]}), json!({"args": [3]})),
            ("scalar list", json!({"finalizers": ["a", "b"]}), json!({"finalizers": ["c", "a"]}), json!({"finalizers": ["c", "a", "b"]})),
            (
                "delete from scalar list",
                json!({"finalizers": ["a", "b"]}),
                json!({"$deleteFromPrimitiveList/finalizers": ["a"]}),
                json!({"finalizers": ["b"]}),
            ),
            (
                "list by key",
                json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a", "image": "2"}]}),
                json!({"containers": [{"name": "a", "image": "2"}, {"name": "b"}]}),
            ),
            (
                "delete by key",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b"}]}),
            ),
            (
                "replace a list",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
                json!({"containers": [{"name": "c"}]}),
            ),
            (
                "element order",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}], "containers": [{"name": "c", "x": 1}]}),
                json!({"containers": [{"name": "b"}, {"name": "c", "x": 1}, {"name": "a"}]}),
            ),
            (
                "element order alone",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
                json!({"containers": [{"name": "b"}, {"name": "a"}]}),
            ),
            (
                "retain keys",
                json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"x": 1}}}),
                json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
                json!({"strategy": {"type": "Recreate"}}),
            ),
            (
                "new values lose directives and nulls",
                json!({}),
                json!({"m": {"a": null, "b": 1, "$retainKeys": ["b"]}, "containers": [{"name": "x", "$patch": "delete"}, {"name": "y", "z": null}]}),
                json!({"m": {"b": 1}, "containers": [{"name": "y"}]}),
            ),
        ];
        for (what, original, patch, expected) in cases {
            assert_eq!(merged(original, patch), Ok(expected), "{what}");
        }
    }

    #[test]
    fn refuses_what_upstream_refuses() {
        let order = merged(json!({}), json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}));
        assert_eq!(order, Err(PatchError::ElementOrder));
        let keep = merged(json!({}), json!({"$retainKeys": ["a"], "b": 1}));
        assert_eq!(keep, Err(PatchError::RetainKeys));
        let directive = merged(json!({}), json!({"$patch": "explode"}));
        assert_eq!(directive.unwrap_err().to_string(), "unknown patch type: explode in map: map[$patch:explode]");
        let no_key = merged(json!({"containers": [{"name": "a"}]}), json!({"containers": [{"image": "x"}]}));
        assert_eq!(no_key.unwrap_err().to_string(), r#"map: map[image:x] does not contain declared merge key: name"#);
        let lists = merged(json!({"containers": [{"name": "a"}]}), json!({"containers": [5]}));
        assert_eq!(lists.unwrap_err().to_string(), "list element types are not identical: [[map[name:a]] [5]]");
    }
}
