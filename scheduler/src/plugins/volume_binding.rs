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
use api::volume::{self, BOUND_BY_CONTROLLER, Fit, SELECTED_NODE, annotation, claim_class, is_fully_bound, volume_name};
use futures::future::BoxFuture;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::affinity::{Labels, selector_matches};
use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{BindContext, Context, Filter, Plugin, PreFilter, Reason, Reject};
use crate::hints::{self, ClusterEvent};
use crate::world::World;

/// How long a pod waits for its volumes before it is scheduled anew. Upstream's default.
const BIND_TIMEOUT: Duration = Duration::from_secs(600);
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";

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
    delayed: Vec<Delayed>,
    reserved: BTreeMap<String, Key>,
}

/// A claim that waits for its first consumer, with the free volumes that suit it, wherever they are.
#[derive(Clone)]
struct Delayed {
    claim: Arc<PersistentVolumeClaim>,
    class: Arc<StorageClass>,
    candidates: Vec<Arc<PersistentVolume>>,
}

/// What the pod's delayed claims get on a node.
#[derive(Default)]
struct Choice {
    volumes: Vec<(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>)>,
    provision: Vec<Arc<PersistentVolumeClaim>>,
}

/// The claim's class, if its volumes are bound where the first pod runs.
fn delaying_class(world: &dyn World, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
    let class = world.storage_class(claim_class(claim))?;
    (class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")).then_some(class)
}

fn find_claim(world: &dyn World, pod: &PodInfo, name: &str) -> Result<Arc<PersistentVolumeClaim>, Reject> {
    let mut ephemeral = pod.spec().volumes.iter().flatten().filter(|v| v.ephemeral.is_some());
    let is_ephemeral = ephemeral.any(|v| name == format!("{}-{}", pod.key.name, v.name));
    let Some(claim) = world.claim(&Key::new(pod.key.namespace.clone(), name)) else {
        return Err(Reject::unresolvable(match is_ephemeral {
            true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""),
            false => format!("persistentvolumeclaim \"{name}\" not found"),
        }));
    };
    if is_ephemeral && !claim.metadata.owner_references.iter().flatten().any(|o| o.controller == Some(true) && o.uid == pod.uid) {
        let text = format!("PVC {} was not created for pod {} (pod is not owner)", Key::of(&*claim), pod.key);
        return Err(Reject::unresolvable(text));
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
        let volume = volume_name(&claim);
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
            if is_fully_bound(&claim) {
                claims.bound.push(world.volume(volume_name(&claim)));
            } else if let Some(class) = delaying_class(world, &claim).filter(|_| volume_name(&claim).is_empty()) {
                let candidates = claims.candidates(&claim);
                claims.delayed.push(Delayed { claim, class, candidates });
            } else {
                return Err(Reject::unresolvable("pod has unbound immediate PersistentVolumeClaims"));
            }
        }
        Ok(claims)
    }

    /// What is kept for the claim, else what is free, smallest first; nothing if its volume is being made already.
    fn candidates(&self, claim: &PersistentVolumeClaim) -> Vec<Arc<PersistentVolume>> {
        if annotation(&claim.metadata, SELECTED_NODE).is_some() {
            return Vec::new();
        }
        let (key, selector) = (Key::of(claim), volume::selector(claim));
        let ours = |v: &PersistentVolume| self.reserved.get(v.metadata.name.as_deref().unwrap_or_default()).is_none_or(|by| *by == key);
        let fits = self.world.volumes().into_iter().map(|v| (volume::fit(&v, claim, &selector), v));
        let (reserved, mut free): (Vec<_>, Vec<_>) =
            fits.filter(|(fit, v)| *fit != Fit::No && ours(v)).partition(|(fit, _)| *fit == Fit::Reserved);
        free.sort_by_key(|(_, v)| volume::capacity(v));
        let chosen = if reserved.is_empty() { free } else { reserved };
        chosen.into_iter().map(|(_, v)| v).collect()
    }

    fn choose(&self, node: &NodeInfo) -> Option<Choice> {
        let mut choice = Choice::default();
        for Delayed { claim, class, candidates } in &self.delayed {
            if annotation(&claim.metadata, SELECTED_NODE).is_some_and(|selected| selected != node.name) {
                return None;
            }
            let taken = |volume: &PersistentVolume| choice.volumes.iter().any(|(_, v)| v.metadata.name == volume.metadata.name);
            match candidates.iter().find(|v| !taken(v) && reaches(v, &node.name, node.labels())) {
                Some(volume) => choice.volumes.push((claim.clone(), volume.clone())),
                None if can_provision(class, node) => choice.provision.push(claim.clone()),
                None => return None,
            }
        }
        Some(choice)
    }
}

/// Whether the volume can be used on the node.
fn reaches(volume: &PersistentVolume, name: &str, labels: &Labels) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    required.is_none_or(|selector| selector_matches(selector, name, labels))
}

fn can_provision(class: &StorageClass, node: &NodeInfo) -> bool {
    let allows = |term: &TopologySelectorTerm| {
        let mut expressions = term.match_label_expressions.iter().flatten();
        expressions.all(|e| node.label(&e.key).is_some_and(|value| e.values.iter().any(|v| v == value)))
    };
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    let makes = !class.provisioner.is_empty() && class.provisioner != "kubernetes.io/no-provisioner";
    makes && (topologies.is_empty() || topologies.iter().any(allows))
}

impl<'c> Filter<'c> for Claims<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let mut reasons: Vec<Reason> = Vec::new();
        if self.bound.iter().flatten().any(|volume| !reaches(volume, &node.name, node.labels())) {
            reasons.push("node(s) didn't match PersistentVolume's node affinity".into());
        }
        if self.choose(node).is_none() {
            reasons.push(NO_VOLUME.into());
        }
        if self.bound.iter().any(Option::is_none) {
            reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".into());
        }
        if reasons.is_empty() { Ok(()) } else { Err(Reject { resolvable: false, reasons }) }
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
        let choice = claims.choose(node).ok_or_else(|| Reject::unschedulable(NO_VOLUME))?;
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
            bound.context("binding volumes: context deadline exceeded")?.context("binding volumes")
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
            if is_fully_bound(&claim) {
                continue;
            }
            let key = Key::of(&*claim);
            let selected_at = match reserved.iter().find(|(_, by)| *by == key) {
                Some((volume, _)) => give(context, volume, &claim).await.map(|()| None)?,
                None => Some(select_node(context, &claim, node).await?),
            };
            waiting.push((key, selected_at));
        }
        for (key, selected_at) in waiting {
            until_bound(context, &key, selected_at, node).await?;
        }
        Ok(())
    }
}

/// The volume is for this claim; the volume controller completes the bond. With the volume's revision: it may be another's by now.
async fn give(context: &BindContext, name: &str, claim: &PersistentVolumeClaim) -> Result<()> {
    let key = Key::of(claim);
    let volume = context.world.volume(name).with_context(|| format!("volume {name} is gone"))?;
    if volume::claim_ref(&volume).is_some_and(|r| r.uid.is_some() && r.uid == claim.metadata.uid) {
        return Ok(());
    }
    let mut patch = json!({
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": key.namespace, "name": key.name,
            "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version}},
    });
    // What a user reserved stays reserved when the claim goes.
    if !volume::is_bound_to(&volume, claim) {
        patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
    }
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    volumes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.with_context(|| format!("cannot bind volume {name}"))?;
    Ok(())
}

fn revision(claim: &PersistentVolumeClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// Tells the provisioner where the volume shall be; returns the claim's revision from then on.
async fn select_node(context: &BindContext, claim: &PersistentVolumeClaim, node: &str) -> Result<u64> {
    if annotation(&claim.metadata, SELECTED_NODE) == Some(node) {
        return Ok(revision(claim));
    }
    let key = Key::of(claim);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = json!({"metadata": {"uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node}}});
    let told = claims.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
    Ok(revision(&told.with_context(|| format!("cannot annotate claim {key}"))?))
}

/// `selected_at`: the claim's revision when the node was written on it; since then only a provisioner takes that away.
async fn until_bound(context: &BindContext, key: &Key, selected_at: Option<u64>, node: &str) -> Result<()> {
    loop {
        // Listen before looking, or a change between the two is lost.
        let changed = context.storage_changed.notified();
        let Some(claim) = context.world.claim(key) else { bail!("claim {key} was deleted") };
        if is_fully_bound(&claim) {
            return check_place(context, volume_name(&claim), node);
        }
        let selected = annotation(&claim.metadata, SELECTED_NODE);
        if selected_at.is_some_and(|at| revision(&claim) >= at) && selected != Some(node) {
            bail!("provisioning failed for PVC {:?}", key.name);
        }
        changed.await;
    }
}

/// A provisioner may have made the volume where the pod can't reach it.
fn check_place(context: &BindContext, volume: &str, node: &str) -> Result<()> {
    let (Some(found), Some(place)) = (context.world.volume(volume), context.world.node(node)) else { return Ok(()) };
    match reaches(&found, node, place.metadata.labels.as_ref().unwrap_or(&Labels::new())) {
        true => Ok(()),
        false => bail!("pv {volume:?} node affinity doesn't match node {node:?}: no matching NodeSelectorTerms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::cycle::Cycles;
    use crate::fixtures::{PodFixture, TestWorld, node, pod};
    use serde_json::Value;

    fn class(name: &str, provisioner: &str, mode: &str) -> Arc<StorageClass> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode})).unwrap(),
        )
    }

    fn claim(class: &str, volume: &str, more: Value) -> Arc<PersistentVolumeClaim> {
        let done = if volume.is_empty() { json!({}) } else { json!({"pv.kubernetes.io/bind-completed": "yes"}) };
        let mut meta = json!({"namespace": "default", "name": "data", "uid": "u", "annotations": done});
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"storageClassName": class, "volumeName": volume}})).unwrap())
    }

    fn on(name: &str, place: &str, class: &str) -> Arc<PersistentVolume> {
        let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [place]}]});
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {"storageClassName": class,
                "capacity": {"storage": "1Gi"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}}),
            )
            .unwrap(),
        )
    }

    fn with_claim() -> PodFixture {
        pod("db").spec(|s| {
            s.volumes = Some(serde_json::from_value(json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}])).unwrap())
        })
    }

    /// Where the pod goes among n1 and n2, or why nowhere.
    fn schedule(world: &TestWorld) -> String {
        let mut cache = Cache::default();
        ["n1", "n2"].into_iter().for_each(|n| cache.set_node(node(n).build()));
        let pod = with_claim().info();
        let context = Context { pod: &pod, cache: &cache, world };
        let placed = Cycles::new(1).schedule(context).map_err(|unfit| unfit.message);
        placed.unwrap_or_else(|message| {
            message.trim_start_matches("0/2 nodes are available: ").split(". preemption").next().unwrap().to_owned()
        })
    }

    #[test]
    fn volumes_decide_where_pods_go() {
        let classes = || {
            vec![
                class("late", "p", "WaitForFirstConsumer"),
                class("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
                class("now", "p", "Immediate"),
            ]
        };
        let world = |claims: Vec<Arc<PersistentVolumeClaim>>, volumes: Vec<Arc<PersistentVolume>>| TestWorld {
            claims,
            volumes,
            classes: classes(),
            ..TestWorld::default()
        };
        let none = || json!({});
        let selected = |node: &str| json!({"annotations": {SELECTED_NODE: node}});
        for (claims, volumes, expected) in [
            (vec![], vec![], "persistentvolumeclaim \"data\" not found"),
            (vec![claim("now", "", none())], vec![], "pod has unbound immediate PersistentVolumeClaims"),
            (vec![claim("unknown", "", none())], vec![], "pod has unbound immediate PersistentVolumeClaims"),
            (
                vec![claim("late", "", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))],
                vec![],
                "persistentvolumeclaim \"data\" is being deleted",
            ),
            (vec![claim("static", "", none())], vec![], "2 node(s) didn't find available persistent volumes to bind"),
            (vec![claim("static", "", none())], vec![on("a", "n2", "static")], "n2"),
            (vec![claim("static", "", none())], vec![on("a", "n2", "late")], "2 node(s) didn't find available persistent volumes to bind"),
            (vec![claim("late", "", selected("n1"))], vec![], "n1"),
            (vec![claim("late", "", selected("gone"))], vec![], "2 node(s) didn't find available persistent volumes to bind"),
            (vec![claim("late", "a", none())], vec![on("a", "n1", "late")], "n1"),
            (vec![claim("late", "a", none())], vec![on("a", "n3", "late")], "2 node(s) didn't match PersistentVolume's node affinity"),
            (vec![claim("late", "a", none())], vec![], "2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
        ] {
            assert_eq!(schedule(&world(claims, volumes)), expected);
        }
    }

    #[test]
    fn a_volume_is_promised_once() {
        let world = TestWorld {
            claims: vec![claim("static", "", json!({}))],
            volumes: vec![on("a", "n1", "static")],
            classes: vec![class("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer")],
            ..TestWorld::default()
        };
        let mut cache = Cache::default();
        cache.set_node(node("n1").build());
        let (plugin, first) = (VolumeBinding::new(), with_claim().info());
        let context = Context { pod: &first, cache: &cache, world: &world };
        plugin.reserve(context, cache.node("n1").unwrap()).unwrap();
        assert_eq!(plugin.reserved.lock().get("a"), Some(&Key::new("default", "data")));
        plugin.reserved.lock().insert("a".into(), Key::new("default", "other"));
        assert!(plugin.reserve(context, cache.node("n1").unwrap()).is_err());
        plugin.reserved.lock().insert("a".into(), Key::new("default", "data"));
        plugin.unreserve(&first, "n1");
        assert!(plugin.reserved.lock().is_empty());
    }
}
