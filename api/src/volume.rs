//! What binds a claim to a volume: the rules that the volume controller, the scheduler and the kubelet must read alike.
//!
//! A bond is written in four places, in this order, and any of them can be the last that a crash leaves behind:
//! `volume.spec.claimRef`, `volume.status.phase`, `claim.spec.volumeName` (with [`BIND_COMPLETED`]), `claim.status.phase`.
//! Upstream: `component-helpers/storage/volume/{helpers,pv_helpers}.go`, v1.33.

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{LabelSelector, Quantity};

/// On a claim: the node for which its volume is to be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: the bond was once whole, so a volume that is gone is lost and not merely late.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The bond is the controller's doing, so it may undo it; a bond that a user wrote stays.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it, and so who deletes it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who shall make its volume, by its name of today and the older one.
pub const STORAGE_PROVISIONERS: [&str; 2] = ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const LEGACY_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Volumes that are directories on a node: made by the volume controller as objects, and by the node's kubelet on its disk.
pub mod directory {
    pub const PROVISIONER: &str = "coracle.dev/directory";
    /// Keeps a volume's object until the kubelet of its node has removed the directory.
    pub const FINALIZER: &str = "coracle.dev/directory";
    /// On a volume: the node that has the directory. A kubelet may see the volumes that carry its name.
    pub const NODE: &str = "coracle.dev/node";
    /// Where the directories are on every node, each named after its volume.
    pub const ROOT: &str = "/var/lib/coracle/volumes";
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn claim_spec(claim: &PersistentVolumeClaim) -> &PersistentVolumeClaimSpec {
    static EMPTY: std::sync::LazyLock<PersistentVolumeClaimSpec> = std::sync::LazyLock::new(Default::default);
    claim.spec.as_ref().unwrap_or(&EMPTY)
}

fn volume_spec(volume: &PersistentVolume) -> &PersistentVolumeSpec {
    static EMPTY: std::sync::LazyLock<PersistentVolumeSpec> = std::sync::LazyLock::new(Default::default);
    volume.spec.as_ref().unwrap_or(&EMPTY)
}

/// The name of the claim's class; empty for none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    annotation(&claim.metadata, LEGACY_CLASS).or(claim_spec(claim).storage_class_name.as_deref()).unwrap_or_default()
}

/// Whether the claim says anything of a class; an empty name is a choice too.
pub fn names_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, LEGACY_CLASS).is_some() || claim_spec(claim).storage_class_name.is_some()
}

pub fn volume_class(volume: &PersistentVolume) -> &str {
    annotation(&volume.metadata, LEGACY_CLASS).or(volume_spec(volume).storage_class_name.as_deref()).unwrap_or_default()
}

/// The volume that the claim is, or wants to be, bound to; empty for none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim_spec(claim).volume_name.as_deref().unwrap_or_default()
}

pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume_spec(volume).claim_ref.as_ref()
}

pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim_spec(claim).resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("storage")).and_then(|q| Quantity::parse(&q.0).ok()).unwrap_or(Quantity::ZERO)
}

pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume_spec(volume).capacity.as_ref();
    capacity.and_then(|c| c.get("storage")).and_then(|q| Quantity::parse(&q.0).ok()).unwrap_or(Quantity::ZERO)
}

/// Claim and volume say so both, and the controller has finished: only then may a pod use it.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// Whether the volume is this claim's: by its uid, or by name if the volume was reserved before the claim existed.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|reference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
    })
}

pub fn mode(mode: Option<&str>) -> &str {
    mode.filter(|m| !m.is_empty()).unwrap_or("Filesystem")
}

fn modes_differ(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    mode(volume_spec(volume).volume_mode.as_deref()) != mode(claim_spec(claim).volume_mode.as_deref())
}

fn offers_access(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume_spec(volume).access_modes.as_deref().unwrap_or_default();
    claim_spec(claim).access_modes.iter().flatten().all(|mode| offered.contains(mode))
}

/// Why a volume that the claim asks for by name does not suit it, in upstream's words.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion {:?}", volume.metadata.name.as_deref().unwrap_or_default()));
    }
    let reason = match () {
        () if capacity(volume) < requested(claim) => "requested PV is too small",
        () if volume_class(volume) != claim_class(claim) => "storageClassName does not match",
        () if modes_differ(volume, claim) => "incompatible volumeMode",
        () if !offers_access(volume, claim) => "incompatible accessMode",
        () => return None,
    };
    Some(reason.to_owned())
}

/// What a volume is to a claim that asks for none by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    No,
    /// Anyone's, and it suits.
    Free,
    /// Kept for this very claim.
    Reserved,
}

/// `selector` is the claim's, compiled.
pub fn fit(volume: &PersistentVolume, claim: &PersistentVolumeClaim, selector: &LabelSelector) -> Fit {
    let suits = volume.metadata.deletion_timestamp.is_none()
        && capacity(volume) >= requested(claim)
        && !modes_differ(volume, claim)
        && offers_access(volume, claim);
    if !suits {
        return Fit::No;
    }
    if claim_ref(volume).is_some() {
        return if is_bound_to(volume, claim) { Fit::Reserved } else { Fit::No };
    }
    let available = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
    let free = available && volume_class(volume) == claim_class(claim) && selector.matches_opt(volume.metadata.labels.as_ref());
    if free { Fit::Free } else { Fit::No }
}

/// The claim's selector; one that does not parse matches nothing.
pub fn selector(claim: &PersistentVolumeClaim) -> LabelSelector {
    match &claim_spec(claim).selector {
        None => LabelSelector::everything(),
        selector => LabelSelector::from_k8s(selector.as_ref()).unwrap_or_else(|_| LabelSelector::nothing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(spec: Value, phase: &str) -> PersistentVolume {
        let mut whole = json!({"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "s"});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "v", "labels": {"tier": "fast"}}, "spec": whole, "status": {"phase": phase}}))
            .unwrap()
    }

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut whole = json!({"resources": {"requests": {"storage": "2Gi"}}, "accessModes": ["ReadWriteOnce"], "storageClassName": "s"});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "c", "uid": "u"}, "spec": whole})).unwrap()
    }

    #[test]
    fn what_fits_a_claim() {
        let plain = json!({});
        let to = |name: &str, uid: &str| json!({"claimRef": {"namespace": "n", "name": name, "uid": uid}, "storageClassName": "other"});
        for (offer, phase, wish, expected, why) in [
            (plain.clone(), "Available", plain.clone(), Fit::Free, "suits"),
            (plain.clone(), "Released", plain.clone(), Fit::No, "holds another's data"),
            (json!({"capacity": {"storage": "1Gi"}}), "Available", plain.clone(), Fit::No, "too small"),
            (json!({"volumeMode": "Block"}), "Available", plain.clone(), Fit::No, "a device"),
            (plain.clone(), "Available", json!({"accessModes": ["ReadWriteMany"]}), Fit::No, "for one node only"),
            (plain.clone(), "Available", json!({"storageClassName": ""}), Fit::No, "of a class"),
            (plain.clone(), "Available", json!({"selector": {"matchLabels": {"tier": "fast"}}}), Fit::Free, "selected"),
            (plain.clone(), "Available", json!({"selector": {"matchLabels": {"tier": "slow"}}}), Fit::No, "not selected"),
            (to("c", ""), "Available", plain.clone(), Fit::Reserved, "reserved by name, whatever its class"),
            (to("c", "u"), "Bound", plain.clone(), Fit::Reserved, "reserved by uid"),
            (to("c", "elder"), "Released", plain.clone(), Fit::No, "a namesake's"),
            (to("d", ""), "Available", plain.clone(), Fit::No, "another's"),
        ] {
            let claim = claim(wish);
            assert_eq!(fit(&volume(offer, phase), &claim, &selector(&claim)), expected, "{why}");
        }
    }

    #[test]
    fn a_volume_by_name_must_suit_too() {
        let wish = |spec: Value| mismatch(&volume(json!({}), "Available"), &claim(spec));
        assert_eq!(wish(json!({})), None);
        assert_eq!(wish(json!({"resources": {"requests": {"storage": "6Gi"}}})).as_deref(), Some("requested PV is too small"));
        assert_eq!(wish(json!({"storageClassName": "x"})).as_deref(), Some("storageClassName does not match"));
        assert_eq!(wish(json!({"volumeMode": "Block"})).as_deref(), Some("incompatible volumeMode"));
        assert_eq!(wish(json!({"accessModes": ["ReadWriteMany"]})).as_deref(), Some("incompatible accessMode"));
    }
}
