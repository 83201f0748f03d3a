//! Garbage collector: deletes what nobody owns any more.
//!
//! ```text
//! metadata watches of every kind ─▶ graph ─▶ work: delete? orphan? ─▶ ask the API server who is still there ─▶ act
//! ```
//! Invariants: the graph only says where to look; before a delete the object and each of its owners are asked for at
//! the API server. Deletes carry the UID, so a namesake is safe.
//! Upstream: `pkg/controller/garbagecollector/garbagecollector.go`.

mod graph;
mod monitors;

use std::collections::VecDeque;
use std::sync::Arc;

use api::key::{Key, parse_api_version};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::params::{DeleteParams, Patch, PatchParams, PropagationPolicy};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use machinery::{Next, WorkQueue};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::shared::discovery::Resource;
use crate::shared::meta::has_finalizer;
use crate::shared::write;
use graph::{FOREGROUND, Node, ORPHAN, Uid, Work};
use monitors::Monitors;

const NAME: &str = "garbage-collector-controller";
/// UIDs known to be gone: they never come back, so asking once is enough.
const ABSENT: usize = 500;

struct Collector {
    client: Client,
    monitors: Arc<Monitors>,
    absent: Mutex<VecDeque<Uid>>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let monitors = Arc::new(Monitors::new(context.clone(), queue.clone()));
    let (sender, mut ready) = tokio::sync::watch::channel(false);
    let watching = monitors.clone().run(context.token.clone(), sender);
    let collector = Arc::new(Collector { client: context.client.clone(), monitors, absent: Mutex::default() });
    let collecting = async {
        let _stopping = ready.wait_for(|ready| *ready).await.is_err();
        context
            .run(NAME, queue, move |work| {
                let collector = collector.clone();
                async move { collector.sync(&work).await }
            })
            .await
    };
    tokio::select! {
        () = watching => Ok(()),
        result = collecting => result,
    }
}

/// How an owner is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Solid,
    Absent,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
}

#[derive(Debug, PartialEq)]
enum Decision {
    Keep,
    /// Some owners remain: only the references to these go.
    Release(Vec<Uid>),
    Delete(PropagationPolicy),
}

/// What becomes of an object whose owners are as given.
fn decide(meta: &ObjectMeta, owners: &[(Uid, Owner)], has_dependents: bool) -> Decision {
    let of = |state: Owner| owners.iter().filter(move |(_, owner)| *owner == state);
    if owners.is_empty() {
        return Decision::Keep;
    }
    if of(Owner::Solid).next().is_some() {
        let gone: Vec<Uid> = of(Owner::Absent).chain(of(Owner::Waiting)).map(|(uid, _)| uid.clone()).collect();
        return if gone.is_empty() { Decision::Keep } else { Decision::Release(gone) };
    }
    if of(Owner::Waiting).next().is_some() && has_dependents {
        return Decision::Delete(PropagationPolicy::Foreground);
    }
    Decision::Delete(if has_finalizer(meta, ORPHAN) {
        PropagationPolicy::Orphan
    } else if has_finalizer(meta, FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

type Meta = PartialObjectMeta<DynamicObject>;

impl Collector {
    async fn sync(&self, work: &Work) -> anyhow::Result<Next> {
        match work {
            Work::Delete(uid) => self.attempt_delete(uid).await?,
            Work::Orphan(uid) => self.orphan(uid).await?,
        }
        Ok(Next::Done)
    }

    async fn attempt_delete(&self, uid: &Uid) -> anyhow::Result<()> {
        let Some(node) = self.monitors.graph.lock().get(uid).cloned() else { return Ok(()) };
        if node.deleting && !node.waits_for_dependents {
            return Ok(());
        }
        let resource = match (&node.resource, &node.reference) {
            (Some(resource), _) => resource.clone(),
            (None, Some(reference)) => self.resolve(reference)?,
            (None, None) => return Ok(()),
        };
        let latest = self.get(&resource, &node.key).await?;
        let Some(latest) = latest.filter(|latest| latest.metadata.uid.as_ref() == Some(uid)) else {
            self.remember_absent(uid);
            self.monitors.forget(uid, machinery::cause::current());
            return Ok(());
        };
        if node.waits_for_dependents {
            return self.finish_foreground(uid, &resource, &latest).await;
        }
        let mut owners = Vec::new();
        for reference in latest.metadata.owner_references.iter().flatten() {
            owners.push((reference.uid.clone(), self.owner_state(reference, &node.key).await?));
        }
        match decide(&latest.metadata, &owners, !node.dependents.is_empty()) {
            Decision::Keep => {}
            Decision::Release(gone) => self.release(&resource, &latest, &gone).await?,
            Decision::Delete(policy) => {
                if policy == PropagationPolicy::Foreground && self.closes_circle(&node) {
                    self.unblock_owners(&resource, &latest).await?;
                }
                let params = DeleteParams { propagation_policy: Some(policy), ..write::only(uid) };
                let api = self.api(&resource, &node.key);
                match api.delete(&node.key.name, &params).await {
                    // A conflict means another object has the name by now; its own node will be looked at.
                    Err(error) if !write::is_not_found(&error) && !write::is_conflict(&error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// A dependent that waits for its own dependents may be waiting for this very object.
    fn closes_circle(&self, node: &Node) -> bool {
        let graph = self.monitors.graph.lock();
        node.dependents.iter().any(|dependent| graph.get(dependent).is_some_and(|node| node.waits_for_dependents))
    }

    /// Its owners need no longer wait for this object: else a circle of owners would wait for ever.
    async fn unblock_owners(&self, resource: &Resource, latest: &Meta) -> anyhow::Result<()> {
        let mut owners: Vec<OwnerReference> = latest.metadata.owner_references.clone().unwrap_or_default();
        owners
            .iter_mut()
            .filter(|owner| owner.block_owner_deletion == Some(true))
            .for_each(|owner| owner.block_owner_deletion = Some(false));
        self.patch(resource, latest, json!({"ownerReferences": owners})).await
    }

    /// Takes the foreground finalizer off an owner whose blocking dependents are gone, else hurries them.
    async fn finish_foreground(&self, uid: &Uid, resource: &Arc<Resource>, latest: &Meta) -> anyhow::Result<()> {
        let blocking = self.monitors.graph.lock().blocking(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(resource, latest, FOREGROUND).await;
        }
        let graph = self.monitors.graph.lock();
        for dependent in blocking {
            if graph.get(&dependent).is_some_and(|node| !node.deleting) {
                self.monitors.queue.add(Work::Delete(dependent));
            }
        }
        Ok(())
    }

    async fn orphan(&self, uid: &Uid) -> anyhow::Result<()> {
        let Some(node) = self.monitors.graph.lock().get(uid).cloned() else { return Ok(()) };
        let Some(resource) = &node.resource else { return Ok(()) };
        for dependent in &node.dependents {
            let found = self.monitors.graph.lock().get(dependent).cloned();
            let Some((resource, key)) = found.and_then(|node| Some((node.resource?, node.key))) else { continue };
            if let Some(latest) = self.get(&resource, &key).await?.filter(|it| it.metadata.uid.as_ref() == Some(dependent)) {
                self.release(&resource, &latest, std::slice::from_ref(uid)).await?;
            }
        }
        match self.get(resource, &node.key).await?.filter(|latest| latest.metadata.uid.as_ref() == Some(uid)) {
            Some(latest) => self.remove_finalizer(resource, &latest, ORPHAN).await,
            None => Ok(()),
        }
    }

    async fn owner_state(&self, reference: &OwnerReference, dependent: &Key) -> anyhow::Result<Owner> {
        if self.absent.lock().contains(&reference.uid) {
            return Ok(Owner::Absent);
        }
        let resource = self.resolve(reference)?;
        if resource.namespaced && dependent.namespace.is_empty() {
            // Nonsense, but nothing to destroy for: only objects in a namespace can have owners in one.
            return Ok(Owner::Solid);
        }
        let key = Key::new(dependent.namespace.as_str(), reference.name.as_str());
        let owner = self.get(&resource, &key).await?;
        let Some(owner) = owner.filter(|owner| owner.metadata.uid.as_deref() == Some(&reference.uid)) else {
            self.remember_absent(&reference.uid);
            return Ok(Owner::Absent);
        };
        let waiting = owner.metadata.deletion_timestamp.is_some() && has_finalizer(&owner.metadata, FOREGROUND);
        Ok(if waiting { Owner::Waiting } else { Owner::Solid })
    }

    fn remember_absent(&self, uid: &str) {
        let mut absent = self.absent.lock();
        absent.push_back(uid.to_owned());
        if absent.len() > ABSENT {
            absent.pop_front();
        }
    }

    fn resolve(&self, reference: &OwnerReference) -> anyhow::Result<Arc<Resource>> {
        let (group, _) = parse_api_version(&reference.api_version);
        let known = self.monitors.known.read();
        let found = known.get(&(group.to_owned(), reference.kind.clone())).cloned();
        found.ok_or_else(|| anyhow::anyhow!("no resource is known for owner {} {}", reference.api_version, reference.kind))
    }

    fn api(&self, resource: &Resource, key: &Key) -> Api<DynamicObject> {
        match resource.namespaced {
            true => Api::namespaced_with(self.client.clone(), &key.namespace, &resource.api),
            false => Api::all_with(self.client.clone(), &resource.api),
        }
    }

    async fn get(&self, resource: &Resource, key: &Key) -> kube::Result<Option<Meta>> {
        self.api(resource, key).get_metadata_opt(&key.name).await
    }

    async fn release(&self, resource: &Resource, latest: &Meta, gone: &[Uid]) -> anyhow::Result<()> {
        let owners = latest.metadata.owner_references.iter().flatten();
        let left: Vec<&OwnerReference> = owners.filter(|owner| !gone.contains(&owner.uid)).collect();
        self.patch(resource, latest, json!({"ownerReferences": left})).await
    }

    async fn remove_finalizer(&self, resource: &Resource, latest: &Meta, finalizer: &str) -> anyhow::Result<()> {
        let finalizers = latest.metadata.finalizers.iter().flatten();
        let left: Vec<&String> = finalizers.filter(|other| *other != finalizer).collect();
        self.patch(resource, latest, json!({"finalizers": left})).await
    }

    /// Changes metadata of exactly this revision.
    async fn patch(&self, resource: &Resource, latest: &Meta, mut metadata: serde_json::Value) -> anyhow::Result<()> {
        metadata["uid"] = json!(latest.metadata.uid);
        metadata["resourceVersion"] = json!(latest.metadata.resource_version);
        let key = Key::of_meta(&latest.metadata);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let api = self.api(resource, &key);
        write::unless_gone(api.patch_metadata(&key.name, &PatchParams::default(), &patch).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions() {
        let owners = |states: &[Owner]| states.iter().map(|state| (format!("{state:?}"), *state)).collect::<Vec<_>>();
        let plain = ObjectMeta::default();
        let decide = |states: &[Owner], dependents| super::decide(&plain, &owners(states), dependents);
        assert_eq!(decide(&[], false), Decision::Keep);
        assert_eq!(decide(&[Owner::Solid], false), Decision::Keep);
        assert_eq!(decide(&[Owner::Solid, Owner::Absent], false), Decision::Release(vec!["Absent".into()]));
        assert_eq!(decide(&[Owner::Absent], true), Decision::Delete(PropagationPolicy::Background));
        assert_eq!(decide(&[Owner::Waiting], true), Decision::Delete(PropagationPolicy::Foreground));
        assert_eq!(decide(&[Owner::Waiting, Owner::Absent], false), Decision::Delete(PropagationPolicy::Background));
    }
}
