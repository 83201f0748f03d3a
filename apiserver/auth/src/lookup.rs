//! What this crate may know of the cluster: objects, read from the API server's cache.

use std::sync::Arc;

pub use api::tree::{is_being_deleted, items, meta_entry, text};
use api::{GroupResource, Key};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads of current objects, in storage version. Implemented over the API server's cache, so a read
/// sees every write acknowledged before it: no informer lag to wait out.
pub trait Lookup: Send + Sync {
    fn get(&self, resource: &GroupResource, key: &Key) -> Option<Arc<Value>>;
    /// `None` lists every namespace. In key order.
    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>>;
}

/// Shorthands for the core group and for typed reads.
pub trait LookupExt: Lookup {
    fn core(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.get(&GroupResource::new("", resource), &Key::new(namespace, name))
    }

    /// A typed object. One that does not decode is logged and treated as absent.
    fn typed<K: DeserializeOwned>(&self, resource: &GroupResource, key: &Key) -> Option<K> {
        decode(resource, &*self.get(resource, key)?)
    }

    fn typed_list<K: DeserializeOwned>(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<K> {
        self.list(resource, namespace).iter().filter_map(|value| decode(resource, value)).collect()
    }
}

impl<L: Lookup + ?Sized> LookupExt for L {}

fn decode<K: DeserializeOwned>(resource: &GroupResource, value: &Value) -> Option<K> {
    K::deserialize(value)
        .map_err(|error| tracing::error!(%resource, name = text(value, "/metadata/name"), %error, "stored object does not decode"))
        .ok()
}
