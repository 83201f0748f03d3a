//! Volumes of a pod.

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PersistentVolumeClaimSpec, ProjectedVolumeSource, Volume};
use api::names;

use super::container::{VolumeNames, field_ref, local_descending_path, resource_field_ref};
use super::field::{invalid, json, label_selector, optional_one_of, quantity, required};
use super::source;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const DOWNWARD_FIELDS: &[&str] = &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// What is wrong with the volumes, and the names of those that containers may mount: the valid ones; `true` if they may be block devices.
pub fn volumes<'a>(path: &Path, volumes: &'a [Volume]) -> (ErrorList, VolumeNames<'a>) {
    let block = |v: &Volume| v.persistent_volume_claim.is_some() || v.ephemeral.is_some() || v.image.is_some();
    let mut errors = Vec::new();
    let mut seen = VolumeNames::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let name = path.child("name");
        let mut wrong = source(&path, volume);
        if volume.name.is_empty() {
            wrong.push(Error::required(&name, ""));
        } else {
            wrong.extend(invalid(&name, &volume.name, names::is_dns1123_label(&volume.name)));
        }
        if seen.contains_key(volume.name.as_str()) {
            wrong.push(Error::duplicate(&name, volume.name.as_str()));
        }
        if wrong.is_empty() {
            seen.insert(volume.name.as_str(), block(volume));
        }
        errors.extend(wrong);
    }
    (errors, seen)
}

/// Exactly one source, and that one valid.
fn source(path: &Path, volume: &Volume) -> ErrorList {
    let fields = json(volume);
    let present = source::present(&fields);
    let Some((first, extra)) = present.split_first() else {
        return vec![Error::required(path, "must specify a volume type")];
    };
    let mut errors = source::source(path, first, &fields[*first], None);
    errors.extend(file_sources(path, volume));
    errors.extend(other_sources(path, volume));
    errors.extend(extra.iter().map(|name| Error::forbidden(&path.child(name), source::ONE_TYPE)));
    errors
}

fn file_sources(path: &Path, volume: &Volume) -> ErrorList {
    let mut errors = Vec::new();
    if let Some(secret) = &volume.secret {
        let path = path.child("secret");
        errors.extend(required(&path.child("secretName"), secret.secret_name.as_deref().unwrap_or("")));
        errors.extend(file_mode(&path.child("defaultMode"), secret.default_mode));
        errors.extend(items(&path.child("items"), secret.items.as_deref()));
    }
    if let Some(config) = &volume.config_map {
        let path = path.child("configMap");
        errors.extend(required(&path.child("name"), &config.name));
        errors.extend(file_mode(&path.child("defaultMode"), config.default_mode));
        errors.extend(items(&path.child("items"), config.items.as_deref()));
    }
    if let Some(downward) = &volume.downward_api {
        let path = path.child("downwardAPI");
        errors.extend(file_mode(&path.child("defaultMode"), downward.default_mode));
        for file in downward.items.iter().flatten() {
            errors.extend(downward_file(&path, file));
        }
    }
    if let Some(projected) = &volume.projected {
        errors.extend(self::projected(&path.child("projected"), projected));
    }
    errors
}

fn other_sources(path: &Path, volume: &Volume) -> ErrorList {
    let mut errors = Vec::new();
    if let Some(limit) = volume.empty_dir.as_ref().and_then(|dir| dir.size_limit.as_ref())
        && quantity(limit).is_negative()
    {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.push(Error::forbidden(&path.child("emptyDir").child("sizeLimit"), detail));
    }
    if let Some(ephemeral) = &volume.ephemeral {
        let path = path.child("ephemeral").child("volumeClaimTemplate");
        match &ephemeral.volume_claim_template {
            None => errors.push(Error::required(&path, "")),
            Some(template) => errors.extend(claim_spec(&path.child("spec"), &template.spec)),
        }
    }
    errors
}

fn file_mode(path: &Path, mode: Option<i32>) -> ErrorList {
    match mode {
        Some(mode) if !(0..=0o777).contains(&mode) => vec![Error::invalid(path, mode, FILE_MODE)],
        _ => Vec::new(),
    }
}

fn items(path: &Path, items: Option<&[KeyToPath]>) -> ErrorList {
    let mut errors = Vec::new();
    for (index, item) in items.into_iter().flatten().enumerate() {
        let path = path.index(index);
        errors.extend(required(&path.child("key"), &item.key));
        errors.extend(required(&path.child("path"), &item.path));
        errors.extend(local_non_reserved_path(&path.child("path"), &item.path));
        errors.extend(file_mode(&path.child("mode"), item.mode));
    }
    errors
}

fn local_non_reserved_path(path: &Path, value: &str) -> ErrorList {
    let mut errors = local_descending_path(path, value);
    // A leading ".." segment is reported above already.
    if value.starts_with("..") && !value.starts_with("../") {
        errors.push(Error::invalid(path, value, "must not start with '..'"));
    }
    errors
}

fn downward_file(path: &Path, file: &DownwardAPIVolumeFile) -> ErrorList {
    let mut errors = required(&path.child("path"), &file.path);
    errors.extend(local_non_reserved_path(&path.child("path"), &file.path));
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(_), Some(_)) => {
            errors.push(Error::invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"));
        }
        (Some(field), None) => {
            let path = path.child("fieldRef");
            errors.extend(self::field_ref(&path, field.api_version.as_deref(), &field.field_path, DOWNWARD_FIELDS));
        }
        (None, Some(resource)) => errors.extend(resource_field_ref(&path.child("resourceFieldRef"), resource, true)),
        (None, None) => errors.push(Error::required(path, "one of fieldRef and resourceFieldRef is required")),
    }
    errors.extend(file_mode(&path.child("mode"), file.mode));
    errors
}

fn projected(path: &Path, projected: &ProjectedVolumeSource) -> ErrorList {
    let mut errors = file_mode(&path.child("defaultMode"), projected.default_mode);
    let mut paths = BTreeSet::new();
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let at = path.child("sources").index(index);
        let mut write = |file: &str, shown: &str, errors: &mut ErrorList| {
            if !file.is_empty() && !paths.insert(file.to_owned()) {
                errors.push(Error::invalid(path, shown, "conflicting duplicate paths"));
            }
        };
        for (child, name, files) in [
            ("secret", source.secret.as_ref().map(|s| &s.name), source.secret.as_ref().and_then(|s| s.items.as_deref())),
            ("configMap", source.config_map.as_ref().map(|s| &s.name), source.config_map.as_ref().and_then(|s| s.items.as_deref())),
        ] {
            let Some(name) = name else { continue };
            errors.extend(required(&at.child(child).child("name"), name));
            errors.extend(items(&at.child(child).child("items"), files));
            files.into_iter().flatten().for_each(|file| write(&file.path, name, &mut errors));
        }
        for file in source.downward_api.iter().flat_map(|downward| downward.items.iter().flatten()) {
            errors.extend(downward_file(&at.child("downwardAPI"), file));
            write(&file.path, &file.path, &mut errors);
        }
        if let Some(token) = &source.service_account_token {
            let at = at.child("serviceAccountToken").child("expirationSeconds");
            let seconds = token.expiration_seconds.unwrap_or(3600);
            if seconds < 600 {
                errors.push(Error::invalid(&at, seconds, "may not specify a duration less than 10 minutes"));
            }
            if seconds > 1 << 32 {
                errors.push(Error::invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds"));
            }
            errors.extend(required(&path.child("path"), &token.path));
        }
        if json(source).as_object().is_some_and(|kinds| kinds.len() > 1) {
            errors.push(Error::forbidden(&at, source::ONE_TYPE));
        }
    }
    errors
}

pub fn claim_spec(path: &Path, spec: &PersistentVolumeClaimSpec) -> ErrorList {
    let mut errors = Vec::new();
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errors.push(Error::required(&path.child("accessModes"), "at least 1 access mode is required"));
    }
    errors.extend(label_selector(&path.child("selector"), spec.selector.as_ref()));
    errors.extend(access_modes(&path.child("accessModes"), modes));
    let storage = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let storage_path = path.child("resources").key("storage");
    match storage {
        None => errors.push(Error::required(&storage_path, "")),
        Some(amount) if quantity(amount) <= api::Quantity::from_value(0) => {
            errors.push(Error::invalid(&storage_path, amount.0.as_str(), "must be greater than zero"));
        }
        Some(_) => {}
    }
    if let Some(class) = spec.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
        errors.extend(invalid(&path.child("storageClassName"), class, names::is_dns1123_subdomain(class)));
    }
    errors.extend(optional_one_of(&path.child("volumeMode"), spec.volume_mode.as_deref(), &["Block", "Filesystem"]));
    if let Some(origin) = &spec.data_source {
        let path = path.child("dataSource");
        errors.extend(required(&path.child("name"), &origin.name));
        errors.extend(required(&path.child("kind"), &origin.kind));
        if origin.api_group.as_deref().unwrap_or("").is_empty() && origin.kind != "PersistentVolumeClaim" {
            errors.push(Error::invalid(&path, origin.kind.as_str(), ""));
        }
    }
    errors
}

pub fn access_modes(path: &Path, modes: &[String]) -> ErrorList {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let mut errors: ErrorList =
        modes.iter().filter(|m| !MODES.contains(&m.as_str())).map(|m| Error::not_supported(path, m.as_str(), MODES)).collect();
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(path, detail));
    }
    errors
}
