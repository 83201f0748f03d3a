//! The registry: every object, read from memory, written through one pipeline.
//!
//! ```text
//! create  ┐                                                              ┌ conflict: read again
//! update  ├─▶ shape (prepare, default) ─▶ admit ─▶ validate ─▶ encode ─▶ compare-and-swap ─▶ wait until the cache shows it
//! patch   │        [`write`]
//! delete  ┘        [`delete`]
//! ```
//!
//! Invariants: a write is answered after it is durable *and* visible to readers, so every reader sees its own writes; an update that
//! changes nothing writes nothing. Upstream counterpart: `apiserver/pkg/registry/generic/registry/store.go` (v1.33).

pub mod addresses;
pub mod cache;
pub mod delete;
pub mod layout;
pub mod managers;
pub mod patch;
pub mod pods;
pub mod record;
pub mod reviews;
pub mod scale;
pub mod tree;
mod webhooks;
pub mod write;

use std::sync::Arc;
use std::time::Duration;

use api::{Cause, GroupResource, JournalEntry, Key, Status};
use auth::User;
use auth::authz::Authorizer;
use bytes::Bytes;
use jiff::Timestamp;
use kinds::Kind;
use parking_lot::Mutex;
use serde_json::Value;

use crate::journal::Journal;
use crate::storage::transform::Transformer;
use crate::storage::{Expect, Storage, StoreError};
use addresses::Addresses;
use cache::{Cache, KindCache};
use record::Record;

/// A store that takes longer than this is not healthy.
const STORE_ANSWERS: Duration = Duration::from_secs(1);

pub struct Registry {
    store: Arc<dyn Storage>,
    transformer: Arc<dyn Transformer>,
    pub cache: Arc<Cache>,
    pub authorizer: Arc<Authorizer>,
    pub journal: Journal,
    pub addresses: Addresses,
    /// Held while quotas are charged.
    charging: tokio::sync::Mutex<()>,
}

/// Who asks, and why: what a request brings besides its object.
pub struct Caller {
    pub user: Arc<User>,
    /// The client's program, for the journal.
    pub agent: String,
    pub cause: Option<Cause>,
    /// The request is a PATCH: the journal says so.
    pub patches: bool,
    pub now: Timestamp,
    warnings: Mutex<Vec<String>>,
}

impl Caller {
    pub fn new(user: Arc<User>, agent: String, cause: Option<Cause>) -> Self {
        Caller { user, agent, cause, patches: false, now: Timestamp::now(), warnings: Mutex::default() }
    }

    /// The API server itself.
    pub fn system() -> Self {
        let user = User::new("system:apiserver", ["system:masters"]).authenticated();
        Caller::new(Arc::new(user), "kube-apiserver".into(), None)
    }

    /// A `Warning:` header for the answer.
    pub fn warn(&self, text: impl Into<String>) {
        let (text, mut warnings) = (text.into(), self.warnings.lock());
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock())
    }
}

/// The object a request is about: `kind` as served in the request's group and `version`, empty name for collections and creates.
#[derive(Clone)]
pub struct Target {
    pub kind: &'static Kind,
    pub version: &'static str,
    pub key: Key,
    pub subresource: String,
}

impl Target {
    /// In the kind's storage version.
    pub fn stored(kind: &'static Kind, key: Key) -> Self {
        Target { kind, version: kind.storage_version, key, subresource: String::new() }
    }

    /// Whose records these are.
    pub fn storage(&self) -> &'static Kind {
        self.kind.storage_kind()
    }

    pub fn resource(&self) -> GroupResource {
        self.kind.group_resource()
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(&self.resource(), &self.key.name)
    }

    pub fn gvk(&self) -> api::Gvk {
        api::Gvk::new(self.kind.group, self.version, self.kind.kind)
    }
}

#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    /// Who is noted as manager of what changes. `None`: the change has noted that itself, or is nobody's (a pod's node).
    pub manager: Option<String>,
}

impl WriteOptions {
    /// The same for a change that notes its managers itself.
    pub fn untracked(&self) -> Self {
        WriteOptions { manager: None, ..*self }
    }
}

impl Registry {
    pub fn new(
        store: Arc<dyn Storage>,
        transformer: Arc<dyn Transformer>,
        cache: Arc<Cache>,
        authorizer: Arc<Authorizer>,
        addresses: Addresses,
    ) -> Self {
        Registry { store, transformer, cache, authorizer, journal: Journal::default(), addresses, charging: Default::default() }
    }

    /// Wait until the cache has all that was committed before this call.
    pub async fn catch_up(&self) -> Result<(), Status> {
        let revision = self.store.revision().await.map_err(unavailable)?;
        self.cache.reach(revision).await;
        Ok(())
    }

    /// What health checks call the store, and whether it answers now.
    pub async fn store_health(&self) -> (&'static str, bool) {
        let answer = tokio::time::timeout(STORE_ANSWERS, self.store.check()).await;
        (self.store.name(), matches!(answer, Ok(Ok(_))))
    }

    pub fn records(&self, kind: &Kind) -> Result<&KindCache, Status> {
        self.cache.get(&kind.storage_resource()).ok_or_else(Status::no_such_resource)
    }

    pub fn find(&self, target: &Target) -> Result<Arc<Record>, Status> {
        self.records(target.kind)?.get(&target.key).ok_or_else(|| target.not_found())
    }

    /// Write `tree` (without resourceVersion) if the key is as expected, and return it as readers now see it.
    async fn commit(&self, kind: &'static Kind, key: &Key, tree: &Value, expect: Expect) -> Result<Arc<Record>, StoreError> {
        let stored_key = layout::store_key(kind, key);
        let plain = Bytes::from(record::encode(tree));
        let sealed = self.transformer.seal(&stored_key, plain.clone()).map_err(|e| StoreError::unavailable("sealing", e))?;
        let revision = self.store.put(&stored_key, sealed, expect, layout::ttl(&stored_key)).await?;
        self.cache.reach(revision).await;
        let seen = self.cache.get(&kind.group_resource()).and_then(|k| k.get(key)).filter(|r| r.revision == revision);
        match seen {
            Some(record) => Ok(record),
            // Overwritten in the meantime: this answer still shows what this write made.
            None => {
                Record::of_tree(kind, key.clone(), revision, &plain, tree).map(Arc::new).map_err(|e| StoreError::unavailable("indexing", e))
            }
        }
    }

    /// Remove `record`, and return its last state under the revision of its removal.
    async fn remove(&self, record: &Record) -> Result<Arc<Record>, StoreError> {
        let revision = self.store.delete(&layout::store_key(record.kind, &record.key), record.revision).await?;
        self.cache.reach(revision).await;
        Ok(Arc::new(record.at_revision(revision)))
    }

    /// What a dry run shows: the object as it would be stored.
    fn imagined(&self, kind: &'static Kind, key: &Key, tree: &Value, revision: u64) -> Result<Arc<Record>, Status> {
        let plain = record::encode(tree);
        Record::of_tree(kind, key.clone(), revision, &plain, tree).map(Arc::new).map_err(Status::internal)
    }

    fn note(&self, caller: &Caller, target: &Target, verb: &str, record: &Record) {
        self.journal.record(JournalEntry {
            revision: record.revision,
            time: 0,
            user: caller.user.name.clone(),
            agent: caller.agent.clone(),
            verb: verb.to_owned(),
            resource: target.storage().group_resource().to_string(),
            subresource: target.subresource.clone(),
            namespace: record.key.namespace.clone(),
            name: record.key.name.clone(),
            uid: record.uid.to_string(),
            cause: caller.cause.clone(),
            note: None,
        });
    }
}

/// A store error that is not about the object. Upstream passes etcd's words on in the same way.
pub fn unavailable(error: StoreError) -> Status {
    let (doing, status) = match &error {
        StoreError::Unavailable { doing, why } => (doing.as_str(), Status::service_unavailable(why)),
        StoreError::TimedOut { doing } => (doing.as_str(), Status::timeout(error.to_string(), 0)),
        _ => ("", Status::unclassified(error.to_string())),
    };
    tracing::error!(doing, %error, "store error");
    status
}
