//! What a controller has asked for and not yet seen in its informer.
//!
//! A sync that looks at a cache which lags behind its own writes would create or delete a second time. So a key's
//! pods are counted off: the sync states what it is about to do, the informer's handler reports what arrived, and
//! until both agree the sync touches no pods. After five minutes the books are closed, as an event may be lost.
//! An owner that is made again under its old name begins with clean books: nothing of its forerunner's is waited for or counted.
//!
//! Upstream: `pkg/controller/controller_utils.go`, ControllerExpectations and UIDTrackingControllerExpectations.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use api::key::Key;
use parking_lot::Mutex;

use super::meta;
use super::write::Object;

const TIMEOUT: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub struct Expectations {
    open: Mutex<HashMap<Key, Entry>>,
}

struct Entry {
    /// The owner's UID.
    owner: String,
    creations: usize,
    /// By UID: a pod is reported gone twice, when its deletion starts and when it ends.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// May this owner's pods be changed?
    pub fn satisfied(&self, owner: &impl Object) -> bool {
        self.satisfied_at(&meta::key(owner), meta::uid(owner), Instant::now())
    }

    fn satisfied_at(&self, key: &Key, owner: &str, now: Instant) -> bool {
        let open = self.open.lock();
        let Some(entry) = open.get(key).filter(|entry| entry.owner == owner) else { return true };
        (entry.creations == 0 && entry.deletions.is_empty()) || now.duration_since(entry.since) > TIMEOUT
    }

    /// Call before the writes; replaces what was expected before.
    pub fn expect(&self, owner: &impl Object, creations: usize, deletions: impl IntoIterator<Item = String>) {
        self.enter(meta::key(owner), meta::uid(owner), creations, deletions);
    }

    fn enter(&self, key: Key, owner: &str, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let entry = Entry { owner: owner.to_owned(), creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.open.lock().insert(key, entry);
    }

    /// A creation was seen; `owner` is the UID in the pod's reference.
    pub fn created(&self, key: &Key, owner: &str) {
        if let Some(entry) = self.open.lock().get_mut(key).filter(|entry| entry.owner == owner) {
            entry.creations = entry.creations.saturating_sub(1);
        }
    }

    /// These creations did not happen.
    pub fn give_up_creations(&self, key: &Key, count: usize) {
        if let Some(entry) = self.open.lock().get_mut(key) {
            entry.creations = entry.creations.saturating_sub(count);
        }
    }

    /// A deletion was seen, or did not happen.
    pub fn deleted(&self, key: &Key, uid: &str) {
        if let Some(entry) = self.open.lock().get_mut(key) {
            entry.deletions.remove(uid);
        }
    }

    /// The owner is gone.
    pub fn forget(&self, key: &Key) {
        self.open.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_until_everything_was_seen_or_time_is_up() {
        let (books, key) = (Expectations::default(), Key::new("default", "web"));
        let satisfied = |owner: &str| books.satisfied_at(&key, owner, Instant::now());
        assert!(satisfied("o1"));
        books.enter(key.clone(), "o1", 2, ["u1".to_owned()]);
        books.created(&key, "o1");
        books.deleted(&key, "u1");
        books.deleted(&key, "u1");
        assert!(!satisfied("o1"));
        assert!(books.satisfied_at(&key, "o1", Instant::now() + TIMEOUT + Duration::from_secs(1)));
        books.created(&key, "another");
        assert!(!satisfied("o1"), "a pod of another owner of that name");
        assert!(satisfied("o2"), "an owner made again under the name waits for nothing");
        books.created(&key, "o1");
        assert!(satisfied("o1"));
    }
}
