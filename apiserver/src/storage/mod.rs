//! The store behind the API server: ordered keys, opaque bytes, one counter of revisions.
//!
//! Nothing outside this crate can name it, so the API server stays the only gate to the state.
//!
//! Invariants every backend keeps (and `contract` checks):
//! - a revision is acknowledged only after it is durable, and published to watchers only after it is acknowledged or about to be;
//! - a watch delivers the changes of all keys, in order, and all changes of one revision in one batch (a write is one change;
//!   keys that expire together may share a revision);
//! - the only write is a compare-and-swap.
//!
//! Upstream counterpart: `k8s.io/apiserver/pkg/storage/etcd3` (v1.33) with the transaction shapes that kine lists.

pub mod contract;
pub mod copy;
pub mod embedded;
pub mod etcd;
pub mod transform;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

/// The store's clock: starts at 1, grows by one with each change.
pub type Revision = u64;

/// A key's current state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// Revision of the change that wrote this value.
    pub revision: Revision,
}

/// One committed change. `value` is `None` when the key was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: String,
    pub value: Option<Bytes>,
}

/// What a write demands of the key's present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    At(Revision),
}

/// A part of a listing. `more` says that keys follow the last entry.
#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    pub more: bool,
    /// The revision at which the listing is true.
    pub revision: Revision,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not as expected. Read it again, then decide.
    #[error("{key:?} has changed")]
    Conflict { key: String, current: Option<Entry> },
    /// That far back nothing is kept any more. List again.
    #[error("revision {asked} has been compacted, the oldest kept is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    /// The store has not come that far.
    #[error("revision {asked} is in the future, the store is at {current}")]
    Future { asked: Revision, current: Revision },
    /// The store can't serve now; whether a write happened is unknown.
    #[error("{why}")]
    Unavailable { doing: String, why: String },
    /// The store did not answer in time; whether a write happened is unknown.
    #[error("etcdserver: request timed out")]
    TimedOut { doing: String },
    /// The store has understood and will not: too large, no space left, not permitted. Nothing happened.
    #[error("{why}")]
    Refused { why: String },
}

impl StoreError {
    pub(crate) fn unavailable(doing: impl Into<String>, source: impl Into<anyhow::Error>) -> Self {
        StoreError::Unavailable { doing: doing.into(), why: format!("{:#}", source.into()) }
    }
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// The changes after a revision, in batches as they were committed. Ends when the store stops, or when what comes next is lost: list again.
pub type Changes = mpsc::UnboundedReceiver<Vec<Change>>;

#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// What health checks call it.
    fn name(&self) -> &'static str;

    /// The last durable revision. A read that must be consistent waits until its cache has seen it.
    async fn revision(&self) -> Result<Revision>;

    /// Whether it would take a write now, for health checks.
    async fn check(&self) -> Result<()> {
        self.revision().await.map(drop)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// Entries under `prefix` in key order, after `start_after`, at most `limit` (0 = all), as of `at` (`None` = now).
    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page>;

    /// Write `value` if the key is as expected. The key vanishes by itself after `ttl`, unless written again.
    async fn put(&self, key: &str, value: Bytes, expect: Expect, ttl: Option<Duration>) -> Result<Revision>;

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision>;

    /// Every change with a revision greater than `after`.
    async fn watch(&self, after: Revision) -> Result<Changes>;

    /// Forget history up to and including `revision`; the present state stays.
    async fn compact(&self, revision: Revision) -> Result<()>;
}
