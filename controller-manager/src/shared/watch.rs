//! From a change to the keys it concerns: the few ways in which controllers listen.

use api::key::{GroupResource, Key};
use jiff::Timestamp;
use machinery::{Informer, WorkQueue};
use std::time::Duration;

use super::meta::{self, controller_of};
use super::write::Object;

/// Every object is its own key.
pub fn itself<K: Object>(informer: &Informer<K>, queue: &WorkQueue<Key>) {
    let queue = queue.clone();
    informer.on_change(move |change| queue.add_caused(change.key(), change.cause()));
}

/// An object's key is its controller, if that is of kind `owner_kind`; both when the controller changed.
pub fn controller<K: Object>(informer: &Informer<K>, queue: &WorkQueue<Key>, owner_kind: &'static str) {
    let queue = queue.clone();
    informer.on_change(move |change| {
        for object in change.old.iter().chain(&change.new) {
            if let Some(key) = controller_key(&**object, owner_kind) {
                queue.add_caused(key, change.cause());
            }
        }
    });
}

/// Where the controller of `object` is found, if it is of kind `owner_kind`.
pub fn controller_key(object: &impl Object, owner_kind: &str) -> Option<Key> {
    let owner = controller_of(object.metadata()).filter(|owner| owner.kind == owner_kind)?;
    Some(Key::new(meta::namespace(object), owner.name.as_str()))
}

/// Index of objects without a controller, by namespace: what an owner may adopt.
pub const ORPHANS: &str = "orphans-by-namespace";

pub fn index_orphans<K: Object>(informer: &Informer<K>) {
    informer.index(ORPHANS, |object: &K| match controller_of(object.metadata()) {
        None => vec![meta::namespace(object).to_owned()],
        Some(_) => Vec::new(),
    });
}

/// What `owner` controls or might adopt.
pub fn candidates<K: Object>(informer: &Informer<K>, owner: &impl Object) -> Vec<std::sync::Arc<K>> {
    let mut found = informer.owned_by(meta::uid(owner));
    found.extend(informer.by(ORPHANS, meta::namespace(owner)));
    found
}

pub fn resource<K: Object>() -> GroupResource {
    GroupResource::new(K::group(&()), K::plural(&()))
}

/// From `now` until `at`, at least a moment, so that a deadline that is due is looked at once more and not at once.
pub fn until(at: Timestamp, now: Timestamp) -> Duration {
    let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
    left.max(Duration::from_millis(100))
}
