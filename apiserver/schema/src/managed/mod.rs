//! Who manages which field: server-side apply, and the tracking of ordinary writes in `metadata.managedFields`.
//!
//! Pure: the live object and what is asked in, the new object out. An applier owns what its configuration speaks of; another's value can
//! only be changed by force; what an applier stops speaking of goes, unless somebody else owns it.
//! Upstream: `structured-merge-diff/merge/update.go`, `apimachinery/pkg/util/managedfields` (v1.33).

mod set;
mod walk;

use std::collections::BTreeMap;

use api::Status;
use api::field::go_quote;
use api::key::Gvk;
use api::status::{Details, Reason, StatusCause};
use serde_json::{Map, Value, json};

use crate::normalize::zero;
use crate::types::{Kind, TYPES, lookup};
use set::{Set, Step};
use walk::Node;

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// `fieldManager=`, or the beginning of the user agent.
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Fields that this endpoint does not write (`status` for the object itself, all but it for `status`).
    pub ignored: &'a [&'a [&'a str]],
    /// RFC 3339, whole seconds.
    pub now: &'a str,
}

/// Whoever wrote an object before its managers were tracked.
const BEFORE: &str = "before-first-apply";
/// Managers of ordinary updates that are kept apart; older ones become one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Metadata that nobody owns.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Two entries with the same identity are one. Appliers are the same in whichever version they apply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    /// `Apply` sorts before `Update`, as upstream writes them.
    operation: String,
    manager: String,
    subresource: String,
    version: String,
}

#[derive(Clone, Debug)]
struct Entry {
    api_version: String,
    time: String,
    fields: Set,
}

type Managers = BTreeMap<Identity, Entry>;

/// The object that results from applying `applied` (as its author wrote it: not defaulted, not normalized) to `live`.
///
/// Errors: 409 `Conflict` listing the fields others own (unless `force`), 400 for a configuration that carries managedFields.
pub fn apply(gvk: &Gvk, live: Option<&Value>, applied: &Value, writer: &Writer, force: bool) -> Result<Value, Status> {
    if applied.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let node = Node::root(lookup(gvk));
    let mut managers = live.map(decode).unwrap_or_default();
    let base = live.cloned().unwrap_or_else(|| json!({}));
    if live.is_some() && managers.is_empty() {
        let who = Writer { manager: BEFORE, ..*writer };
        let fields = owned(walk::compare(node, &empty(gvk), &base).changed, &who);
        insert(&mut managers, gvk, &who, "Update", fields);
    }
    let who = identity(gvk, writer, "Apply");
    let fields = owned(walk::fields(node, applied), writer);
    let last = managers.get(&who).map(|entry| entry.fields.clone()).unwrap_or_default();
    let mut merged = walk::merge(node, Some(&base), applied);
    let others = managers.iter().filter(|(id, _)| **id != who).fold(Set::default(), |all, (_, entry)| all.union(&entry.fields));
    walk::prune(node, &mut merged, &last, &others.union(&fields));
    let comparison = walk::compare(node, &base, &merged);
    let conflicts: Vec<(Identity, Set)> = managers
        .iter()
        .filter(|(id, _)| **id != who)
        .map(|(id, entry)| (id.clone(), entry.fields.intersection(&comparison.changed)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(conflict(&conflicts));
    }
    for (id, set) in &conflicts {
        managers.entry(id.clone()).and_modify(|entry| entry.fields = entry.fields.difference(set));
    }
    forget(&mut managers, &comparison.removed);
    let same = last == fields && live.is_some_and(|live| without_managers(live) == without_managers(&merged));
    match managers.get_mut(&who) {
        Some(entry) if same => entry.api_version = gvk.api_version(),
        _ => insert(&mut managers, gvk, writer, "Apply", fields),
    }
    managers.retain(|_, entry| !entry.fields.is_empty());
    encode(&mut merged, &managers);
    Ok(merged)
}

/// Records in `new` what an ordinary write changes. `live` is `None` for a create.
pub fn track(gvk: &Gvk, live: Option<&Value>, new: &mut Value, writer: &Writer) {
    let node = Node::root(lookup(gvk));
    let mut managers = managers_of_update(live, new, writer);
    let base = live.cloned().unwrap_or_else(|| empty(gvk));
    let comparison = walk::compare(node, &base, new);
    let changed = owned(comparison.changed, writer);
    let who = identity(gvk, writer, "Update");
    for (id, entry) in &mut managers {
        if *id != who {
            entry.fields = entry.fields.difference(&changed);
        }
    }
    forget(&mut managers, &comparison.removed);
    if !changed.is_empty() {
        let mine = managers.get(&who).map(|entry| entry.fields.clone()).unwrap_or_default();
        insert(&mut managers, gvk, writer, "Update", mine.union(&changed));
    }
    managers.retain(|_, entry| !entry.fields.is_empty());
    cap(&mut managers);
    encode(new, &managers);
}

/// Whose word counts on an update: the request's own list if it has one, the live object's else; `[{}]` resets it.
fn managers_of_update(live: Option<&Value>, new: &Value, writer: &Writer) -> Managers {
    let from_live = || live.map(decode).unwrap_or_default();
    if !writer.subresource.is_empty() {
        return from_live();
    }
    let reset = |list: &Value| matches!(list.as_array().map(Vec::as_slice), Some([only]) if is_blank(only));
    if new.pointer("/metadata/managedFields").is_some_and(reset) {
        return Managers::new();
    }
    let managers = decode(new);
    if managers.is_empty() { from_live() } else { managers }
}

fn is_blank(entry: &Value) -> bool {
    entry.as_object().is_some_and(|entry| entry.values().all(|v| v.is_null() || v.as_str() == Some("")))
}

/// What an object of the kind is before anything was set.
fn empty(gvk: &Gvk) -> Value {
    let index = lookup(gvk).and_then(|t| TYPES.iter().position(|known| std::ptr::eq(known, t)));
    index.map_or_else(|| json!({"metadata": {}}), |i| zero(Kind::Struct(i as u16)))
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    object
}

fn owned(mut fields: Set, writer: &Writer) -> Set {
    for path in UNOWNED.iter().chain(writer.ignored) {
        let steps: Vec<Step> = path.iter().map(|name| Step::Field((*name).to_owned())).collect();
        fields.remove(&steps);
    }
    fields.members.remove(&Step::Field("metadata".to_owned()));
    fields
}

fn forget(managers: &mut Managers, removed: &Set) {
    for entry in managers.values_mut() {
        entry.fields = entry.fields.difference(removed);
    }
}

fn identity(gvk: &Gvk, writer: &Writer, operation: &str) -> Identity {
    Identity {
        operation: operation.to_owned(),
        manager: writer.manager.to_owned(),
        subresource: writer.subresource.to_owned(),
        version: if operation == "Apply" { String::new() } else { gvk.api_version() },
    }
}

/// A manager whose fields stay the same keeps its time, or every no-op would be a change.
fn insert(managers: &mut Managers, gvk: &Gvk, writer: &Writer, operation: &str, fields: Set) {
    let id = identity(gvk, writer, operation);
    let kept = managers.get(&id).filter(|entry| operation == "Update" && entry.fields == fields).map(|entry| entry.time.clone());
    let time = kept.unwrap_or_else(|| writer.now.to_owned());
    managers.insert(id, Entry { api_version: gvk.api_version(), time, fields });
}

/// The oldest updaters beyond the limit become one, per version.
fn cap(managers: &mut Managers) {
    let mut updaters: Vec<(String, Identity)> =
        managers.iter().filter(|(id, _)| id.operation == "Update" && id.subresource.is_empty()).map(|(id, e)| (e.time.clone(), id.clone())).collect();
    if updaters.len() <= MAX_UPDATERS {
        return;
    }
    updaters.sort();
    let surplus = updaters.len() - MAX_UPDATERS + 1;
    for (_, id) in updaters.into_iter().take(surplus) {
        let Some(old) = managers.remove(&id) else { continue };
        let into = Identity { manager: ANCIENT.to_owned(), ..id };
        let entry = managers.entry(into).or_insert_with(|| Entry { fields: Set::default(), ..old.clone() });
        entry.fields = std::mem::take(&mut entry.fields).union(&old.fields);
        entry.time = entry.time.clone().max(old.time);
    }
}

fn decode(object: &Value) -> Managers {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(decode_entry).collect()
}

fn decode_entry(entry: &Value) -> Option<(Identity, Entry)> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (operation, api_version) = (text("operation"), text("apiVersion"));
    if !matches!(operation.as_str(), "Apply" | "Update") || api_version.is_empty() {
        return None;
    }
    let version = if operation == "Apply" { String::new() } else { api_version.clone() };
    let id = Identity { operation, manager: text("manager"), subresource: text("subresource"), version };
    Some((id, Entry { api_version, time: text("time"), fields: Set::parse(entry.get("fieldsV1")?) }))
}

/// Appliers first, then updaters by time.
fn encode(object: &mut Value, managers: &Managers) {
    let mut list: Vec<(&Identity, &Entry)> = managers.iter().collect();
    list.sort_by(|(a, x), (b, y)| (&a.operation, &x.time, &a.manager, &x.api_version, &a.subresource).cmp(&(&b.operation, &y.time, &b.manager, &y.api_version, &b.subresource)));
    let list: Vec<Value> = list.into_iter().map(|(id, entry)| encode_entry(id, entry)).collect();
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if list.is_empty() {
        meta.remove("managedFields");
    } else {
        meta.insert("managedFields".to_owned(), Value::Array(list));
    }
}

fn encode_entry(id: &Identity, entry: &Entry) -> Value {
    let mut map = Map::new();
    let mut put = |name: &str, value: &str| {
        if !value.is_empty() {
            map.insert(name.to_owned(), value.into());
        }
    };
    put("manager", &id.manager);
    put("operation", &id.operation);
    put("apiVersion", &entry.api_version);
    put("time", &entry.time);
    put("subresource", &id.subresource);
    put("fieldsType", "FieldsV1");
    map.insert("fieldsV1".to_owned(), entry.fields.to_fields());
    Value::Object(map)
}

/// 409 in upstream's words, a cause per field.
fn conflict(conflicts: &[(Identity, Set)]) -> Status {
    let named: Vec<(String, Vec<String>)> = conflicts.iter().map(|(id, set)| (name(id), set.paths())).collect();
    let causes: Vec<StatusCause> = named
        .iter()
        .flat_map(|(who, paths)| {
            paths.iter().map(move |path| StatusCause { reason: "FieldManagerConflict".to_owned(), message: format!("conflict with {who}"), field: path.clone() })
        })
        .collect();
    let message = match named.as_slice() {
        [(who, paths)] if paths.len() == 1 => format!("Apply failed with 1 conflict: conflict with {who}: {}", paths[0]),
        _ => {
            let lines = named.iter().flat_map(|(who, paths)| std::iter::once(format!("conflicts with {who}:")).chain(paths.iter().map(|path| format!("- {path}"))));
            format!("Apply failed with {} conflicts: {}", causes.len(), lines.collect::<Vec<_>>().join("\n"))
        }
    };
    Status::new(409, Reason::Conflict, message).with_details(Details { causes, ..Details::default() })
}

fn name(id: &Identity) -> String {
    let mut text = go_quote(&id.manager);
    if !id.subresource.is_empty() {
        text.push_str(&format!(" with subresource {}", go_quote(&id.subresource)));
    }
    if id.operation == "Update" {
        text.push_str(&format!(" using {}", id.version));
    }
    text
}

#[cfg(test)]
mod tests;
