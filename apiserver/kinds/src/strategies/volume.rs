//! Volumes, claims, classes and drivers.
//!
//! Upstream: `pkg/apis/core/validation/validation.go`, `pkg/apis/storage/validation/validation.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};
use api::names;
use serde_json::{Value, json};

use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{immutable, invalid, json as to_json, one_of, optional_one_of, quantity, required, with};
use crate::validation::{scheduling, volume};
use crate::value::{list, map, set, text};
use crate::{Kind, Strategy};

const RECLAIM: &[&str] = &["Delete", "Recycle", "Retain"];
/// Fields of a volume's spec that are not its source.
const PLAIN_FIELDS: [&str; 9] = [
    "accessModes", "capacity", "claimRef", "mountOptions", "nodeAffinity", "persistentVolumeReclaimPolicy",
    "storageClassName", "volumeAttributesClassName", "volumeMode",
];

pub struct Volume;

impl Strategy for Volume {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        set(object, "status", json!({"phase": "Pending"}));
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |pv: &PersistentVolume| {
            pv.spec.as_ref().map_or(Vec::new(), |spec| volume_spec(&Path::new("spec"), spec))
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(kind, new);
        if source(new) != source(old) {
            let detail = "spec.persistentvolumesource is immutable after creation\n";
            errors.push(Error::forbidden(&Path::new("spec").child("persistentvolumesource"), detail));
        }
        errors.extend(immutable(&Path::new("volumeMode"), &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]));
        let affinity = |object: &Value| object["spec"]["nodeAffinity"].clone();
        if !affinity(old).is_null() {
            errors.extend(immutable(&Path::new("spec").child("nodeAffinity"), &affinity(new), &affinity(old)));
        }
        errors
    }
}

fn source(object: &Value) -> Vec<(String, Value)> {
    let fields = map(object, "/spec").into_iter().flatten();
    fields.filter(|(name, _)| !PLAIN_FIELDS.contains(&name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
}

fn volume_spec(path: &Path, spec: &PersistentVolumeSpec) -> ErrorList {
    let mut errors = Vec::new();
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errors.push(Error::required(&path.child("accessModes"), ""));
    }
    errors.extend(volume::access_modes(&path.child("accessModes"), modes));
    let capacity = spec.capacity.clone().unwrap_or_default();
    let capacity_path = path.child("capacity");
    if capacity.is_empty() {
        errors.push(Error::required(&capacity_path, ""));
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        errors.push(Error::not_supported(&capacity_path, to_json(&capacity), &["storage"]));
    }
    for (name, amount) in &capacity {
        let path = capacity_path.key(name);
        errors.extend(volume::negative_capacity(&path, amount));
        if quantity(amount) <= api::Quantity::from_value(0) {
            errors.push(Error::invalid(&path, amount.0.as_str(), "must be greater than zero"));
        }
    }
    let policy = spec.persistent_volume_reclaim_policy.as_deref().filter(|policy| !policy.is_empty());
    errors.extend(optional_one_of(&path.child("persistentVolumeReclaimPolicy"), policy, RECLAIM));
    let required_nodes = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    if let Some(selector) = required_nodes {
        errors.extend(scheduling::node_selector(&path.child("nodeAffinity").child("required"), selector));
    }
    let whole = json!({"spec": to_json(spec)});
    let sources = source(&whole);
    if sources.is_empty() {
        errors.push(Error::required(path, "must specify a volume type"));
    }
    for (name, _) in sources.iter().skip(1) {
        errors.push(Error::forbidden(&path.child(name), "may not specify more than 1 volume type"));
    }
    if let Some(host) = &spec.host_path {
        errors.extend(volume::host_path(&path.child("hostPath"), host));
    }
    if let Some(local) = &spec.local {
        errors.extend(required(&path.child("local").child("path"), &local.path));
        if required_nodes.is_none() {
            errors.push(Error::required(&path.child("nodeAffinity"), "Local volume requires node affinity"));
        }
    }
    if let Some(class) = spec.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
        errors.extend(invalid(&path.child("storageClassName"), class, names::is_dns1123_subdomain(class)));
    }
    errors.extend(optional_one_of(&path.child("volumeMode"), spec.volume_mode.as_deref(), &["Block", "Filesystem"]));
    errors
}

pub struct Claim;

impl Strategy for Claim {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        set(object, "status", json!({"phase": "Pending"}));
    }

    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |claim: &PersistentVolumeClaim| {
            let path = Path::new("spec");
            claim.spec.as_ref().map_or(Vec::new(), |spec| volume::claim_spec(&path, spec))
        })
    }

    /// Only the bound volume may be filled in, and a bound claim grow.
    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(kind, new);
        let path = Path::new("spec");
        let mut now = new["spec"].clone();
        let was = old["spec"].clone();
        if text(old, "/spec/volumeName").is_empty() {
            now["volumeName"] = was["volumeName"].clone();
        }
        if text(old, "/spec/storageClassName").is_empty() && was.get("storageClassName").is_none() {
            now["storageClassName"] = was["storageClassName"].clone();
        }
        let size = |spec: &Value| spec["resources"]["requests"]["storage"].as_str().and_then(|s| api::Quantity::parse(s).ok());
        let shrunk = size(&now) < size(&was);
        if text(new, "/status/phase") == "Bound" {
            now["resources"] = was["resources"].clone();
        }
        now["volumeAttributesClassName"] = was["volumeAttributesClassName"].clone();
        if strip_nulls(now) != strip_nulls(was) {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";
            errors.push(Error::forbidden(&path, detail));
        }
        if shrunk {
            let path = path.child("resources").child("requests").child("storage");
            errors.push(Error::forbidden(&path, "field can not be less than status.capacity"));
        }
        errors
    }
}

fn strip_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

pub struct StorageClass;

impl Strategy for StorageClass {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = Vec::new();
        let provisioner = text(object, "/provisioner");
        let path = Path::new("provisioner");
        if provisioner.is_empty() {
            errors.push(Error::required(&path, ""));
        } else {
            errors.extend(invalid(&path, provisioner, names::is_qualified_name(&provisioner.to_lowercase())));
        }
        for key in map(object, "/parameters").into_iter().flatten().map(|(key, _)| key).filter(|key| key.is_empty()) {
            let detail = "field can not be empty.";
            errors.push(Error::invalid(&Path::new("parameters"), key.as_str(), detail));
        }
        let field = |name: &str| object.get(name).and_then(Value::as_str);
        errors.extend(optional_one_of(&Path::new("reclaimPolicy"), field("reclaimPolicy"), &["Delete", "Retain"]));
        let modes = ["Immediate", "WaitForFirstConsumer"];
        errors.extend(one_of(&Path::new("volumeBindingMode"), field("volumeBindingMode"), &modes));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(kind, new);
        for name in ["parameters", "provisioner", "reclaimPolicy"] {
            if new[name] != old[name] {
                errors.push(Error::forbidden(&Path::new(name), format!("updates to {name} are forbidden.")));
            }
        }
        errors.extend(immutable(&Path::new("volumeBindingMode"), &new["volumeBindingMode"], &old["volumeBindingMode"]));
        errors
    }
}

fn driver_name(path: &Path, name: &str) -> ErrorList {
    let mut errors = required(path, name);
    if name.len() > 63 {
        errors.push(Error::too_long(path, name, 63));
    }
    errors.extend(invalid(path, name, names::is_dns1123_subdomain(&name.to_lowercase())));
    errors
}

pub struct CsiDriver;

impl Strategy for CsiDriver {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = driver_name(&Path::new("name"), text(object, "/metadata/name"));
        for mode in list(object, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str) {
            errors.extend(optional_one_of(&path.child("volumeLifecycleModes"), Some(mode), &["Persistent", "Ephemeral"]));
        }
        errors
    }

    fn validate_update(&self, _kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("spec").child("attachRequired");
        immutable(&path, &new["spec"]["attachRequired"], &old["spec"]["attachRequired"])
    }
}

pub struct CsiNode;

impl Strategy for CsiNode {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = Vec::new();
        for (index, driver) in list(object, "/spec/drivers").iter().enumerate() {
            let path = Path::new("spec").child("drivers").index(index);
            errors.extend(driver_name(&path.child("name"), text(driver, "/name")));
            errors.extend(required(&path.child("nodeID"), text(driver, "/nodeID")));
        }
        errors
    }
}

pub struct StorageCapacity;

impl Strategy for StorageCapacity {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let name = text(object, "/storageClassName");
        invalid(&Path::new("storageClassName"), name, names::is_dns1123_subdomain(name))
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(kind, new);
        for name in ["nodeTopology", "storageClassName"] {
            errors.extend(immutable(&Path::new(name), &new[name], &old[name]));
        }
        errors
    }
}

pub struct Attachment;

impl Strategy for Attachment {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = driver_name(&path.child("attacher"), text(object, "/spec/attacher"));
        let source = object.pointer("/spec/source/persistentVolumeName").and_then(Value::as_str);
        let inline = crate::value::is_set(object, "/spec/source/inlineVolumeSpec");
        let path_source = path.child("source");
        match (source, inline) {
            (None, false) => {
                errors.push(Error::required(&path_source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"));
            }
            (Some(_), true) => {
                errors.push(Error::forbidden(&path_source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"));
            }
            _ => {}
        }
        let node = text(object, "/spec/nodeName");
        errors.extend(invalid(&path.child("nodeName"), node, names::is_dns1123_subdomain(node)));
        errors
    }

    fn validate_update(&self, _kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        if new["spec"] == old["spec"] {
            return Vec::new();
        }
        vec![Error::invalid(&Path::new("spec"), new["spec"].clone(), "field is immutable")]
    }
}
