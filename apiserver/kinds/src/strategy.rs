//! What may differ from kind to kind on the write path, every method with the common case as default.
//!
//! Objects arrive **decoded, converted to the storage version and defaulted**, as upstream's internal
//! objects are: comparing a new object with the stored one is then comparing like with like.
//!
//! Upstream: `apiserver/pkg/registry/rest/{create,update}.go`, `pkg/registry/*/*/strategy.go` (v1.33).

use api::field::ErrorList;
use serde_json::{Value, json};

use crate::Kind;
use crate::meta::{validate_object_meta, validate_object_meta_update};
use crate::value::{child, copy_field, remove, set};

pub trait Strategy: Sync {
    /// Shapes a new object: status wiped, generation 1.
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
    }

    /// Writes down who asks for a new object, where the kind records that. `user` is an `authentication/v1 UserInfo`.
    fn stamp_requester(&self, _object: &mut Value, _user: &Value) {}

    /// Shapes a replacement: status as stored, generation up by one if anything but metadata and status changed.
    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
    }

    /// Keeps everything but metadata and status as stored.
    fn prepare_for_status_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_status_update(kind, new, old);
    }

    /// What is wrong with a new object besides its metadata, which [`crate::validate_object_meta`] checks for all.
    fn validate(&self, _kind: &Kind, _object: &Value) -> ErrorList {
        Vec::new()
    }

    /// What is wrong with a new object, metadata first: upstream's `ValidateX`.
    fn validate_whole(&self, kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = validate_object_meta(kind, object);
        errors.extend(self.validate(kind, object));
        errors
    }

    /// What is wrong with a replacement, besides what all kinds are asked ([`crate::validate_replacement`]). By default its metadata is
    /// held against the stored one's, and the rest must be valid as a new object. Upstream asks some questions twice or more, and a client
    /// sees each answer in the causes; an implementation repeats what its upstream counterpart repeats.
    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(self.validate(kind, new));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        validate_object_meta_update(kind, new, old)
    }

    /// `Warning:` headers for a write that succeeds.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Seconds between DELETE and disappearance if the caller names none; `None`: at once.
    fn default_grace_period(&self, _object: &Value) -> Option<i64> {
        None
    }
}

/// For kinds without rules of their own.
pub struct Generic;

impl Strategy for Generic {}

pub(crate) fn prepare_for_create(kind: &Kind, object: &mut Value) {
    if kind.has_status() {
        remove(object, "status");
    }
    if kind.has_generation {
        set(child(object, "metadata"), "generation", json!(1));
    }
}

pub(crate) fn prepare_for_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.has_status() {
        copy_field(new, old, "status");
    }
    if kind.has_generation {
        let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        let bump = i64::from(!same_substance(new, old));
        set(child(new, "metadata"), "generation", json!(generation + bump));
    }
}

pub(crate) fn prepare_for_status_update(kind: &Kind, new: &mut Value, old: &Value) {
    let kept: Vec<String> = [&*new, old]
        .iter()
        .filter_map(|object| object.as_object())
        .flat_map(|fields| fields.keys())
        .filter(|name| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"))
        .cloned()
        .collect();
    for name in kept {
        copy_field(new, old, &name);
    }
    if kind.has_generation {
        let generation = old.pointer("/metadata/generation").cloned().unwrap_or(Value::Null);
        set(child(new, "metadata"), "generation", generation);
    }
}

/// Whether two objects agree in everything but type, metadata and status.
fn same_substance(new: &Value, old: &Value) -> bool {
    let substance = |object: &Value| -> Vec<(String, Value)> {
        object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    substance(new) == substance(old)
}
