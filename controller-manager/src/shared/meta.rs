//! Reading and making object metadata: owners, ages, references.
//!
//! Upstream: `apimachinery/pkg/apis/meta/v1/controller_ref.go`.

use std::collections::BTreeMap;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

pub use machinery::events::reference;

use super::write::Object;

pub type Labels = BTreeMap<String, String>;

/// Empty only for objects that were never stored.
pub fn uid(object: &impl Object) -> &str {
    object.metadata().uid.as_deref().unwrap_or_default()
}

pub fn name(object: &impl Object) -> &str {
    object.metadata().name.as_deref().unwrap_or_default()
}

pub fn namespace(object: &impl Object) -> &str {
    object.metadata().namespace.as_deref().unwrap_or_default()
}

pub fn key(object: &impl Object) -> Key {
    Key::of_meta(object.metadata())
}

pub fn generation(object: &impl Object) -> i64 {
    object.metadata().generation.unwrap_or_default()
}

/// Where the object stands in the store's one order of revisions; 0 for objects that were never stored.
pub fn revision(object: &impl Object) -> u64 {
    object.metadata().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

pub fn is_deleting(object: &impl Object) -> bool {
    object.metadata().deletion_timestamp.is_some()
}

pub fn annotation<'a>(object: &'a impl Object, key: &str) -> Option<&'a str> {
    object.metadata().annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn label<'a>(object: &'a impl Object, key: &str) -> Option<&'a str> {
    object.metadata().labels.as_ref()?.get(key).map(String::as_str)
}

/// When the object was made; an object without the stamp counts as old.
pub fn created(object: &impl Object) -> Timestamp {
    object.metadata().creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_deref()?.iter().find(|owner| owner.controller == Some(true))
}

pub fn is_controlled_by(object: &impl Object, owner_uid: &str) -> bool {
    controller_of(object.metadata()).is_some_and(|owner| owner.uid == owner_uid)
}

/// The reference by which `owner` controls what it makes.
pub fn controller_ref<K: Object>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub fn time(at: Timestamp) -> Time {
    // API times have whole seconds; rounding here keeps what we compare equal to what is stored.
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// Seconds from `earlier` to `later`, negative if they are the other way round.
pub fn seconds_between(earlier: Timestamp, later: Timestamp) -> f64 {
    later.duration_since(earlier).as_secs_f64()
}

pub fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.as_deref().unwrap_or_default().iter().any(|f| f == finalizer)
}

pub fn add_finalizer(meta: &mut ObjectMeta, finalizer: &str) {
    meta.finalizers.get_or_insert_default().push(finalizer.to_owned());
}

pub fn remove_finalizer(meta: &mut ObjectMeta, finalizer: &str) {
    if let Some(finalizers) = &mut meta.finalizers {
        finalizers.retain(|f| f != finalizer);
    }
}
