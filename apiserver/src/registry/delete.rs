//! DELETE: at once, gracefully, or once every finalizer has let go.
//!
//! ```text
//! finalizers (its own, or orphan / foregroundDeletion by policy) ─▶ deletionTimestamp set, the object waits
//! a pod on a node ─▶ deletionTimestamp = now + grace; its kubelet deletes it again with grace 0
//! otherwise ─▶ removed
//! ```
//! Upstream counterparts: `registry/rest/delete.go`, `Delete` and `deletionFinalizersForGarbageCollection` in `registry/store.go` (v1.33).

use std::sync::Arc;

use api::field::{Error as FieldError, ErrorList, Path};
use api::{GroupKind, GroupResource, Status};
use auth::admission::{self, Operation};
use jiff::{SignedDuration, Timestamp};
use kinds::{Kind, Propagation};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cache::Selection;
use super::record::Record;
use super::tree::{self, items, number, rfc3339};
use super::webhooks::Write;
use super::{Caller, Registry, Target, WriteOptions, unavailable};
use crate::storage::{Expect, StoreError};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const MAX_SWAPS: usize = 16;

/// `meta/v1 DeleteOptions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Option<Preconditions>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// `All` is the one dry run there is.
pub fn validate_dry_run<'a>(asked: impl Iterator<Item = &'a str>) -> ErrorList {
    let asked: Vec<&str> = asked.collect();
    if asked.iter().all(|a| *a == "All") {
        return Vec::new();
    }
    vec![FieldError::not_supported(&Path::new("dryRun"), json!(asked), &["All"])]
}

/// What became of the object.
pub enum Deleted {
    Gone(Arc<Record>),
    /// Marked: finalizers or a kubelet remove it later.
    Waiting(Arc<Record>),
}

enum Plan {
    Remove,
    Mark(Box<Value>),
    /// Already on its way, no sooner than asked.
    Leave,
}

impl DeleteOptions {
    /// Upstream's `ValidateDeleteOptions`.
    pub fn check(&self) -> Result<(), Status> {
        let (mut errors, path) = (Vec::new(), Path::new("propagationPolicy"));
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                errors.push(FieldError::invalid(&path, policy.as_str(), "orphanDependents and deletionPropagation cannot be both set"));
            }
            if !["Foreground", "Background", "Orphan"].contains(&policy.as_str()) {
                errors.push(FieldError::not_supported(&path, policy.as_str(), &["Foreground", "Background", "Orphan", "nil"]));
            }
        }
        errors.extend(validate_dry_run(self.dry_run.iter().flatten().map(String::as_str)));
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid(&GroupKind::new("meta.k8s.io", "DeleteOptions"), "", errors)),
        }
    }

    pub fn is_dry_run(&self) -> bool {
        self.dry_run.as_ref().is_some_and(|d| !d.is_empty())
    }

    fn check_preconditions(&self, target: &Target, record: &Record) -> Result<(), Status> {
        let Some(wanted) = &self.preconditions else { return Ok(()) };
        // Upstream has no resource at hand here, and names the kind in its place.
        let kind = GroupResource::new(target.storage().group, target.kind.kind);
        let fail = |what: &str, asked: &str, has: &str, history: &str| {
            let why = format!(
                "the {what} in the precondition ({asked}) does not match the {what} in record ({has}). The object might have been {history}"
            );
            Err(Status::conflict(&kind, &target.key.name, why))
        };
        if let Some(uid) = wanted.uid.as_deref().filter(|uid| **uid != *record.uid) {
            return fail("UID", uid, &record.uid, "deleted and then recreated");
        }
        let has = record.revision.to_string();
        if let Some(version) = wanted.resource_version.as_deref().filter(|v| *v != has) {
            return fail("ResourceVersion", version, &has, "modified");
        }
        Ok(())
    }
}

impl Registry {
    pub async fn delete(&self, caller: &Caller, target: &Target, options: &DeleteOptions) -> Result<Deleted, Status> {
        options.check()?;
        for _ in 0..MAX_SWAPS {
            let record = self.find(target)?;
            options.check_preconditions(target, &record)?;
            let old = record.value();
            self.admit_delete(caller, target, &old, options).await?;
            match self.try_delete(caller, target, &record, old, options).await {
                Ok(deleted) => return Ok(deleted),
                Err(StoreError::Conflict { .. }) => self.catch_up().await?,
                Err(error) => return Err(unavailable(error)),
            }
        }
        Err(Status::modified(&target.resource(), &target.key.name))
    }

    async fn try_delete(
        &self,
        caller: &Caller,
        target: &Target,
        record: &Arc<Record>,
        mut old: Value,
        options: &DeleteOptions,
    ) -> Result<Deleted, StoreError> {
        let kind = target.storage();
        tree::take_resource_version(&mut old);
        match plan(kind, old, options, caller.now) {
            Plan::Leave => Ok(Deleted::Waiting(record.clone())),
            Plan::Mark(new) if options.is_dry_run() => {
                let marked =
                    self.imagined(kind, &record.key, &new, record.revision).map_err(|e| StoreError::unavailable("imagining", e))?;
                Ok(Deleted::Waiting(marked))
            }
            Plan::Remove if options.is_dry_run() => Ok(Deleted::Gone(record.clone())),
            Plan::Mark(new) => {
                let marked = self.commit(kind, &record.key, &new, Expect::At(record.revision)).await?;
                self.note(caller, target, "delete", &marked);
                Ok(Deleted::Waiting(marked))
            }
            Plan::Remove => {
                let gone = self.remove(record).await?;
                self.note(caller, target, "delete", &gone);
                Ok(Deleted::Gone(gone))
            }
        }
    }

    async fn admit_delete(&self, caller: &Caller, target: &Target, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
        let kind = target.storage();
        let (resource, body) = (kind.group_resource(), kind.group_kind());
        let write = WriteOptions { dry_run: options.is_dry_run(), manager: None };
        let request = self.request(caller, Operation::Delete, &body, &resource, target, &target.key.name, Some(old), &write);
        let mut nothing = Value::Null;
        let write = Write { caller, target, request: &request };
        self.mutate(&write, &mut nothing).await.map_err(|r| r.status())?;
        self.validate_by_webhooks(&write, &nothing).await.map_err(|r| r.status())?;
        admission::validate(&request, &nothing).map_err(|r| r.status())?;
        Ok(())
    }

    /// Delete all that the selection holds; returns them as they were.
    pub async fn delete_collection(
        &self,
        caller: &Caller,
        target: &Target,
        selection: &Selection,
        options: &DeleteOptions,
    ) -> Result<Vec<Arc<Record>>, Status> {
        options.check()?;
        let listed = self.records(target.kind)?.list(selection, None, None, 0, self.cache.applied());
        let records = listed.map(|l| l.records).unwrap_or_default();
        for record in &records {
            let one = Target { key: record.key.clone(), ..target.clone() };
            match self.delete(caller, &one, options).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        Ok(records)
    }
}

/// Pure: what a delete does to the object.
fn plan(kind: &Kind, mut object: Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    let before = object.clone();
    let finalizers = finalizers_after(kind, &object, options);
    set_finalizers(&mut object, finalizers);
    let dying = tree::is_being_deleted(&object);
    let held = !items(&object, "/metadata/finalizers").is_empty() || holds_itself(kind, &object);
    match grace_period(kind, &object, options) {
        Some(grace) if grace > 0 => {
            if dying && options.grace_period_seconds.is_none_or(|asked| asked >= current_grace(&object)) {
                return if object == before { Plan::Leave } else { Plan::Mark(Box::new(object)) };
            }
            mark(&mut object, grace, now);
            return Plan::Mark(Box::new(object));
        }
        _ => {}
    }
    if !held {
        return Plan::Remove;
    }
    if !dying || current_grace(&object) != 0 {
        mark(&mut object, 0, now);
    }
    if kind.plural == "namespaces" && kind.group.is_empty() {
        object["status"]["phase"] = json!("Terminating");
    }
    if object == before { Plan::Leave } else { Plan::Mark(Box::new(object)) }
}

fn holds_itself(kind: &Kind, object: &Value) -> bool {
    kind.plural == "namespaces" && kind.group.is_empty() && !items(object, "/spec/finalizers").is_empty()
}

fn current_grace(object: &Value) -> i64 {
    number(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0)
}

/// Seconds the object lives on; `None` or 0: none. The strategy knows the object's own wish.
fn grace_period(kind: &Kind, object: &Value, options: &DeleteOptions) -> Option<i64> {
    let default = kind.strategy.default_grace_period(object)?;
    if default == 0 {
        return Some(0);
    }
    let asked = options.grace_period_seconds.unwrap_or(default);
    let asked = if asked < 0 { 1 } else { asked };
    // A second delete can only shorten.
    match tree::is_being_deleted(object) {
        true => Some(asked.min(current_grace(object))),
        false => Some(asked),
    }
}

fn mark(object: &mut Value, grace: i64, now: Timestamp) {
    let dying = tree::is_being_deleted(object);
    let started = object.pointer("/metadata/deletionTimestamp").and_then(Value::as_str).and_then(|t| t.parse::<Timestamp>().ok());
    let started = started.map_or(now, |end| end - SignedDuration::from_secs(current_grace(object)));
    let end = if grace == 0 { now.min(started.max(now)) } else { started + SignedDuration::from_secs(grace) };
    let meta = tree::meta(object);
    meta.insert("deletionTimestamp".into(), rfc3339(end).into());
    meta.insert("deletionGracePeriodSeconds".into(), grace.into());
    let generation = meta.get("generation").and_then(Value::as_i64).unwrap_or(0);
    if generation > 0 && !dying {
        meta.insert("generation".into(), (generation + 1).into());
    }
}

/// The finalizers with `orphan` and `foregroundDeletion` as the policy wants them.
fn finalizers_after(kind: &Kind, object: &Value, options: &DeleteOptions) -> Vec<String> {
    let has: Vec<&str> = items(object, "/metadata/finalizers").iter().filter_map(Value::as_str).collect();
    let policy = options.propagation_policy.as_deref();
    let (orphan, foreground) = match (options.orphan_dependents, policy) {
        (Some(orphan), _) => (orphan, false),
        (None, Some("Orphan")) => (true, false),
        (None, Some("Foreground")) => (false, true),
        (None, Some(_)) => (false, false),
        (None, None) => {
            let by_default = kind.default_propagation == Propagation::Orphan && !has.contains(&FOREGROUND);
            (has.contains(&ORPHAN) || by_default, has.contains(&FOREGROUND))
        }
    };
    let own = has.iter().filter(|f| **f != ORPHAN && **f != FOREGROUND).map(|f| (*f).to_owned());
    own.chain(orphan.then(|| ORPHAN.to_owned())).chain(foreground.then(|| FOREGROUND.to_owned())).collect()
}

fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    let has: Vec<&str> = items(object, "/metadata/finalizers").iter().filter_map(Value::as_str).collect();
    if has == finalizers {
        return;
    }
    let meta = tree::meta(object);
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), json!(finalizers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(meta: Value, node: &str) -> Value {
        let mut pod = json!({"metadata": {"name": "web", "uid": "u", "generation": 1}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        for (name, value) in meta.as_object().into_iter().flatten() {
            pod["metadata"][name] = value.clone();
        }
        pod
    }

    /// `gone`, `left`, or `deletionTimestamp/grace/finalizers`.
    fn outcome(resource: (&str, &str), object: Value, options: DeleteOptions) -> String {
        let kind = kinds::by_resource(resource.0, resource.1).unwrap();
        match plan(kind, object, &options, "2025-01-01T00:00:00Z".parse().unwrap()) {
            Plan::Remove => "gone".into(),
            Plan::Leave => "left".into(),
            Plan::Mark(new) => {
                let meta = &new["metadata"];
                let at = meta["deletionTimestamp"].as_str().unwrap_or("-").trim_start_matches("2025-01-01T").to_owned();
                let finalizers: Vec<&str> = items(&new, "/metadata/finalizers").iter().filter_map(Value::as_str).collect();
                format!("{at}/{}/{}", meta["deletionGracePeriodSeconds"], finalizers.join(","))
            }
        }
    }

    #[test]
    fn plans_as_upstream() {
        let options = DeleteOptions::default;
        let grace = |seconds| DeleteOptions { grace_period_seconds: Some(seconds), ..options() };
        let policy = |name: &str| DeleteOptions { propagation_policy: Some(name.into()), ..options() };
        let pods = ("", "pods");
        let dying = json!({"deletionTimestamp": "2025-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30});
        let cases = [
            (pods, pod(json!({}), "n1"), options(), "00:00:30Z/30/"),
            (pods, pod(json!({}), ""), options(), "gone"),
            (pods, pod(json!({}), "n1"), grace(0), "gone"),
            (pods, pod(json!({}), "n1"), grace(5), "00:00:05Z/5/"),
            (pods, pod(json!({}), "n1"), grace(-1), "00:00:01Z/1/"),
            (pods, pod(dying.clone(), "n1"), options(), "left"),
            (pods, pod(dying.clone(), "n1"), grace(60), "left"),
            (pods, pod(dying.clone(), "n1"), grace(10), "00:00:10Z/10/"),
            (pods, pod(dying, "n1"), grace(0), "gone"),
            (pods, pod(json!({"finalizers": ["a/b"]}), ""), options(), "00:00:00Z/0/a/b"),
            (("", "configmaps"), json!({"metadata": {}}), options(), "gone"),
            (("", "configmaps"), json!({"metadata": {"finalizers": ["a/b"]}}), options(), "00:00:00Z/0/a/b"),
            (("apps", "deployments"), json!({"metadata": {}}), policy("Foreground"), "00:00:00Z/0/foregroundDeletion"),
            (("apps", "deployments"), json!({"metadata": {}}), policy("Orphan"), "00:00:00Z/0/orphan"),
            (("batch", "jobs"), json!({"metadata": {}}), options(), "00:00:00Z/0/orphan"),
            (("batch", "jobs"), json!({"metadata": {}}), policy("Background"), "gone"),
            (("", "namespaces"), json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}}), options(), "00:00:00Z/0/"),
            (("", "namespaces"), json!({"metadata": {}, "spec": {}}), options(), "gone"),
        ];
        for (resource, object, options, expected) in cases {
            let described = format!("{} {object} {options:?}", resource.1);
            assert_eq!(outcome(resource, object, options), expected, "{described}");
        }
    }
}
