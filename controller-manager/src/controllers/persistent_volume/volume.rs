//! What is to be done for one volume: pure.
//!
//! Upstream: `pv_controller.go` (syncVolume, reclaimVolume), v1.33.

use api::volume::{PROVISIONED_BY, annotation, claim_ref, directory, mode, volume_name};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::Tell;
use crate::shared::meta;

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Phase(&'static str),
    /// The claim has not caught up: look at it.
    SyncClaim,
    /// The claim can't use it.
    WrongMode,
    /// Its claim is gone.
    Release,
    /// Its claim is bound to another volume.
    Unbind,
}

/// `claim`: the one in `claimRef`, with the same uid; none if that is gone.
pub fn plan(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Step {
    let Some(reference) = claim_ref(volume) else { return Step::Phase("Available") };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        // Reserved by a user: the claim binds itself when it comes.
        return Step::Phase("Available");
    }
    let Some(claim) = claim else { return Step::Release };
    let volume_mode = |volume: &PersistentVolume| mode(volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref())).to_owned();
    match volume_name(claim) {
        "" if volume_mode(volume) != mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref())) => Step::WrongMode,
        "" => Step::SyncClaim,
        name if name == meta::name(volume) => Step::Phase("Bound"),
        _ if annotation(&volume.metadata, PROVISIONED_BY).is_some() && policy(volume) == "Delete" => Step::Release,
        _ => Step::Unbind,
    }
}

pub fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reclaim {
    Nothing,
    /// The object goes; its finalizer holds it until the node has removed the directory.
    Delete,
    Fail(Tell),
}

/// What becomes of a volume whose claim is gone.
pub fn reclaim(volume: &PersistentVolume) -> Reclaim {
    let name = meta::name(volume);
    match (policy(volume), annotation(&volume.metadata, PROVISIONED_BY)) {
        ("Delete", Some(directory::PROVISIONER)) if meta::is_deleting(volume) => Reclaim::Nothing,
        ("Delete", Some(directory::PROVISIONER)) => Reclaim::Delete,
        // Another provisioner deletes what it made.
        ("Delete", Some(other)) if !other.starts_with("kubernetes.io/") => Reclaim::Nothing,
        ("Delete", _) => {
            let why = format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched");
            Reclaim::Fail(Tell::warning("VolumeFailedDelete", why))
        }
        ("Recycle", _) => Reclaim::Fail(Tell::warning("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        _ => Reclaim::Nothing,
    }
}

/// The node of a directory that waits for its node to remove it.
pub fn awaited_node(volume: &PersistentVolume) -> Option<&str> {
    let waits = meta::is_deleting(volume) && meta::has_finalizer(&volume.metadata, directory::FINALIZER);
    meta::label(volume, directory::NODE).filter(|_| waits)
}
