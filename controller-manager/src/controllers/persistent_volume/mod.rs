//! Claims and volumes find each other; volumes are made for claims, and reclaimed after them.
//!
//! ```text
//! claim ──plan──▶ wait | bind to a volume | ask a provisioner            (claim.rs, provision.rs)
//! volume ─plan──▶ Available | Bound | Released ─▶ reclaim: keep, delete  (volume.rs)
//! binding = four writes in order, each skipped if it is done             (bond.rs)
//! ```
//! Invariants: one worker, which sees its own writes at once ([`Latest`]), so no volume is given twice; every write carries
//! the revision that was decided on; a bond that a crash left half done is finished by the next sync of either side.
//! Upstream: `pkg/controller/volume/persistentvolume/pv_controller.go`, v1.33.

mod bond;
mod claim;
mod provision;
#[cfg(test)]
mod tests;
mod volume;

use std::fmt;
use std::sync::Arc;

use api::key::Key;
use api::volume::{SELECTED_NODE, STORAGE_PROVISIONERS, annotation, claim_class, claim_ref, directory, is_fully_bound, volume_name};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue, controller};

use super::volume_protection::{BY_CLAIM, claims_of, index_by_claim};
use crate::context::Context;
use crate::shared::latest::Latest;
use crate::shared::write::{self, Object};
use crate::shared::{meta, pods};

const NAME: &str = "persistentvolume-binder-controller";
/// Index of claims that are not bound, by class.
const UNBOUND: &str = "unbound-by-class";
/// Index of claims by the volume that they name.
const BY_VOLUME: &str = "claims-by-volume";
/// Index of volumes by the node of their directory.
const BY_NODE: &str = "volumes-by-node";
const DEFAULT_MARKS: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// An event about a claim or volume.
#[derive(Clone, Debug, PartialEq)]
pub struct Tell {
    warning: bool,
    reason: &'static str,
    message: String,
}

impl Tell {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Tell { warning: false, reason, message: message.into() }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Tell { warning: true, reason, message: message.into() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    Claim(Key),
    Volume(Key),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Claim(key) => write!(f, "claim {key}"),
            Item::Volume(key) => write!(f, "volume {key}"),
        }
    }
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let informers = &context.informers;
    let (claims, volumes) = (informers.of::<PersistentVolumeClaim>(), informers.of::<PersistentVolume>());
    let binder = Binder {
        client: context.client.clone(),
        recorder: context.recorder("persistentvolume-controller"),
        claims: Latest::new(&claims),
        volumes: Latest::new(&volumes),
        classes: informers.of(),
        pods: informers.of(),
        nodes: informers.of(),
        queue: queue.clone(),
    };
    index(&claims, &volumes, &binder.pods);
    tokio::join!(claims.synced(), volumes.synced(), binder.classes.synced(), binder.pods.synced(), binder.nodes.synced());
    listen(&queue, &claims, &volumes, &binder);
    let binder = Arc::new(binder);
    let sync = move |item: Item| {
        let binder = binder.clone();
        async move {
            match item {
                Item::Claim(key) => binder.sync_claim(&key).await?,
                Item::Volume(key) => binder.sync_volume(&key).await?,
            }
            Ok(Next::Done)
        }
    };
    controller::run(NAME, queue, 1, sync, context.token.clone()).await;
    Ok(())
}

fn index(claims: &Informer<PersistentVolumeClaim>, volumes: &Informer<PersistentVolume>, pods: &Informer<Pod>) {
    claims.index(UNBOUND, |claim| if is_fully_bound(claim) { Vec::new() } else { vec![claim_class(claim).to_owned()] });
    claims.index(BY_VOLUME, |claim| Some(volume_name(claim).to_owned()).filter(|name| !name.is_empty()).into_iter().collect());
    volumes.index(BY_NODE, |volume| meta::label(volume, directory::NODE).map(str::to_owned).into_iter().collect());
    index_by_claim(pods);
}

/// From changes to the claims and volumes that they concern.
fn listen(queue: &WorkQueue<Item>, claims: &Informer<PersistentVolumeClaim>, volumes: &Informer<PersistentVolume>, binder: &Binder) {
    let to = queue.clone();
    claims.on_change(move |change| {
        to.add_caused(Item::Claim(change.key()), change.cause());
        let names = change.old.iter().chain(&change.new).map(|claim| volume_name(claim)).filter(|name| !name.is_empty());
        names.for_each(|name| to.add_caused(Item::Volume(Key::cluster(name)), change.cause()));
    });
    let (to, waiting) = (queue.clone(), claims.clone());
    volumes.on_change(move |change| {
        let volume = change.object();
        to.add_caused(Item::Volume(change.key()), change.cause());
        let mut concerned: Vec<Key> = waiting.by(BY_VOLUME, meta::name(&**volume)).iter().map(|claim| meta::key(&**claim)).collect();
        match claim_ref(volume) {
            Some(reference) => concerned.push(reference_key(reference)),
            None => concerned.extend(waiting.by(UNBOUND, api::volume::volume_class(volume)).iter().map(|claim| meta::key(&**claim))),
        }
        concerned.into_iter().for_each(|key| to.add_caused(Item::Claim(key), change.cause()));
    });
    let (to, waiting) = (queue.clone(), claims.clone());
    binder.classes.on_change(move |change| {
        for class in [meta::name(&**change.object()), ""] {
            let concerned = waiting.by(UNBOUND, class);
            concerned.iter().for_each(|claim| to.add_caused(Item::Claim(meta::key(&**claim)), change.cause()));
        }
    });
    let (to, waiting) = (queue.clone(), claims.clone());
    binder.pods.on_change(move |change| {
        let Some(pod) = change.new.as_ref().filter(|_| change.old.is_none()) else { return };
        let unbound = claims_of(pod).into_iter().filter(|key| waiting.get(key).is_some_and(|claim| !is_fully_bound(&claim)));
        unbound.for_each(|key| to.add_caused(Item::Claim(key), change.cause()));
    });
    let (to, having) = (queue.clone(), volumes.clone());
    binder.nodes.on_change(move |change| {
        if change.is_delete() {
            let orphans = having.by(BY_NODE, &change.key().name);
            orphans.iter().for_each(|volume| to.add_caused(Item::Volume(meta::key(&**volume)), change.cause()));
        }
    });
}

fn reference_key(reference: &k8s_openapi::api::core::v1::ObjectReference) -> Key {
    Key::new(reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref().unwrap_or_default())
}

struct Binder {
    client: Client,
    recorder: Recorder,
    claims: Latest<PersistentVolumeClaim>,
    volumes: Latest<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    queue: WorkQueue<Item>,
}

impl Binder {
    fn tell<K: Object>(&self, object: &K, tell: Tell) {
        let about = meta::reference(object);
        match tell.warning {
            true => self.recorder.warning(&about, tell.reason, tell.message),
            false => self.recorder.normal(&about, tell.reason, tell.message),
        }
    }

    async fn sync_claim(&self, key: &Key) -> anyhow::Result<()> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let class = self.classes.get(&Key::cluster(claim_class(&claim)));
        let default = default_class(&self.classes.list());
        let waiting_pods: Vec<String> =
            self.pods.by(BY_CLAIM, &key.to_string()).iter().filter(|pod| waits(pod)).map(|pod| meta::name(&**pod).to_owned()).collect();
        let volumes = self.volumes.list();
        let view =
            claim::View { volumes: &volumes, class: class.as_deref(), default_class: default.as_deref(), waiting_pods: &waiting_pods };
        let claim::Plan { step, tell } = claim::plan(&claim, &view);
        match step {
            claim::Step::Lost => return self.lost(&claim, tell).await,
            claim::Step::Wait => drop(self.claim_status(claim.clone(), "Pending", None).await?),
            claim::Step::Bind(volume) => self.bind(volume, claim.clone()).await?,
            claim::Step::AssignClass(name) => {
                let mut assigned = (*claim).clone();
                assigned.spec.get_or_insert_default().storage_class_name = Some(name);
                self.update(&self.claims, &assigned).await?;
                self.queue.add(Item::Claim(key.clone()));
            }
            claim::Step::Provision => self.provision(&claim, class.as_deref()).await?,
        }
        tell.into_iter().for_each(|tell| self.tell(&*claim, tell));
        Ok(())
    }

    /// Tells it once, and only after asking the API server: a cache may be late.
    async fn lost(&self, claim: &Arc<PersistentVolumeClaim>, tell: Option<Tell>) -> anyhow::Result<()> {
        let name = Key::cluster(volume_name(claim));
        if self.volumes.get(&name).is_none()
            && !name.name.is_empty()
            && write::get::<PersistentVolume>(&self.client, &name).await?.is_some()
        {
            anyhow::bail!("volume {name} is not in the cache yet");
        }
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Lost") {
            self.claim_status(claim.clone(), "Lost", None).await?;
            tell.into_iter().for_each(|tell| self.tell(&**claim, tell));
        }
        Ok(())
    }

    async fn bind(&self, volume: Arc<PersistentVolume>, claim: Arc<PersistentVolumeClaim>) -> anyhow::Result<()> {
        let volume = match bond::volume_to_claim(&volume, &claim) {
            Some(bound) => self.update(&self.volumes, &bound).await?,
            None => volume,
        };
        let volume = self.volume_phase(volume, "Bound", "").await?;
        let claim = match bond::claim_to_volume(&claim, &volume) {
            Some(bound) => self.update(&self.claims, &bound).await?,
            None => claim,
        };
        self.claim_status(claim, "Bound", Some(&volume)).await?;
        Ok(())
    }

    async fn provision(&self, claim: &Arc<PersistentVolumeClaim>, class: Option<&StorageClass>) -> anyhow::Result<()> {
        let node = annotation(&claim.metadata, SELECTED_NODE).and_then(|name| self.nodes.get(&Key::cluster(name)));
        let plan = provision::plan(claim, class, node.as_deref());
        let mut noted = (**claim).clone();
        let annotations = &mut noted.metadata.annotations;
        match &plan {
            provision::Plan::Refuse(_) => {}
            provision::Plan::ChooseAgain => drop(annotations.as_mut().map(|annotations| annotations.remove(SELECTED_NODE))),
            provision::Plan::External(_) | provision::Plan::Make(_) => {
                let by = class.map(|class| class.provisioner.clone()).unwrap_or_default();
                annotations.get_or_insert_default().extend(STORAGE_PROVISIONERS.map(|key| (key.to_owned(), by.clone())));
            }
        }
        let claim = if noted == **claim { claim.clone() } else { self.update(&self.claims, &noted).await? };
        match plan {
            provision::Plan::Make(volume) => self.make(&claim, *volume).await,
            provision::Plan::Refuse(tell) | provision::Plan::External(tell) => {
                self.tell(&*claim, tell);
                self.claim_status(claim, "Pending", None).await.map(drop)
            }
            provision::Plan::ChooseAgain => Ok(()),
        }
    }

    async fn make(&self, claim: &Arc<PersistentVolumeClaim>, volume: PersistentVolume) -> anyhow::Result<()> {
        match write::create(&self.client, &volume).await {
            Ok(made) => {
                let text = format!("Successfully provisioned volume {} using {}", meta::name(&made), directory::PROVISIONER);
                self.tell(&**claim, Tell::normal("ProvisioningSucceeded", text));
                let made = self.volumes.wrote(made);
                self.bind(made, claim.clone()).await
            }
            // Made before a crash: the volume's own event brings the claim back here.
            Err(error) if write::is_already_exists(&error) => Ok(()),
            Err(error) => {
                let text = format!("Failed to provision volume with StorageClass {:?}: {}", claim_class(claim), write::message(&error));
                self.tell(&**claim, Tell::warning("ProvisioningFailed", text));
                Err(error.into())
            }
        }
    }

    async fn sync_volume(&self, key: &Key) -> anyhow::Result<()> {
        let Some(volume) = self.volumes.get(key) else { return Ok(()) };
        if let Some(node) = volume::awaited_node(&volume)
            && self.node_is_gone(node).await?
        {
            return self.let_go(&volume).await;
        }
        let claim = self.claim_of(&volume).await?;
        match volume::plan(&volume, claim.as_deref()) {
            volume::Step::Phase(phase) => drop(self.volume_phase(volume, phase, "").await?),
            volume::Step::SyncClaim => claim.iter().for_each(|claim| self.queue.add(Item::Claim(meta::key(&**claim)))),
            volume::Step::WrongMode => {
                let claim = claim_ref(&volume).map(reference_key).unwrap_or_else(|| Key::cluster(""));
                let text = format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
                    claim.name
                );
                self.tell(&*volume, Tell::warning("VolumeMismatch", text));
            }
            volume::Step::Release => self.release(volume).await?,
            volume::Step::Unbind => {
                let free = self.update(&self.volumes, &bond::unbound(&volume)).await?;
                self.volume_phase(free, "Available", "").await?;
            }
        }
        Ok(())
    }

    /// The claim that the volume names, unless it is gone or a namesake. The cache's word is not enough for that: data depends on it.
    async fn claim_of(&self, volume: &PersistentVolume) -> anyhow::Result<Option<Arc<PersistentVolumeClaim>>> {
        let Some(reference) = claim_ref(volume) else { return Ok(None) };
        let key = reference_key(reference);
        let uid = reference.uid.as_deref().unwrap_or_default();
        let same = |claim: &Arc<PersistentVolumeClaim>| uid.is_empty() || meta::uid(&**claim) == uid;
        if let Some(claim) = self.claims.get(&key).filter(same) {
            return Ok(Some(claim));
        }
        if uid.is_empty() {
            return Ok(None);
        }
        Ok(write::get::<PersistentVolumeClaim>(&self.client, &key).await?.map(Arc::new).filter(same))
    }

    async fn release(&self, volume: Arc<PersistentVolume>) -> anyhow::Result<()> {
        let phase = volume.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        if phase == "Failed" {
            return Ok(());
        }
        let volume = self.volume_phase(volume, "Released", "").await?;
        match volume::reclaim(&volume) {
            volume::Reclaim::Nothing => {}
            volume::Reclaim::Delete => {
                let deleted =
                    write::delete::<PersistentVolume>(&self.client, &meta::key(&*volume), &write::only(meta::uid(&*volume))).await;
                write::unless_gone(deleted)?;
            }
            volume::Reclaim::Fail(tell) => {
                let volume = self.volume_phase(volume, "Failed", &tell.message).await?;
                self.tell(&*volume, tell);
            }
        }
        Ok(())
    }

    async fn node_is_gone(&self, node: &str) -> anyhow::Result<bool> {
        let key = Key::cluster(node);
        Ok(self.nodes.get(&key).is_none() && write::get::<Node>(&self.client, &key).await?.is_none())
    }

    /// No kubelet will ever say that the directory is removed: it went with its node.
    async fn let_go(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let mut free = volume.clone();
        meta::remove_finalizer(&mut free.metadata, directory::FINALIZER);
        write::unless_gone(write::update(&self.client, &free).await)?;
        Ok(())
    }

    async fn volume_phase(&self, volume: Arc<PersistentVolume>, phase: &str, message: &str) -> anyhow::Result<Arc<PersistentVolume>> {
        let Some(told) = bond::volume_phase(&volume, phase, message, Timestamp::now()) else { return Ok(volume) };
        self.settle(&self.volumes, &told, write::update_status(&self.client, &told).await)
    }

    async fn claim_status(
        &self,
        claim: Arc<PersistentVolumeClaim>,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> anyhow::Result<Arc<PersistentVolumeClaim>> {
        let Some(told) = bond::claim_phase(&claim, phase, volume) else { return Ok(claim) };
        self.settle(&self.claims, &told, write::update_status(&self.client, &told).await)
    }

    async fn update<K: Object>(&self, latest: &Latest<K>, object: &K) -> anyhow::Result<Arc<K>> {
        self.settle(latest, object, write::update(&self.client, object).await)
    }

    fn settle<K: Object>(&self, latest: &Latest<K>, object: &K, written: kube::Result<K>) -> anyhow::Result<Arc<K>> {
        match written {
            Ok(written) => Ok(latest.wrote(written)),
            Err(error) => {
                // Ours is older than what is there, or there is nothing: the informer knows better.
                if write::is_not_found(&error) || write::is_conflict(&error) {
                    latest.gone(&meta::key(object));
                }
                Err(error.into())
            }
        }
    }
}

fn waits(pod: &Pod) -> bool {
    pods::is_active(pod) && pods::node(pod).is_empty()
}

/// Of several defaults the newest; of equally old ones the first by name.
fn default_class(classes: &[Arc<StorageClass>]) -> Option<String> {
    let is_default = |class: &&Arc<StorageClass>| DEFAULT_MARKS.iter().any(|mark| meta::annotation(&***class, mark) == Some("true"));
    let newest = classes
        .iter()
        .filter(is_default)
        .min_by_key(|class| (std::cmp::Reverse(meta::created(&***class)), meta::name(&***class).to_owned()));
    newest.and_then(|class| class.metadata.name.clone())
}
