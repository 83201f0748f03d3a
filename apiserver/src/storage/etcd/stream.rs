//! One watch over all keys, from a revision on, for as long as somebody listens.
//!
//! All keys, so that every revision carries an event and nobody needs progress requests (etcd before 3.4.31 answers those wrongly).
//! Previous values are not asked for: the cache has them. Large answers come in fragments, which are put together again, so that
//! all changes of one revision are handed on at once.
//!
//! A broken connection is made anew from the revision after the last one handed on: no gap, no repetition. If etcd has compacted that
//! revision away, or has gone back in time (restored from a backup), the stream ends, and its listener must list again.
//! Upstream counterpart: `storage/etcd3/watcher.go` (v1.33).

use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::PbEvent;
use etcd_client::{WatchOptions, WatchStream};
use tokio::sync::mpsc::UnboundedSender;

use super::{CALL_TIMEOUT, Shared, revision_of};
use crate::storage::Change;

/// The pause before a broken stream is opened again.
const RECONNECT: Duration = Duration::from_millis(200);
/// `mvccpb.Event.EventType.DELETE`.
const DELETE: i32 = 1;

/// Why a stream ended.
enum End {
    /// It can be taken up where it was.
    Broken(String),
    /// What comes next can't be had any more.
    Gone(String),
}

/// `last` is the last revision, as etcd counts, that the listener has.
pub async fn follow(shared: Arc<Shared>, mut last: i64, listener: UnboundedSender<Vec<Change>>) {
    let mut announced = false;
    loop {
        let before = last;
        let end = tokio::select! {
            end = listen(&shared, &mut last, &listener) => end,
            () = listener.closed() => return,
        };
        match end {
            End::Broken(why) => {
                // Once an outage, not five times a second.
                if !announced || last != before {
                    tracing::warn!(why, after = last, "the stream of changes from etcd broke, taking it up again");
                }
                announced = true;
                tokio::time::sleep(RECONNECT).await;
            }
            End::Gone(why) => return tracing::error!(why, after = last, "the stream of changes from etcd can't go on"),
        }
    }
}

async fn listen(shared: &Shared, last: &mut i64, listener: &UnboundedSender<Vec<Change>>) -> End {
    let mut stream = match open(shared, *last).await {
        Ok(stream) => stream,
        Err(end) => return end,
    };
    let mut batch = Vec::new();
    loop {
        let answer = match stream.message().await {
            Ok(Some(answer)) => answer.0,
            Ok(None) => return End::Broken("the stream has ended".into()),
            Err(error) => return End::Broken(error.to_string()),
        };
        if answer.canceled {
            return match answer.compact_revision {
                0 => End::Broken(answer.cancel_reason),
                oldest => End::Gone(format!("revisions before {oldest} have been compacted")),
            };
        }
        batch.extend(answer.events.into_iter().filter_map(|event| change(shared, event)));
        if answer.fragment {
            continue;
        }
        let Some(newest) = batch.last().map(|change: &Change| change.revision) else { continue };
        *last = i64::try_from(newest - shared.base).unwrap_or(i64::MAX);
        if listener.send(std::mem::take(&mut batch)).is_err() {
            return End::Gone("nobody listens any more".into());
        }
    }
}

async fn open(shared: &Shared, last: i64) -> Result<WatchStream, End> {
    let now = shared.revision().await.map_err(|error| End::Broken(error.to_string()))?;
    if now < revision_of(Some(last)) {
        return Err(End::Gone(format!("etcd stands at revision {now}, before what was seen")));
    }
    let options = WatchOptions::new().with_all_keys().with_fragment().with_start_revision(last + 1);
    let mut client = shared.client.watch_client().max_decoding_message_size(usize::MAX);
    match tokio::time::timeout(CALL_TIMEOUT, client.watch("", Some(options))).await {
        Ok(opened) => opened.map_err(|error| End::Broken(error.to_string())),
        Err(_) => Err(End::Broken("no answer".into())),
    }
}

fn change(shared: &Shared, event: PbEvent) -> Option<Change> {
    let deleted = event.r#type == DELETE;
    let entry = shared.entry(event.kv?);
    Some(Change { revision: entry.revision, key: entry.key, value: (!deleted).then_some(entry.value) })
}
