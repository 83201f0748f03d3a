//! Namespaces, nodes, leases and runtime classes.
//!
//! Upstream: `pkg/registry/core/{namespace,node}/strategy.go`, `pkg/apis/{core,coordination,node}/validation` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::Node as CoreNode;
use api::names;
use serde_json::{Value, json};

use crate::strategy::{prepare_for_create, prepare_for_status_update, prepare_for_update};
use crate::validation::field::{immutable, invalid, json as to_json, with};
use crate::validation::scheduling::taints;
use crate::value::{child, copy_field, int, is_set, list, set, text};
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

    fn validate_status_update(&self, _kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        let path = Path::new("status").child("Phase");
        let phase = text(new, "/status/phase");
        let deleted = is_set(new, "/metadata/deletionTimestamp");
        match (deleted, phase) {
            (false, phase) if phase != "Active" => {
                vec![Error::invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty")]
            }
            (true, phase) if phase != "Terminating" => {
                vec![Error::invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")]
            }
            _ => Vec::new(),
        }
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
            let path = Path::new("spec");
            let Some(spec) = &node.spec else { return Vec::new() };
            // Upstream's path says metadata; kept, as clients see it.
            let mut errors = taints(&Path::new("metadata").child("taints"), spec.taints.as_deref().unwrap_or_default());
            let ranges = spec.pod_cidrs.as_deref().unwrap_or_default();
            for (index, range) in ranges.iter().enumerate() {
                errors.extend(invalid(&path.child("podCIDRs").index(index), range, names::is_cidr(range)));
            }
            if ranges.len() > 2 {
                let detail = "node can not have more than two pod CIDRs";
                errors.push(Error::invalid(&path.child("podCIDRs"), to_json(&ranges), detail));
            }
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = self.validate(kind, new);
        let (now, was) = (list(new, "/spec/podCIDRs"), list(old, "/spec/podCIDRs"));
        if !was.is_empty() && now != was {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(Error::forbidden(&path.child("podCIDRs"), detail));
        }
        let (now, was) = (text(new, "/spec/providerID"), text(old, "/spec/providerID"));
        if !was.is_empty() && now != was {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.push(Error::forbidden(&path.child("providerID"), detail));
        }
        errors
    }

    fn validate_status_update(&self, _kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        let addresses = list(new, "/status/addresses");
        let repeated = addresses.iter().enumerate().filter(|(index, address)| addresses[..*index].contains(address));
        let path = Path::new("status").child("addresses");
        repeated.map(|(index, address)| Error::duplicate(&path.index(index), address.clone())).collect()
    }

    fn prepare_for_status_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_status_update(kind, new, old);
    }
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
        invalid(&Path::new("handler"), handler, names::is_dns1123_label(handler))
    }

    fn validate_update(&self, _kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        immutable(&Path::new("handler"), &new["handler"], &old["handler"])
    }
}
