//! The etcd backend: the contract, and what only etcd can suffer: outages, compaction by others, leases, moved data.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kube_apiserver::storage::etcd::Etcd;
use kube_apiserver::storage::{Change, Changes, Expect, Storage, StoreError, contract};
use parking_lot::Mutex;
use support::etcd::EtcdServer;

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    if EtcdServer::start(&dir.path().join("probe")).is_none() {
        return;
    }
    let (count, servers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    contract::check(|| {
        let path = dir.path().join(count.fetch_add(1, Ordering::Relaxed).to_string());
        let server = EtcdServer::start(&path).unwrap();
        let options = server.options();
        servers.lock().push(server);
        async move { Arc::new(Etcd::connect(&options).await.unwrap()) as Arc<dyn Storage> }
    })
    .await;
}

async fn next(changes: &mut Changes) -> Vec<Change> {
    tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_etcd_costs_time_and_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut server) = EtcdServer::start(dir.path()) else { return };
    let store = server.connect().await;
    let mut changes = store.watch(0).await.unwrap();
    let first = store.put("/registry/a", "1".into(), Expect::Absent, None).await.unwrap();
    assert_eq!(next(&mut changes).await[0].revision, first);
    server.kill();
    let began = Instant::now();
    let refused = store.put("/registry/b", "1".into(), Expect::Absent, None).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(matches!(store.get("/registry/a").await, Err(StoreError::Unavailable { .. })));
    assert!(began.elapsed() < Duration::from_secs(9), "a store that is away is said to be away soon");
    server.restart();
    // Written by somebody else before our stream is back.
    let second = server.connect().await.put("/registry/b", "2".into(), Expect::Absent, None).await.unwrap();
    let third = store.put("/registry/a", "2".into(), Expect::At(first), None).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(next(&mut changes).await.into_iter().map(|change| change.revision));
    }
    assert_eq!(seen, [second, third]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_left_behind_by_compaction_must_list_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut server) = EtcdServer::start(dir.path()) else { return };
    let store = server.connect().await;
    let first = store.put("/registry/a", "1".into(), Expect::Absent, None).await.unwrap();
    let mut changes = store.watch(first).await.unwrap();
    // While our stream is down, others write and compact.
    server.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.restart();
    let other = server.connect().await;
    let mut last = first;
    for n in 0..3 {
        last = other.put("/registry/a", n.to_string().into(), Expect::At(last), None).await.unwrap();
    }
    other.compact(last).await.unwrap();
    // Either it was quick enough to see all three, or it is told that it was not.
    let mut seen = 0;
    while let Some(batch) = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.unwrap() {
        seen += batch.len();
        if seen == 3 {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_lease_vanish_in_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = EtcdServer::start(dir.path()) else { return };
    let store = server.connect().await;
    let mut last = 0;
    for n in 0..20 {
        last = store.put(&format!("/registry/events/a/{n}"), "1".into(), Expect::Absent, Some(Duration::from_secs(2))).await.unwrap();
        if n == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut changes = store.watch(last).await.unwrap();
    let mut gone = Vec::new();
    while gone.len() < 20 {
        let batch = next(&mut changes).await;
        assert!(gone.last().is_none_or(|last| batch[0].revision > *last), "a revision is never parted");
        gone.extend(batch.iter().map(|change| change.revision));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_etcd_counts_on_from_above() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = EtcdServer::start(dir.path()) else { return };
    let store = server.connect().await;
    let old = store.put("/registry/a", "1".into(), Expect::Absent, None).await.unwrap();
    let store = Etcd::emptied(&server.options(), 5000).await.unwrap();
    assert!(store.get("/registry/a").await.unwrap().is_none());
    let first = store.put("/registry/a", "2".into(), Expect::Absent, None).await.unwrap();
    assert!(first > 5000);
    assert!(matches!(store.watch(old).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(store.list("/", None, 0, Some(old)).await, Err(StoreError::Compacted { .. })));
    let mut changes = store.watch(first).await.unwrap();
    drop(store);
    // Whoever comes later finds the same numbers.
    let store = server.connect().await;
    assert_eq!(store.get("/registry/a").await.unwrap().unwrap().revision, first);
    let second = store.put("/registry/a", "3".into(), Expect::At(first), None).await.unwrap();
    assert_eq!((second, next(&mut changes).await[0].revision), (first + 1, second));
    // Emptied again, it still never goes back.
    let store = Etcd::emptied(&server.options(), 10).await.unwrap();
    assert!(store.revision().await.unwrap() > second);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_values_are_listed_and_watched() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = EtcdServer::start(dir.path()) else { return };
    let store = server.connect().await;
    let large = "x".repeat(1 << 20);
    for n in 0..12 {
        store.put(&format!("/registry/secrets/a/{n}"), large.clone().into(), Expect::Absent, None).await.unwrap();
    }
    assert_eq!(store.list("/registry/", None, 0, None).await.unwrap().entries.len(), 12);
    let mut changes = store.watch(0).await.unwrap();
    let mut seen = 0;
    while seen < 12 {
        seen += next(&mut changes).await.len();
    }
    let too_large = store.put("/registry/secrets/a/x", "x".repeat(7 << 18).into(), Expect::Absent, None).await;
    assert!(matches!(&too_large, Err(StoreError::Refused { why }) if why == "etcdserver: request is too large"), "{too_large:?}");
}
