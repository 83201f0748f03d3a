//! Pods and everything that has a pod template.

use serde_json::{Map, Value, json};

use super::{at, each, filled_number, flag, given, is_absent, is_empty, number, set, text, text_of};

pub fn pod(pod: &mut Value) {
    let spec = at(pod, "spec");
    flag(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        host_network_ports(spec);
    }
    for list in ["initContainers", "containers"] {
        each(spec, list).for_each(requests_from_limits);
    }
    pod_spec(spec);
}

/// A pod template: as a pod, without what only pods get.
pub fn template(template: &mut Value) {
    pod_spec(at(template, "spec"));
}

/// In the host's network a container's port is the host's port.
fn host_network_ports(spec: &mut Value) {
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            for port in each(container, "ports") {
                if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
                    filled_number(port, "hostPort", number);
                }
            }
        }
    }
}

/// What is limited but not requested is requested as much.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else { return };
    let requests = at(at(container, "resources"), "requests");
    for (name, limit) in limits {
        set(requests, &name, limit);
    }
}

pub fn pod_spec(spec: &mut Value) {
    text(spec, "dnsPolicy", "ClusterFirst");
    text(spec, "restartPolicy", "Always");
    set(spec, "securityContext", Map::new());
    number(spec, "terminationGracePeriodSeconds", 30);
    text(spec, "schedulerName", "default-scheduler");
    service_account(spec);
    each(spec, "volumes").for_each(volume);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, list).for_each(container);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName` and always says the same; upstream does this while converting.
fn service_account(spec: &mut Value) {
    let old = text_of(spec, "serviceAccount").to_owned();
    if !old.is_empty() {
        text(spec, "serviceAccountName", &old);
    }
    let name = text_of(spec, "serviceAccountName").to_owned();
    if let Some(spec) = spec.as_object_mut().filter(|_| !name.is_empty()) {
        spec.insert("serviceAccount".to_owned(), name.into());
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(text_of(container, "image"));
    text(container, "imagePullPolicy", policy);
    text(container, "terminationMessagePath", "/dev/termination-log");
    text(container, "terminationMessagePolicy", "File");
    each(container, "ports").for_each(|port| text(port, "protocol", "TCP"));
    for variable in each(container, "env") {
        if let Some(field) = given(variable, "valueFrom").and_then(|from| given(from, "fieldRef")) {
            text(field, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        given(container, name).into_iter().for_each(probe);
    }
    if let Some(lifecycle) = given(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            given(lifecycle, name).and_then(|hook| given(hook, "httpGet")).into_iter().for_each(http_get);
        }
    }
}

/// `Always` for the tag `latest`, said or implied; a digest or another tag need not be looked up again.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit_once('/').map_or(image, |(_, name)| name);
    let fixed = image.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    if fixed || !is_reference(image) { "IfNotPresent" } else { "Always" }
}

/// Whether an image's name is one: upstream finds no tag in what isn't.
fn is_reference(image: &str) -> bool {
    const LONGEST: usize = 255;
    let (name, tag) = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let tag_fits = tag.is_none_or(|tag| tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || ".-".contains(c)));
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("localhost", name),
    };
    let (host, port) = host.split_once(':').unwrap_or((host, "0"));
    let host_fits = host.split('.').all(|label| {
        let edge = |c: char| c.is_ascii_alphanumeric();
        label.starts_with(edge) && label.ends_with(edge) && label.chars().all(|c| edge(c) || c == '-')
    });
    let port_fits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let part_fits = |part: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(plain)
            && part.ends_with(plain)
            && part.chars().all(|c| plain(c) || "._-".contains(c))
            && !part.contains("..")
            && !part.contains("___")
    };
    tag_fits && host_fits && port_fits && name.len() <= LONGEST && path.split('/').all(part_fits)
}

fn probe(probe: &mut Value) {
    filled_number(probe, "timeoutSeconds", 1);
    filled_number(probe, "periodSeconds", 10);
    filled_number(probe, "successThreshold", 1);
    filled_number(probe, "failureThreshold", 3);
    given(probe, "httpGet").into_iter().for_each(http_get);
    if let Some(grpc) = given(probe, "grpc") {
        set(grpc, "service", "");
    }
}

fn http_get(action: &mut Value) {
    text(action, "path", "/");
    text(action, "scheme", "HTTP");
}

/// The sources' own defaults: source, field, value.
const SOURCES: &[(&str, &str, &str)] = &[
    ("iscsi", "iscsiInterface", "default"),
    ("rbd", "pool", "rbd"),
    ("rbd", "user", "admin"),
    ("rbd", "keyring", "/etc/ceph/keyring"),
    ("azureDisk", "cachingMode", "ReadWrite"),
    ("azureDisk", "kind", "Shared"),
    ("azureDisk", "fsType", "ext4"),
    ("scaleIO", "storageMode", "ThinProvisioned"),
    ("scaleIO", "fsType", "xfs"),
];

/// Also for persistent volumes, whose sources have the same names.
pub fn volume_source(volume: &mut Value) {
    for (source, field, default) in SOURCES {
        if let Some(source) = given(volume, source) {
            text(source, field, default);
        }
    }
    if let Some(disk) = given(volume, "azureDisk") {
        flag(disk, "readOnly", false);
    }
    if let Some(path) = given(volume, "hostPath") {
        set(path, "type", "");
    }
}

fn volume(volume: &mut Value) {
    let sourceless = volume.as_object().is_some_and(|v| v.iter().all(|(name, source)| name == "name" || source.is_null()));
    if sourceless {
        set(volume, "emptyDir", json!({}));
    }
    volume_source(volume);
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = given(volume, source) {
            number(source, "defaultMode", 0o644);
            each(source, "items").for_each(downward_item);
            each(source, "sources").for_each(projection);
        }
    }
    if let Some(image) = given(volume, "image") {
        let policy = pull_policy(text_of(image, "reference"));
        text(image, "pullPolicy", policy);
    }
    if let Some(claim) = given(volume, "ephemeral").and_then(|e| given(e, "volumeClaimTemplate")) {
        text(at(claim, "spec"), "volumeMode", "Filesystem");
    }
}

fn projection(source: &mut Value) {
    if let Some(token) = given(source, "serviceAccountToken") {
        number(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = given(source, "downwardAPI") {
        each(downward, "items").for_each(downward_item);
    }
}

/// Items of secrets and config maps have no `fieldRef` and stay as they are.
fn downward_item(item: &mut Value) {
    if let Some(field) = given(item, "fieldRef") {
        text(field, "apiVersion", "v1");
    }
}

/// Labels of a template become the object's own where it has none.
pub fn labels_from_template(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").filter(|l| l.as_object().is_some_and(|l| !l.is_empty())).cloned();
    if let Some(labels) = labels
        && object.get("metadata").is_none_or(|meta| is_empty(meta, "labels"))
    {
        let meta = at(object, "metadata");
        if !is_absent(meta, "labels")
            && let Some(map) = meta.as_object_mut()
        {
            map.remove("labels");
        }
        set(meta, "labels", labels);
    }
}
