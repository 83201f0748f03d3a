//! Services and their EndpointSlices, joined by name, and which of them changed since the last look.
//!
//! No watch, no lock: `apply` and `remove` from outside, `compile` when it is time to write.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Service;
use api::k8s_openapi::api::discovery::v1::EndpointSlice;
use api::{Cause, Key};

use crate::compile::fragment;
use crate::conntrack::{self, Stale};
use crate::health_check::Wanted;
use crate::model::{self, Place, Port};
use crate::ruleset::{Family, Fragment};

#[derive(Default)]
struct Entry {
    service: Option<Arc<Service>>,
    slices: BTreeMap<String, Arc<EndpointSlice>>,
    /// As compiled last.
    ports: Vec<Port>,
}

#[derive(Default)]
pub struct Index {
    entries: HashMap<Key, Entry>,
    /// What changed, and the newest object that made it so.
    dirty: BTreeMap<Key, Option<Cause>>,
}

/// What one round of changes asks for.
#[derive(Default)]
pub struct Changes {
    pub v4: BTreeMap<Key, Fragment>,
    pub v6: BTreeMap<Key, Fragment>,
    pub stale: std::collections::BTreeSet<Stale>,
    pub health: Vec<(Key, Option<Wanted>)>,
    pub causes: Vec<(Arc<Service>, Option<Cause>)>,
}

impl Index {
    pub fn set_service(&mut self, key: Key, service: Option<Arc<Service>>, cause: Cause) {
        self.entries.entry(key.clone()).or_default().service = service;
        self.dirty.insert(key, Some(cause));
    }

    pub fn set_slice(&mut self, slice: &Arc<EndpointSlice>, deleted: bool, cause: Cause) {
        let label = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        let (Some(service), key) = (label, Key::of(&**slice)) else { return };
        let service = Key::new(key.namespace, service.clone());
        let slices = &mut self.entries.entry(service.clone()).or_default().slices;
        if deleted {
            slices.remove(&key.name);
        } else {
            slices.insert(key.name, slice.clone());
        }
        self.dirty.insert(service, Some(cause));
    }

    /// The node's own facts changed: everything may look different.
    pub fn mark_all(&mut self) {
        for key in self.entries.keys() {
            self.dirty.entry(key.clone()).or_default();
        }
    }

    /// Compiles what changed. Nothing is dirty afterwards.
    pub fn compile(&mut self, place: &Place) -> Changes {
        let mut changes = Changes::default();
        for (key, cause) in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let ports = entry.service.as_ref().map(|s| model::ports(s, &entry.slices, place)).unwrap_or_default();
            changes.stale.extend(conntrack::plan(&entry.ports, &ports));
            changes.v4.insert(key.clone(), fragment(&ports, Family::V4, place));
            changes.v6.insert(key.clone(), fragment(&ports, Family::V6, place));
            changes.health.push((key.clone(), health(entry.service.as_deref(), &ports)));
            if let Some(service) = entry.service.clone().filter(|_| ports != entry.ports) {
                changes.causes.push((service, cause));
            }
            entry.ports = ports;
            if entry.service.is_none() && entry.slices.is_empty() {
                self.entries.remove(&key);
            }
        }
        changes
    }
}

fn health(service: Option<&Service>, ports: &[Port]) -> Option<Wanted> {
    let spec = service?.spec.as_ref()?;
    let port = u16::try_from(spec.health_check_node_port?).ok().filter(|p| *p > 0)?;
    let local_endpoints = ports.iter().map(|p| p.endpoints.ready_here).max().unwrap_or(0);
    (spec.external_traffic_policy.as_deref() == Some("Local")).then_some(Wanted { port, local_endpoints })
}
