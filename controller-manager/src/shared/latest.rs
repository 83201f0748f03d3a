//! An informer's objects, and in their place what we wrote ourselves until the informer has seen it.
//!
//! A controller that hands out something unique (a volume, an address) must not decide on what it has just changed.
//! Upstream: the volume controller's `cache.Store` with `storeObjectUpdate`, v1.33.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::key::Key;
use machinery::Informer;
use parking_lot::Mutex;

use super::meta;
use super::write::Object;

/// Cheap to clone.
pub struct Latest<K> {
    informer: Informer<K>,
    written: Arc<Mutex<BTreeMap<Key, Arc<K>>>>,
}

impl<K> Clone for Latest<K> {
    fn clone(&self) -> Self {
        Latest { informer: self.informer.clone(), written: self.written.clone() }
    }
}

impl<K: Object> Latest<K> {
    pub fn new(informer: &Informer<K>) -> Self {
        let latest = Latest { informer: informer.clone(), written: Arc::default() };
        let written = latest.written.clone();
        informer.on_change(move |change| {
            let mut written = written.lock();
            let seen = |own: &Arc<K>| change.is_delete() || meta::revision(&**own) <= meta::revision(&**change.object());
            if written.get(&change.key()).is_some_and(seen) {
                written.remove(&change.key());
            }
        });
        latest
    }

    /// What a write returned.
    pub fn wrote(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let mut written = self.written.lock();
        let seen = self.informer.get(&meta::key(&*object)).is_some_and(|cached| meta::revision(&*cached) >= meta::revision(&*object));
        if !seen {
            written.insert(meta::key(&*object), object.clone());
        }
        object
    }

    /// A write found nothing there: so whatever we remember of it is older than its end.
    pub fn gone(&self, key: &Key) {
        self.written.lock().remove(key);
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.written.lock().get(key).cloned().or_else(|| self.informer.get(key))
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        let mut all: BTreeMap<Key, Arc<K>> = self.informer.list().into_iter().map(|object| (meta::key(&*object), object)).collect();
        all.extend(self.written.lock().iter().map(|(key, object)| (key.clone(), object.clone())));
        all.into_values().collect()
    }
}
