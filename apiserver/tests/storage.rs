//! The storage contract, on every backend.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kube_apiserver::storage::embedded::Embedded;
use kube_apiserver::storage::{Expect, Storage, contract};

#[tokio::test(flavor = "multi_thread")]
async fn embedded_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    contract::check(|| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.path().join(n.to_string());
        async move { Arc::new(Embedded::open(&path).unwrap()) as Arc<dyn Storage> }
    })
    .await;
}

#[tokio::test]
async fn embedded_is_there_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let first = store.put("/a", "1".into(), Expect::Absent, None).await.unwrap();
    let second = store.put("/b", "1".into(), Expect::Absent, None).await.unwrap();
    drop(store);
    // The writer lets go of the file when its queue is closed.
    let store = loop {
        match Embedded::open(dir.path()) {
            Ok(store) => break store,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    };
    assert_eq!(store.revision().await.unwrap(), second);
    assert_eq!(store.get("/a").await.unwrap().unwrap().revision, first);
    let third = store.put("/c", "1".into(), Expect::Absent, None).await.unwrap();
    assert_eq!(third, second + 1, "revisions go on where they were");
}
