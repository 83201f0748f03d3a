//! Who manages which field: server-side apply, and the tracking of ordinary writes in `metadata.managedFields`.
//!
//! Pure: the live object and what is asked in, the new object out. An applier owns what its configuration speaks of; another's value can
//! only be changed by force; what an applier stops speaking of goes, unless somebody else owns it.
//! Upstream: `structured-merge-diff/merge/update.go`, `apimachinery/pkg/util/managedfields` (v1.33).

mod check;
mod set;
mod walk;

use std::collections::BTreeMap;

use api::Status;
use api::field::go_quote;
use api::key::Gvk;
use api::status::{Details, Reason, StatusCause};
use serde_json::{Map, Value, json};

use crate::FieldValidation;
use crate::decode::{Words, check_patched};
use crate::normalize::zero;
use crate::types::{Kind, TYPES, lookup};
use set::{Set, Step};
use walk::{Comparison, Node};

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// `fieldManager=`, or the beginning of the user agent.
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Fields that this endpoint leaves as they are (`status` for the object itself, `spec` for `status`).
    pub ignored: &'a [&'a [&'a str]],
    /// RFC 3339, whole seconds.
    pub now: &'a str,
}

/// Whoever wrote an object before its managers were tracked.
const BEFORE: &str = "before-first-apply";
/// Managers of ordinary updates that are kept apart; older ones become one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
/// The manager that takes over what its client-side applies set, and keeps their annotation true.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

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

/// The object that results from applying `applied` (as its author wrote it: not defaulted, not normalized) to `live`, normalized.
///
/// Errors: 409 `Conflict` listing the fields others own (unless `force`), 400 for another kind or a configuration that carries
/// managedFields, 500 (as upstream) for one that does not fit its type.
pub fn apply(gvk: &Gvk, live: Option<&Value>, applied: &Value, writer: &Writer, force: bool) -> Result<Value, Status> {
    let node = Node::root(lookup(gvk));
    check_configuration(node, gvk, applied)?;
    let mut managers = live.and_then(decode).unwrap_or_default();
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
    let comparison = compare(node, &base, &merged, writer);
    let conflicts = conflicts_with(&managers, &who, &comparison.changed);
    if !force {
        let inherited = if writer.manager == KUBECTL { applied_by_client(gvk, node, &base) } else { Set::default() };
        let refused: Vec<(Identity, Set)> =
            conflicts.iter().map(|(id, set)| (id.clone(), set.difference(&inherited))).filter(|(_, set)| !set.is_empty()).collect();
        if !refused.is_empty() {
            return Err(conflict(&refused));
        }
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
    if writer.manager == KUBECTL {
        keep_annotation(&mut merged, applied);
    }
    encode(&mut merged, &managers);
    let (merged, _) = check_patched(merged, gvk, Words::Converter, Vec::new(), FieldValidation::Ignore).map_err(Status::unclassified)?;
    Ok(merged)
}

/// What is applied is of the kind, says nothing of managers, and has the types of its fields.
fn check_configuration(node: Node, gvk: &Gvk, applied: &Value) -> Result<(), Status> {
    let text = |pointer: &str| applied.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, version) = api::key::parse_api_version(api_version);
    let said = format!("{group}/{version}, Kind={kind}");
    if api_version != gvk.api_version() || kind != gvk.kind {
        return Err(Status::bad_request(format!("invalid object type: {said}")));
    }
    if applied.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    check::check(node, applied)
        .map_err(|why| Status::unclassified(format!("failed to create typed patch object ({namespace}/{name}; {said}): {why}")))
}

fn conflicts_with(managers: &Managers, who: &Identity, changed: &Set) -> Vec<(Identity, Set)> {
    let others = managers.iter().filter(|(id, _)| *id != who);
    others.map(|(id, entry)| (id.clone(), entry.fields.intersection(changed))).filter(|(_, set)| !set.is_empty()).collect()
}

fn annotation(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str().filter(|text| !text.is_empty())
}

/// The fields that kubectl's last client-side apply set and that are still as it left them: its server-side apply takes them over.
fn applied_by_client(gvk: &Gvk, node: Node, live: &Value) -> Set {
    let last: Option<Value> = annotation(live).and_then(|text| serde_json::from_str(text).ok());
    let Some(last) = last.filter(|last| last["apiVersion"] == gvk.api_version() && check::check(node, last).is_ok()) else {
        return Set::default();
    };
    let comparison = walk::compare(node, &last, live);
    walk::fields(node, &last).difference(&comparison.changed).difference(&comparison.removed)
}

/// Where there is an annotation of a client-side apply, it holds what was applied now.
fn keep_annotation(object: &mut Value, applied: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut configuration = applied.clone();
    if let Some(annotations) = configuration.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    object["metadata"]["annotations"][LAST_APPLIED] = format!("{configuration}\n").into();
}

fn compare(node: Node, old: &Value, new: &Value, writer: &Writer) -> Comparison {
    let mut comparison = walk::compare(node, old, new);
    for path in writer.ignored {
        let steps = steps(path);
        comparison.changed.remove(&steps);
        comparison.removed.remove(&steps);
    }
    comparison
}

/// Records in `new` what an ordinary write changes. `live` is `None` for a create. An object without managers stays without.
pub fn track(gvk: &Gvk, live: Option<&Value>, new: &mut Value, writer: &Writer) {
    let node = Node::root(lookup(gvk));
    let mut managers = managers_of_update(live, new, writer);
    if live.is_some() && managers.is_empty() {
        return encode(new, &managers);
    }
    let base = live.cloned().unwrap_or_else(|| empty(gvk));
    let comparison = compare(node, &base, new, writer);
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
    cap(&mut managers);
    encode(new, &managers);
}

/// Equal but for when managers wrote: such a write changes nothing.
pub fn same_but_times(a: &Value, b: &Value) -> bool {
    let rest_is_equal = |a: &Value, b: &Value, but: &str| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            a.len() == b.len() && a.iter().all(|(name, value)| name == but && b.contains_key(but) || b.get(name) == Some(value))
        }
        _ => a == b,
    };
    let (a_meta, b_meta) = (&a["metadata"], &b["metadata"]);
    let (a_list, b_list) = (items(a_meta), items(b_meta));
    rest_is_equal(a, b, "metadata")
        && rest_is_equal(a_meta, b_meta, "managedFields")
        && a_list.len() == b_list.len()
        && a_list.iter().all(|entry| b_list.iter().any(|other| rest_is_equal(entry, other, "time")))
}

fn items(meta: &Value) -> &[Value] {
    meta.get("managedFields").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whose word counts on an update: the request's own list if it has one, the live object's else; `[{}]` (which decoding
/// makes of `[]`) resets it.
fn managers_of_update(live: Option<&Value>, new: &Value, writer: &Writer) -> Managers {
    let from_live = || live.and_then(decode).unwrap_or_default();
    if !writer.subresource.is_empty() {
        return from_live();
    }
    if matches!(items(&new["metadata"]), [only] if is_blank(only)) {
        return Managers::new();
    }
    decode(new).filter(|managers| !managers.is_empty()).unwrap_or_else(from_live)
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
        fields.remove(&steps(path));
    }
    fields.members.remove(&Step::Field("metadata".to_owned()));
    fields
}

fn steps(path: &[&str]) -> Vec<Step> {
    path.iter().map(|name| Step::Field((*name).to_owned())).collect()
}

fn forget(managers: &mut Managers, removed: &Set) {
    for entry in managers.values_mut() {
        entry.fields = entry.fields.difference(removed);
    }
}

fn identity(gvk: &Gvk, writer: &Writer, operation: &str) -> Identity {
    Identity {
        operation: operation.to_owned(),
        manager: if writer.manager.is_empty() { "unknown" } else { writer.manager }.to_owned(),
        subresource: writer.subresource.to_owned(),
        version: if operation == "Apply" { String::new() } else { gvk.api_version() },
    }
}

fn insert(managers: &mut Managers, gvk: &Gvk, writer: &Writer, operation: &str, fields: Set) {
    let entry = Entry { api_version: gvk.api_version(), time: writer.now.to_owned(), fields };
    managers.insert(identity(gvk, writer, operation), entry);
}

/// The oldest updaters beyond the limit become one, per version.
fn cap(managers: &mut Managers) {
    managers.retain(|_, entry| !entry.fields.is_empty());
    let mut updaters: Vec<(String, Identity)> =
        managers.iter().filter(|(id, _)| id.operation == "Update").map(|(id, e)| (e.time.clone(), id.clone())).collect();
    updaters.sort();
    let mut surplus = updaters.len().saturating_sub(MAX_UPDATERS);
    let mut oldest: BTreeMap<String, Identity> = BTreeMap::new();
    for (_, id) in updaters {
        if surplus == 0 {
            return;
        }
        let Some(first) = oldest.get(&id.version) else {
            oldest.insert(id.version.clone(), id);
            continue;
        };
        let bucket = Identity { manager: ANCIENT.to_owned(), subresource: String::new(), ..id.clone() };
        if id == bucket {
            continue;
        }
        if !managers.contains_key(&bucket)
            && let Some(entry) = managers.remove(first)
        {
            managers.insert(bucket.clone(), entry);
        }
        if let (Some(old), Some(entry)) = (managers.remove(&id), managers.get_mut(&bucket)) {
            entry.fields = std::mem::take(&mut entry.fields).union(&old.fields);
            entry.time = old.time;
            surplus -= 1;
        }
    }
}

/// `None` if an entry is none that this server could have written.
fn decode(object: &Value) -> Option<Managers> {
    items(&object["metadata"]).iter().map(decode_entry).collect()
}

fn decode_entry(entry: &Value) -> Option<(Identity, Entry)> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (operation, api_version) = (text("operation"), text("apiVersion"));
    if !matches!(operation.as_str(), "Apply" | "Update") || api_version.is_empty() || text("fieldsType") != "FieldsV1" {
        return None;
    }
    let version = if operation == "Apply" { String::new() } else { api_version.clone() };
    let id = Identity { operation, manager: text("manager"), subresource: text("subresource"), version };
    Some((id, Entry { api_version, time: text("time"), fields: entry.get("fieldsV1").map(Set::parse).unwrap_or_default() }))
}

/// Appliers first, then updaters by time.
fn encode(object: &mut Value, managers: &Managers) {
    let mut list: Vec<(&Identity, &Entry)> = managers.iter().filter(|(_, entry)| !entry.fields.is_empty()).collect();
    list.sort_by(|(a, x), (b, y)| {
        (&a.operation, &x.time, &a.manager, &x.api_version, &a.subresource).cmp(&(
            &b.operation,
            &y.time,
            &b.manager,
            &y.api_version,
            &b.subresource,
        ))
    });
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
            paths.iter().map(move |path| StatusCause {
                reason: "FieldManagerConflict".to_owned(),
                message: format!("conflict with {who}"),
                field: path.clone(),
            })
        })
        .collect();
    let message = match named.as_slice() {
        [(who, paths)] if paths.len() == 1 => format!("Apply failed with 1 conflict: conflict with {who}: {}", paths[0]),
        _ => {
            let lines = named.iter().flat_map(|(who, paths)| {
                std::iter::once(format!("conflicts with {who}:")).chain(paths.iter().map(|path| format!("- {path}")))
            });
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
