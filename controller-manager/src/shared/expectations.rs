//! What a controller has asked for and not yet seen in its informer.
//!
//! A sync that looks at a cache which lags behind its own writes would create or delete a second time. So a key's
//! pods are counted off: the sync states what it is about to do, the informer's handler reports what arrived, and
//! until both agree the sync touches no pods. After five minutes the books are closed, as an event may be lost.
//!
//! Upstream: `pkg/controller/controller_utils.go`, ControllerExpectations and UIDTrackingControllerExpectations.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use api::key::Key;
use parking_lot::Mutex;

const TIMEOUT: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub struct Expectations {
    open: Mutex<HashMap<Key, Entry>>,
}

struct Entry {
    creations: usize,
    /// By UID: a pod is reported gone twice, when its deletion starts and when it ends.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// May this key's pods be changed?
    pub fn satisfied(&self, key: &Key) -> bool {
        self.satisfied_at(key, Instant::now())
    }

    fn satisfied_at(&self, key: &Key, now: Instant) -> bool {
        let open = self.open.lock();
        open.get(key).is_none_or(|entry| (entry.creations == 0 && entry.deletions.is_empty()) || now.duration_since(entry.since) > TIMEOUT)
    }

    /// Call before the writes; replaces what was expected before.
    pub fn expect(&self, key: &Key, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let entry = Entry { creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.open.lock().insert(key.clone(), entry);
    }

    /// A creation was seen, or did not happen.
    pub fn created(&self, key: &Key) {
        self.give_up_creations(key, 1);
    }

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
        assert!(books.satisfied(&key));
        books.expect(&key, 2, ["u1".to_owned()]);
        books.created(&key);
        books.deleted(&key, "u1");
        books.deleted(&key, "u1");
        assert!(!books.satisfied(&key));
        assert!(books.satisfied_at(&key, Instant::now() + TIMEOUT + Duration::from_secs(1)));
        books.created(&key);
        assert!(books.satisfied(&key));
    }
}
