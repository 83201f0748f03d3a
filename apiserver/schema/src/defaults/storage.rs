//! Volumes, claims and classes.

use serde_json::{Value, json};

use super::{at, flag, pod, set, text};

pub fn volume(volume: &mut Value) {
    text(at(volume, "status"), "phase", "Pending");
    let spec = at(volume, "spec");
    text(spec, "persistentVolumeReclaimPolicy", "Retain");
    set(spec, "volumeMode", "Filesystem");
    pod::volume_source(spec);
}

pub fn claim(claim: &mut Value) {
    text(at(claim, "status"), "phase", "Pending");
    set(at(claim, "spec"), "volumeMode", "Filesystem");
}

pub fn class(class: &mut Value) {
    set(class, "reclaimPolicy", "Delete");
    set(class, "volumeBindingMode", "Immediate");
}

pub fn csi_driver(driver: &mut Value) {
    let spec = at(driver, "spec");
    flag(spec, "attachRequired", true);
    for off in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        flag(spec, off, false);
    }
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if super::is_empty(spec, "volumeLifecycleModes")
        && let Some(spec) = spec.as_object_mut()
    {
        spec.insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
    }
}
