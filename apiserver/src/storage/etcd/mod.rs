//! The store on a real etcd (3.4 and later), over its v3 API.
//!
//! ```text
//! put, delete ─▶ one transaction: if the key is at the expected revision, then write, else show what is there
//! get, list   ─▶ linearizable ranges; a list is paged, all pages at the revision of the first
//! watch       ─▶ one stream over all keys ([`stream`])          TTL ─▶ shared leases ([`lease`])
//! every 5 min ─▶ history older than that is compacted ([`compact`])
//! ```
//!
//! Keys are upstream's (`/registry/pods/default/web`), values what the transformer gives (JSON): `etcdctl get --prefix /registry` reads them.
//!
//! Invariants: etcd answers a write after its log is on disk, so what is acknowledged is durable; a write is never sent twice, because
//! whether a lost one happened can't be known; what surely had no effect is repeated for a moment, so that a restart of etcd goes by.
//!
//! Revisions are etcd's own plus a constant, kept in etcd under [`BASE_KEY`] and 0 unless data was moved here from another store:
//! then it lifts the revisions above all that clients have seen. Upstream counterpart: `apiserver/pkg/storage/etcd3` (v1.33).

mod compact;
mod lease;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity, KvClient, PutOptions, TlsOptions, Txn,
    TxnOp,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Code;

use super::{Changes, Entry, Expect, Page, Result, Revision, Storage, StoreError};
use lease::Leases;

/// Holds, in decimal digits, what is added to etcd's revisions.
const BASE_KEY: &str = "coracle_revision_base";
/// The prefix the API server's keys have by themselves.
const OWN_PREFIX: &str = "/registry/";
/// Entries of one range. Bounds the memory of an answer on both sides.
const PAGE: usize = 500;
/// As upstream: a dead connection is noticed by its silence.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a start waits for an etcd that is not there, as upstream's dial timeout.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest one call may take. etcd gives up by itself after seven seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call that had no effect is repeated, and how often.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(50));

/// Where etcd is, and who we are to it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// URLs, as `https://10.0.0.1:2379`.
    pub servers: Vec<String>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The folder of all keys, without a slash at its end: `/registry`.
    pub prefix: String,
}

/// The etcd backend. Dropping it ends its compactor.
pub struct Etcd {
    shared: Arc<Shared>,
    compactor: AbortHandle,
}

struct Shared {
    client: Client,
    /// With a slash at its end.
    prefix: String,
    base: Revision,
    leases: Leases,
}

/// What a call can end with, beside an answer.
enum Failure {
    Store(StoreError),
    /// etcd does not hold the asked revision: any more, or yet.
    OutOfRange {
        compacted: bool,
    },
    /// The lease is gone; nothing was written.
    NoLease,
}

type Called<T> = std::result::Result<T, Failure>;

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Store(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let why = match failure {
            Failure::Store(error) => return error,
            Failure::OutOfRange { .. } => "etcdserver: mvcc: the revision is out of range",
            Failure::NoLease => "etcdserver: requested lease not found",
        };
        StoreError::Refused { why: why.into() }
    }
}

/// When a failed call may be made again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// It only reads.
    Always,
    /// It writes: only if it never left this process.
    Unsent,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.compactor.abort();
    }
}

impl Etcd {
    /// Connect, and wait a little for an etcd that is just starting. Errors: unreadable files, bad URLs, no answer.
    pub async fn connect(options: &Options) -> anyhow::Result<Self> {
        let mut shared = Shared::connect(options).await?;
        shared.base = shared.read_base().await?;
        Ok(Etcd::start(shared))
    }

    /// The same, emptied, and with all its revisions to come greater than `above`.
    pub async fn emptied(options: &Options, above: Revision) -> anyhow::Result<Self> {
        let mut shared = Shared::connect(options).await?;
        let base = shared.read_base().await?;
        let mut kv = shared.kv();
        let deleted = kv.delete(shared.prefix.as_str(), Some(DeleteOptions::new().with_prefix())).await?;
        let now = revision_of(deleted.0.header.as_ref().map(|h| h.revision));
        shared.base = base.max(above.saturating_sub(now));
        kv.put(BASE_KEY, shared.base.to_string(), None).await?;
        Ok(Etcd::start(shared))
    }

    fn start(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let compactor = tokio::spawn(compact::run(shared.clone())).abort_handle();
        Etcd { shared, compactor }
    }
}

impl Shared {
    async fn connect(options: &Options) -> anyhow::Result<Self> {
        let mut connect = ConnectOptions::new()
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_require_leader(true);
        if let Some(tls) = tls(options)? {
            connect = connect.with_tls(tls);
        }
        let servers = options.servers.join(", ");
        let client = Client::connect(&options.servers, Some(connect)).await.with_context(|| format!("connecting to etcd at {servers}"))?;
        let prefix = format!("/{}/", options.prefix.trim_matches('/'));
        let shared = Shared { client, prefix, base: 0, leases: Leases::default() };
        let deadline = Instant::now() + DIAL_TIMEOUT;
        loop {
            match shared.revision().await {
                Ok(_) => return Ok(shared),
                Err(error) if Instant::now() > deadline => return Err(error).with_context(|| format!("etcd at {servers} does not answer")),
                Err(error) => tracing::warn!(%error, servers, "waiting for etcd"),
            }
        }
    }

    async fn read_base(&self) -> anyhow::Result<Revision> {
        let answer = self.call("reading the base of revisions", Repeat::Always, |mut kv| async move { kv.get(BASE_KEY, None).await }).await;
        let answer = answer.map_err(StoreError::from)?;
        let Some(entry) = answer.0.kvs.first() else { return Ok(0) };
        std::str::from_utf8(&entry.value)?.parse().with_context(|| format!("the value of {BASE_KEY}"))
    }

    fn kv(&self) -> KvClient {
        // Pages are bounded by count, objects by etcd; the decoder's own 4 MiB would refuse what both allow.
        self.client.kv_client().max_decoding_message_size(usize::MAX)
    }

    /// Etcd's revision now, as all its members agree.
    async fn revision(&self) -> Result<Revision> {
        let options = || Some(GetOptions::new().with_count_only());
        let answer = self.call("reading the revision", Repeat::Always, |mut kv| async move { kv.get(BASE_KEY, options()).await }).await?;
        Ok(revision_of(answer.0.header.as_ref().map(|h| h.revision)))
    }

    /// One call, repeated for a moment if it can't have had an effect and etcd is away.
    async fn call<T, F>(&self, doing: &str, repeat: Repeat, call: impl Fn(KvClient) -> F) -> Called<T>
    where
        F: Future<Output = std::result::Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + PATIENCE.0;
        loop {
            let Ok(outcome) = tokio::time::timeout(CALL_TIMEOUT, call(self.kv())).await else {
                return Err(Failure::Store(StoreError::TimedOut { doing: doing.to_owned() }));
            };
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let harmless = never_sent(&error) || repeat == Repeat::Always && is_away(&error);
            if !harmless || Instant::now() > deadline {
                return Err(interpret(doing, error));
            }
            tokio::time::sleep(PATIENCE.1).await;
        }
    }

    fn outer_key(&self, key: &str) -> String {
        match key.strip_prefix(OWN_PREFIX) {
            Some(rest) => format!("{}{rest}", self.prefix),
            None => key.to_owned(),
        }
    }

    /// The inverse of `outer_key`; keys of others never look like ours.
    fn inner_key(&self, key: Vec<u8>) -> String {
        let key = String::from_utf8(key).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        if self.prefix == OWN_PREFIX {
            return key;
        }
        match key.strip_prefix(&self.prefix) {
            Some(rest) => format!("{OWN_PREFIX}{rest}"),
            None if key.starts_with(OWN_PREFIX) => format!("/{key}"),
            None => key,
        }
    }

    fn entry(&self, kv: PbKeyValue) -> Entry {
        Entry { key: self.inner_key(kv.key), value: kv.value.into(), revision: self.base + revision_of(Some(kv.mod_revision)) }
    }

    /// `asked` as etcd counts. What lies before the base belongs to another store.
    fn etcd_revision(&self, asked: Revision) -> Result<i64> {
        let revision = asked.checked_sub(self.base).ok_or(StoreError::Compacted { asked, oldest: self.base + 1 })?;
        // 0 would mean "now"; an empty etcd stands at 1.
        Ok(i64::try_from(revision).unwrap_or(i64::MAX).max(1))
    }

    /// One range at a revision. `None` = now.
    async fn range(&self, from: &str, end: &[u8], limit: usize, at: Option<Revision>) -> Result<(Vec<Entry>, bool, Revision)> {
        let mut options = GetOptions::new().with_range(end).with_limit(limit as i64);
        if let Some(at) = at {
            options = options.with_revision(self.etcd_revision(at)?);
        }
        let options = &options;
        let answer = self.call("listing", Repeat::Always, |mut kv| async move { kv.get(from, Some(options.clone())).await }).await;
        let answer = match answer {
            Ok(answer) => answer.0,
            Err(Failure::OutOfRange { compacted: true }) => {
                let asked = at.unwrap_or_default();
                return Err(StoreError::Compacted { asked, oldest: asked + 1 });
            }
            Err(Failure::OutOfRange { compacted: false }) => {
                return Err(StoreError::Future { asked: at.unwrap_or_default(), current: self.base + self.revision().await? });
            }
            Err(error) => return Err(error.into()),
        };
        let revision = at.unwrap_or(self.base + revision_of(answer.header.as_ref().map(|h| h.revision)));
        Ok((answer.kvs.into_iter().map(|kv| self.entry(kv)).collect(), answer.more, revision))
    }

    /// `operation` if `key` was last changed at `expect` (0 = is not there).
    async fn swap(&self, doing: &str, key: &str, expect: Revision, operation: TxnOp) -> Called<Revision> {
        let key = &self.outer_key(key);
        let expected = if expect == 0 { 0 } else { self.etcd_revision(expect)? };
        let transaction = Txn::new()
            .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, expected)])
            .and_then([operation])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let transaction = &transaction;
        let answer = self.call(doing, Repeat::Unsent, |mut kv| async move { kv.txn(transaction.clone()).await }).await?.0;
        if answer.succeeded {
            return Ok(self.base + revision_of(answer.header.as_ref().map(|h| h.revision)));
        }
        let found = answer.responses.into_iter().find_map(|response| match response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        let current = found.map(|kv| self.entry(kv));
        Err(Failure::Store(StoreError::Conflict { key: self.inner_key(key.clone().into_bytes()), current }))
    }

    async fn compact(&self, revision: i64) -> Result<()> {
        match self.call("compacting", Repeat::Always, |mut kv| async move { kv.compact(revision, None).await }).await {
            // Somebody was there before.
            Ok(_) | Err(Failure::OutOfRange { compacted: true }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl Storage for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.base + self.shared.revision().await?)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let key = &self.shared.outer_key(key);
        let answer = self.shared.call("reading", Repeat::Always, |mut kv| async move { kv.get(key.as_str(), None).await }).await?;
        Ok(answer.0.kvs.into_iter().next().map(|kv| self.shared.entry(kv)))
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let prefix = self.shared.outer_key(prefix);
        let end = end_of(&prefix);
        let mut from = start_after.map_or_else(|| prefix.clone(), |key| format!("{}\0", self.shared.outer_key(key)));
        let (mut entries, mut at) = (Vec::new(), at);
        loop {
            let wanted = if limit == 0 { PAGE } else { PAGE.min(limit - entries.len()) };
            let (page, more, revision) = self.shared.range(&from, &end, wanted, at).await?;
            at = Some(revision);
            entries.extend(page);
            if !more || entries.len() == limit {
                return Ok(Page { entries, more, revision });
            }
            if let Some(last) = entries.last() {
                from = format!("{}\0", self.shared.outer_key(&last.key));
            }
        }
    }

    async fn put(&self, key: &str, value: Bytes, expect: Expect, ttl: Option<Duration>) -> Result<Revision> {
        let shared = &self.shared;
        let expect = match expect {
            Expect::Absent => 0,
            Expect::At(revision) => revision,
        };
        let outer = shared.outer_key(key);
        let Some(ttl) = ttl else {
            return Ok(shared.swap("writing", key, expect, TxnOp::put(outer, value, None)).await?);
        };
        let lease = shared.leases.get(&shared.client, ttl).await?;
        let put = || TxnOp::put(outer.as_str(), value.clone(), Some(PutOptions::new().with_lease(lease)));
        match shared.swap("writing", key, expect, put()).await {
            Err(Failure::NoLease) => {
                // Revoked by somebody, or gone with an older etcd. Nothing was written.
                shared.leases.forget().await;
                let lease = shared.leases.get(&shared.client, ttl).await?;
                let put = TxnOp::put(outer, value, Some(PutOptions::new().with_lease(lease)));
                Ok(shared.swap("writing", key, expect, put).await?)
            }
            outcome => Ok(outcome?),
        }
    }

    async fn delete(&self, key: &str, expect: Revision) -> Result<Revision> {
        let operation = TxnOp::delete(self.shared.outer_key(key), None);
        Ok(self.shared.swap("deleting", key, expect, operation).await?)
    }

    async fn watch(&self, after: Revision) -> Result<Changes> {
        let shared = &self.shared;
        let start = if after == 0 { shared.base } else { after };
        // A stream says only later that its start is compacted; a range says it now.
        shared.range(BASE_KEY, &end_of(BASE_KEY), 1, Some(start)).await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let last = i64::try_from(start - shared.base).unwrap_or(i64::MAX);
        tokio::spawn(stream::follow(shared.clone(), last, sender));
        Ok(receiver)
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.shared.compact(self.shared.etcd_revision(revision)?).await
    }
}

fn tls(options: &Options) -> anyhow::Result<Option<TlsOptions>> {
    if !options.servers.iter().any(|server| server.starts_with("https://")) {
        return Ok(None);
    }
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let mut tls = TlsOptions::new();
    if let Some(ca) = &options.ca {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    if let (Some(certificate), Some(key)) = (&options.certificate, &options.key) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(Some(tls))
}

/// The first key behind all that begin with `prefix`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// Revisions of etcd are positive; a header that is missing reads as 0, which no client takes for progress.
fn revision_of(number: Option<i64>) -> Revision {
    number.and_then(|n| u64::try_from(n).ok()).unwrap_or_default()
}

fn code(error: &etcd_client::Error) -> Code {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.code(),
        etcd_client::Error::TransportError(_) | etcd_client::Error::IoError(_) => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// The connection broke, or etcd has no leader. A broken connection shows as "cancelled" or "unknown" too.
fn is_away(error: &etcd_client::Error) -> bool {
    matches!(code(error), Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal)
}

/// No connection could be made, so nothing was sent.
fn never_sent(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn interpret(doing: &str, error: etcd_client::Error) -> Failure {
    let said = match &error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let doing = doing.to_owned();
    Failure::Store(match code(&error) {
        Code::OutOfRange => return Failure::OutOfRange { compacted: said.contains("compacted") },
        Code::NotFound => return Failure::NoLease,
        Code::DeadlineExceeded => StoreError::TimedOut { doing },
        Code::InvalidArgument | Code::ResourceExhausted | Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition => {
            StoreError::Refused { why: said }
        }
        _ => StoreError::Unavailable { doing, why: whole(&said, &error) },
    })
}

/// etcd's own words; for a broken connection, those of the innermost cause too.
fn whole(said: &str, error: &etcd_client::Error) -> String {
    if said.starts_with("etcdserver:") {
        return said.to_owned();
    }
    let mut innermost = None;
    if let etcd_client::Error::GRpcStatus(status) = error {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
        while let Some(error) = cause {
            innermost = Some(error.to_string());
            cause = error.source();
        }
    }
    match innermost {
        Some(inner) if inner != said => format!("etcd: {said}: {inner}"),
        _ => format!("etcd: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_behind_its_prefix() {
        assert_eq!(end_of("/registry/"), b"/registry0");
        assert_eq!(end_of(""), [0]);
    }
}
