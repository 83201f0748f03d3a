//! What backs a volume: the sources pods and persistent volumes share, as trees, because the same name stands for two types that differ
//! in a field or two.

use std::sync::LazyLock;

use api::field::{Error, ErrorList, Path};
use api::names;
use regex::Regex;
use serde_json::Value;

use super::container::local_descending_path;
use super::field::{invalid, optional_one_of, required};
use crate::value::{flag, int, is_set, list, map, text};

pub const ONE_TYPE: &str = "may not specify more than 1 volume type";

/// Sources in the order in which upstream looks for them: the first is the volume's, each further one too many.
pub const ORDER: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "storageos",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "projected",
    "csi",
    "local",
    "ephemeral",
    "image",
];

/// Texts and lists that may not be empty.
const REQUIRED: &[(&str, &[&str])] = &[
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["monitors", "image"]),
    ("cinder", &["volumeID"]),
    ("cephfs", &["monitors"]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("quobyte", &["volume"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("storageos", &["volumeName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("local", &["path"]),
];

/// The sources `volume` has, in upstream's order.
pub fn present(volume: &Value) -> Vec<&'static str> {
    ORDER.iter().filter(|name| volume.get(**name).is_some_and(|source| !source.is_null())).copied().collect()
}

/// A source that needs no more than its own fields to be judged. `persistent`: the name of the volume, if it is a persistent one.
pub fn source(path: &Path, name: &str, source: &Value, persistent: Option<&str>) -> ErrorList {
    let path = &path.child(name);
    let mut errors = Vec::new();
    let fields = REQUIRED.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, fields)| fields);
    for field in
        fields.iter().filter(|field| text(source, &format!("/{field}")).is_empty() && list(source, &format!("/{field}")).is_empty())
    {
        errors.push(Error::required(&path.child(field), ""));
    }
    match name {
        "hostPath" => errors.extend(host_path(path, source)),
        "gitRepo" => errors.extend(local_descending_path(&path.child("directory"), text(source, "/directory"))),
        "gcePersistentDisk" | "awsElasticBlockStore" => errors.extend(partition(path, source)),
        "nfs" if !text(source, "/path").starts_with('/') => {
            errors.push(Error::invalid(&path.child("path"), text(source, "/path"), "must be an absolute path"));
        }
        "iscsi" => errors.extend(iscsi(path, source, persistent)),
        "glusterfs" => errors.extend(glusterfs(path, source)),
        "cinder" => errors.extend(secret(&path.child("secretRef"), source.get("secretRef"), persistent.is_some())),
        "flocker" => errors.extend(flocker(path, source)),
        "fc" => errors.extend(fibre_channel(path, source)),
        "flexVolume" => errors.extend(flex(path, source)),
        "azureFile" if source.get("secretNamespace").and_then(Value::as_str) == Some("") => {
            errors.push(Error::required(&path.child("secretNamespace"), ""));
        }
        "quobyte" => errors.extend(quobyte(path, source)),
        "azureDisk" => errors.extend(azure_disk(path, source)),
        "storageos" => errors.extend(storage_os(path, source, persistent.is_some())),
        "csi" => errors.extend(csi(path, source, persistent.is_some())),
        "local" => errors.extend(no_backsteps(&path.child("path"), text(source, "/path"))),
        _ => {}
    }
    errors
}

fn no_backsteps(path: &Path, value: &str) -> ErrorList {
    let wrong = value.split('/').any(|part| part == "..");
    if wrong { vec![Error::invalid(path, value, "must not contain '..'")] } else { Vec::new() }
}

fn host_path(path: &Path, source: &Value) -> ErrorList {
    const TYPES: &[&str] = &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let at = text(source, "/path");
    if at.is_empty() {
        return required(&path.child("path"), "");
    }
    let mut errors = no_backsteps(&path.child("path"), at);
    errors.extend(optional_one_of(&path.child("type"), source.get("type").and_then(Value::as_str), TYPES));
    errors
}

fn partition(path: &Path, source: &Value) -> ErrorList {
    let number = int(source, "/partition");
    if (0..=255).contains(&number) {
        return Vec::new();
    }
    vec![Error::invalid(&path.child("partition"), number, "must be between 1 and 255, inclusive")]
}

/// An iSCSI qualified name, or one of its two alternatives.
fn iscsi_name(path: &Path, name: &str, prefixes: &str) -> ErrorList {
    static FORMS: LazyLock<[(&str, Option<Regex>); 3]> = LazyLock::new(|| {
        [
            ("iqn", Regex::new(r"iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$").ok()),
            ("eui", Regex::new(r"eui.[[:alnum:]]{16}$").ok()),
            ("naa", Regex::new(r"naa.[[:alnum:]]{32}$").ok()),
        ]
    });
    match FORMS.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        None => vec![Error::invalid(path, name, prefixes)],
        Some((_, Some(form))) if !form.is_match(name) => vec![Error::invalid(path, name, "must be valid format")],
        Some(_) => Vec::new(),
    }
}

fn iscsi(path: &Path, source: &Value, persistent: Option<&str>) -> ErrorList {
    let mut errors = Vec::new();
    let prefixes = if persistent.is_some() { "must be valid format" } else { "must be valid format starting with iqn, eui, or naa" };
    let (portal, initiator) = (text(source, "/targetPortal"), source.get("initiatorName").and_then(Value::as_str));
    if let (Some(name), Some(_)) = (persistent, initiator)
        && name.len() + 1 + portal.len() > 64
    {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        errors.push(Error::invalid(&path.child("targetportal"), portal, detail));
    }
    if !text(source, "/iqn").is_empty() {
        errors.extend(iscsi_name(&path.child("iqn"), text(source, "/iqn"), prefixes));
    }
    errors.extend(lun(&path.child("lun"), int(source, "/lun")));
    let authenticates = flag(source, "/chapAuthDiscovery") || flag(source, "/chapAuthSession");
    if authenticates && !is_set(source, "/secretRef") {
        errors.push(Error::required(&path.child("secretRef"), ""));
    }
    if persistent.is_some() && is_set(source, "/secretRef") {
        errors.extend(required(&path.child("secretRef").child("name"), text(source, "/secretRef/name")));
    }
    if let Some(initiator) = initiator {
        errors.extend(iscsi_name(&path.child("initiatorname"), initiator, prefixes));
    }
    errors
}

fn lun(path: &Path, lun: i64) -> ErrorList {
    if (0..=255).contains(&lun) { Vec::new() } else { vec![Error::invalid(path, lun, names::inclusive_range(0, 255))] }
}

fn glusterfs(path: &Path, source: &Value) -> ErrorList {
    let path = path.child("endpointsNamespace");
    match source.get("endpointsNamespace").and_then(Value::as_str) {
        Some("") => vec![Error::invalid(&path, "", "if the endpointnamespace is set, it must be a valid namespace name")],
        Some(namespace) => invalid(&path, namespace, names::is_dns1123_label(namespace)),
        None => Vec::new(),
    }
}

/// A secret's name, and its namespace where the volume has none of its own.
fn secret(path: &Path, reference: Option<&Value>, with_namespace: bool) -> ErrorList {
    let Some(reference) = reference.filter(|reference| !reference.is_null()) else { return Vec::new() };
    let mut errors = required(&path.child("name"), text(reference, "/name"));
    if with_namespace {
        errors.extend(required(&path.child("namespace"), text(reference, "/namespace")));
    }
    errors
}

fn flocker(path: &Path, source: &Value) -> ErrorList {
    let (name, uuid) = (text(source, "/datasetName"), text(source, "/datasetUUID"));
    let mut errors = Vec::new();
    if name.is_empty() && uuid.is_empty() {
        errors.push(Error::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.push(Error::invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously"));
    }
    if name.contains('/') {
        errors.push(Error::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
    errors
}

fn fibre_channel(path: &Path, source: &Value) -> ErrorList {
    let (targets, ids) = (list(source, "/targetWWNs"), list(source, "/wwids"));
    let mut errors = Vec::new();
    if targets.is_empty() && ids.is_empty() {
        errors.push(Error::required(&path.child("targetWWNs"), "must specify either targetWWNs or wwids, but not both"));
    }
    if !targets.is_empty() && !ids.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(Error::invalid(&path.child("targetWWNs"), targets.to_vec(), detail));
    }
    if !targets.is_empty() {
        match source.get("lun").and_then(Value::as_i64) {
            None => errors.push(Error::required(&path.child("lun"), "lun is required if targetWWNs is specified")),
            Some(number) => errors.extend(lun(&path.child("lun"), number)),
        }
    }
    errors
}

fn flex(path: &Path, source: &Value) -> ErrorList {
    let reserved = |key: &str| {
        let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
        domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io")
    };
    let options = map(source, "/options").into_iter().flat_map(|options| options.keys());
    let detail = "kubernetes.io and k8s.io namespaces are reserved";
    options.filter(|key| reserved(key)).map(|key| Error::invalid(&path.child("options").key(key), key.as_str(), detail)).collect()
}

fn quobyte(path: &Path, source: &Value) -> ErrorList {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(source, "/registry");
    if registry.is_empty() {
        return vec![Error::required(&path.child("registry"), PAIRS)];
    }
    if text(source, "/tenant").len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        return vec![Error::required(&path.child("tenant"), detail)];
    }
    let wrong = registry.split(',').filter(|pair| pair.matches(':').count() != 1);
    wrong.map(|_| Error::invalid(&path.child("registry"), registry, PAIRS)).collect()
}

fn azure_disk(path: &Path, source: &Value) -> ErrorList {
    let field = |name: &str| source.get(name).and_then(Value::as_str);
    let mut errors = optional_one_of(&path.child("cachingMode"), field("cachingMode"), &["None", "ReadOnly", "ReadWrite"]);
    errors.extend(optional_one_of(&path.child("kind"), field("kind"), &["Dedicated", "Managed", "Shared"]));
    let uri = text(source, "/diskURI");
    let (prefix, form) = match field("kind") {
        None => return errors,
        Some("Managed") => {
            ("/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}")
        }
        Some(_) => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
    };
    if !uri.starts_with(prefix) {
        errors.push(Error::not_supported(&path.child("diskURI"), uri, &[form]));
    }
    errors
}

fn storage_os(path: &Path, source: &Value, persistent: bool) -> ErrorList {
    let mut errors = Vec::new();
    for field in ["volumeName", "volumeNamespace"] {
        let value = text(source, &format!("/{field}"));
        if !value.is_empty() {
            errors.extend(invalid(&path.child(field), value, names::is_dns1123_label(value)));
        }
    }
    errors.extend(secret(&path.child("secretRef"), source.get("secretRef"), persistent));
    errors
}

/// A CSI driver's name. Letters of both cases will do.
pub fn driver_name(path: &Path, name: &str) -> ErrorList {
    let mut errors = required(path, name);
    if name.len() > 63 {
        errors.push(Error::too_long(path, name, 63));
    }
    errors.extend(invalid(path, name, names::is_dns1123_subdomain(&name.to_lowercase())));
    errors
}

fn csi(path: &Path, source: &Value, persistent: bool) -> ErrorList {
    let mut errors = driver_name(&path.child("driver"), text(source, "/driver"));
    if !persistent {
        errors.extend(csi_secret(path, source, "nodePublishSecretRef", &["name"], names::is_dns1123_subdomain));
        return errors;
    }
    errors.extend(required(&path.child("volumeHandle"), text(source, "/volumeHandle")));
    for name in ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"] {
        errors.extend(csi_secret(path, source, name, &["name", "namespace"], names::is_dns1123_label));
    }
    errors
}

/// Upstream loses the reference's name from the path of what is badly named.
fn csi_secret(path: &Path, source: &Value, name: &str, fields: &[&str], rule: fn(&str) -> Vec<String>) -> ErrorList {
    let Some(reference) = source.get(name).filter(|reference| !reference.is_null()) else { return Vec::new() };
    let mut errors = Vec::new();
    for field in fields {
        match text(reference, &format!("/{field}")) {
            "" => errors.push(Error::required(&path.child(name).child(field), "")),
            value => errors.extend(invalid(&path.child(field), value, rule(value))),
        }
    }
    errors
}
