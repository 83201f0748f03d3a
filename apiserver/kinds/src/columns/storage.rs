//! Volumes and their drivers.

use serde_json::Value;

use super::{AGE, NAME, boolean, integer, join, or, or_none, string, wide};
use crate::Column;
use crate::value::{flag, is_set, list, text};

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

const VOLUME_MODE: Column = wide(string("VolumeMode", |o, _| or(text(o, "/spec/volumeMode").to_owned(), "<unset>").into()));
const CLASS_NAME: Column = string("StorageClass", |o, _| class(o).into());
const ATTRIBUTES_CLASS: Column =
    string("VolumeAttributesClass", |o, _| or(text(o, "/spec/volumeAttributesClassName").to_owned(), "<unset>").into());

/// The annotation that preceded the field still wins.
fn class(object: &Value) -> &str {
    match object["metadata"]["annotations"].get(BETA_CLASS).and_then(Value::as_str) {
        Some(name) => name,
        None => text(object, "/spec/storageClassName"),
    }
}

fn phase(object: &Value) -> &str {
    if is_set(object, "/metadata/deletionTimestamp") { "Terminating" } else { text(object, "/status/phase") }
}

fn access_modes(modes: &[Value]) -> String {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| modes.iter().any(|m| m.as_str() == Some(mode));
    SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

pub const VOLUME: &[Column] = &[
    NAME,
    string("Capacity", |o, _| or(text(o, "/spec/capacity/storage").to_owned(), "0").into()),
    string("Access Modes", |o, _| access_modes(list(o, "/spec/accessModes")).into()),
    string("Reclaim Policy", |o, _| text(o, "/spec/persistentVolumeReclaimPolicy").into()),
    string("Status", |o, _| phase(o).into()),
    string("Claim", |o, _| {
        if !is_set(o, "/spec/claimRef") {
            return "".into();
        }
        format!("{}/{}", text(o, "/spec/claimRef/namespace"), text(o, "/spec/claimRef/name")).into()
    }),
    Column { description: "StorageClass of the pv", ..CLASS_NAME },
    ATTRIBUTES_CLASS,
    string("Reason", |o, _| text(o, "/status/reason").into()),
    AGE,
    VOLUME_MODE,
];

pub const CLAIM: &[Column] = &[
    NAME,
    string("Status", |o, _| phase(o).into()),
    string("Volume", |o, _| text(o, "/spec/volumeName").into()),
    string("Capacity", |o, _| if bound(o) { or(text(o, "/status/capacity/storage").to_owned(), "0").into() } else { "".into() }),
    string("Access Modes", |o, _| if bound(o) { access_modes(list(o, "/status/accessModes")).into() } else { "".into() }),
    Column { description: "StorageClass of the pvc", ..CLASS_NAME },
    ATTRIBUTES_CLASS,
    AGE,
    VOLUME_MODE,
];

fn bound(claim: &Value) -> bool {
    !text(claim, "/spec/volumeName").is_empty()
}

pub const CLASS: &[Column] = &[
    Column { cell: |o, _| storage_class_name(o).into(), ..NAME },
    string("Provisioner", |o, _| text(o, "/provisioner").into()),
    string("ReclaimPolicy", |o, _| or(text(o, "/reclaimPolicy").to_owned(), "Delete").into()),
    string("VolumeBindingMode", |o, _| or(text(o, "/volumeBindingMode").to_owned(), "Immediate").into()),
    string("AllowVolumeExpansion", |o, _| flag(o, "/allowVolumeExpansion").into()),
    AGE,
];

fn storage_class_name(class: &Value) -> String {
    let name = text(class, "/metadata/name");
    let annotations = &class["metadata"]["annotations"];
    let marked = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    let default = marked.iter().any(|key| annotations.get(*key).and_then(Value::as_str) == Some("true"));
    if default { format!("{name} (default)") } else { name.to_owned() }
}

pub const ATTACHMENT: &[Column] = &[
    NAME,
    string("Attacher", |o, _| text(o, "/spec/attacher").into()),
    string("PV", |o, _| text(o, "/spec/source/persistentVolumeName").into()),
    string("Node", |o, _| text(o, "/spec/nodeName").into()),
    boolean("Attached", |o, _| flag(o, "/status/attached").into()),
    AGE,
];

pub const CSI_NODE: &[Column] = &[
    NAME,
    Column {
        description: "Drivers indicates the number of CSI drivers registered on the node",
        ..integer("Drivers", |o, _| list(o, "/spec/drivers").len().into())
    },
    AGE,
];

pub const CSI_DRIVER: &[Column] = &[
    NAME,
    boolean("AttachRequired", |o, _| o.pointer("/spec/attachRequired").and_then(Value::as_bool).unwrap_or(true).into()),
    boolean("PodInfoOnMount", |o, _| flag(o, "/spec/podInfoOnMount").into()),
    boolean("StorageCapacity", |o, _| flag(o, "/spec/storageCapacity").into()),
    string("TokenRequests", |o, _| {
        if is_set(o, "/spec/tokenRequests") { join(o, "/spec/tokenRequests", "/audience").into() } else { "<unset>".into() }
    }),
    boolean("RequiresRepublish", |o, _| flag(o, "/spec/requiresRepublish").into()),
    string("Modes", |o, _| {
        or_none(list(o, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")).into()
    }),
    AGE,
];

pub const CAPACITY: &[Column] = &[
    NAME,
    string("StorageClassName", |o, _| text(o, "/storageClassName").into()),
    string("Capacity", |o, _| or(text(o, "/capacity").to_owned(), "<unset>").into()),
];
