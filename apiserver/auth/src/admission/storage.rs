//! DefaultStorageClass, StorageObjectInUseProtection, PersistentVolumeClaimResize.
//!
//! Upstream: `plugin/pkg/admission/storage/{storageclass/setdefault,storageobjectinuseprotection,persistentvolume/resize}` (v1.33).

use std::sync::Arc;

use api::{GroupResource, Key, Quantity};
use serde_json::Value;

use super::object::{add_finalizer, slot};
use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::{meta_entry, text};

fn storage_classes() -> GroupResource {
    GroupResource::new("storage.k8s.io", "storageclasses")
}

pub struct DefaultStorageClass;

const LEGACY_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_MARKS: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn mutate(&self, request: &Request<'_>, claim: &mut Value) -> Result<(), Refusal> {
        if !request.is("persistentvolumeclaims") || request.operation != Operation::Create || has_class(claim) {
            return Ok(());
        }
        if let Some(class) = default_class(request) {
            slot(claim, "spec")["storageClassName"] = text(&class, "/metadata/name").into();
        }
        Ok(())
    }
}

/// An empty name is a choice too: "no class".
fn has_class(claim: &Value) -> bool {
    meta_entry(claim, "annotations", LEGACY_CLASS).is_some() || claim.pointer("/spec/storageClassName").is_some_and(Value::is_string)
}

/// Of several defaults the newest; of equally old ones the first by name.
fn default_class(request: &Request<'_>) -> Option<Arc<Value>> {
    let is_default = |class: &Arc<Value>| DEFAULT_MARKS.iter().any(|mark| meta_entry(class, "annotations", mark) == Some("true"));
    let mut defaults: Vec<Arc<Value>> = request.lookup.list(&storage_classes(), None).into_iter().filter(is_default).collect();
    defaults.sort_by(|a, b| {
        let created = |class: &Value| text(class, "/metadata/creationTimestamp").to_owned();
        let name = |class: &Value| text(class, "/metadata/name").to_owned();
        created(b).cmp(&created(a)).then_with(|| name(a).cmp(&name(b)))
    });
    defaults.into_iter().next()
}

/// What a pod uses, or a claim is bound to, is not removed under it.
pub struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Refusal> {
        if request.operation != Operation::Create {
            return Ok(());
        }
        if request.is("persistentvolumes") {
            add_finalizer(object, "kubernetes.io/pv-protection");
        } else if request.is("persistentvolumeclaims") {
            add_finalizer(object, "kubernetes.io/pvc-protection");
        }
        Ok(())
    }
}

pub struct PersistentVolumeClaimResize;

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn validate(&self, request: &Request<'_>, claim: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        let (true, Operation::Update, Some(old)) = (request.is("persistentvolumeclaims"), request.operation, request.old) else {
            return Ok(());
        };
        let size = |claim: &Value| Quantity::parse(text(claim, "/spec/resources/requests/storage")).unwrap_or(Quantity::ZERO);
        if size(claim) <= size(old) {
            return Ok(());
        }
        if text(old, "/status/phase") != "Bound" {
            return Err(request.forbidden(claim, "Only bound persistent volume claims can be expanded"));
        }
        let class = meta_entry(old, "annotations", LEGACY_CLASS).unwrap_or_else(|| text(old, "/spec/storageClassName"));
        let expands = request
            .lookup
            .get(&storage_classes(), &Key::cluster(class))
            .is_some_and(|class| class.get("allowVolumeExpansion") == Some(&Value::Bool(true)));
        if expands && !class.is_empty() {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        Err(request.forbidden(claim, why))
    }
}
