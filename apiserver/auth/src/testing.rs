//! A cluster in a map, for tables of cases.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{GroupResource, Key};
use serde_json::Value;

use crate::authz::Authorizer;
use crate::lookup::{Lookup, text};

#[derive(Default)]
pub struct Cluster(BTreeMap<(GroupResource, Key), Arc<Value>>);

impl Cluster {
    /// `with("pods", json!({..}))`, `with("clusterroles.rbac.authorization.k8s.io", ..)`.
    pub fn with(mut self, resource: &str, object: Value) -> Self {
        self.put(resource, object);
        self
    }

    pub fn put(&mut self, resource: &str, object: Value) {
        let key = Key::new(text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
        let Ok(resource) = resource.parse();
        self.0.insert((resource, key), Arc::new(object));
    }

    pub fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        let Ok(resource) = resource.parse();
        self.0.remove(&(resource, Key::new(namespace, name)));
    }
}

impl Cluster {
    /// An authorizer that has seen everything in it.
    pub fn authorizer(&self) -> Authorizer {
        let authorizer = Authorizer::new();
        self.0.iter().for_each(|((resource, key), object)| authorizer.observe(resource, key, Some(object)));
        authorizer
    }
}

impl Lookup for Cluster {
    fn get(&self, resource: &GroupResource, key: &Key) -> Option<Arc<Value>> {
        self.0.get(&(resource.clone(), key.clone())).cloned()
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.0
            .iter()
            .filter(|((r, key), _)| r == resource && namespace.is_none_or(|n| n == key.namespace))
            .map(|(_, value)| value.clone())
            .collect()
    }
}
