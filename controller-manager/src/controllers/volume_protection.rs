//! Protection of volumes in use: a claim that a pod mounts, and a volume that is bound, wait with going away.
//!
//! Upstream: `pkg/controller/volume/{pvcprotection,pvprotection}`.

use std::sync::Arc;

use api::key::Key;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::api::ListParams;
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::meta::has_finalizer;
use crate::shared::write::Object;
use crate::shared::{meta, pods, watch, write};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
/// Index of pods by the claims that they mount.
pub const BY_CLAIM: &str = "pods-by-claim";

/// Claims: in use by any pod that is not finished.
pub async fn run_claims(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let (claims, pods) = (context.informers.of::<PersistentVolumeClaim>(), context.informers.of::<Pod>());
    index_by_claim(&pods);
    watch::itself(&claims, &queue);
    let pod_queue = queue.clone();
    pods.on_change(move |change| {
        let Some(pod) = change.old.as_ref() else { return };
        if change.new.as_ref().is_none_or(|pod| pods::is_finished(pod)) {
            claims_of(pod).into_iter().for_each(|key| pod_queue.add_caused(key, change.cause()));
        }
    });
    claims.synced().await;
    pods.synced().await;
    let client = context.client.clone();
    context
        .run("persistentvolumeclaim-protection-controller", queue, move |key| {
            let (client, claim) = (client.clone(), claims.get(&key));
            let used = pods.by(BY_CLAIM, &key.to_string()).iter().any(|pod| keeps(pod));
            async move {
                // The cache may be late, and data depends on the answer.
                let ends = claim.as_ref().is_some_and(|claim| meta::is_deleting(&**claim));
                let used = used || (ends && is_used(&client, &key).await?);
                protect(&client, claim, CLAIM, used).await
            }
        })
        .await
}

/// A pod that has no node has mounted nothing, and no kubelet mounts a claim that is being deleted.
fn keeps(pod: &Pod) -> bool {
    !pods::is_finished(pod) && !pods::node(pod).is_empty()
}

async fn is_used(client: &kube::Client, claim: &Key) -> kube::Result<bool> {
    let pods = kube::Api::<Pod>::namespaced(client.clone(), &claim.namespace).list(&ListParams::default()).await?;
    Ok(pods.items.iter().any(|pod| keeps(pod) && claims_of(pod).contains(claim)))
}

pub fn index_by_claim(pods: &Informer<Pod>) {
    pods.index(BY_CLAIM, |pod| claims_of(pod).iter().map(Key::to_string).collect());
}

pub fn claims_of(pod: &Pod) -> Vec<Key> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claim = |volume: &Volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(ephemeral_claim(pod, volume)),
        (None, None) => None,
    };
    volumes.filter_map(claim).map(|name| Key::new(meta::namespace(pod), name)).collect()
}

/// The name of the claim behind a generic ephemeral volume.
pub fn ephemeral_claim(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", meta::name(pod), volume.name)
}

/// Volumes: in use while bound to a claim.
pub async fn run_volumes(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let volumes = context.informers.of::<PersistentVolume>();
    watch::itself(&volumes, &queue);
    volumes.synced().await;
    let client = context.client.clone();
    context
        .run("persistentvolume-protection-controller", queue, move |key| {
            let (client, volume) = (client.clone(), volumes.get(&key));
            async move {
                let phase = volume.as_ref().and_then(|volume| volume.status.as_ref()?.phase.clone());
                protect(&client, volume, VOLUME, phase.as_deref() == Some("Bound")).await
            }
        })
        .await
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    Nothing,
}

fn plan(deleting: bool, protected: bool, used: bool) -> Action {
    match (deleting, protected) {
        (false, false) => Action::Add,
        (true, true) if !used => Action::Remove,
        _ => Action::Nothing,
    }
}

async fn protect<K: Object>(client: &kube::Client, object: Option<Arc<K>>, finalizer: &str, used: bool) -> anyhow::Result<Next> {
    let Some(object) = object else { return Ok(Next::Done) };
    let mut updated = (*object).clone();
    match plan(meta::is_deleting(&*object), has_finalizer(object.metadata(), finalizer), used) {
        Action::Nothing => return Ok(Next::Done),
        Action::Add => meta::add_finalizer(updated.metadata_mut(), finalizer),
        Action::Remove => meta::remove_finalizer(updated.metadata_mut(), finalizer),
    }
    write::unless_gone(write::update(client, &updated).await)?;
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays() {
        assert_eq!(plan(false, false, false), Action::Add);
        assert_eq!(plan(false, true, false), Action::Nothing);
        assert_eq!(plan(true, true, true), Action::Nothing);
        assert_eq!(plan(true, true, false), Action::Remove);
        assert_eq!(plan(true, false, false), Action::Nothing);
    }
}
