//! Who owns whom: every object of the cluster by UID, with its owners and dependents.
//!
//! Pure: `observe` and `forget` take what the watches tell and give the objects that need a look. An owner that is
//! only known from a reference is in the graph as *virtual* until it is seen or found absent.
//! Upstream: `pkg/controller/garbagecollector/{graph,graph_builder}.go`.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use api::key::Key;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::shared::discovery::Resource;
use crate::shared::meta::has_finalizer;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

pub type Uid = String;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Should this object go, or its finalizer?
    Delete(Uid),
    /// Release this object's dependents, then let it go.
    Orphan(Uid),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Delete(uid) => write!(f, "delete {uid}"),
            Work::Orphan(uid) => write!(f, "orphan {uid}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    /// None while virtual.
    pub resource: Option<Arc<Resource>>,
    /// How a virtual node is called by the reference that made it.
    pub reference: Option<OwnerReference>,
    pub key: Key,
    pub owners: Vec<OwnerReference>,
    pub dependents: BTreeSet<Uid>,
    pub deleting: bool,
    /// Deleted in the foreground: it stays until its blocking dependents are gone.
    pub waits_for_dependents: bool,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Dependents without which `uid` may not go.
    pub fn blocking(&self, uid: &str) -> Vec<Uid> {
        let blocks = |dependent: &&Uid| {
            self.nodes
                .get(*dependent)
                .is_some_and(|node| node.owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true)))
        };
        self.nodes.get(uid).into_iter().flat_map(|node| node.dependents.iter().filter(blocks).cloned()).collect()
    }

    /// UIDs of all objects of a resource, for comparing with a new list.
    pub fn of(&self, resource: &Resource) -> Vec<Uid> {
        let is_of = |node: &Node| node.resource.as_deref() == Some(resource);
        self.nodes.iter().filter(|(_, node)| is_of(node)).map(|(uid, _)| uid.clone()).collect()
    }

    /// An object was added or changed.
    pub fn observe(&mut self, resource: &Arc<Resource>, meta: ObjectMeta) -> Vec<Work> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        let key = Key::of_meta(&meta);
        let deleting = meta.deletion_timestamp.is_some();
        let waits = deleting && has_finalizer(&meta, FOREGROUND);
        let orphans = deleting && has_finalizer(&meta, ORPHAN);
        let owners = meta.owner_references.unwrap_or_default();
        let (before, dependents, waited) = match self.nodes.remove(&uid) {
            Some(old) => (old.owners, old.dependents, old.waits_for_dependents),
            None => (Vec::new(), BTreeSet::new(), false),
        };
        let mut work = Vec::new();
        if waits && !waited {
            work.extend(dependents.iter().cloned().map(Work::Delete));
            work.push(Work::Delete(uid.clone()));
        }
        if orphans {
            work.push(Work::Orphan(uid.clone()));
        }
        let node = Node {
            resource: Some(resource.clone()),
            reference: None,
            key,
            owners: owners.clone(),
            dependents,
            deleting,
            waits_for_dependents: waits,
        };
        self.nodes.insert(uid.clone(), node);
        self.relink(&uid, &before, &owners, &mut work);
        work
    }

    /// Moves the object from its former owners to its present ones.
    fn relink(&mut self, uid: &Uid, before: &[OwnerReference], now: &[OwnerReference], work: &mut Vec<Work>) {
        for gone in before.iter().filter(|owner| !now.iter().any(|other| other.uid == owner.uid)) {
            if let Some(owner) = self.nodes.get_mut(&gone.uid) {
                owner.dependents.remove(uid);
                if owner.waits_for_dependents {
                    work.push(Work::Delete(gone.uid.clone()));
                }
            }
        }
        for reference in now {
            let old = before.iter().find(|owner| owner.uid == reference.uid);
            let key = self.nodes.get(uid).map(|node| node.key.clone());
            let owner = self.nodes.entry(reference.uid.clone()).or_insert_with(|| {
                work.push(Work::Delete(reference.uid.clone()));
                Node::virtual_one(reference, key)
            });
            owner.dependents.insert(uid.clone());
            // A dependent that came late, or stopped blocking, matters to an owner that waits.
            if owner.waits_for_dependents && old != Some(reference) {
                work.push(Work::Delete(if old.is_none() { uid.clone() } else { reference.uid.clone() }));
            }
        }
    }

    /// An object is gone, or a virtual one was found absent.
    pub fn forget(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut work: Vec<Work> = node.dependents.into_iter().map(Work::Delete).collect();
        for reference in node.owners {
            let Some(owner) = self.nodes.get_mut(&reference.uid) else { continue };
            owner.dependents.remove(uid);
            if owner.waits_for_dependents {
                work.push(Work::Delete(reference.uid));
            }
        }
        work
    }
}

impl Node {
    /// An owner known by reference only; it lives where its dependent does, or in no namespace.
    fn virtual_one(reference: &OwnerReference, dependent: Option<Key>) -> Self {
        let namespace = dependent.map(|key| key.namespace).unwrap_or_default();
        Node {
            resource: None,
            reference: Some(reference.clone()),
            key: Key::new(namespace, reference.name.as_str()),
            owners: Vec::new(),
            dependents: BTreeSet::new(),
            deleting: false,
            waits_for_dependents: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ApiResource;

    fn resource() -> Arc<Resource> {
        let api = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        Arc::new(Resource { api, namespaced: true })
    }

    fn object(uid: &str, owners: &[(&str, bool)]) -> ObjectMeta {
        let reference = |(uid, blocks): &(&str, bool)| OwnerReference {
            uid: uid.to_string(),
            block_owner_deletion: Some(*blocks),
            ..OwnerReference::default()
        };
        let owner_references = Some(owners.iter().map(reference).collect());
        ObjectMeta { uid: Some(uid.into()), name: Some(uid.into()), owner_references, ..ObjectMeta::default() }
    }

    fn deleting(mut meta: ObjectMeta, finalizer: &str) -> ObjectMeta {
        meta.deletion_timestamp = Some(crate::shared::meta::time(jiff::Timestamp::UNIX_EPOCH));
        meta.finalizers = Some(vec![finalizer.into()]);
        meta
    }

    fn delete(uid: &str) -> Work {
        Work::Delete(uid.into())
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let (mut graph, pods) = (Graph::default(), resource());
        assert_eq!(graph.observe(&pods, object("owner", &[])), []);
        assert_eq!(graph.observe(&pods, object("child", &[("owner", true)])), []);
        assert_eq!(graph.forget("owner"), [delete("child")]);
    }

    #[test]
    fn an_owner_never_seen_is_looked_up() {
        let (mut graph, pods) = (Graph::default(), resource());
        assert_eq!(graph.observe(&pods, object("child", &[("ghost", false)])), [delete("ghost")]);
        assert!(graph.get("ghost").unwrap().resource.is_none());
        assert_eq!(graph.forget("ghost"), [delete("child")]);
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents() {
        let (mut graph, pods) = (Graph::default(), resource());
        graph.observe(&pods, object("owner", &[]));
        graph.observe(&pods, object("a", &[("owner", true)]));
        graph.observe(&pods, object("b", &[("owner", false)]));
        let work = graph.observe(&pods, deleting(object("owner", &[]), FOREGROUND));
        assert_eq!(work, [delete("a"), delete("b"), delete("owner")]);
        assert_eq!(graph.blocking("owner"), ["a"]);
        assert_eq!(graph.forget("a"), [delete("owner")]);
        assert!(graph.blocking("owner").is_empty());
    }

    #[test]
    fn orphaning_and_letting_go() {
        let (mut graph, pods) = (Graph::default(), resource());
        graph.observe(&pods, object("a", &[("owner", true)]));
        let work = graph.observe(&pods, deleting(object("owner", &[]), ORPHAN));
        assert_eq!(work, [Work::Orphan("owner".into())]);
        graph.observe(&pods, object("a", &[]));
        assert_eq!(graph.forget("owner"), []);
    }
}
