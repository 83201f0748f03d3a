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
//! was acknowledged (redb's two-phase, quick-repair commit). After a commit that failed (a full disk) the file is opened anew, again
//! and again until it can be written, and what of that commit is on disk after all is published: the server need not be restarted.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use redb::{
    CommitError, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition, TableError,
    TransactionError, WriteTransaction,
};
use tokio::sync::{mpsc, oneshot};

use super::{Change, Changes, Entry, Expect, Page, Result, Revision, Storage, StoreError};

const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");
const HEADS: TableDefinition<&str, u64> = TableDefinition::new("heads");
const EXPIRY: TableDefinition<(u64, &str), u64> = TableDefinition::new("expiry");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The store's one file, in the folder it is opened in.
pub const FILE: &str = "state.redb";
/// Of the file, beside the kernel's own cache: reads are served from the objects in memory, only writes come here.
const CACHE_BYTES: usize = 2 << 20;
/// Most operations in one commit: bounds the time a single fsync'ed transaction takes.
const MAX_GROUP: usize = 512;
/// How often an idle writer looks for expired keys and old history.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often a store that could not be written is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// History kept for list and watch at a past revision.
const KEEP_HISTORY: Duration = Duration::from_secs(300);

/// The embedded backend. Clones share the same file and writer.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
    queue: std_mpsc::Sender<Op>,
}

struct Shared {
    dir: PathBuf,
    /// `None` after a failed commit, until the file could be opened and written.
    db: RwLock<Option<Database>>,
    /// Why the last commit failed, if nothing was written since.
    trouble: Mutex<Option<String>>,
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
    /// Open or create `dir/state.redb`. Errors, with what to do: another process has it, it is damaged beyond repair, the disk is full.
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
        let (db, revision, compacted) = open_file(dir, above)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            db: RwLock::new(Some(db)),
            trouble: Mutex::default(),
            revision: AtomicU64::new(revision),
            compacted: AtomicU64::new(compacted),
            watchers: Mutex::default(),
        });
        let (queue, ops) = std_mpsc::channel();
        let writer = Writer { shared: shared.clone(), marks: vec![(Instant::now(), revision)], tried: Instant::now() };
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

/// The store in `dir` with its last revision and the last compacted one.
fn open_file(dir: &Path, above: Revision) -> anyhow::Result<(Database, Revision, Revision)> {
    let opened = || {
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(dir.join(FILE))?;
        let (revision, compacted) = prepare_tables(&db, above)?;
        anyhow::Ok((db, revision, compacted))
    };
    opened().map_err(|error| explain(dir, error))
}

/// What went wrong with the file, and what its owner can do.
fn explain(dir: &Path, error: anyhow::Error) -> anyhow::Error {
    let path = dir.join(FILE).display().to_string();
    let said = format!("{error:#}");
    let fault = error.chain().find_map(|cause| match cause.downcast_ref::<DatabaseError>() {
        Some(DatabaseError::DatabaseAlreadyOpen) => Some(Fault::Taken),
        Some(DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_)) => Some(Fault::Damaged),
        _ => match storage_error(cause)? {
            StorageError::Corrupted(_) => Some(Fault::Damaged),
            StorageError::Io(error) => io_fault(error),
            _ => None,
        },
    });
    match fault {
        Some(Fault::Full) => anyhow::anyhow!("{path} can't be written: {said}: make room on its disk, and writing goes on by itself"),
        Some(Fault::Taken) => anyhow::anyhow!("{path} is in use: {said}: only one API server can have it"),
        Some(Fault::Damaged) => anyhow::anyhow!(
            "{path} is damaged: {said}: put a copy from before in its place, or move it away to begin with an empty cluster"
        ),
        None => error.context(path),
    }
}

enum Fault {
    Full,
    Taken,
    Damaged,
}

/// What each step's error has inside.
fn storage_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a StorageError> {
    if let Some(DatabaseError::Storage(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(TransactionError::Storage(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(TableError::Storage(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(CommitError::Storage(error)) = cause.downcast_ref() {
        return Some(error);
    }
    cause.downcast_ref()
}

fn io_fault(error: &std::io::Error) -> Option<Fault> {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(Fault::Full),
        // A file that ends early, or does not begin as it must.
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData => Some(Fault::Damaged),
        _ => None,
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
    /// Errors: the store is in trouble, or what `read` says.
    fn reading<T>(&self, read: impl FnOnce(&Database) -> anyhow::Result<T>) -> anyhow::Result<T> {
        match self.db.read().as_ref() {
            Some(db) => read(db),
            None => Err(anyhow::anyhow!(self.trouble.lock().clone().unwrap_or_default())),
        }
    }

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
        self.reading(|db| {
            let txn = db.begin_read()?;
            let Some(head) = txn.open_table(HEADS)?.get(key)?.map(|v| v.value()) else { return Ok(None) };
            self.entry_at(&txn.open_table(CHANGES)?, key, head, Revision::MAX)
        })
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize, at: Revision) -> anyhow::Result<(Vec<Entry>, bool)> {
        self.reading(|db| {
            let txn = db.begin_read()?;
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
        })
    }

    fn changes_after(&self, after: Revision) -> anyhow::Result<Vec<Change>> {
        self.reading(|db| changes_after(db, after))
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

fn changes_after(db: &Database, after: Revision) -> anyhow::Result<Vec<Change>> {
    let changes = db.begin_read()?.open_table(CHANGES)?;
    let mut out = Vec::new();
    for row in changes.range(after + 1..)? {
        let (revision, bytes) = row?;
        out.push(Stored::decode(bytes.value())?.change(revision.value()));
    }
    Ok(out)
}

#[async_trait]
impl Storage for Embedded {
    fn name(&self) -> &'static str {
        "storage"
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.revision.load(Ordering::Acquire))
    }

    async fn check(&self) -> Result<()> {
        match self.shared.trouble.lock().as_ref() {
            Some(why) => Err(StoreError::unavailable("writing", anyhow::anyhow!(why.clone()))),
            None => Ok(()),
        }
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
    /// When a store in trouble was last tried.
    tried: Instant,
}

/// An operation's outcome, held back until the commit that contains it is durable, or has failed: then with the reason.
type Finish = Box<dyn FnOnce(Option<&str>) + Send>;

struct Tables<'t> {
    changes: Table<'t, u64, &'static [u8]>,
    heads: Table<'t, &'static str, u64>,
    expiry: Table<'t, (u64, &'static str), u64>,
    meta: Table<'t, &'static str, u64>,
    revision: Revision,
    committed: Vec<Change>,
    /// Why an operation could not be carried out: the transaction fails.
    failed: Option<anyhow::Error>,
}

impl Writer {
    fn run(mut self, ops: std_mpsc::Receiver<Op>) {
        let mut last_housekeeping = Instant::now();
        loop {
            let patience = if self.shared.trouble.lock().is_some() { TRY_AGAIN } else { HOUSEKEEPING };
            let mut group = match ops.recv_timeout(patience) {
                Ok(op) => vec![op],
                Err(std_mpsc::RecvTimeoutError::Timeout) => Vec::new(),
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
            };
            while group.len() < MAX_GROUP {
                let Ok(op) = ops.try_recv() else { break };
                group.push(op);
            }
            self.reopen();
            if !group.is_empty() {
                self.commit(group);
            }
            if last_housekeeping.elapsed() >= HOUSEKEEPING && self.shared.db.read().is_some() {
                last_housekeeping = Instant::now();
                if let Err(error) = self.housekeep() {
                    self.close(error);
                }
            }
        }
    }

    /// One durable transaction for the whole group; then answers, then news.
    fn commit(&self, group: Vec<Op>) {
        let mut finishes: Vec<Finish> = Vec::with_capacity(group.len());
        let mut group = group.into_iter();
        let outcome = self.transaction(|tables| {
            for op in group.by_ref() {
                finishes.push(tables.apply(op));
                if tables.failed.is_some() {
                    break;
                }
            }
            tables.failed.take().map_or(Ok(()), Err)
        });
        let failed = outcome.err().map(|error| self.close(error));
        for finish in finishes {
            finish(failed.as_deref());
        }
        for op in group {
            op.refuse(failed.as_deref().unwrap_or_default());
        }
    }

    /// After a failure redb trusts nothing that it holds of the file. Gives the reason, in words.
    fn close(&self, error: anyhow::Error) -> String {
        let was_open = self.shared.db.write().take().is_some();
        let mut trouble = self.shared.trouble.lock();
        if was_open || trouble.is_none() {
            let why = format!("{:#}", explain(&self.shared.dir, error));
            tracing::error!(why, "the store can't be written");
            *trouble = Some(why);
        }
        trouble.clone().unwrap_or_default()
    }

    /// Opens the file of a store in trouble again, now and then. A commit that failed may be on disk all the same: it is published.
    fn reopen(&mut self) {
        if self.shared.db.read().is_some() || self.tried.elapsed() < TRY_AGAIN {
            return;
        }
        self.tried = Instant::now();
        let before = self.shared.revision.load(Ordering::Acquire);
        let opened = open_file(&self.shared.dir, 0).and_then(|(db, revision, compacted)| {
            let after_all = changes_after(&db, before)?;
            Ok((db, revision, compacted, after_all))
        });
        match opened {
            Ok((db, revision, compacted, after_all)) => {
                *self.shared.db.write() = Some(db);
                *self.shared.trouble.lock() = None;
                tracing::info!(revision, "the store can be written again");
                self.publish(revision, compacted, after_all);
            }
            Err(error) => *self.shared.trouble.lock() = Some(format!("{error:#}")),
        }
    }

    fn transaction(&self, work: impl FnOnce(&mut Tables<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.shared.reading(|db| self.transact(db, work))
    }

    fn transact(&self, db: &Database, work: impl FnOnce(&mut Tables<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let txn = begin(db)?;
        let before = self.shared.revision.load(Ordering::Acquire);
        let (revision, committed, compacted) = {
            let mut tables = Tables {
                changes: txn.open_table(CHANGES)?,
                heads: txn.open_table(HEADS)?,
                expiry: txn.open_table(EXPIRY)?,
                meta: txn.open_table(META)?,
                revision: before,
                committed: Vec::new(),
                failed: None,
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
            let due = |db: &Database| anyhow::Ok(db.begin_read()?.open_table(EXPIRY)?.range(..(now, ""))?.next().is_some());
            self.shared.reading(due)?
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
    fn apply(&mut self, op: Op) -> Finish {
        match op {
            Op::Put { key, value, expect, ttl, reply } => {
                let expect = match expect {
                    Expect::Absent => None,
                    Expect::At(revision) => Some(revision),
                };
                let outcome = self.swap(key, expect, Some(value), ttl);
                self.answer(reply, outcome)
            }
            Op::Delete { key, expect, reply } => {
                let outcome = self.swap(key, Some(expect), None, None);
                self.answer(reply, outcome)
            }
            Op::Compact { revision, reply } => {
                let outcome = self.compact(revision.min(self.revision)).map(Ok);
                self.answer(reply, outcome)
            }
        }
    }

    fn swap(
        &mut self,
        key: String,
        expect: Option<Revision>,
        value: Option<Bytes>,
        ttl: Option<Duration>,
    ) -> anyhow::Result<Result<Revision>> {
        match self.check(&key, expect)? {
            Some(conflict) => Ok(Err(conflict)),
            None => self.write(key, value, ttl).map(Ok),
        }
    }

    /// Holds the answer back until it is known whether the commit became durable.
    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, outcome: anyhow::Result<Result<T>>) -> Finish {
        let outcome = outcome.unwrap_or_else(|error| {
            let refused = failure(&format!("{error:#}"));
            self.failed.get_or_insert(error);
            Err(refused)
        });
        Box::new(move |failed| send(reply, failed.map_or(outcome, |why| Err(failure(why)))))
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

impl Op {
    fn refuse(self, why: &str) {
        match self {
            Op::Put { reply, .. } | Op::Delete { reply, .. } => send(reply, Err(failure(why))),
            Op::Compact { reply, .. } => send(reply, Err(failure(why))),
        }
    }
}

fn failure(why: &str) -> StoreError {
    StoreError::unavailable("committing", anyhow::anyhow!(why.to_owned()))
}

fn send<T>(reply: Reply<T>, outcome: Result<T>) {
    // The caller may have gone (its request was cancelled); the change stands either way.
    if reply.send(outcome).is_err() {
        tracing::trace!("nobody waits for this write any more");
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_cant_be_had_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let said = |dir: &Path| Embedded::open(dir).err().map(|error| format!("{error:#}")).unwrap_or_default();
        let held = Embedded::open(dir.path()).unwrap();
        assert!(said(dir.path()).contains("state.redb is in use"), "{}", said(dir.path()));
        drop(held);
        for damaged in [&b"not a store"[..], &[0; 100_000], b""] {
            let other = tempfile::tempdir().unwrap();
            std::fs::write(other.path().join(FILE), damaged).unwrap();
            let (said, whole) = (said(other.path()), damaged.is_empty());
            assert_eq!(said.contains("put a copy from before in its place"), !whole, "{said:?}");
        }
    }

    /// Where a disk can be made that is small enough: as root.
    #[tokio::test]
    async fn a_full_disk_is_named_and_got_over() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |options: &str| {
            let words = ["-t", "tmpfs", "-o", options, "tmpfs"];
            std::process::Command::new("mount").args(words).arg(dir.path()).status().is_ok_and(|status| status.success())
        };
        if !mount("size=4m") {
            return;
        }
        let store = Embedded::open(dir.path()).unwrap();
        let value = Bytes::from(vec![7; 200_000]);
        let mut written = Vec::new();
        let error = loop {
            let key = format!("/registry/x/{}", written.len());
            match store.put(&key, value.clone(), Expect::Absent, None).await {
                Ok(revision) => written.push((key, revision)),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("No space left on device") && error.contains("make room on its disk"), "{error}");
        assert!(store.check().await.is_err());
        assert!(mount("remount,size=16m"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while store.check().await.is_err() {
            assert!(Instant::now() < deadline, "{:?}", store.check().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (key, revision) in &written {
            assert_eq!(store.get(key).await.unwrap().map(|entry| entry.revision), Some(*revision));
        }
        let mut watch = store.watch(0).await.unwrap();
        let after = store.put("/registry/x/after", value, Expect::Absent, None).await.unwrap();
        assert!(after > written.last().unwrap().1);
        assert_eq!(watch.recv().await.unwrap().first().unwrap().revision, 1, "nothing is lost");
        drop(store);
        assert!(std::process::Command::new("umount").args(["-l".as_ref(), dir.path().as_os_str()]).status().unwrap().success());
    }
}
