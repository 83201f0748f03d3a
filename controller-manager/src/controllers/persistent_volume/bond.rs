//! The four writes that bind a claim and a volume, and the one that undoes it: pure, each `None` if it is done already.
//!
//! Upstream: `component-helpers/storage/volume/pv_helpers.go` (GetBindVolumeToClaim), `pv_controller.go` (bind, unbindVolume), v1.33.

use api::volume::{BIND_COMPLETED, BOUND_BY_CONTROLLER, is_bound_to, volume_name};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus};

use crate::shared::meta;
use crate::shared::write::Object;

fn differs<K: Object>(new: K, old: &K) -> Option<K> {
    (new != *old).then_some(new)
}

fn mark<K: Object>(object: &mut K, annotation: &str) {
    object.metadata_mut().annotations.get_or_insert_default().entry(annotation.to_owned()).or_insert_with(|| "yes".to_owned());
}

pub fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference { field_path: None, ..meta::reference(claim) }
}

/// The volume is for this claim and no other.
pub fn volume_to_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let mut bound = volume.clone();
    if !is_bound_to(volume, claim) {
        mark(&mut bound, BOUND_BY_CONTROLLER);
    }
    let spec = bound.spec.get_or_insert_default();
    if spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref()) != Some(meta::uid(claim)) {
        spec.claim_ref = Some(reference(claim));
    }
    differs(bound, volume)
}

pub fn claim_to_volume(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<PersistentVolumeClaim> {
    let mut bound = claim.clone();
    if volume_name(claim) != meta::name(volume) {
        bound.spec.get_or_insert_default().volume_name = volume.metadata.name.clone();
        mark(&mut bound, BOUND_BY_CONTROLLER);
    }
    mark(&mut bound, BIND_COMPLETED);
    differs(bound, claim)
}

pub fn volume_phase(volume: &PersistentVolume, phase: &str, message: &str, now: Timestamp) -> Option<PersistentVolume> {
    let mut told = volume.clone();
    let status = told.status.get_or_insert_default();
    if status.phase.as_deref() == Some(phase) {
        return None;
    }
    status.phase = Some(phase.to_owned());
    status.message = (!message.is_empty()).then(|| message.to_owned());
    status.last_phase_transition_time = Some(meta::time(now));
    Some(told)
}

/// `volume`: the one it is bound to. Its capacity is told once, when the bond is made: what grows later says so itself.
pub fn claim_phase(claim: &PersistentVolumeClaim, phase: &str, volume: Option<&PersistentVolume>) -> Option<PersistentVolumeClaim> {
    let mut told = claim.clone();
    let status = told.status.get_or_insert_default();
    let before = status.phase.replace(phase.to_owned());
    match volume.and_then(|volume| volume.spec.as_ref()) {
        None => *status = PersistentVolumeClaimStatus { access_modes: None, capacity: None, ..status.clone() },
        Some(spec) => {
            status.access_modes = spec.access_modes.clone();
            if before.as_deref() != Some(phase) || status.capacity.is_none() {
                let size = spec.capacity.iter().flatten().filter(|(name, _)| *name == "storage");
                status.capacity = Some(size.map(|(name, size)| (name.clone(), size.clone())).collect());
            }
        }
    }
    differs(told, claim)
}

/// What the controller bound becomes free; what a user reserved stays reserved for the name.
pub fn unbound(volume: &PersistentVolume) -> PersistentVolume {
    let mut free = volume.clone();
    let ours = free.metadata.annotations.as_mut().is_some_and(|annotations| annotations.remove(BOUND_BY_CONTROLLER).is_some());
    let spec = free.spec.get_or_insert_default();
    if ours {
        spec.claim_ref = None;
    } else if let Some(reference) = &mut spec.claim_ref {
        (reference.uid, reference.resource_version) = (None, None);
    }
    free
}
