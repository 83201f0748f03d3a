//! The suite every storage backend passes. A backend's test makes empty stores and hands them in.
//!
//! It panics with a sentence on the first broken promise, so it is called from tests only.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Changes, Expect, Revision, Storage, StoreError};

type Store = Arc<dyn Storage>;

/// Run every check, each on a store of its own.
pub async fn check<F: Future<Output = Store>>(fresh: impl Fn() -> F) {
    compare_and_swap(fresh().await).await;
    lists_page_at_a_revision(fresh().await).await;
    watch_carries_every_revision(fresh().await).await;
    compaction_keeps_the_present(fresh().await).await;
    keys_expire(fresh().await).await;
    writers_race_without_loss(fresh().await).await;
}

fn text(value: &'static str) -> Bytes {
    Bytes::from_static(value.as_bytes())
}

async fn create(store: &Store, key: &str, value: &'static str) -> Revision {
    store.put(key, text(value), Expect::Absent, None).await.unwrap()
}

async fn compare_and_swap(store: Store) {
    let first = create(&store, "/a", "1").await;
    let again = store.put("/a", text("2"), Expect::Absent, None).await;
    let Err(StoreError::Conflict { current: Some(current), .. }) = again else { panic!("a second create must conflict") };
    assert_eq!((current.revision, current.value), (first, text("1")));
    let second = store.put("/a", text("2"), Expect::At(first), None).await.unwrap();
    assert!(second > first, "revisions grow");
    assert!(matches!(store.delete("/a", first).await, Err(StoreError::Conflict { .. })), "a stale delete must conflict");
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, text("2"));
    let third = store.delete("/a", second).await.unwrap();
    assert!(store.get("/a").await.unwrap().is_none());
    assert_eq!(store.revision().await.unwrap(), third);
    let missing = store.delete("/a", third).await;
    assert!(matches!(missing, Err(StoreError::Conflict { current: None, .. })), "nothing is there to delete");
    create(&store, "/a", "3").await;
}

async fn lists_page_at_a_revision(store: Store) {
    for key in ["/p/a", "/p/b", "/p/c", "/q/a"] {
        create(&store, key, "1").await;
    }
    let then = store.revision().await.unwrap();
    let b = store.get("/p/b").await.unwrap().unwrap();
    store.delete("/p/b", b.revision).await.unwrap();
    create(&store, "/p/bb", "1").await;
    let keys = async |after: Option<&str>, limit, at| {
        let page = store.list("/p/", after, limit, at).await.unwrap();
        (page.entries.into_iter().map(|e| e.key).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(keys(None, 0, None).await, (vec!["/p/a".into(), "/p/bb".into(), "/p/c".into()], false));
    assert_eq!(keys(None, 2, Some(then)).await, (vec!["/p/a".into(), "/p/b".into()], true));
    assert_eq!(keys(Some("/p/b"), 2, Some(then)).await, (vec!["/p/c".into()], false));
    let ahead = store.list("/p/", None, 0, Some(then + 1000)).await;
    assert!(matches!(ahead, Err(StoreError::Future { .. })));
}

/// The next `n` changes as (revision, key, is a put).
async fn take(changes: &mut Changes, n: usize) -> Vec<(Revision, String, bool)> {
    let mut out = Vec::new();
    while out.len() < n {
        let batch = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await.unwrap().unwrap();
        out.extend(batch.into_iter().map(|c| (c.revision, c.key, c.value.is_some())));
    }
    out
}

async fn watch_carries_every_revision(store: Store) {
    let first = create(&store, "/a", "1").await;
    let second = create(&store, "/b", "1").await;
    let mut late = store.watch(first).await.unwrap();
    let third = store.delete("/a", first).await.unwrap();
    let expected = vec![(second, "/b".to_owned(), true), (third, "/a".to_owned(), false)];
    assert_eq!(take(&mut late, 2).await, expected, "replay, then news, no gap");
    let mut all = store.watch(0).await.unwrap();
    assert_eq!(take(&mut all, 3).await.len(), 3);
}

async fn compaction_keeps_the_present(store: Store) {
    let first = create(&store, "/a", "1").await;
    let second = store.put("/a", text("2"), Expect::At(first), None).await.unwrap();
    let b = create(&store, "/b", "1").await;
    let deleted = store.delete("/b", b).await.unwrap();
    store.compact(deleted).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap().unwrap().revision, second);
    assert!(store.get("/b").await.unwrap().is_none());
    assert!(matches!(store.watch(first).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(store.list("/", None, 0, Some(first)).await, Err(StoreError::Compacted { .. })));
    assert_eq!(store.list("/", None, 0, Some(deleted)).await.unwrap().entries.len(), 1);
    let again = create(&store, "/b", "2").await;
    assert_eq!(store.list("/", None, 0, Some(deleted)).await.unwrap().entries.len(), 1, "not yet there at that revision");
    store.compact(again).await.unwrap();
    assert_eq!(store.list("/", None, 0, None).await.unwrap().entries.len(), 2);
}

async fn keys_expire(store: Store) {
    let revision = store.put("/short", text("1"), Expect::Absent, Some(Duration::from_millis(50))).await.unwrap();
    let renewed = store.put("/kept", text("1"), Expect::Absent, Some(Duration::from_millis(50))).await.unwrap();
    store.put("/kept", text("2"), Expect::At(renewed), Some(Duration::from_secs(600))).await.unwrap();
    let mut changes = store.watch(revision).await.unwrap();
    let seen = take(&mut changes, 3).await;
    assert_eq!((seen[2].1.as_str(), seen[2].2), ("/short", false), "expiry is a change like any other");
    assert!(store.get("/kept").await.unwrap().is_some());
}

async fn writers_race_without_loss(store: Store) {
    let start = create(&store, "/counter", "0").await;
    let mut writers = tokio::task::JoinSet::new();
    let mut racers = tokio::task::JoinSet::new();
    for n in 0..16 {
        let (one, other) = (store.clone(), store.clone());
        writers.spawn(async move { one.put(&format!("/w/{n}"), text("1"), Expect::Absent, None).await.unwrap() });
        racers.spawn(async move { other.put("/counter", text("1"), Expect::At(start), None).await.is_ok() });
    }
    let mut revisions: Vec<Revision> = writers.join_all().await;
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 16, "each write has a revision of its own");
    assert_eq!(store.list("/w/", None, 0, None).await.unwrap().entries.len(), 16);
    let winners = racers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1, "of several swaps from one revision exactly one wins");
}
