//! The embedded store: one redb file, nothing to install.
//!
//! ```text
//! requests ──▶ queue ──▶ writer thread: take all that waits ─▶ check each against `heads` ─▶ one commit (fsync) ─▶ answer, publish
//! ```
//!
//! Tables: `changes` (revision → change, with the revision it replaced), `heads` (key → revision of its last change),
//! `expiry` (deadline, key → revision), `meta`. History older than five minutes is compacted away by the writer when it is idle.
//!
//! Invariants: one writer; a change is published only after the commit that holds it is durable; a lost process loses nothing that
//! was acknowledged (redb's two-phase, quick-repair commit).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::{Change, Changes, Entry, Expect, Page, Result, Revision, Storage, StoreError};

const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");
const HEADS: TableDefinition<&str, u64> = TableDefinition::new("heads");
const EXPIRY: TableDefinition<(u64, &str), u64> = TableDefinition::new("expiry");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The store's one file, in the folder it is opened in.
pub const FILE: &str = "state.redb";
const CACHE_BYTES: usize = 4 << 20;
/// Most operations in one commit: bounds the time a single fsync'ed transaction takes.
const MAX_GROUP: usize = 512;
/// How often an idle writer looks for expired keys and old history.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// History kept for list and watch at a past revision.
const KEEP_HISTORY: Duration = Duration::from_secs(300);

/// The embedded backend. Clones share the same file and writer.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
    queue: std_mpsc::Sender<Op>,
}

struct Shared {
    db: Database,
    /// Last durable revision.
    revision: AtomicU64,
    compacted: AtomicU64,
    watchers: Mutex<Vec<mpsc::UnboundedSender<Vec<Change>>>>,
}

enum Op {
    Put { key: String, value: Bytes, expect: Expect, ttl: Option<Duration>, reply: Reply<Revision> },
    Delete { key: String, expect: Revision, reply: Reply<Revision> },
    Compact { revision: Revision, reply: Reply<()> },
}

type Reply<T> = oneshot::Sender<Result<T>>;

impl Embedded {
    /// Open or create `dir/state.redb`. Errors: the file is locked by another process, or damaged beyond repair.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        Embedded::open_from(dir, 0)
    }

    /// An empty store in `dir`, whatever was there, with all its revisions greater than `above`.
    pub fn emptied(dir: &Path, above: Revision) -> anyhow::Result<Self> {
        match std::fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Embedded::open_from(dir, above),
        }
    }

    fn open_from(dir: &Path, above: Revision) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(dir.join(FILE))?;
        let (revision, compacted) = prepare_tables(&db, above)?;
        let shared =
            Arc::new(Shared { db, revision: AtomicU64::new(revision), compacted: AtomicU64::new(compacted), watchers: Mutex::default() });
        let (queue, ops) = std_mpsc::channel();
        let writer = Writer { shared: shared.clone(), marks: vec![(Instant::now(), revision)] };
        std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(ops))?;
        Ok(Embedded { shared, queue })
    }

    async fn submit<T>(&self, doing: &str, make: impl FnOnce(Reply<T>) -> Op) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let stopped = || StoreError::unavailable(doing, anyhow::anyhow!("the writer has stopped"));
        self.queue.send(make(reply)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// Returns the last revision and the last compacted one; a new store's are both `above`.
fn prepare_tables(db: &Database, above: Revision) -> anyhow::Result<(Revision, Revision)> {
    let txn = begin(db)?;
    txn.open_table(CHANGES)?;
    txn.open_table(HEADS)?;
    txn.open_table(EXPIRY)?;
    let numbers = {
        let mut meta = txn.open_table(META)?;
        if above > 0 {
            meta.insert("revision", above)?;
            meta.insert("compacted", above)?;
        }
        let number = |name| anyhow::Ok(meta.get(name)?.map_or(0, |v| v.value()));
        (number("revision")?, number("compacted")?)
    };
    txn.commit()?;
    Ok(numbers)
}

fn begin(db: &Database) -> anyhow::Result<WriteTransaction> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_quick_repair(true);
    Ok(txn)
}

/// A change at rest: `[1 = put, 0 = delete][replaced revision, 8][key length, 4][key][value]`, little endian.
struct Stored<'a> {
    replaced: Revision,
    key: &'a str,
    value: Option<&'a [u8]>,
}

impl<'a> Stored<'a> {
    fn encode(&self) -> Vec<u8> {
        let value = self.value.unwrap_or_default();
        let mut out = Vec::with_capacity(13 + self.key.len() + value.len());
        out.push(u8::from(self.value.is_some()));
        out.extend_from_slice(&self.replaced.to_le_bytes());
        out.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(value);
        out
    }

    fn decode(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let damaged = || anyhow::anyhow!("damaged change record");
        let (&is_put, rest) = bytes.split_first().ok_or_else(damaged)?;
        let (replaced, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let (key, value) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(damaged)?;
        Ok(Stored { replaced: u64::from_le_bytes(*replaced), key: std::str::from_utf8(key)?, value: (is_put == 1).then_some(value) })
    }

    fn change(&self, revision: Revision) -> Change {
        Change { revision, key: self.key.to_owned(), value: self.value.map(Bytes::copy_from_slice) }
    }
}

impl Shared {
    /// The entry of `key` as of `at`, following the chain of replaced revisions back from its head.
    fn entry_at(
        &self,
        changes: &impl ReadableTable<u64, &'static [u8]>,
        key: &str,
        head: Revision,
        at: Revision,
    ) -> anyhow::Result<Option<Entry>> {
        let mut revision = head;
        while revision != 0 {
            let Some(bytes) = changes.get(revision)? else { return Ok(None) };
            let stored = Stored::decode(bytes.value())?;
            if revision <= at {
                let value = stored.value.map(Bytes::copy_from_slice);
                return Ok(value.map(|value| Entry { key: key.to_owned(), value, revision }));
            }
            revision = stored.replaced;
        }
        Ok(None)
    }

    fn get(&self, key: &str) -> anyhow::Result<Option<Entry>> {
        let txn = self.db.begin_read()?;
        let Some(head) = txn.open_table(HEADS)?.get(key)?.map(|v| v.value()) else { return Ok(None) };
        self.entry_at(&txn.open_table(CHANGES)?, key, head, Revision::MAX)
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize, at: Revision) -> anyhow::Result<(Vec<Entry>, bool)> {
        let txn = self.db.begin_read()?;
        let (heads, changes) = (txn.open_table(HEADS)?, txn.open_table(CHANGES)?);
        let mut entries = Vec::new();
        let from = start_after.map_or(prefix, |s| s.max(prefix));
        for head in heads.range(from..)? {
            let (key, revision) = head?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            if start_after == Some(key) {
                continue;
            }
            let Some(entry) = self.entry_at(&changes, key, revision.value(), at)? else { continue };
            if limit != 0 && entries.len() == limit {
                return Ok((entries, true));
            }
            entries.push(entry);
        }
        Ok((entries, false))
    }

    fn changes_after(&self, after: Revision) -> anyhow::Result<Vec<Change>> {
        let txn = self.db.begin_read()?;
        let changes = txn.open_table(CHANGES)?;
        let mut out = Vec::new();
        for row in changes.range(after + 1..)? {
            let (revision, bytes) = row?;
            out.push(Stored::decode(bytes.value())?.change(revision.value()));
        }
        Ok(out)
    }

    fn check_revision(&self, asked: Revision) -> Result<()> {
        let (oldest, current) = (self.compacted.load(Ordering::Acquire), self.revision.load(Ordering::Acquire));
        if asked < oldest {
            return Err(StoreError::Compacted { asked, oldest });
        }
        if asked > current {
            return Err(StoreError::Future { asked, current });
        }
        Ok(())
    }
}

#[async_trait]
impl Storage for Embedded {
    fn name(&self) -> &'static str {
        "storage"
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.revision.load(Ordering::Acquire))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.shared.get(key).map_err(|e| StoreError::unavailable(format!("reading {key:?}"), e))
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let revision = match at {
            Some(at) => at,
            None => self.shared.revision.load(Ordering::Acquire),
        };
        self.shared.check_revision(revision)?;
        let listed = self.shared.list(prefix, start_after, limit, revision);
        let (entries, more) = listed.map_err(|e| StoreError::unavailable(format!("listing {prefix:?}"), e))?;
        Ok(Page { entries, more, revision })
    }

    async fn put(&self, key: &str, value: Bytes, expect: Expect, ttl: Option<Duration>) -> Result<Revision> {
        self.submit("writing", |reply| Op::Put { key: key.to_owned(), value, expect, ttl, reply }).await
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision> {
        self.submit("deleting", |reply| Op::Delete { key: key.to_owned(), expect, reply }).await
    }

    async fn watch(&self, after: Revision) -> Result<Changes> {
        // Under this lock the writer can't publish, so nothing falls between replay and registration.
        let mut watchers = self.shared.watchers.lock();
        self.shared.check_revision(after)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let past = self.shared.changes_after(after).map_err(|e| StoreError::unavailable("replaying changes", e))?;
        let published = self.shared.revision.load(Ordering::Acquire);
        let past: Vec<Change> = past.into_iter().filter(|c| c.revision <= published).collect();
        if !past.is_empty() {
            sender.send(past).map_err(|_| StoreError::unavailable("replaying changes", anyhow::anyhow!("receiver gone")))?;
        }
        watchers.push(sender);
        Ok(receiver)
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.submit("compacting", |reply| Op::Compact { revision, reply }).await
    }
}

/// The one thread that writes.
struct Writer {
    shared: Arc<Shared>,
    /// When the store stood at which revision: what the age of history is measured by.
    marks: Vec<(Instant, Revision)>,
}

/// An operation's outcome, held back until the commit that contains it is durable.
type Finish = Box<dyn FnOnce(bool) + Send>;

struct Tables<'t> {
    changes: Table<'t, u64, &'static [u8]>,
    heads: Table<'t, &'static str, u64>,
    expiry: Table<'t, (u64, &'static str), u64>,
    meta: Table<'t, &'static str, u64>,
    revision: Revision,
    committed: Vec<Change>,
}

impl Writer {
    fn run(mut self, ops: std_mpsc::Receiver<Op>) {
        let mut last_housekeeping = Instant::now();
        loop {
            let mut group = match ops.recv_timeout(HOUSEKEEPING) {
                Ok(op) => vec![op],
                Err(std_mpsc::RecvTimeoutError::Timeout) => Vec::new(),
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
            };
            while group.len() < MAX_GROUP {
                let Ok(op) = ops.try_recv() else { break };
                group.push(op);
            }
            if !group.is_empty() {
                self.commit(group);
            }
            if last_housekeeping.elapsed() >= HOUSEKEEPING {
                last_housekeeping = Instant::now();
                if let Err(error) = self.housekeep() {
                    tracing::error!(%error, "store housekeeping failed");
                }
            }
        }
    }

    /// One durable transaction for the whole group; then answers, then news.
    fn commit(&self, group: Vec<Op>) {
        let mut finishes: Vec<Finish> = Vec::with_capacity(group.len());
        let outcome = self.transaction(|tables| {
            for op in group {
                finishes.push(tables.apply(op)?);
            }
            Ok(())
        });
        if let Err(error) = &outcome {
            tracing::error!(error = format!("{error:#}"), "store commit failed");
        }
        for finish in finishes {
            finish(outcome.is_ok());
        }
    }

    fn transaction(&self, work: impl FnOnce(&mut Tables<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let txn = begin(&self.shared.db)?;
        let before = self.shared.revision.load(Ordering::Acquire);
        let (revision, committed, compacted) = {
            let mut tables = Tables {
                changes: txn.open_table(CHANGES)?,
                heads: txn.open_table(HEADS)?,
                expiry: txn.open_table(EXPIRY)?,
                meta: txn.open_table(META)?,
                revision: before,
                committed: Vec::new(),
            };
            work(&mut tables)?;
            if tables.revision != before {
                tables.meta.insert("revision", tables.revision)?;
            }
            let compacted = tables.meta.get("compacted")?.map_or(0, |v| v.value());
            (tables.revision, tables.committed, compacted)
        };
        let untouched = revision == before && compacted == self.shared.compacted.load(Ordering::Acquire);
        if untouched {
            return Ok(txn.abort()?);
        }
        txn.commit()?;
        self.publish(revision, compacted, committed);
        Ok(())
    }

    fn publish(&self, revision: Revision, compacted: Revision, committed: Vec<Change>) {
        let mut watchers = self.shared.watchers.lock();
        self.shared.revision.store(revision, Ordering::Release);
        self.shared.compacted.store(compacted, Ordering::Release);
        if !committed.is_empty() {
            watchers.retain(|watcher| watcher.send(committed.clone()).is_ok());
        }
    }

    /// Delete what has expired, forget what is old.
    fn housekeep(&mut self) -> anyhow::Result<()> {
        let now = now_ms();
        let due = {
            let txn = self.shared.db.begin_read()?;
            let expiry = txn.open_table(EXPIRY)?;
            expiry.range(..(now, ""))?.next().is_some()
        };
        if due {
            self.transaction(|tables| tables.expire(now))?;
        }
        let current = self.shared.revision.load(Ordering::Acquire);
        self.marks.push((Instant::now(), current));
        let old = self.marks.iter().take_while(|(at, _)| at.elapsed() > KEEP_HISTORY).count();
        let mark = self.marks.drain(..old).next_back();
        if let Some((_, revision)) = mark
            && revision > self.shared.compacted.load(Ordering::Acquire)
        {
            self.transaction(|tables| tables.compact(revision))?;
        }
        Ok(())
    }
}

impl Tables<'_> {
    fn apply(&mut self, op: Op) -> anyhow::Result<Finish> {
        match op {
            Op::Put { key, value, expect, ttl, reply } => {
                let expect = match expect {
                    Expect::Absent => None,
                    Expect::At(revision) => Some(revision),
                };
                let outcome = match self.check(&key, expect)? {
                    Some(conflict) => Err(conflict),
                    None => Ok(self.write(key, Some(value), ttl)?),
                };
                Ok(answer(reply, outcome))
            }
            Op::Delete { key, expect, reply } => {
                let outcome = match self.check(&key, Some(expect))? {
                    Some(conflict) => Err(conflict),
                    None => Ok(self.write(key, None, None)?),
                };
                Ok(answer(reply, outcome))
            }
            Op::Compact { revision, reply } => {
                let revision = revision.min(self.revision);
                self.compact(revision)?;
                Ok(answer(reply, Ok(())))
            }
        }
    }

    /// `None` when the key is as expected.
    fn check(&self, key: &str, expect: Option<Revision>) -> anyhow::Result<Option<StoreError>> {
        let current = self.current(key)?;
        if current.as_ref().map(|e| e.revision) == expect {
            return Ok(None);
        }
        Ok(Some(StoreError::Conflict { key: key.to_owned(), current }))
    }

    fn current(&self, key: &str) -> anyhow::Result<Option<Entry>> {
        let Some(revision) = self.heads.get(key)?.map(|v| v.value()) else { return Ok(None) };
        let Some(bytes) = self.changes.get(revision)? else { return Ok(None) };
        let value = Stored::decode(bytes.value())?.value.map(Bytes::copy_from_slice);
        Ok(value.map(|value| Entry { key: key.to_owned(), value, revision }))
    }

    fn write(&mut self, key: String, value: Option<Bytes>, ttl: Option<Duration>) -> anyhow::Result<Revision> {
        let revision = self.revision + 1;
        let replaced = self.heads.insert(key.as_str(), revision)?.map_or(0, |v| v.value());
        let stored = Stored { replaced, key: &key, value: value.as_deref() };
        self.changes.insert(revision, stored.encode().as_slice())?;
        if let Some(ttl) = ttl {
            self.expiry.insert((now_ms() + ttl.as_millis() as u64, key.as_str()), revision)?;
        }
        self.revision = revision;
        self.committed.push(Change { revision, key, value });
        Ok(revision)
    }

    fn expire(&mut self, now: u64) -> anyhow::Result<()> {
        let mut due = Vec::new();
        for row in self.expiry.range(..(now, ""))? {
            let (deadline, revision) = row?;
            let (at, key) = deadline.value();
            due.push((at, key.to_owned(), revision.value()));
        }
        for (at, key, revision) in due {
            self.expiry.remove((at, key.as_str()))?;
            // Written again since then: the newer write has its own deadline.
            if self.check(&key, Some(revision))?.is_none() {
                self.write(key, None, None)?;
            }
        }
        Ok(())
    }

    /// Each change in the window frees the one it replaced, and a deletion also itself.
    fn compact(&mut self, upto: Revision) -> anyhow::Result<()> {
        let from = self.meta.get("compacted")?.map_or(0, |v| v.value());
        if upto <= from {
            return Ok(());
        }
        let mut gone = Vec::new();
        for row in self.changes.range(from + 1..=upto)? {
            let (revision, bytes) = row?;
            let stored = Stored::decode(bytes.value())?;
            if stored.replaced != 0 {
                gone.push((stored.replaced, None));
            }
            if stored.value.is_none() {
                gone.push((revision.value(), Some(stored.key.to_owned())));
            }
        }
        for (revision, deleted) in gone {
            self.changes.remove(revision)?;
            if let Some(key) = deleted
                && self.heads.get(key.as_str())?.map(|v| v.value()) == Some(revision)
            {
                self.heads.remove(key.as_str())?;
            }
        }
        self.meta.insert("compacted", upto)?;
        Ok(())
    }
}

/// Hold the answer back until it is known whether the commit became durable.
fn answer<T: Send + 'static>(reply: Reply<T>, outcome: Result<T>) -> Finish {
    Box::new(move |durable| {
        let outcome = if durable { outcome } else { Err(StoreError::unavailable("committing", anyhow::anyhow!("the transaction failed"))) };
        // The caller may have gone (its request was cancelled); the change stands either way.
        if reply.send(outcome).is_err() {
            tracing::trace!("nobody waits for this write any more");
        }
    })
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
