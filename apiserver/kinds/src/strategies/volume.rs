//! Volumes, claims, classes and drivers.
//!
//! Upstream: `pkg/apis/core/validation/validation.go`, `pkg/apis/storage/validation/validation.go` (v1.33).

use std::collections::{BTreeMap, BTreeSet};

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};
use api::k8s_openapi::api::storage::v1::CSIStorageCapacity;
use api::names;
use serde_json::{Value, json};

use crate::meta::{IMMUTABLE, validate_object_meta, validate_object_meta_update};
use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{
    NOT_NEGATIVE, immutable, invalid, json as to_json, label_selector, non_negative, optional_one_of, quantity, required, with,
};
use crate::validation::source::{self, ORDER, driver_name};
use crate::validation::{scheduling, volume};
use crate::value::{child, int, is_set, list, map, remove, set, text};
use crate::{Kind, Strategy};

const RECLAIM: &[&str] = &["Delete", "Recycle", "Retain"];
pub struct Volume;

impl Strategy for Volume {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        set(object, "status", json!({"phase": "Pending"}));
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let name = text(object, "/metadata/name");
        with(object, |pv: &PersistentVolume| pv.spec.as_ref().map_or(Vec::new(), |spec| volume_spec(&Path::new("spec"), spec, name)))
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(self.validate_whole(kind, new));
        if source(new) != source(old) {
            let detail = "spec.persistentvolumesource is immutable after creation\n";
            errors.push(Error::forbidden(&Path::new("spec").child("persistentvolumesource"), detail));
        }
        errors.extend(immutable(&Path::new("volumeMode"), &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]));
        let affinity = |object: &Value| object["spec"]["nodeAffinity"].clone();
        if !affinity(old).is_null() {
            errors.extend(immutable(&Path::new("nodeAffinity"), &affinity(new), &affinity(old)));
        }
        errors
    }
}

/// What backs a volume. A secret for growing it may be named later.
fn source(object: &Value) -> Vec<(String, Value)> {
    let fields = map(object, "/spec").into_iter().flatten();
    let mut found: Vec<(String, Value)> =
        fields.filter(|(name, _)| ORDER.contains(&name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect();
    for (_, csi) in found.iter_mut().filter(|(name, _)| name == "csi") {
        remove(csi, "controllerExpandSecretRef");
    }
    found
}

fn volume_spec(path: &Path, spec: &PersistentVolumeSpec, name: &str) -> ErrorList {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let mut errors = if modes.is_empty() { required(&path.child("accessModes"), "") } else { Vec::new() };
    errors.extend(volume::access_modes(&path.child("accessModes"), modes));
    errors.extend(capacity(&path.child("capacity"), spec));
    let policy = spec.persistent_volume_reclaim_policy.as_deref().filter(|policy| !policy.is_empty());
    errors.extend(optional_one_of(&path.child("persistentVolumeReclaimPolicy"), policy, RECLAIM));
    let required_nodes = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    match (&spec.node_affinity, required_nodes) {
        (Some(_), None) => {
            let detail = "must specify required node constraints";
            errors.push(Error::required(&path.child("nodeAffinity").child("required"), detail));
        }
        (_, Some(selector)) => errors.extend(scheduling::node_selector(&path.child("nodeAffinity").child("required"), selector)),
        (None, None) => {}
    }
    errors.extend(volume_source(path, spec, name));
    if let Some(class) = spec.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
        errors.extend(invalid(&path.child("storageClassName"), class, names::is_dns1123_subdomain(class)));
    }
    errors.extend(optional_one_of(&path.child("volumeMode"), spec.volume_mode.as_deref(), &["Block", "Filesystem"]));
    errors
}

fn capacity(path: &Path, spec: &PersistentVolumeSpec) -> ErrorList {
    let capacity = spec.capacity.clone().unwrap_or_default();
    let mut errors = if capacity.is_empty() { required(path, "") } else { Vec::new() };
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        errors.push(Error::not_supported(path, to_json(&spec.capacity), &["storage"]));
    }
    for (name, amount) in &capacity {
        let (path, parsed) = (path.key(name), quantity(amount));
        if parsed.value() < 0 {
            errors.push(Error::invalid(&path, parsed.value(), "must be a valid resource quantity"));
        }
        if parsed <= api::Quantity::from_value(0) {
            errors.push(Error::invalid(&path, amount.0.as_str(), "must be greater than zero"));
        }
    }
    errors
}

/// Exactly one; and the rules that only some have.
fn volume_source(path: &Path, spec: &PersistentVolumeSpec, name: &str) -> ErrorList {
    let fields = to_json(spec);
    let present = source::present(&fields);
    let Some((first, extra)) = present.split_first() else {
        return vec![Error::required(path, "must specify a volume type")];
    };
    let mut errors = source::source(path, first, &fields[*first], Some(name));
    if *first == "local" && spec.node_affinity.is_none() {
        errors.push(Error::required(&path.child("nodeAffinity"), "Local volume requires node affinity"));
    }
    errors.extend(extra.iter().map(|name| Error::forbidden(&path.child(name), source::ONE_TYPE)));
    let root =
        spec.host_path.as_ref().is_some_and(|host| !host.path.is_empty() && host.path.split('/').all(|part| matches!(part, "" | ".")));
    if root && spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle") {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(Error::forbidden(&path.child("persistentVolumeReclaimPolicy"), detail));
    }
    errors
}

pub struct Claim;

impl Strategy for Claim {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        set(object, "status", json!({"phase": "Pending"}));
        agree_on_origin(child(object, "spec"), None);
    }

    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        agree_on_origin(child(new, "spec"), Some(&old["spec"]));
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |claim: &PersistentVolumeClaim| {
            let path = Path::new("spec");
            claim.spec.as_ref().map_or(Vec::new(), |spec| volume::claim_spec(&path, spec))
        })
    }

    /// Only the bound volume may be filled in, and a bound claim grow.
    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(self.validate_whole(kind, new));
        let path = Path::new("spec");
        let mut now = new["spec"].clone();
        let was = old["spec"].clone();
        if text(old, "/spec/volumeName").is_empty() {
            now["volumeName"] = was["volumeName"].clone();
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
        errors.extend(immutable(&Path::new("volumeMode"), &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]));
        errors
    }
}

/// `dataSource` names a claim or a snapshot and nothing else, and says the same as `dataSourceRef` where only one is given.
fn agree_on_origin(spec: &mut Value, old: Option<&Value>) {
    let known = |spec: &Value| {
        let group = spec.pointer("/dataSource/apiGroup").and_then(Value::as_str).unwrap_or("");
        matches!((group, text(spec, "/dataSource/kind")), ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot"))
    };
    let as_before = old.is_some_and(|old| is_set(old, "/dataSource") && old["dataSource"] == spec["dataSource"]);
    if !known(spec) && !as_before {
        remove(spec, "dataSource");
    }
    match (is_set(spec, "/dataSource"), is_set(spec, "/dataSourceRef")) {
        (true, false) => {
            let origin = spec["dataSource"].clone();
            set(spec, "dataSourceRef", origin);
        }
        (false, true) if !is_set(spec, "/dataSourceRef/namespace") => {
            let origin = spec["dataSourceRef"].clone();
            set(spec, "dataSource", origin);
        }
        _ => {}
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
        errors.extend(parameters(&Path::new("parameters"), object));
        let field = |name: &str| object.get(name).and_then(Value::as_str);
        let policy = field("reclaimPolicy").filter(|policy| !policy.is_empty());
        errors.extend(optional_one_of(&Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]));
        let modes = ["Immediate", "WaitForFirstConsumer"];
        errors.extend(match field("volumeBindingMode") {
            None => required(&Path::new("volumeBindingMode"), ""),
            mode => optional_one_of(&Path::new("volumeBindingMode"), mode, &modes),
        });
        errors.extend(topologies(&Path::new("allowedTopologies"), list(object, "/allowedTopologies")));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        for name in ["parameters", "provisioner", "reclaimPolicy"] {
            if new[name] != old[name] {
                errors.push(Error::forbidden(&Path::new(name), format!("updates to {name} are forbidden.")));
            }
        }
        errors.extend(immutable(&Path::new("volumeBindingMode"), &new["volumeBindingMode"], &old["volumeBindingMode"]));
        errors
    }
}

const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_SIZE: usize = 256 * 1024;

fn parameters(path: &Path, class: &Value) -> ErrorList {
    let Some(parameters) = map(class, "/parameters") else { return Vec::new() };
    if parameters.len() > MAX_PARAMETERS {
        return vec![Error::too_long(path, "", MAX_PARAMETERS)];
    }
    let mut errors = Vec::new();
    if parameters.contains_key("") {
        errors.push(Error::invalid(path, "", "field can not be empty."));
    }
    let size: usize = parameters.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > MAX_PARAMETERS_SIZE {
        errors.push(Error::too_long(path, "", MAX_PARAMETERS_SIZE));
    }
    errors
}

/// Where volumes of a class may be: terms of labels with their values, none twice.
fn topologies(path: &Path, terms: &[Value]) -> ErrorList {
    let mut errors = Vec::new();
    let mut seen: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (index, term) in terms.iter().enumerate() {
        let path = path.index(index);
        let mut expressions = BTreeMap::new();
        for (i, expression) in list(term, "/matchLabelExpressions").iter().enumerate() {
            let path = path.child("matchLabelExpressions").index(i);
            let (key, given) = (text(expression, "/key"), list(expression, "/values"));
            let mut values = BTreeSet::new();
            if given.is_empty() {
                errors.push(Error::required(&path.child("values"), ""));
            }
            for (i, value) in given.iter().filter_map(Value::as_str).enumerate() {
                if !values.insert(value) {
                    errors.push(Error::duplicate(&path.child("values").index(i), value));
                }
            }
            errors.extend(invalid(&path.child("key"), key, names::is_qualified_name(key)));
            if expressions.insert(key, values).is_some() {
                errors.push(Error::duplicate(&path.child("key"), key));
            }
        }
        if expressions.is_empty() || seen.contains(&expressions) {
            errors.push(Error::duplicate(&path.child("matchLabelExpressions"), ""));
        }
        seen.push(expressions);
    }
    errors
}

/// Upstream's strategies for drivers ask everything twice.
fn twice(strategy: &dyn Strategy, kind: &Kind, object: &Value) -> ErrorList {
    let mut errors = Vec::new();
    for _ in 0..2 {
        errors.extend(validate_object_meta(kind, object));
        errors.extend(strategy.validate(kind, object));
    }
    errors
}

pub struct CsiDriver;

impl Strategy for CsiDriver {
    fn validate_whole(&self, kind: &Kind, object: &Value) -> ErrorList {
        twice(self, kind, object)
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = Vec::new();
        for name in ["attachRequired", "podInfoOnMount"] {
            if !is_set(object, &format!("/spec/{name}")) {
                errors.push(Error::required(&path.child(name), ""));
            }
        }
        for mode in list(object, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str) {
            errors.extend(optional_one_of(&path.child("volumeLifecycleModes"), Some(mode), &["Persistent", "Ephemeral"]));
        }
        let policy = object.pointer("/spec/fsGroupPolicy").and_then(Value::as_str);
        errors.extend(optional_one_of(&path.child("fsGroupPolicy"), policy, &["File", "None", "ReadWriteOnceWithFSType"]));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(self.validate(kind, new));
        // As upstream spells it.
        for (field, shown) in
            [("attachRequired", "attachedRequired"), ("fsGroupPolicy", "fsGroupPolicy"), ("volumeLifecycleModes", "volumeLifecycleModes")]
        {
            errors.extend(immutable(&path.child(shown), &new["spec"][field], &old["spec"][field]));
        }
        errors
    }
}

pub struct CsiNode;

impl Strategy for CsiNode {
    fn validate_whole(&self, kind: &Kind, object: &Value) -> ErrorList {
        twice(self, kind, object)
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = Vec::new();
        let mut seen = BTreeSet::new();
        for (index, driver) in list(object, "/spec/drivers").iter().enumerate() {
            let path = Path::new("spec").child("drivers").index(index);
            errors.extend(node_driver(&path, driver));
            if !seen.insert(text(driver, "/name")) {
                errors.push(Error::duplicate(&path.child("name"), text(driver, "/name")));
            }
        }
        errors
    }

    /// What a driver has said of itself stays said.
    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        for was in list(old, "/spec/drivers") {
            for now in list(new, "/spec/drivers").iter().filter(|now| now["name"] == was["name"] && *now != was) {
                errors.push(Error::invalid(&Path::new("CSINodeDriver"), now.clone(), IMMUTABLE));
            }
        }
        errors
    }
}

fn node_driver(path: &Path, driver: &Value) -> ErrorList {
    const MAX_ID: usize = 192;
    let mut errors = driver_name(&path.child("name"), text(driver, "/name"));
    let id = text(driver, "/nodeID");
    errors.extend(required(&path.child("nodeID"), id));
    if id.len() > MAX_ID {
        errors.push(Error::invalid(&path.child("nodeID"), id, format!("must be {MAX_ID} characters or less")));
    }
    errors.extend(non_negative(&path.child("allocatable").child("count"), int(driver, "/allocatable/count")));
    let keys = list(driver, "/topologyKeys");
    let mut seen = BTreeSet::new();
    for key in keys.iter().filter_map(Value::as_str) {
        errors.extend(required(path, key));
        if !seen.insert(key) {
            errors.push(Error::duplicate(path, key));
        }
        errors.extend(names::is_qualified_name(key).into_iter().map(|m| Error::invalid(path, keys.to_vec(), m)));
    }
    errors
}

pub struct StorageCapacity;

impl Strategy for StorageCapacity {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let name = text(object, "/storageClassName");
        let mut errors = invalid(&Path::new("storageClassName"), name, names::is_dns1123_subdomain(name));
        errors.extend(with(object, |capacity: &CSIStorageCapacity| {
            let mut errors = label_selector(&Path::new("nodeTopology"), capacity.node_topology.as_ref());
            for (name, amount) in [("capacity", &capacity.capacity), ("maximumVolumeSize", &capacity.maximum_volume_size)] {
                if let Some(amount) = amount.as_ref().filter(|amount| quantity(amount).is_negative()) {
                    errors.push(Error::invalid(&Path::new(name), amount.0.as_str(), NOT_NEGATIVE));
                }
            }
            errors
        }));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
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
        let attacher = text(object, "/spec/attacher");
        let mut errors = required(&path.child("attacher"), attacher);
        errors.extend(attachment_source(&path.child("source"), object));
        let node = text(object, "/spec/nodeName");
        errors.extend(invalid(&path.child("nodeName"), node, names::is_dns1123_subdomain(node)));
        errors.extend(driver_name(&path.child("attacher"), attacher));
        if let Some(name) = object.pointer("/spec/source/persistentVolumeName").and_then(Value::as_str) {
            errors.extend(invalid(&path.child("source").child("persistentVolumeName"), name, names::is_dns1123_subdomain(name)));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let whole = || {
            let mut errors = validate_object_meta(kind, new);
            let path = Path::new("spec");
            errors.extend(required(&path.child("attacher"), text(new, "/spec/attacher")));
            errors.extend(attachment_source(&path.child("source"), new));
            let node = text(new, "/spec/nodeName");
            errors.extend(invalid(&path.child("nodeName"), node, names::is_dns1123_subdomain(node)));
            errors
        };
        let mut errors = whole();
        errors.extend(whole());
        if new["spec"] != old["spec"] {
            errors.push(Error::invalid(&Path::new("spec"), new["spec"].clone(), IMMUTABLE));
        }
        errors
    }
}

/// A volume by name, or its spec inline; not both.
fn attachment_source(path: &Path, object: &Value) -> ErrorList {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let name = object.pointer("/spec/source/persistentVolumeName").and_then(Value::as_str);
    match (name, is_set(object, "/spec/source/inlineVolumeSpec")) {
        (None, false) => vec![Error::required(path, ONE)],
        (Some(_), true) => vec![Error::forbidden(path, ONE)],
        (Some(""), false) => required(&path.child("persistentVolumeName"), ""),
        _ => Vec::new(),
    }
}
