//! The controller loop, written once: take a key, sync it, retry with back-off.
//!
//! Upstream: the `worker`/`processNextWorkItem` pair that every controller repeats.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::Key;
use tracing::Instrument;

use crate::queue::{Item, WorkQueue};
use crate::{CancellationToken, cause};

/// What a sync asks for when it went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing more until something changes.
    Done,
    /// Look again after this long (a deadline that no watch announces).
    After(Duration),
}

/// Runs `workers` loops over `queue` until `token` is cancelled. An error is logged and the key retried with back-off.
pub async fn run<T, S, F>(name: &'static str, queue: WorkQueue<T>, workers: usize, sync: S, token: CancellationToken)
where
    T: Item + std::fmt::Display,
    S: Fn(T) -> F + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<Next>> + Send,
{
    queue.measure(name);
    let sync = Arc::new(sync);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let (queue, sync) = (queue.clone(), sync.clone());
        tasks.spawn(async move { worker(name, queue, &*sync).await });
    }
    token.cancelled().await;
    queue.shut_down();
    // A sync in flight may finish; nobody waits for one that hangs.
    let _timed_out = tokio::time::timeout(Duration::from_secs(5), async { while tasks.join_next().await.is_some() {} }).await;
}

async fn worker<T, S, F>(name: &'static str, queue: WorkQueue<T>, sync: &S)
where
    T: Item + std::fmt::Display,
    S: Fn(T) -> F,
    F: Future<Output = anyhow::Result<Next>> + Send,
{
    while let Some(item) = queue.next().await {
        let key = (*item).clone();
        let span = tracing::debug_span!("sync", controller = name, %key);
        let outcome = cause::scope(item.cause.clone(), async {
            let outcome = sync(key.clone()).await;
            settle(name, &queue, key, outcome);
        });
        outcome.instrument(span).await;
    }
}

/// Inside the cause's scope, so that a retry keeps the cause.
fn settle<T: Item + std::fmt::Display>(name: &str, queue: &WorkQueue<T>, key: T, outcome: anyhow::Result<Next>) {
    match outcome {
        Ok(Next::Done) => queue.forget(&key),
        Ok(Next::After(delay)) => {
            queue.forget(&key);
            queue.add_after(key, delay);
        }
        Err(error) => {
            let conflict = error.downcast_ref::<kube::Error>().is_some_and(is_conflict);
            if conflict {
                tracing::debug!(controller = name, %key, "conflict, retrying");
            } else {
                tracing::warn!(controller = name, %key, "sync failed, retrying: {error:#}");
            }
            queue.add_rate_limited(key);
        }
    }
}

pub fn is_not_found(error: &kube::Error) -> bool {
    has_code(error, 404)
}

pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict")
}

pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

pub fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// The usual queue of a controller.
pub type KeyQueue = WorkQueue<Key>;
