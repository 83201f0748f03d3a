//! Larger claims: a bound claim that asks for more than it has gets it, where its volume can grow.
//!
//! A directory is as large as its disk, so its volume grows by saying so. Other volumes are an external controller's.
//! Upstream: `pkg/controller/volume/expand/expand_controller.go`, v1.33.

use std::sync::Arc;

use api::key::Key;
use api::volume::{self, directory};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use machinery::{Next, WorkQueue};

use crate::context::Context;
use crate::shared::{meta, watch, write};

const NAME: &str = "persistentvolume-expander-controller";

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let (claims, volumes) = (context.informers.of::<PersistentVolumeClaim>(), context.informers.of::<PersistentVolume>());
    let recorder = context.recorder("volume_expand");
    watch::itself(&claims, &queue);
    claims.synced().await;
    volumes.synced().await;
    let client = context.client.clone();
    context
        .run(NAME, queue, move |key: Key| {
            let (client, recorder, claim) = (client.clone(), recorder.clone(), claims.get(&key));
            let volume = claim.as_ref().and_then(|claim| volumes.get(&Key::cluster(volume::volume_name(claim))));
            async move {
                let (Some(claim), Some(volume)) = (claim, volume) else { return Ok(Next::Done) };
                let about = meta::reference(&*claim);
                match plan(&claim, &volume) {
                    Plan::Nothing => {}
                    Plan::External => recorder.normal(&about, "ExternalExpanding", "waiting for an external controller to expand this PVC"),
                    Plan::Grow(size) => {
                        grow(&client, &claim, &volume, &size).await?;
                        recorder.normal(&about, "VolumeResizeSuccessful", format!("ExpandVolume succeeded for volume {key}"));
                    }
                }
                Ok(Next::Done)
            }
        })
        .await
}

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    External,
    Grow(Quantity),
}

fn plan(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Plan {
    let status = claim.status.clone().unwrap_or_default();
    let has = status.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
    let has = has.and_then(|size| api::Quantity::parse(&size.0).ok()).unwrap_or(api::Quantity::ZERO);
    let wants = volume::requested(claim);
    if status.phase.as_deref() != Some("Bound") || !volume::is_bound_to(volume, claim) || wants <= has {
        return Plan::Nothing;
    }
    match volume::annotation(&volume.metadata, volume::PROVISIONED_BY) {
        Some(directory::PROVISIONER) => Plan::Grow(wants.max(volume::capacity(volume)).to_k8s()),
        _ => Plan::External,
    }
}

/// The volume first: a claim never says more than its volume.
async fn grow(client: &kube::Client, claim: &PersistentVolumeClaim, volume: &PersistentVolume, size: &Quantity) -> anyhow::Result<()> {
    let mut larger = volume.clone();
    larger.spec.get_or_insert_default().capacity.get_or_insert_default().insert("storage".to_owned(), size.clone());
    if larger != *volume {
        write::update(client, &larger).await?;
    }
    let mut claim = claim.clone();
    claim.status.get_or_insert_default().capacity.get_or_insert_default().insert("storage".to_owned(), size.clone());
    write::update_status(client, &claim).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_ours_grow_here() {
        let claim = |wants: &str, phase: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "c", "uid": "u"},
                "spec": {"volumeName": "v", "resources": {"requests": {"storage": wants}}},
                "status": {"phase": phase, "capacity": {"storage": "1Gi"}}}))
            .unwrap()
        };
        let volume = |by: &str| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v", "annotations": {(volume::PROVISIONED_BY): by}},
                "spec": {"capacity": {"storage": "1Gi"}, "claimRef": {"namespace": "n", "name": "c", "uid": "u"}}}))
            .unwrap()
        };
        let ours = volume(directory::PROVISIONER);
        assert_eq!(plan(&claim("1024Mi", "Bound"), &ours), Plan::Nothing);
        assert_eq!(plan(&claim("2Gi", "Pending"), &ours), Plan::Nothing);
        assert_eq!(plan(&claim("2Gi", "Bound"), &ours), Plan::Grow(Quantity("2Gi".into())));
        assert_eq!(plan(&claim("2Gi", "Bound"), &volume("x.example.com")), Plan::External);
    }
}
