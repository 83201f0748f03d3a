//! Create and update: the one pipeline every write of every kind passes.
//!
//! Bodies come in decoded, in the request's version. Order: default → convert to the storage version → system metadata → managers →
//! mutating admission → prepare (an update: before admission) → normalise → addresses → validate → validating admission → compare-and-swap.
//! Upstream counterparts: `registry/rest/{create,update}.go`, `registry/generic/registry/store.go` (v1.33).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use api::field::{Error as FieldError, Path};
use api::{GroupKind, Status};
use auth::admission::{self, Operation, Outcome, Refusal};
use auth::authz::escalation;
use kinds::Kind;
use serde_json::Value;

use super::addresses::Lease;
use super::record::Record;
use super::reviews::user_info;
use super::tree::{self, text};
use super::webhooks::Write;
use super::{Caller, Registry, Target, WriteOptions, layout, managers, unavailable};
use crate::storage::{Expect, StoreError};

/// Lost swaps before the client is told to try again itself.
const MAX_SWAPS: usize = 16;
const GENERATED_NAMES: usize = 8;
/// How long admission may wait for what a controller is about to make.
const ADMISSION_TRIES: usize = 12;
const ADMISSION_PAUSE: Duration = Duration::from_millis(100);

/// Which part of the object an update may touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Everything the strategy leaves to clients.
    Main,
    Status,
    /// The system's own change, already in shape: bindings, conditions, finalizers.
    Raw,
}

/// Makes the new object, in storage form, from the stored one (which carries its resourceVersion).
pub type Change<'a> = dyn Fn(&Value) -> Result<Value, Status> + Send + Sync + 'a;

impl Registry {
    /// Store a new object. `body` is decoded, in the target's version.
    pub async fn create(&self, caller: &Caller, target: &Target, body: Value, options: &WriteOptions) -> Result<Arc<Record>, Status> {
        let mut object = to_storage(target, body);
        check_namespace(target, &mut object)?;
        if !tree::take_resource_version(&mut object).is_empty() && !options.dry_run {
            return Err(Status::unclassified("resourceVersion should not be set on objects to be created"));
        }
        dedup_owners(caller, &mut object);
        tree::stamp_new(&mut object, caller.now);
        if let Some(manager) = &options.manager {
            managers::track(target, None, &mut object, manager, caller.now);
        }
        let prefix = text(&object, "/metadata/generateName").to_owned();
        let generated = text(&object, "/metadata/name").is_empty() && !prefix.is_empty();
        let mut tries = if generated { GENERATED_NAMES } else { 1 };
        loop {
            let mut attempt = object.clone();
            if generated {
                tree::meta(&mut attempt).insert("name".into(), tree::generate_name(&prefix).into());
            }
            tries -= 1;
            match self.create_named(caller, target, attempt, options).await {
                Err(status) if status.is_already_exists() && tries > 0 => {}
                Err(status) if status.is_already_exists() && !prefix.is_empty() => {
                    let name = status.details.map(|d| d.name).unwrap_or_default();
                    return Err(Status::generate_name_conflict(&target.resource(), &name));
                }
                outcome => return outcome,
            }
        }
    }

    async fn create_named(
        &self,
        caller: &Caller,
        target: &Target,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Record>, Status> {
        let kind = target.storage();
        kind.strategy.stamp_requester(&mut object, &user_info(&caller.user));
        let validate = |object: &Value| target.kind.strategy.validate_whole(kind, object);
        let (lease, outcome) = self.admit(caller, target, Operation::Create, object, None, options, validate).await?;
        for warning in kind.strategy.warnings(&lease.object).into_iter().chain(outcome.warnings.clone()) {
            caller.warn(warning);
        }
        let key = tree::key_of(&lease.object);
        if let Some(record) = self.records(kind)?.get(&key) {
            return Err(exists(target, &record));
        }
        if options.dry_run {
            return self.imagined(kind, &key, &lease.object, 0);
        }
        self.charge(caller, target, Operation::Create, &lease.object, None, &outcome).await?;
        let record = match self.commit(kind, &key, &lease.object, Expect::Absent).await {
            Ok(record) => record,
            Err(StoreError::Conflict { .. }) => return Err(Status::already_exists(&target.resource(), &key.name)),
            Err(error) => return Err(unavailable(error)),
        };
        drop(lease.hold);
        self.note(caller, target, "create", &record);
        Ok(record)
    }

    /// Swap the object for what `change` makes of it, again if another write came first.
    pub async fn update(
        &self,
        caller: &Caller,
        target: &Target,
        part: Part,
        options: &WriteOptions,
        change: &Change<'_>,
    ) -> Result<Arc<Record>, Status> {
        for _ in 0..MAX_SWAPS {
            let stored = self.find(target)?;
            match self.try_update(caller, target, part, options, &stored, change).await? {
                Some(record) => return Ok(record),
                None => self.catch_up().await?,
            }
        }
        Err(Status::modified(&target.resource(), &target.key.name))
    }

    /// `None`: the swap was lost.
    async fn try_update(
        &self,
        caller: &Caller,
        target: &Target,
        part: Part,
        options: &WriteOptions,
        stored: &Arc<Record>,
        change: &Change<'_>,
    ) -> Result<Option<Arc<Record>>, Status> {
        let kind = target.storage();
        let mut old = stored.value();
        let mut new = change(&old)?;
        tree::take_resource_version(&mut old);
        self.check_preconditions(caller, target, part, &mut new, &old, stored.revision)?;
        dedup_owners(caller, &mut new);
        if let Some(manager) = &options.manager {
            managers::track(target, Some(&old), &mut new, manager, caller.now);
        }
        tree::stamp_update(&mut new, &old);
        match part {
            Part::Main => kind.strategy.prepare_for_update(kind, &mut new, &old),
            Part::Status => kind.strategy.prepare_for_status_update(kind, &mut new, &old),
            Part::Raw => {}
        }
        let (lease, outcome) = self
            .admit(caller, target, Operation::Update, new, Some(&old), options, |new| {
                let mut errors = kinds::validate_replacement(new, &old);
                errors.extend(match part {
                    Part::Main => target.kind.strategy.validate_update(kind, new, &old),
                    Part::Status => kind.strategy.validate_status_update(kind, new, &old),
                    Part::Raw if target.subresource == "approval" => kind.strategy.validate_status_update(kind, new, &old),
                    Part::Raw => Vec::new(),
                });
                errors
            })
            .await?;
        if part == Part::Main {
            kind.strategy.warnings(&lease.object).into_iter().for_each(|w| caller.warn(w));
        }
        outcome.warnings.iter().for_each(|w| caller.warn(w.clone()));
        if schema::managed::same_but_times(&lease.object, &old) {
            return Ok(Some(stored.clone()));
        }
        if options.dry_run {
            return self.imagined(kind, &stored.key, &lease.object, stored.revision).map(Some);
        }
        self.charge(caller, target, Operation::Update, &lease.object, Some(&old), &outcome).await?;
        self.swap(caller, target, stored, &lease.object).await
    }

    async fn swap(&self, caller: &Caller, target: &Target, stored: &Arc<Record>, new: &Value) -> Result<Option<Arc<Record>>, Status> {
        let verb = match target.subresource.as_str() {
            "binding" => "create",
            _ if caller.patches => "patch",
            _ => "update",
        };
        let gone = is_finished(target.storage(), new);
        let written = if gone {
            // The answer shows what let go of the object, watchers what it was.
            match self.remove(stored).await {
                Ok(removed) => {
                    self.imagined(target.storage(), &stored.key, new, removed.revision).map_err(|e| StoreError::unavailable("indexing", e))
                }
                Err(error) => Err(error),
            }
        } else {
            self.commit(target.storage(), &stored.key, new, Expect::At(stored.revision)).await
        };
        match written {
            Ok(record) => {
                self.note(caller, target, if gone { "delete" } else { verb }, &record);
                Ok(Some(record))
            }
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// The revision and uid the client names are those of the stored object. (Of a patch's result, validation compares the uid.)
    fn check_preconditions(
        &self,
        caller: &Caller,
        target: &Target,
        part: Part,
        new: &mut Value,
        old: &Value,
        revision: u64,
    ) -> Result<(), Status> {
        let (name, kind) = (&target.key.name, target.storage());
        let (uid, has) = (text(new, "/metadata/uid"), text(old, "/metadata/uid"));
        if !uid.is_empty() && uid != has && !caller.patches {
            let key = layout::store_key(kind, &target.key);
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {has}");
            let why = format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {why}");
            return Err(Status::conflict(&target.resource(), name, why));
        }
        match tree::take_resource_version(new).as_str() {
            "" | "0" if kind.allow_unconditional_update || part == Part::Raw => Ok(()),
            "" | "0" => {
                // Upstream has no kind at hand here, and names the resource in its place.
                let resource = GroupKind::new(kind.group, kind.plural);
                let error = FieldError::invalid(&Path::new("metadata").child("resourceVersion"), 0, "must be specified for an update");
                Err(Status::invalid(&resource, name, vec![error]))
            }
            version if version == revision.to_string() => Ok(()),
            version if version.parse::<u64>().is_err() => {
                Err(Status::unclassified(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")))
            }
            _ => Err(Status::modified(&target.resource(), name)),
        }
    }

    /// Mutating admission, validation, validating admission. Waits a little where what is missing is on its way.
    #[allow(clippy::too_many_arguments)]
    async fn admit(
        &self,
        caller: &Caller,
        target: &Target,
        operation: Operation,
        object: Value,
        old: Option<&Value>,
        options: &WriteOptions,
        validate: impl Fn(&Value) -> Vec<FieldError> + Sync,
    ) -> Result<(Lease, Outcome), Status> {
        let mut tries = 0;
        loop {
            match self.admit_once(caller, target, operation, object.clone(), old, options, &validate).await {
                Ok(admitted) => return Ok(admitted),
                Err(Refusal::Transient(_)) if tries < ADMISSION_TRIES => {
                    tries += 1;
                    tokio::time::sleep(ADMISSION_PAUSE).await;
                }
                Err(refusal) => return Err(refusal.status()),
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn admit_once(
        &self,
        caller: &Caller,
        target: &Target,
        operation: Operation,
        mut object: Value,
        old: Option<&Value>,
        options: &WriteOptions,
        validate: &(impl Fn(&Value) -> Vec<FieldError> + Sync),
    ) -> Result<(Lease, Outcome), Refusal> {
        let kind = target.storage();
        let (resource, body) = (kind.group_resource(), kind.group_kind());
        let name = if target.key.name.is_empty() { text(&object, "/metadata/name").to_owned() } else { target.key.name.clone() };
        let request = self.request(caller, operation, &body, &resource, target, &name, old, options);
        let write = Write { caller, target, request: &request };
        self.mutate(&write, &mut object).await?;
        // What admission has added counts: a limited pod is of another class of service.
        if old.is_none() {
            kind.strategy.prepare_for_create(kind, &mut object);
        }
        schema::normalize(&kind.storage_gvk(), &mut object);
        if text(&object, "/metadata/name").is_empty() && !text(&object, "/metadata/generateName").is_empty() {
            tree::meta(&mut object).insert("name".into(), name.clone().into());
        }
        let lease = self.addresses.assign(&self.cache, kind, &object, old, options.dry_run)?;
        let object = &lease.object;
        let errors = validate(object);
        if !errors.is_empty() {
            return Err(Status::invalid(&body, text(object, "/metadata/name"), errors).into());
        }
        if kind.group == "rbac.authorization.k8s.io" {
            let write = escalation::Write { user: &caller.user, resource: kind.plural, namespace: &target.key.namespace, new: object, old };
            escalation::check(&write, &self.authorizer)?;
        }
        self.validate_by_webhooks(&write, object).await?;
        let outcome = admission::validate(&request, object)?;
        Ok((lease, outcome))
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn request<'a>(
        &'a self,
        caller: &'a Caller,
        operation: Operation,
        body: &'a GroupKind,
        resource: &'a api::GroupResource,
        target: &'a Target,
        name: &'a str,
        old: Option<&'a Value>,
        options: &WriteOptions,
    ) -> admission::Request<'a> {
        admission::Request {
            user: &caller.user,
            operation,
            kind: body,
            resource,
            subresource: &target.subresource,
            namespace: &target.key.namespace,
            name,
            old,
            dry_run: options.dry_run,
            now: caller.now,
            lookup: &*self.cache,
            authorizer: &self.authorizer,
        }
    }

    /// Write what the quotas will hold once this object exists. Charges take turns, each reckoning with what those before it took: of many
    /// writes at once exactly those that fit succeed.
    async fn charge(
        &self,
        caller: &Caller,
        target: &Target,
        operation: Operation,
        object: &Value,
        old: Option<&Value>,
        outcome: &Outcome,
    ) -> Result<(), Status> {
        let Some(kind) = kinds::by_resource("", "resourcequotas").filter(|_| !outcome.charges.is_empty()) else { return Ok(()) };
        let _turn = self.charging.lock().await;
        let (resource, body) = (target.storage().group_resource(), target.storage().group_kind());
        let request =
            self.request(caller, operation, &body, &resource, target, text(object, "/metadata/name"), old, &WriteOptions::default());
        let mut paid = HashSet::new();
        for _ in 0..MAX_SWAPS {
            let mut lost = false;
            for charge in admission::charges(&request, object).map_err(Refusal::status)? {
                let mut quota = charge.quota;
                let revision = tree::take_resource_version(&mut quota).parse().unwrap_or_default();
                let key = tree::key_of(&quota);
                if paid.contains(&key) {
                    continue;
                }
                match self.commit(kind, &key, &quota, Expect::At(revision)).await {
                    Ok(_) => drop(paid.insert(key)),
                    Err(StoreError::Conflict { .. }) => lost = true,
                    Err(error) => return Err(unavailable(error)),
                }
            }
            if !lost {
                return Ok(());
            }
            self.catch_up().await?;
        }
        Err(Status::modified(&kind.group_resource(), &target.key.name))
    }
}

/// A decoded body as the storage version has it, defaulted and in Go's habits.
pub fn to_storage(target: &Target, mut body: Value) -> Value {
    let gvk = target.gvk();
    schema::default(&gvk, &mut body);
    let stored = target.storage().storage_gvk();
    if stored == gvk {
        schema::normalize(&stored, &mut body);
        return body;
    }
    let mut object = kinds::convert(body, &stored.api_version());
    schema::default(&stored, &mut object);
    schema::normalize(&stored, &mut object);
    object
}

/// Nothing holds a dying object any more: the update that let go of it removes it.
fn is_finished(kind: &Kind, object: &Value) -> bool {
    let held = !tree::items(object, "/metadata/finalizers").is_empty();
    let namespace_held = kind.plural == "namespaces" && !tree::items(object, "/spec/finalizers").is_empty();
    let grace = tree::number(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
    tree::is_being_deleted(object) && !held && !namespace_held && grace == 0
}

/// 409; says so when the name will soon be free.
fn exists(target: &Target, record: &Record) -> Status {
    let mut status = Status::already_exists(&target.resource(), &record.key.name);
    if tree::is_being_deleted(&record.value()) {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

/// The whole-object replacement a PUT asks for.
pub fn replacement(target: &Target, body: Value) -> Result<Value, Status> {
    let mut object = to_storage(target, body);
    check_namespace(target, &mut object)?;
    check_name(target, &object)?;
    Ok(object)
}

/// The object's namespace is the request's. Upstream: `EnsureObjectNamespaceMatchesRequestNamespace`.
pub fn check_namespace(target: &Target, object: &mut Value) -> Result<(), Status> {
    if !target.kind.namespaced {
        tree::meta(object).remove("namespace");
        return Ok(());
    }
    let asked = text(object, "/metadata/namespace");
    if !asked.is_empty() && asked != target.key.namespace {
        return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    tree::meta(object).insert("namespace".into(), target.key.namespace.clone().into());
    Ok(())
}

/// The object's name is the URL's. Upstream: `checkName`.
pub fn check_name(target: &Target, object: &Value) -> Result<(), Status> {
    let (name, asked) = (text(object, "/metadata/name"), &target.key.name);
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({asked} based on URL) was undeterminable: name must be provided"
        )));
    }
    if name != asked {
        return Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({asked})")));
    }
    Ok(())
}

/// Owners that are named twice, in every field alike, are named once.
fn dedup_owners(caller: &Caller, object: &mut Value) {
    let Some(owners) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else { return };
    let (mut kept, mut twice) = (Vec::<Value>::new(), Vec::new());
    for owner in std::mem::take(owners) {
        match kept.contains(&owner) {
            true => twice.push(text(&owner, "/uid").to_owned()),
            false => kept.push(owner),
        }
    }
    *owners = kept;
    if !twice.is_empty() {
        let when = if caller.patches { " after mutating admission happens" } else { "" };
        caller.warn(format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        ));
    }
}
