//! Containers of a pod: ports, environment, mounts, resources, probes, hooks, security.

use std::collections::{BTreeMap, BTreeSet};

use api::container::of_ephemeral;
use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, EnvVarSource, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, PodSpec, Probe,
    ResourceFieldSelector, ResourceRequirements, SecurityContext, VolumeDevice, VolumeMount,
};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use api::names;

use super::field::{
    NOT_NEGATIVE, POSITIVE, invalid, json, non_negative_opt, one_of, optional_one_of, port, port_or_name, quantity, required,
};

/// What a pod's volumes look like to its containers: name → whether it is a claim.
pub type VolumeNames<'a> = BTreeMap<&'a str, bool>;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_RESOURCES: &[&str] =
    &["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

pub fn containers(path: &Path, containers: &[Container], volumes: &VolumeNames) -> ErrorList {
    if containers.is_empty() {
        return vec![Error::required(path, "")];
    }
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        errors.extend(common(&path, container, volumes));
        if !names.insert(container.name.as_str()) {
            errors.push(Error::duplicate(&path.child("name"), container.name.as_str()));
        }
        if container.restart_policy.is_some() {
            errors.push(Error::forbidden(&path.child("restartPolicy"), "may not be set for non-init containers"));
        }
        errors.extend(running(&path, container));
    }
    errors.extend(host_port_conflicts(path, containers));
    errors
}

pub fn init_containers(path: &Path, init: &[Container], regular: &[Container], volumes: &VolumeNames) -> ErrorList {
    let mut errors = Vec::new();
    let mut names: BTreeSet<&str> = regular.iter().map(|c| c.name.as_str()).collect();
    for (index, container) in init.iter().enumerate() {
        let path = path.index(index);
        errors.extend(common(&path, container, volumes));
        if !container.name.is_empty() && !names.insert(container.name.as_str()) {
            errors.push(Error::duplicate(&path.child("name"), container.name.as_str()));
        }
        match container.restart_policy.as_deref() {
            Some("Always") => errors.extend(running(&path, container)),
            Some(policy) => errors.push(Error::not_supported(&path.child("restartPolicy"), policy, &["Always"])),
            None => {
                let forbidden = [
                    ("lifecycle", container.lifecycle.is_some()),
                    ("livenessProbe", container.liveness_probe.is_some()),
                    ("readinessProbe", container.readiness_probe.is_some()),
                    ("startupProbe", container.startup_probe.is_some()),
                ];
                for (name, _) in forbidden.iter().filter(|(_, set)| *set) {
                    errors.push(Error::forbidden(&path.child(name), "may not be set for init containers without restartPolicy=Always"));
                }
            }
        }
        errors.extend(host_port_conflicts(&Path::new("initContainers"), std::slice::from_ref(container)));
    }
    errors
}

/// Containers added to a running pod: they have names of their own and nothing that belongs to a workload.
pub fn ephemeral_containers(path: &Path, spec: &PodSpec, volumes: &VolumeNames) -> ErrorList {
    let mut errors = Vec::new();
    let lasting = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let others: BTreeSet<&str> = lasting.map(|c| c.name.as_str()).collect();
    let mut names = others.clone();
    for (index, ephemeral) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let (path, container) = (path.index(index), of_ephemeral(ephemeral));
        errors.extend(common(&path, &container, volumes));
        let image = container.image.as_deref().unwrap_or("");
        if image.trim() != image {
            errors.push(Error::invalid(&path.child("image"), image, "must not have leading or trailing whitespace"));
        }
        if !names.insert(&ephemeral.name) {
            errors.push(Error::duplicate(&path.child("name"), ephemeral.name.as_str()));
        }
        let target = ephemeral.target_container_name.as_deref().unwrap_or("");
        if !target.is_empty() && !others.contains(target) {
            errors.push(Error::not_found(&path.child("targetContainerName"), target));
        }
        errors.extend(of_workloads_only(&path, &container));
    }
    errors
}

fn of_workloads_only(path: &Path, container: &Container) -> ErrorList {
    let resources = container.resources.as_ref().is_some_and(|r| r.limits.is_some() || r.requests.is_some() || r.claims.is_some());
    let set = [
        ("ports", container.ports.as_ref().is_some_and(|ports| !ports.is_empty())),
        ("resources", resources),
        ("resizePolicy", container.resize_policy.as_ref().is_some_and(|policies| !policies.is_empty())),
        ("restartPolicy", container.restart_policy.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
    ];
    let mut found: Vec<Path> = set.iter().filter(|(_, set)| *set).map(|(name, _)| path.child(name)).collect();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = path.child("volumeMounts").index(index);
        let given = |value: &Option<String>| value.as_deref().is_some_and(|value| !value.is_empty());
        found.extend(given(&mount.sub_path).then(|| path.child("subPath")));
        found.extend(given(&mount.sub_path_expr).then(|| path.child("subPathExpr")));
    }
    found.iter().map(|path| Error::forbidden(path, "cannot be set for an Ephemeral Container")).collect()
}

/// In pods, though not in templates, an image has no space around it.
pub fn trimmed_images(path: &Path, containers: &[Container]) -> ErrorList {
    let images = containers.iter().map(|container| container.image.as_deref().unwrap_or("")).enumerate();
    let padded = images.filter(|(_, image)| image.trim() != *image);
    padded
        .map(|(index, image)| Error::invalid(&path.index(index).child("image"), image, "must not have leading or trailing whitespace"))
        .collect()
}

fn common(path: &Path, container: &Container, volumes: &VolumeNames) -> ErrorList {
    let mut errors = Vec::new();
    if container.name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        errors.extend(invalid(&path.child("name"), &container.name, names::is_dns1123_label(&container.name)));
    }
    let image = container.image.as_deref().unwrap_or("");
    if image.is_empty() {
        errors.push(Error::required(&path.child("image"), ""));
    }
    let policy = container.termination_message_policy.as_deref();
    errors.extend(optional_one_of(&path.child("terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]));
    errors.extend(ports(&path.child("ports"), container.ports.as_deref().unwrap_or_default()));
    errors.extend(env(&path.child("env"), container.env.as_deref().unwrap_or_default()));
    errors.extend(env_from(path, container));
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    let devices = container.volume_devices.as_deref().unwrap_or_default();
    errors.extend(volume_mounts(&path.child("volumeMounts"), container, devices, volumes));
    errors.extend(volume_devices(&path.child("volumeDevices"), devices, mounts, volumes));
    let pull = container.image_pull_policy.as_deref();
    errors.extend(one_of(&path.child("imagePullPolicy"), pull, &["Always", "IfNotPresent", "Never"]));
    if let Some(resources) = &container.resources {
        errors.extend(self::resources(&path.child("resources"), resources));
    }
    if let Some(context) = &container.security_context {
        errors.extend(security_context(&path.child("securityContext"), context));
    }
    errors
}

/// Hooks and probes.
fn running(path: &Path, container: &Container) -> ErrorList {
    let mut errors = Vec::new();
    if let Some(lifecycle) = &container.lifecycle {
        errors.extend(self::lifecycle(&path.child("lifecycle"), lifecycle));
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        let path = path.child(name);
        errors.extend(self::probe(&path, probe));
        let readiness = name == "readinessProbe";
        if !readiness && probe.success_threshold.unwrap_or(1) != 1 {
            errors.push(Error::invalid(&path.child("successThreshold"), json(&probe.success_threshold), "must be 1"));
        }
        match probe.termination_grace_period_seconds {
            Some(seconds) if readiness => {
                let detail = "must not be set for readinessProbes";
                errors.push(Error::invalid(&path.child("terminationGracePeriodSeconds"), seconds, detail));
            }
            Some(seconds) if seconds <= 0 => {
                errors.push(Error::invalid(&path.child("terminationGracePeriodSeconds"), seconds, POSITIVE));
            }
            _ => {}
        }
    }
    errors
}

fn host_port_conflicts(path: &Path, containers: &[Container]) -> ErrorList {
    let mut errors = Vec::new();
    let mut taken = BTreeSet::new();
    for (ci, container) in containers.iter().enumerate() {
        for (pi, port) in container.ports.iter().flatten().enumerate() {
            let Some(number) = port.host_port.filter(|number| *number != 0) else { continue };
            let (protocol, ip) = (port.protocol.as_deref().unwrap_or(""), port.host_ip.as_deref().unwrap_or(""));
            let key = format!("{protocol}/{ip}/{number}");
            if !taken.insert(key.clone()) {
                errors.push(Error::duplicate(&path.index(ci).child("ports").index(pi).child("hostPort"), key));
            }
        }
    }
    errors
}

fn ports(path: &Path, ports: &[ContainerPort]) -> ErrorList {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    for (index, item) in ports.iter().enumerate() {
        let path = path.index(index);
        if let Some(name) = item.name.as_deref().filter(|name| !name.is_empty()) {
            let messages = names::is_valid_port_name(name);
            if messages.is_empty() && !names.insert(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            errors.extend(invalid(&path.child("name"), name, messages));
        }
        match item.container_port {
            0 => errors.push(Error::required(&path.child("containerPort"), "")),
            number => errors.extend(port(&path.child("containerPort"), i64::from(number))),
        }
        if let Some(number) = item.host_port.filter(|number| *number != 0) {
            errors.extend(port(&path.child("hostPort"), i64::from(number)));
        }
        errors.extend(one_of(&path.child("protocol"), item.protocol.as_deref(), PROTOCOLS));
    }
    errors
}

fn env(path: &Path, vars: &[EnvVar]) -> ErrorList {
    let mut errors = Vec::new();
    for (index, var) in vars.iter().enumerate() {
        let path = path.index(index);
        if var.name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else {
            errors.extend(invalid(&path.child("name"), &var.name, names::is_relaxed_env_var_name(&var.name)));
        }
        if let Some(source) = &var.value_from {
            let has_value = var.value.as_ref().is_some_and(|value| !value.is_empty());
            errors.extend(value_from(&path.child("valueFrom"), source, has_value));
        }
    }
    errors
}

fn value_from(path: &Path, source: &EnvVarSource, has_value: bool) -> ErrorList {
    let mut errors = Vec::new();
    let mut sources = 0;
    if let Some(reference) = &source.field_ref {
        sources += 1;
        let path = path.child("fieldRef");
        errors.extend(field_ref(&path, reference.api_version.as_deref(), &reference.field_path, ENV_FIELDS));
    }
    if let Some(reference) = &source.resource_field_ref {
        sources += 1;
        errors.extend(resource_field_ref(&path.child("resourceFieldRef"), reference, false));
    }
    let keys = [
        ("configMapKeyRef", source.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key))),
        ("secretKeyRef", source.secret_key_ref.as_ref().map(|r| (&r.name, &r.key))),
    ];
    for (child, reference) in keys {
        let Some((name, key)) = reference else { continue };
        sources += 1;
        let path = path.child(child);
        errors.extend(required(&path.child("name"), name));
        if key.is_empty() {
            errors.push(Error::required(&path.child("key"), ""));
        } else {
            errors.extend(invalid(&path.child("key"), key, names::is_config_map_key(key)));
        }
    }
    if sources == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errors.push(Error::invalid(path, "", detail));
    } else if has_value {
        errors.push(Error::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(Error::invalid(path, "", "may not have more than one field specified at a time"));
    }
    errors
}

/// A downward field: one of `allowed`, or one label or annotation by subscript.
pub fn field_ref(path: &Path, api_version: Option<&str>, field: &str, allowed: &[&str]) -> ErrorList {
    if api_version.unwrap_or("").is_empty() {
        return vec![Error::required(&path.child("apiVersion"), "")];
    }
    if field.is_empty() {
        return vec![Error::required(&path.child("fieldPath"), "")];
    }
    if let Some((head, key)) = field.strip_suffix("']").and_then(|field| field.split_once("['")) {
        return match head {
            "metadata.annotations" => invalid(path, key, names::is_qualified_name(&key.to_lowercase())),
            "metadata.labels" => invalid(path, key, names::is_qualified_name(key)),
            _ => {
                let detail = format!("error converting fieldPath: field label does not support subscript: {field}");
                vec![Error::invalid(&path.child("fieldPath"), field, detail)]
            }
        };
    }
    let path = path.child("fieldPath");
    const KNOWN: &[&str] = &["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"];
    if allowed.contains(&field) {
        Vec::new()
    } else if KNOWN.contains(&field) || ENV_FIELDS.contains(&field) {
        vec![Error::not_supported(&path, field, allowed)]
    } else {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        vec![Error::invalid(&path, field, detail)]
    }
}

pub fn resource_field_ref(path: &Path, reference: &ResourceFieldSelector, in_volume: bool) -> ErrorList {
    let mut errors = Vec::new();
    if in_volume && reference.container_name.as_deref().unwrap_or("").is_empty() {
        errors.push(Error::required(&path.child("containerName"), ""));
    } else if reference.resource.is_empty() {
        errors.push(Error::required(&path.child("resource"), ""));
    } else {
        let resource = reference.resource.as_str();
        let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
        if !huge && !ENV_RESOURCES.contains(&resource) {
            errors.push(Error::not_supported(&path.child("resource"), resource, ENV_RESOURCES));
        }
    }
    errors.extend(divisor(&path.child("divisor"), reference));
    errors
}

fn divisor(path: &Path, reference: &ResourceFieldSelector) -> ErrorList {
    let amount = reference.divisor.as_ref().map_or("0", |divisor| divisor.0.as_str());
    let resource = reference.resource.as_str();
    let words = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" if matches!(amount, "0" | "1" | "1m") => return Vec::new(),
        "cpu" => return vec![Error::invalid(path, resource, "only divisor's values 1m and 1 are supported with the cpu resource")],
        "memory" => "memory",
        "ephemeral-storage" => "local ephemeral storage",
        name if name.starts_with("hugepages-") => "hugepages",
        _ => return Vec::new(),
    };
    const UNITS: &[&str] = &["0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    if UNITS.contains(&amount) {
        return Vec::new();
    }
    let detail =
        format!("only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the {words} resource");
    vec![Error::invalid(path, resource, detail)]
}

fn env_from(path: &Path, container: &Container) -> ErrorList {
    let all = path.child("envFrom");
    let mut errors = Vec::new();
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        let path = all.index(index);
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            errors.extend(invalid(&path.child("prefix"), prefix, names::is_relaxed_env_var_name(prefix)));
        }
        let references = [
            ("configMapRef", source.config_map_ref.as_ref().map(|r| r.name.as_str())),
            ("secretRef", source.secret_ref.as_ref().map(|r| r.name.as_str())),
        ];
        for (child, name) in references.iter().filter_map(|(child, name)| name.map(|name| (*child, name))) {
            errors.extend(required(&path.child(child).child("name"), name));
        }
        match references.iter().filter(|(_, name)| name.is_some()).count() {
            0 => errors.push(Error::invalid(&all, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(Error::invalid(&all, "", "may not have more than one field specified at a time")),
        }
    }
    errors
}

/// Some of upstream's paths leave out which mount it is.
fn volume_mounts(all: &Path, container: &Container, devices: &[VolumeDevice], volumes: &VolumeNames) -> ErrorList {
    let privileged = container.security_context.as_ref().and_then(|context| context.privileged) == Some(true);
    let mut errors = Vec::new();
    let mut paths = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = all.index(index);
        errors.extend(required(&path.child("name"), &mount.name));
        if !volumes.contains_key(mount.name.as_str()) {
            errors.push(Error::not_found(&path.child("name"), mount.name.as_str()));
        }
        errors.extend(required(&path.child("mountPath"), &mount.mount_path));
        if !paths.insert(mount.mount_path.as_str()) {
            errors.push(Error::invalid(&path.child("mountPath"), mount.mount_path.as_str(), "must be unique"));
        }
        if devices.iter().any(|device| device.name == mount.name) {
            errors.push(Error::invalid(&path.child("name"), mount.name.as_str(), "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|device| device.device_path == mount.mount_path) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(Error::invalid(&path.child("mountPath"), mount.mount_path.as_str(), detail));
        }
        let (sub, expr) = (mount.sub_path.as_deref().unwrap_or(""), mount.sub_path_expr.as_deref().unwrap_or(""));
        errors.extend(local_descending_path(&all.child("subPath"), sub));
        if !expr.is_empty() && !sub.is_empty() {
            errors.push(Error::invalid(&path.child("subPathExpr"), expr, "subPathExpr and subPath are mutually exclusive"));
        }
        errors.extend(local_descending_path(&all.child("subPathExpr"), expr));
        let modes = ["Bidirectional", "HostToContainer", "None"];
        let (at, propagation) = (all.child("mountPropagation"), mount.mount_propagation.as_deref());
        errors.extend(optional_one_of(&at, propagation, &modes));
        if propagation == Some("Bidirectional") && !privileged {
            errors.push(Error::forbidden(&at, "Bidirectional mount propagation is available only to privileged containers"));
        }
    }
    errors
}

fn volume_devices(path: &Path, devices: &[VolumeDevice], mounts: &[VolumeMount], volumes: &VolumeNames) -> ErrorList {
    let mut errors = Vec::new();
    let mut seen = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in devices.iter().enumerate() {
        let path = path.index(index);
        let (name, device_path) = (device.name.as_str(), device.device_path.as_str());
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        }
        if !seen.0.insert(name) {
            errors.push(Error::invalid(&path.child("name"), name, "must be unique"));
        }
        if volumes.get(name) != Some(&true) {
            let detail = "can only use volume source type of PersistentVolumeClaim, Ephemeral or Image for block mode";
            errors.push(if volumes.contains_key(name) {
                Error::invalid(&path.child("name"), name, detail)
            } else {
                Error::not_found(&path.child("name"), name)
            });
        }
        errors.extend(required(&path.child("devicePath"), device_path));
        if !seen.1.insert(device_path) {
            errors.push(Error::invalid(&path.child("devicePath"), device_path, "must be unique"));
        }
        if mounts.iter().any(|mount| mount.name == name) {
            errors.push(Error::invalid(&path.child("name"), name, "must not already exist in volumeMounts"));
        }
    }
    errors
}

/// Relative, and never upwards.
pub fn local_descending_path(path: &Path, value: &str) -> ErrorList {
    let mut errors = Vec::new();
    if value.starts_with('/') {
        errors.push(Error::invalid(path, value, "must be a relative path"));
    }
    if value.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(path, value, "must not contain '..'"));
    }
    errors
}

pub fn resources(path: &Path, resources: &ResourceRequirements) -> ErrorList {
    let mut errors = Vec::new();
    let empty = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let limits_path = path.child("limits");
    for (name, amount) in limits {
        errors.extend(resource_entry(&limits_path.key(name), name, amount));
    }
    for (name, amount) in requests {
        errors.extend(resource_entry(&path.child("requests").key(name), name, amount));
        let overcommit = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        let path = path.child("requests");
        match limits.get(name) {
            Some(limit) if !overcommit && quantity(amount) != quantity(limit) => {
                errors.push(Error::invalid(&path, amount.0.as_str(), format!("must be equal to {name} limit of {}", limit.0)));
            }
            Some(limit) if quantity(amount) > quantity(limit) => {
                let detail = format!("must be less than or equal to {name} limit of {}", limit.0);
                errors.push(Error::invalid(&path, amount.0.as_str(), detail));
            }
            None if !overcommit => {
                errors.push(Error::required(&limits_path, "Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
    errors
}

fn resource_entry(path: &Path, name: &str, amount: &K8sQuantity) -> ErrorList {
    let mut errors = container_resource_name(path, name);
    errors.extend(resource_amount(path, name, amount));
    errors
}

/// Resources whose names need no domain: what containers ask for, and what quotas count.
pub const STANDARD_RESOURCES: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// What a container may ask for: standard, or of somebody's domain.
pub fn container_resource_name(path: &Path, name: &str) -> ErrorList {
    let mut errors = invalid(path, name, names::is_qualified_name(name));
    let of_containers = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    match name.split_once('/') {
        None if of_containers => {}
        None => {
            if errors.is_empty() && !STANDARD_RESOURCES.contains(&name) && !name.starts_with("requests.hugepages-") {
                errors.push(Error::invalid(path, name, "must be a standard resource type or fully qualified"));
            }
            errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
        }
        Some((domain, _)) => {
            let native = domain.contains("kubernetes.io");
            let extended = !name.starts_with("requests.") && names::is_qualified_name(&format!("requests.{name}")).is_empty();
            if !native && !extended {
                errors.push(Error::invalid(path, name, "doesn't follow extended resource name standard"));
            }
        }
    }
    errors
}

/// Things, not amounts.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// Not negative; whole where the resource can't be divided.
pub fn resource_amount(path: &Path, name: &str, amount: &K8sQuantity) -> ErrorList {
    let parsed = quantity(amount);
    let mut errors = Vec::new();
    if parsed.is_negative() {
        errors.push(Error::invalid(path, amount.0.as_str(), NOT_NEGATIVE));
    }
    let counted = COUNTED.contains(&name) || name.contains('/') && !name.split('/').next().unwrap_or_default().contains("kubernetes.io");
    if counted && !parsed.is_integer() {
        errors.push(Error::invalid(path, amount.0.as_str(), "must be an integer"));
    }
    errors
}

fn probe(path: &Path, probe: &Probe) -> ErrorList {
    let mut errors = handler(
        path,
        Handlers {
            exec: probe.exec.as_ref(),
            http_get: probe.http_get.as_ref(),
            tcp_port: probe.tcp_socket.as_ref().map(|tcp| &tcp.port),
            grpc_port: probe.grpc.as_ref().map(|grpc| i64::from(grpc.port)),
            sleep: None,
        },
    );
    errors.extend(non_negative_opt(&path.child("initialDelaySeconds"), probe.initial_delay_seconds));
    errors.extend(non_negative_opt(&path.child("timeoutSeconds"), probe.timeout_seconds));
    errors.extend(non_negative_opt(&path.child("periodSeconds"), probe.period_seconds));
    errors.extend(non_negative_opt(&path.child("successThreshold"), probe.success_threshold));
    errors.extend(non_negative_opt(&path.child("failureThreshold"), probe.failure_threshold));
    errors
}

fn lifecycle(path: &Path, lifecycle: &Lifecycle) -> ErrorList {
    let of = |name: &str, hook: &LifecycleHandler| {
        handler(
            &path.child(name),
            Handlers {
                exec: hook.exec.as_ref(),
                http_get: hook.http_get.as_ref(),
                tcp_port: hook.tcp_socket.as_ref().map(|tcp| &tcp.port),
                grpc_port: None,
                sleep: hook.sleep.as_ref().map(|sleep| sleep.seconds),
            },
        )
    };
    let mut errors = lifecycle.post_start.as_ref().map_or(Vec::new(), |hook| of("postStart", hook));
    errors.extend(lifecycle.pre_stop.as_ref().map_or(Vec::new(), |hook| of("preStop", hook)));
    errors
}

/// What a probe or a hook does: exactly one of these.
struct Handlers<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_port: Option<&'a IntOrString>,
    grpc_port: Option<i64>,
    sleep: Option<i64>,
}

fn handler(path: &Path, handlers: Handlers) -> ErrorList {
    let mut errors = Vec::new();
    let mut given = 0;
    let mut first = |name: &str, errors: &mut ErrorList| {
        given += 1;
        if given > 1 {
            errors.push(Error::forbidden(&path.child(name), "may not specify more than 1 handler type"));
        }
        given == 1
    };
    if let Some(exec) = handlers.exec.filter(|_| first("exec", &mut errors))
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        errors.push(Error::required(&path.child("exec").child("command"), ""));
    }
    if let Some(get) = handlers.http_get.filter(|_| first("httpGet", &mut errors)) {
        errors.extend(http_get(&path.child("httpGet"), get));
    }
    if let Some(tcp) = handlers.tcp_port.filter(|_| first("tcpSocket", &mut errors)) {
        errors.extend(port_or_name(&path.child("tcpSocket").child("port"), tcp));
    }
    if let Some(grpc) = handlers.grpc_port.filter(|_| first("grpc", &mut errors)) {
        errors.extend(port(&path.child("grpc").child("port"), grpc));
    }
    if let Some(seconds) = handlers.sleep.filter(|_| first("sleep", &mut errors))
        && seconds < 0
    {
        errors.push(Error::invalid(&path.child("sleep"), seconds, "must be non-negative"));
    }
    if given == 0 {
        errors.push(Error::required(path, "must specify a handler type"));
    }
    errors
}

fn http_get(path: &Path, get: &HTTPGetAction) -> ErrorList {
    let mut errors = required(&path.child("path"), get.path.as_deref().unwrap_or(""));
    errors.extend(port_or_name(&path.child("port"), &get.port));
    errors.extend(optional_one_of(&path.child("scheme"), get.scheme.as_deref(), &["HTTP", "HTTPS"]));
    for header in get.http_headers.iter().flatten() {
        let path = path.child("httpHeaders");
        errors.extend(invalid(&path, &header.name, names::is_http_header_name(&header.name)));
    }
    errors
}

/// A user or group id.
pub fn unix_id(path: &Path, id: Option<i64>) -> ErrorList {
    match id {
        Some(id) if !(0..=i64::from(i32::MAX)).contains(&id) => {
            vec![Error::invalid(path, id, names::inclusive_range(0, i64::from(i32::MAX)))]
        }
        _ => Vec::new(),
    }
}

fn security_context(path: &Path, context: &SecurityContext) -> ErrorList {
    let mut errors = unix_id(&path.child("runAsUser"), context.run_as_user);
    errors.extend(unix_id(&path.child("runAsGroup"), context.run_as_group));
    errors.extend(optional_one_of(&path.child("procMount"), context.proc_mount.as_deref(), &["Default", "Unmasked"]));
    if let Some(profile) = &context.seccomp_profile {
        errors.extend(local_profile(&path.child("seccompProfile"), &profile.type_, profile.localhost_profile.as_deref()));
    }
    if let Some(profile) = &context.app_armor_profile {
        errors.extend(local_profile(&path.child("appArmorProfile"), &profile.type_, profile.localhost_profile.as_deref()));
    }
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(Error::invalid(path, json(context), detail));
        }
        let added = context.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        if added.into_iter().any(|capability| capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(Error::invalid(path, json(context), detail));
        }
    }
    errors
}

/// A seccomp or AppArmor profile.
pub fn local_profile(path: &Path, kind: &str, localhost: Option<&str>) -> ErrorList {
    let child = path.child("localhostProfile");
    match (kind, localhost) {
        ("Localhost", None | Some("")) => vec![Error::required(&child, "must be set when profile type is Localhost")],
        ("Localhost", Some(file)) => local_descending_path(&child, file),
        ("RuntimeDefault" | "Unconfined", Some(file)) => {
            vec![Error::invalid(&child, file, "can only be set when profile type is Localhost")]
        }
        ("RuntimeDefault" | "Unconfined", None) => Vec::new(),
        ("", _) => vec![Error::required(&path.child("type"), "type is required")],
        (kind, _) => vec![Error::not_supported(&path.child("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"])],
    }
}
