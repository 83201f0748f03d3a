//! Claims, and generic ephemeral volumes, whose claims are named after pod and volume: what they are bound to, on this node.
//!
//! The pod was scheduled when its claims were bound, so a claim that is not is an exception, reported and asked for again.
//! Upstream: `pkg/kubelet/volumemanager/populator/desired_state_of_world_populator.go` (createVolumeSpec, getPVCExtractPV), v1.33.

use std::io;
use std::path::{Path, PathBuf};

use api::volume::{directory as shared, mode};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume};
use kube::Api;

use super::{Context, Error, Mounted, VolumePlugin, directory, io_error, own_volume, plain};
use crate::pod::PodExt;

pub struct PersistentClaim;

#[async_trait]
impl VolumePlugin for PersistentClaim {
    fn name(&self) -> &'static str {
        "kubernetes.io~local-volume"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    /// A bond lasts as long as the pod, and a volume's source never changes.
    fn lasts(&self) -> bool {
        true
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let pod = context.pod;
        let (name, read_only) = match &volume.persistent_volume_claim {
            Some(source) => (source.claim_name.clone(), source.read_only == Some(true)),
            None => (format!("{}-{}", pod.name(), volume.name), false),
        };
        let failed = |why: String| Error::Unprocessed(format!("error processing PVC {}/{name}: {why}", pod.namespace()));
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), pod.namespace());
        let claim = claims.get(&name).await.map_err(|e| failed(format!("failed to fetch PVC from API server: {}", message(&e))))?;
        let bound = bound_volume(&claim, volume.ephemeral.is_some().then(|| pod.uid())).map_err(failed)?;
        let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
        let found = volumes
            .get(bound)
            .await
            .map_err(|e| Error::Unprocessed(format!("failed to fetch PV {bound} from API server: {}", message(&e))))?;
        let spec = found.spec.clone().unwrap_or_default();
        belongs(&found, &claim)?;
        check_use(pod, &volume.name, bound, &spec)?;
        reaches(context, bound, &spec)?;
        let path = path(context, &found, &spec, read_only)?;
        Ok(Mounted { read_only, ..Mounted::at(path) })
    }
}

fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The volume's name. `owner`: the pod that a generic ephemeral volume's claim must belong to.
fn bound_volume<'c>(claim: &'c PersistentVolumeClaim, owner: Option<&str>) -> Result<&'c str, String> {
    let owned = |uid: &str| claim.metadata.owner_references.iter().flatten().any(|o| o.controller == Some(true) && o.uid == uid);
    if owner.is_some_and(|uid| !owned(uid)) {
        return Err("not the ephemeral PVC for the pod".into());
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".into());
    }
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound".into());
    }
    match api::volume::volume_name(claim) {
        "" => Err("PVC has empty pvc.Spec.VolumeName".into()),
        name => Ok(name),
    }
}

fn belongs(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let uid = |uid: Option<&String>| uid.cloned().unwrap_or_default();
    let Some(reference) = api::volume::claim_ref(volume) else {
        return Err(Error::Unprocessed(format!("found PV object {name} has nil pvc.Spec.ClaimRef")));
    };
    if reference.uid != claim.metadata.uid {
        let (found, expected) = (uid(reference.uid.as_ref()), uid(claim.metadata.uid.as_ref()));
        return Err(Error::Unprocessed(format!(
            "found PV object {name} bound to wrong PVC: pvc.Spec.ClaimRef.UID {found} does not match expected pvcUID {expected}"
        )));
    }
    Ok(())
}

/// Files are mounted, devices are not: this kubelet has no block volumes.
fn check_use(pod: &Pod, volume: &str, name: &str, spec: &PersistentVolumeSpec) -> Result<(), Error> {
    let containers = pod.all_containers();
    let as_device = containers.iter().any(|c| c.volume_devices.iter().flatten().any(|d| d.name == volume));
    match (mode(spec.volume_mode.as_deref()), as_device) {
        ("Block", false) => Err(Error::Unprocessed(format!("volume {volume} has volumeMode Block, but is specified in volumeMounts"))),
        ("Block", true) => {
            Err(Error::Unprocessed(format!("PersistentVolume {name:?} has volumeMode Block, which this kubelet does not support")))
        }
        (mode, true) => Err(Error::Unprocessed(format!("volume {volume} has volumeMode {mode}, but is specified in volumeDevices"))),
        (_, false) => Ok(()),
    }
}

/// A pod that was bound past the scheduler must not find an empty directory where its data are on another node.
fn reaches(context: &Context<'_>, name: &str, spec: &PersistentVolumeSpec) -> Result<(), Error> {
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let Some((selector, node)) = required.zip(context.node) else { return Ok(()) };
    let labels = node.metadata.labels.clone().unwrap_or_default();
    match api::nodes::selector_matches(selector, node.metadata.name.as_deref().unwrap_or_default(), &labels) {
        true => Ok(()),
        false => Err(Error::Misplaced(name.to_owned())),
    }
}

fn path(context: &Context<'_>, volume: &PersistentVolume, spec: &PersistentVolumeSpec, read_only: bool) -> Result<PathBuf, Error> {
    if let Some(source) = &spec.host_path {
        plain::check_host_path(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
        return Ok(source.path.clone().into());
    }
    let Some(source) = &spec.local else {
        return Err(Error::Refused("no volume plugin matched".into()));
    };
    let path = Path::new(&source.path);
    if directory::is_ours(volume) && path.starts_with(shared::ROOT) {
        directory::ensure(path).map_err(io_error(format!("create {}", path.display())))?;
    }
    if !path.exists() {
        let missing = io::Error::new(io::ErrorKind::NotFound, "no such file or directory");
        return Err(Error::Io(format!("path {:?} does not exist", source.path), missing));
    }
    own_volume(context.pod, path, !read_only).map_err(io_error(format!("chown {}", path.display())))?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_claim_must_be_bound() {
        let check = |meta: Value, spec: Value, phase: &str, owner: Option<&str>| {
            let claim: PersistentVolumeClaim =
                serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": {"phase": phase}})).unwrap();
            bound_volume(&claim, owner).map(str::to_owned)
        };
        let (plain, named) = (json!({}), json!({"volumeName": "v"}));
        let owned = json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]});
        assert_eq!(check(plain.clone(), named.clone(), "Bound", None), Ok("v".into()));
        assert_eq!(check(plain.clone(), named.clone(), "Pending", None), Err("PVC is not bound".into()));
        assert_eq!(check(plain.clone(), plain.clone(), "Bound", None), Err("PVC has empty pvc.Spec.VolumeName".into()));
        assert_eq!(
            check(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), named.clone(), "Bound", None),
            Err("PVC is being deleted".into())
        );
        assert_eq!(check(plain, named.clone(), "Bound", Some("u")), Err("not the ephemeral PVC for the pod".into()));
        assert_eq!(check(owned, named, "Bound", Some("u")), Ok("v".into()));
    }

    #[test]
    fn devices_are_refused() {
        let pod = |container: Value| -> Pod { serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap() };
        let (mounts, maps) = (json!({"name": "c"}), json!({"name": "c", "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}));
        let spec = |mode: &str| PersistentVolumeSpec { volume_mode: Some(mode.into()), ..PersistentVolumeSpec::default() };
        let check =
            |container: &Value, mode: &str| check_use(&pod(container.clone()), "data", "pv", &spec(mode)).map_err(|e| e.to_string());
        assert_eq!(check(&mounts, "Filesystem"), Ok(()));
        assert_eq!(check(&mounts, "Block"), Err("volume data has volumeMode Block, but is specified in volumeMounts".into()));
        assert_eq!(check(&maps, "Filesystem"), Err("volume data has volumeMode Filesystem, but is specified in volumeDevices".into()));
        assert!(check(&maps, "Block").unwrap_err().contains("does not support"));
    }
}
