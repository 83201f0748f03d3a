//! Generic ephemeral volumes: a claim for each of a pod's, owned by the pod, which it so outlives by nothing.
//!
//! Upstream: `pkg/controller/volume/ephemeral/controller.go`, v1.33.

use std::sync::Arc;

use anyhow::anyhow;
use api::key::Key;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::{Next, WorkQueue};

use super::volume_protection;
use crate::context::Context;
use crate::shared::{meta, pods, watch, write};

const NAME: &str = "ephemeral-volume-controller";

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let (claims, pods) = (context.informers.of::<PersistentVolumeClaim>(), context.informers.of::<Pod>());
    let recorder = context.recorder("ephemeral_volume");
    let pod_queue = queue.clone();
    pods.on_change(move |change| {
        if change.new.as_ref().is_some_and(|pod| ephemeral(pod).next().is_some()) {
            pod_queue.add_caused(change.key(), change.cause());
        }
    });
    watch::controller(&claims, &queue, "Pod");
    claims.synced().await;
    pods.synced().await;
    let client = context.client.clone();
    context
        .run(NAME, queue, move |key: Key| {
            let (client, claims, recorder, pod) = (client.clone(), claims.clone(), recorder.clone(), pods.get(&key));
            async move {
                let Some(pod) = pod.filter(|pod| pods::is_active(pod)) else { return Ok(Next::Done) };
                for volume in ephemeral(&pod) {
                    let wanted = claim(&pod, volume);
                    let there = claims.get(&meta::key(&wanted));
                    if let Err(error) = ensure(&client, &pod, &wanted, there.as_deref()).await {
                        let text = format!("ephemeral volume {}: {error}", volume.name);
                        recorder.warning(&meta::reference(&*pod), "FailedBinding", text);
                        return Err(error);
                    }
                }
                Ok(Next::Done)
            }
        })
        .await
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.is_some())
}

fn claim(pod: &Pod, volume: &Volume) -> PersistentVolumeClaim {
    let template = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.clone()).unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(volume_protection::ephemeral_claim(pod, volume)),
            namespace: pod.metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            owner_references: Some(vec![meta::controller_ref(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec),
        status: None,
    }
}

async fn ensure(
    client: &kube::Client,
    pod: &Pod,
    wanted: &PersistentVolumeClaim,
    there: Option<&PersistentVolumeClaim>,
) -> anyhow::Result<()> {
    match there {
        Some(claim) if meta::is_controlled_by(claim, meta::uid(pod)) => Ok(()),
        Some(claim) => Err(anyhow!("PVC {:?} (uid: {:?}) was not created for the pod", meta::key(claim).to_string(), meta::uid(claim))),
        None => {
            // What the cache does not show yet comes back as a change of the claim.
            let made = write::unless_exists(write::create(client, wanted).await);
            made.map_err(|error| anyhow!("create PVC {}: {}", meta::name(wanted), write::message(&error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_is_the_pods() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "n", "name": "p", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "plain", "emptyDir": {}}, {"name": "v", "ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}
        }))
        .unwrap();
        let volumes: Vec<&Volume> = ephemeral(&pod).collect();
        assert_eq!(volumes.len(), 1);
        let made = claim(&pod, volumes[0]);
        assert_eq!((meta::key(&made).to_string(), meta::label(&made, "a")), ("n/p-v".to_owned(), Some("b")));
        assert!(meta::is_controlled_by(&made, "u"));
        assert_eq!(made.spec.unwrap().access_modes.unwrap(), ["ReadWriteOnce"]);
    }
}
