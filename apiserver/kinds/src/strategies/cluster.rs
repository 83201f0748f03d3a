//! Namespaces, nodes, leases and runtime classes.
//!
//! Upstream: `pkg/registry/core/{namespace,node}/strategy.go`, `pkg/apis/{core,coordination,node}/validation` (v1.33).

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{Node as CoreNode, ResourceRequirements, Toleration};
use api::k8s_openapi::api::node::v1::RuntimeClass as CoreRuntimeClass;
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use api::names;
use serde_json::{Value, json};

use crate::meta::validate_object_meta_update;
use crate::strategy::{prepare_for_create, prepare_for_status_update, prepare_for_update};
use crate::validation::container::{resource_amount, resources};
use crate::validation::field::{immutable, invalid, json as to_json, labels, with};
use crate::validation::scheduling::{taints, tolerations};
use crate::value::{child, copy_field, int, is_set, list, map, set, text};
use crate::{Kind, Strategy};

pub struct Namespace;

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Strategy for Namespace {
    /// Active, held by the namespace controller's finalizer, labelled with its own name.
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        set(object, "status", json!({"phase": "Active"}));
        let finalizers = child(object, "spec");
        let mut names = list(finalizers, "/finalizers").to_vec();
        if !names.contains(&json!("kubernetes")) {
            names.push(json!("kubernetes"));
        }
        set(finalizers, "finalizers", Value::Array(names));
        label_with_name(object);
    }

    /// Finalizers change through `/finalize` only.
    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        copy_field(new, old, "spec");
        label_with_name(new);
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        finalizer_names(object)
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("status").child("Phase");
        let phase = text(new, "/status/phase");
        let deleted = is_set(new, "/metadata/deletionTimestamp");
        let mut errors = validate_object_meta_update(kind, new, old);
        match (deleted, phase) {
            (false, phase) if phase != "Active" => {
                errors.push(Error::invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty"));
            }
            (true, phase) if phase != "Terminating" => {
                errors.push(Error::invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"));
            }
            _ => {}
        }
        errors
    }
}

fn label_with_name(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    if !name.is_empty() {
        set(child(child(object, "metadata"), "labels"), NAME_LABEL, json!(name));
    }
}

fn finalizer_names(object: &Value) -> ErrorList {
    let path = Path::new("spec").child("finalizers");
    let mut errors = Vec::new();
    for name in list(object, "/spec/finalizers").iter().filter_map(Value::as_str) {
        errors.extend(invalid(&path, name, names::is_qualified_name(name)));
        if !name.contains('/') && name != "kubernetes" && name != "orphan" && name != "foregroundDeletion" {
            errors.push(Error::invalid(&path, name, "name is neither a standard finalizer name nor is it fully qualified"));
        }
    }
    errors
}

pub struct Node;

impl Strategy for Node {
    /// A kubelet registers its node with its status.
    fn prepare_for_create(&self, _kind: &Kind, _object: &mut Value) {}

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |node: &CoreNode| {
            let mut errors = node_taints(node);
            errors.extend(node_resources(object));
            errors.extend(pod_ranges(&Path::new("spec").child("podCIDRs"), node));
            errors
        })
    }

    /// Of what a node is, only how it is used may change.
    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(node_update(kind, new, old));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        node_update(kind, new, old)
    }

    fn prepare_for_status_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_status_update(kind, new, old);
    }
}

/// Upstream's path says metadata; kept, as clients see it.
fn node_taints(node: &CoreNode) -> ErrorList {
    let given = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints(&Path::new("metadata").child("taints"), given)
}

fn node_resources(node: &Value) -> ErrorList {
    let mut errors = Vec::new();
    for side in ["capacity", "allocatable"] {
        for (name, amount) in map(node, &format!("/status/{side}")).into_iter().flatten() {
            let path = Path::new("status").child(side).child(name);
            errors.extend(resource_amount(&path, name, &Quantity(amount.as_str().unwrap_or("0").to_owned())));
        }
    }
    errors
}

/// At most one of each family.
fn pod_ranges(path: &Path, node: &CoreNode) -> ErrorList {
    let ranges = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let parsed: Vec<_> = ranges.iter().map(|range| names::parse_cidr(range)).collect();
    let mut errors = Vec::new();
    for (index, _) in parsed.iter().enumerate().filter(|(_, parsed)| parsed.is_none()) {
        errors.push(Error::invalid(&path.index(index), to_json(&ranges), "must be valid CIDR"));
    }
    if ranges.len() < 2 {
        return errors;
    }
    let families: BTreeSet<bool> = parsed.iter().flatten().map(|(address, _)| address.is_ipv4()).collect();
    if let Some(index) = parsed.iter().position(Option::is_none) {
        let why = format!("invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR address: {}", ranges[index]);
        errors.push(Error::internal(path, why));
    }
    if families.len() != 2 || ranges.len() > 2 {
        errors.push(Error::invalid(path, to_json(&ranges), "may specify no more than one CIDR for each IP family"));
    }
    let repeated = ranges.iter().enumerate().filter(|(index, range)| ranges[..*index].contains(range));
    errors.extend(repeated.map(|(index, range)| Error::duplicate(&path.index(index), range.as_str())));
    errors
}

fn node_update(kind: &Kind, new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = validate_object_meta_update(kind, new, old);
    errors.extend(node_resources(new));
    let addresses = list(new, "/status/addresses");
    let repeated = addresses.iter().enumerate().filter(|(index, address)| addresses[..*index].contains(address));
    errors.extend(repeated.map(|(index, address)| Error::duplicate(&Path::new("status").child("addresses").index(index), address.clone())));
    let (now, was) = (list(new, "/spec/podCIDRs"), list(old, "/spec/podCIDRs"));
    let changes = if now.len() != was.len() { 1 } else { now.iter().zip(was).filter(|(now, was)| now != was).count() };
    if !was.is_empty() {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.extend((0..changes).map(|_| Error::forbidden(&path.child("podCIDRs"), detail)));
    }
    let (now, was) = (text(new, "/spec/providerID"), text(old, "/spec/providerID"));
    if !was.is_empty() && now != was {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.push(Error::forbidden(&path.child("providerID"), detail));
    }
    errors.extend(with(new, node_taints));
    let fixed = |object: &Value| -> Vec<(String, Value)> {
        const FREE: [&str; 6] = ["configSource", "podCIDR", "podCIDRs", "providerID", "taints", "unschedulable"];
        let fields = map(object, "/spec").into_iter().flatten();
        fields.filter(|(name, _)| !FREE.contains(&name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    let range_changed = !list(old, "/spec/podCIDRs").is_empty() && changes > 0;
    let provider_changed = !was.is_empty() && now != was;
    if fixed(new) != fixed(old) || range_changed || provider_changed {
        let detail = "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)";
        errors.push(Error::forbidden(&Path::new("[]"), detail));
    }
    errors
}

pub struct Lease;

impl Strategy for Lease {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = Vec::new();
        let seconds = int(object, "/spec/leaseDurationSeconds");
        if is_set(object, "/spec/leaseDurationSeconds") && seconds <= 0 {
            errors.push(Error::invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
        }
        let transitions = int(object, "/spec/leaseTransitions");
        if transitions < 0 {
            let detail = "must be greater than or equal to 0";
            errors.push(Error::invalid(&path.child("leaseTransitions"), transitions, detail));
        }
        errors
    }
}

pub struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let handler = text(object, "/handler");
        let mut errors = invalid(&Path::new("handler"), handler, names::is_dns1123_label(handler));
        errors.extend(with(object, |class: &CoreRuntimeClass| {
            let mut errors = Vec::new();
            if let Some(overhead) = &class.overhead {
                let limits = ResourceRequirements { limits: overhead.pod_fixed.clone(), ..Default::default() };
                errors.extend(resources(&Path::new("overhead"), &limits));
            }
            let Some(scheduling) = &class.scheduling else { return errors };
            let path = Path::new("scheduling");
            errors.extend(labels(&path.child("nodeSelector"), scheduling.node_selector.as_ref()));
            errors.extend(class_tolerations(&path.child("tolerations"), scheduling.tolerations.as_deref().unwrap_or_default()));
            errors
        }));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(immutable(&Path::new("handler"), &new["handler"], &old["handler"]));
        errors
    }
}

/// Valid, and none said twice. Upstream's path of the first says it twice.
fn class_tolerations(path: &Path, given: &[Toleration]) -> ErrorList {
    let mut errors = tolerations(&path.child("tolerations"), given);
    let key = |toleration: &Toleration| Toleration { toleration_seconds: None, ..toleration.clone() };
    let repeated = given.iter().enumerate().filter(|(index, item)| given[..*index].iter().any(|other| key(other) == key(item)));
    errors.extend(repeated.map(|(index, item)| Error::duplicate(&path.index(index), to_json(item))));
    errors
}
