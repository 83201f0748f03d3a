//! Forgets history older than five minutes, once for all API servers of an etcd.
//!
//! The version of [`COMPACT_KEY`] counts compactions. Each server tries to raise it every five minutes from what it saw last; who succeeds
//! compacts up to the revision it noted the time before, the others learn the new count and try again later.
//! Upstream counterpart: `storage/etcd3/compact.go` (v1.33), with the same key, so that stock servers and ours take turns.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::{Repeat, Result, Shared};

const COMPACT_KEY: &str = "compact_rev_key";
const INTERVAL: Duration = Duration::from_secs(300);

/// What a server remembers between two attempts.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Version of the key.
    count: i64,
    /// etcd's revision at that time; 0 = none yet.
    revision: i64,
}

pub async fn run(shared: Arc<Shared>) {
    let mut seen = Seen::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        match round(&shared, seen).await {
            Ok(now) => seen = now,
            Err(error) => tracing::warn!(%error, "compaction failed, trying again in five minutes"),
        }
    }
}

async fn round(shared: &Shared, seen: Seen) -> Result<Seen> {
    let transaction = &Txn::new()
        .when([Compare::version(COMPACT_KEY, CompareOp::Equal, seen.count)])
        .and_then([TxnOp::put(COMPACT_KEY, seen.revision.to_string(), None)])
        .or_else([TxnOp::get(COMPACT_KEY, None)]);
    let answer = shared.call("noting a compaction", Repeat::Unsent, |mut kv| async move { kv.txn(transaction.clone()).await }).await?.0;
    let revision = answer.header.map_or(0, |header| header.revision);
    if !answer.succeeded {
        let found = answer.responses.into_iter().find_map(|response| match response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.first().map(|kv| kv.version),
            _ => None,
        });
        return Ok(Seen { count: found.unwrap_or_default(), revision });
    }
    if seen.revision > 0 {
        shared.compact(seen.revision).await?;
        tracing::debug!(revision = seen.revision, "compacted");
    }
    Ok(Seen { count: seen.count + 1, revision })
}
