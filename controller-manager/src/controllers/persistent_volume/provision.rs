//! A new volume for a claim, by its class: pure.
//!
//! The one provisioner at home here makes directories on nodes. It writes only the object: the directory is made, and in the
//! end removed, by the kubelet of its node (`kubelet/src/volumes/directory.rs`), which needs no rights beyond its own node's
//! volumes for that. So no pod with the power over a host's files stands by, and no other node is trusted with it.
//! Upstream: `pv_controller.go` (provisionClaimOperation), v1.33.

use std::collections::BTreeMap;

use api::volume::{self, BOUND_BY_CONTROLLER, PROVISIONED_BY, SELECTED_NODE, annotation, directory};
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Tell, bond};
use crate::shared::meta;

#[derive(Debug, PartialEq)]
pub enum Plan {
    Refuse(Tell),
    /// Somebody else makes it.
    External(Tell),
    /// The node that the scheduler chose is no more: it shall choose again.
    ChooseAgain,
    Make(Box<PersistentVolume>),
}

const HOSTNAME: &str = "kubernetes.io/hostname";

/// `node`: the one that the scheduler chose, if it exists.
pub fn plan(claim: &PersistentVolumeClaim, class: Option<&StorageClass>, node: Option<&Node>) -> Plan {
    let name = volume::claim_class(claim);
    let refuse = |why: String| Plan::Refuse(Tell::warning("ProvisioningFailed", why));
    let Some(class) = class else { return refuse(format!("storageclass.storage.k8s.io {name:?} not found")) };
    let provisioner = class.provisioner.as_str();
    if provisioner.starts_with("kubernetes.io/") {
        return refuse(format!("no volume plugin matched name: {provisioner}"));
    }
    if provisioner != directory::PROVISIONER {
        return Plan::External(Tell::normal(
            "ExternalProvisioning",
            format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. \
                 If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            ),
        ));
    }
    let failed = |why: &str| refuse(format!("Failed to provision volume with StorageClass {name:?}: {why}"));
    let spec = claim.spec.clone().unwrap_or_default();
    if let Some(options) = class.mount_options.as_ref().filter(|options| !options.is_empty()) {
        return refuse(format!(
            "Mount options are not supported by the provisioner but StorageClass {name:?} has mount options [{}]",
            options.join(" ")
        ));
    }
    if volume::mode(spec.volume_mode.as_deref()) == "Block" {
        return failed(&format!("{provisioner} does not support block volume provisioning"));
    }
    if spec.selector.is_some() {
        return failed("claim Selector is not supported");
    }
    match (annotation(&claim.metadata, SELECTED_NODE), node) {
        (None, _) => failed("no node was chosen: a directory is on a node, so the class needs volumeBindingMode WaitForFirstConsumer"),
        (Some(_), None) => Plan::ChooseAgain,
        (Some(_), Some(node)) => Plan::Make(Box::new(directory(claim, class, node))),
    }
}

fn directory(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> PersistentVolume {
    let name = format!("pvc-{}", meta::uid(claim));
    let spec = claim.spec.clone().unwrap_or_default();
    let annotations = [(BOUND_BY_CONTROLLER, "yes"), (PROVISIONED_BY, directory::PROVISIONER)];
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            labels: Some(BTreeMap::from([(directory::NODE.to_owned(), meta::name(node).to_owned())])),
            finalizers: Some(vec![directory::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(BTreeMap::from([("storage".to_owned(), volume::requested(claim).to_k8s())])),
            claim_ref: Some(bond::reference(claim)),
            local: Some(LocalVolumeSource { path: format!("{}/{name}", directory::ROOT), fs_type: None }),
            node_affinity: Some(on_node(node)),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone(),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

fn on_node(node: &Node) -> VolumeNodeAffinity {
    let hostname = meta::label(node, HOSTNAME).unwrap_or(meta::name(node)).to_owned();
    let requirement = NodeSelectorRequirement { key: HOSTNAME.to_owned(), operator: "In".to_owned(), values: Some(vec![hostname]) };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: vec![term] }) }
}
