//! VolumeBinding: claims must be bound where the pod runs; those that wait for their first consumer are bound now.
//!
//! ```text
//! pre_filter  sort claims: bound, to be bound here, hopeless
//! filter      bound: the volume reaches the node; else: a free volume does, or its class can make one there
//! reserve     take the free volumes, so that the next pod doesn't
//! pre_bind    write volume.claimRef, or ask the provisioner; wait until the claims are bound
//! ```
//! Upstream: plugins/volumebinding/{volume_binding,binder}.go, v1.33.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use api::Key;
use api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use api::k8s_openapi::api::storage::v1::StorageClass;
use api::quantity::Quantity;
use futures::future::BoxFuture;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::affinity::{compile, selector_matches};
use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{BindContext, Context, Filter, Plugin, PreFilter, Reject};
use crate::hints::{self, ClusterEvent};
use crate::world::World;

/// How long a pod waits for its volumes before it is scheduled anew. Upstream's default.
const BIND_TIMEOUT: Duration = Duration::from_secs(600);
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// Volumes taken by pods whose binding is under way: volume → claim.
pub struct VolumeBinding {
    reserved: Mutex<BTreeMap<String, Key>>,
}

impl VolumeBinding {
    pub const fn new() -> Self {
        VolumeBinding { reserved: Mutex::new(BTreeMap::new()) }
    }
}

#[derive(Clone)]
struct Claims<'c> {
    world: &'c dyn World,
    /// Volumes of bound claims; `None`: the volume is gone.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// Claims to be bound on the node.
    delayed: Vec<Arc<PersistentVolumeClaim>>,
    reserved: BTreeMap<String, Key>,
}

/// What the pod's delayed claims get on a node.
#[derive(Default)]
struct Choice {
    volumes: Vec<(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>)>,
    provision: Vec<Arc<PersistentVolumeClaim>>,
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty());
    volume && claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BIND_COMPLETED))
}

fn storage_class(world: &dyn World, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
    world.storage_class(claim.spec.as_ref()?.storage_class_name.as_deref()?)
}

fn waits_for_consumer(world: &dyn World, claim: &PersistentVolumeClaim) -> bool {
    storage_class(world, claim).is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

fn find_claim(world: &dyn World, pod: &PodInfo, name: &str) -> Result<Arc<PersistentVolumeClaim>, Reject> {
    let Some(claim) = world.claim(&Key::new(pod.key.namespace.clone(), name)) else {
        let ephemeral =
            pod.spec().volumes.iter().flatten().any(|v| v.ephemeral.is_some() && name == format!("{}-{}", pod.key.name, v.name));
        return Err(Reject::unresolvable(match ephemeral {
            true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""),
            false => format!("persistentvolumeclaim \"{name}\" not found"),
        }));
    };
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
    if phase == Some("Lost") {
        return Err(Reject::unresolvable(format!("persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\"")));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(Reject::unresolvable(format!("persistentvolumeclaim \"{name}\" is being deleted")));
    }
    Ok(claim)
}

impl<'c> Claims<'c> {
    fn new(world: &'c dyn World, pod: &PodInfo, reserved: BTreeMap<String, Key>) -> Result<Self, Reject> {
        let mut claims = Claims { world, bound: Vec::new(), delayed: Vec::new(), reserved };
        for name in &pod.claims {
            let claim = find_claim(world, pod, name)?;
            if is_bound(&claim) {
                let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
                claims.bound.push(world.volume(volume));
            } else if waits_for_consumer(world, &claim) {
                claims.delayed.push(claim);
            } else {
                return Err(Reject::unresolvable("pod has unbound immediate PersistentVolumeClaims"));
            }
        }
        Ok(claims)
    }

    fn choose(&self, node: &NodeInfo) -> Option<Choice> {
        let mut choice = Choice::default();
        for claim in &self.delayed {
            let taken = |volume: &PersistentVolume| choice.volumes.iter().any(|(_, v)| v.metadata.name == volume.metadata.name);
            let free = self.world.volumes().into_iter().filter(|v| !taken(v) && self.usable(claim, v, node));
            match free.min_by_key(|v| capacity(v)) {
                Some(volume) => choice.volumes.push((claim.clone(), volume)),
                None if can_provision(&*storage_class(self.world, claim)?, node) => choice.provision.push(claim.clone()),
                None => return None,
            }
        }
        Some(choice)
    }

    fn usable(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume, node: &NodeInfo) -> bool {
        let key = Key::of(claim);
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let (Some(wanted), Some(offered)) = (&claim.spec, &volume.spec) else { return false };
        let owner = offered
            .claim_ref
            .as_ref()
            .map(|r| (r.namespace.as_deref() == Some(&key.namespace) && r.name.as_deref() == Some(&key.name), r.uid.as_deref()));
        let free = match owner {
            Some((same, uid)) => same && uid.is_none_or(|u| u.is_empty() || Some(u) == claim.metadata.uid.as_deref()),
            None => volume.status.as_ref().and_then(|s| s.phase.as_deref()).is_none_or(|p| p == "Available"),
        };
        let modes = |spec: &Option<Vec<String>>| spec.clone().unwrap_or_default();
        let volume_mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
        let requested =
            wanted.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage")).and_then(|q| Quantity::parse(&q.0).ok());
        free && self.reserved.get(name).is_none_or(|by| *by == key)
            && volume.metadata.deletion_timestamp.is_none()
            && offered.storage_class_name.as_deref().unwrap_or_default() == wanted.storage_class_name.as_deref().unwrap_or_default()
            && volume_mode(&offered.volume_mode) == volume_mode(&wanted.volume_mode)
            && modes(&wanted.access_modes).iter().all(|mode| modes(&offered.access_modes).contains(mode))
            && requested.is_none_or(|q| q.value() <= capacity(volume))
            && wanted.selector.as_ref().is_none_or(|s| compile(s).matches(&volume.metadata.labels.clone().unwrap_or_default()))
            && reaches(volume, node)
    }
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let quantity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
    quantity.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.value())
}

/// Whether the volume can be used on the node.
fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    required.is_none_or(|selector| selector_matches(selector, &node.name, node.labels()))
}

fn can_provision(class: &StorageClass, node: &NodeInfo) -> bool {
    let allows = |term: &TopologySelectorTerm| {
        let mut expressions = term.match_label_expressions.iter().flatten();
        expressions.all(|e| node.label(&e.key).is_some_and(|value| e.values.iter().any(|v| v == value)))
    };
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    class.provisioner != "kubernetes.io/no-provisioner" && (topologies.is_empty() || topologies.iter().any(allows))
}

impl<'c> Filter<'c> for Claims<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        for volume in &self.bound {
            match volume {
                None => return Err(Reject::unresolvable("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")),
                Some(volume) if !reaches(volume, node) => return Err(Reject::unresolvable("node(s) had volume node affinity conflict")),
                Some(_) => {}
            }
        }
        match self.choose(node) {
            Some(_) => Ok(()),
            None => Err(Reject::unresolvable("node(s) didn't find available persistent volumes to bind")),
        }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        if context.pod.claims.is_empty() {
            return Ok(PreFilter::skip());
        }
        Ok(PreFilter::filter(Claims::new(context.world, context.pod, self.reserved.lock().clone())?))
    }

    fn reserve(&self, context: Context<'_>, node: &NodeInfo) -> Result<(), Reject> {
        if context.pod.claims.is_empty() {
            return Ok(());
        }
        let mut reserved = self.reserved.lock();
        let claims = Claims::new(context.world, context.pod, reserved.clone())?;
        let choice =
            claims.choose(node).ok_or_else(|| Reject::unschedulable("node(s) didn't find available persistent volumes to bind"))?;
        for (claim, volume) in &choice.volumes {
            reserved.insert(volume.metadata.name.clone().unwrap_or_default(), Key::of(&**claim));
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _node: &str) {
        let ours = |key: &Key| key.namespace == pod.key.namespace && pod.claims.contains(&key.name);
        self.reserved.lock().retain(|_, claim| !ours(claim));
    }

    fn pre_bind<'a>(&'a self, context: &'a BindContext, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if pod.claims.is_empty() {
                return Ok(());
            }
            let bound = tokio::time::timeout(BIND_TIMEOUT, self.bind_claims(context, pod, node)).await;
            self.unreserve(pod, node);
            bound.context("timed out waiting for volumes to be bound")?
        })
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) | ClusterEvent::Storage => true,
            ClusterEvent::NodeUpdated { old, new } => hints::labels_changed(old, new),
            _ => false,
        }
    }
}

impl VolumeBinding {
    async fn bind_claims(&self, context: &BindContext, pod: &PodInfo, node: &str) -> Result<()> {
        let reserved: Vec<(String, Key)> = self.reserved.lock().iter().map(|(v, c)| (v.clone(), c.clone())).collect();
        let mut waiting = Vec::new();
        for name in &pod.claims {
            let claim = find_claim(&*context.world, pod, name).map_err(|r| anyhow::anyhow!(r.reasons.join(", ")))?;
            if is_bound(&claim) {
                continue;
            }
            let key = Key::of(&*claim);
            match reserved.iter().find(|(_, by)| *by == key) {
                Some((volume, _)) => give(context, volume, &claim).await?,
                None => select_node(context, &claim, node).await?,
            }
            waiting.push(key);
        }
        for key in waiting {
            until_bound(context, &key, node).await?;
        }
        Ok(())
    }
}

/// The volume is for this claim; the volume controller completes the bond.
async fn give(context: &BindContext, volume: &str, claim: &PersistentVolumeClaim) -> Result<()> {
    let key = Key::of(claim);
    let patch = json!({
        "metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
        "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": key.namespace, "name": key.name,
            "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version}},
    });
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    volumes.patch(volume, &PatchParams::default(), &Patch::Merge(patch)).await.with_context(|| format!("cannot bind volume {volume}"))?;
    Ok(())
}

/// Tells the provisioner where the volume shall be.
async fn select_node(context: &BindContext, claim: &PersistentVolumeClaim, node: &str) -> Result<()> {
    let key = Key::of(claim);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    claims.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await.with_context(|| format!("cannot annotate claim {key}"))?;
    Ok(())
}

async fn until_bound(context: &BindContext, key: &Key, node: &str) -> Result<()> {
    loop {
        // Listen before looking, or a change between the two is lost.
        let changed = context.storage_changed.notified();
        let Some(claim) = context.world.claim(key) else { bail!("claim {key} was deleted") };
        if is_bound(&claim) {
            return Ok(());
        }
        // The provisioner takes its annotation away when it can't serve the node.
        let selected = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
        if selected.is_some_and(|n| n != node) {
            bail!("claim {key} is being provisioned for another node");
        }
        changed.await;
    }
}
