//! Pods, their templates, and what of a pod may change.

use std::net::IpAddr;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{Container, Pod, PodDNSConfig, PodSecurityContext, PodSpec, PodTemplateSpec, Toleration};
use api::names;
use serde_json::Value;

use super::container::{containers, ephemeral_containers, init_containers, local_profile, resource_amount, trimmed_images, unix_id};
use super::field::{invalid, json, labels, one_of, optional_one_of};
use super::scheduling::{affinity, spread_constraints, tolerations};
use super::volume::volumes;
use crate::meta::{validate_annotations, validate_labels};

const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];

/// A pod's spec, in a pod or in a template.
pub fn spec(path: &Path, spec: &PodSpec) -> ErrorList {
    let all_volumes = spec.volumes.as_deref().unwrap_or_default();
    let (mut errors, names) = volumes(&path.child("volumes"), all_volumes);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    errors.extend(containers(&path.child("containers"), &spec.containers, &names));
    errors.extend(init_containers(&path.child("initContainers"), init, &spec.containers, &names));
    errors.extend(ephemeral_containers(&path.child("ephemeralContainers"), spec, &names));
    errors.extend(host_network_ports(path, spec));
    errors.extend(one_of(&path.child("restartPolicy"), spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]));
    errors.extend(one_of(&path.child("dnsPolicy"), spec.dns_policy.as_deref(), DNS_POLICIES));
    errors.extend(labels(&path.child("nodeSelector"), spec.node_selector.as_ref()));
    if let Some(context) = &spec.security_context {
        errors.extend(security_context(&path.child("securityContext"), context));
    }
    if let Some(rules) = &spec.affinity {
        errors.extend(affinity(&path.child("affinity"), rules));
    }
    errors.extend(dns_config(&path.child("dnsConfig"), spec.dns_config.as_ref(), spec.dns_policy.as_deref()));
    errors.extend(gates(path, spec));
    let spread = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    errors.extend(spread_constraints(&path.child("topologySpreadConstraints"), spread));
    errors.extend(identity(path, spec));
    errors.extend(tolerations(&path.child("tolerations"), spec.tolerations.as_deref().unwrap_or_default()));
    errors.extend(host_aliases(path, spec));
    errors.extend(classes(path, spec));
    errors
}

/// On the node's network a container port is a host port.
fn host_network_ports(path: &Path, spec: &PodSpec) -> ErrorList {
    let mut errors = Vec::new();
    if spec.host_network != Some(true) {
        return errors;
    }
    for (ci, container) in spec.containers.iter().enumerate() {
        for (pi, port) in container.ports.iter().flatten().enumerate() {
            if port.host_port.unwrap_or(0) != port.container_port {
                let path = path.child("containers").index(ci).child("ports").index(pi);
                let detail = "must match `hostPort` when `hostNetwork` is true";
                errors.push(Error::invalid(&path.child("containerPort"), port.container_port, detail));
            }
        }
    }
    errors
}

/// Segments parted by dots or slashes, each begun and ended by a letter or a digit.
fn is_sysctl(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let segment = |part: &str| part.starts_with(plain) && part.ends_with(plain) && part.chars().all(|c| plain(c) || c == '-' || c == '_');
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn security_context(path: &Path, context: &PodSecurityContext) -> ErrorList {
    let mut errors = unix_id(&path.child("fsGroup"), context.fs_group);
    errors.extend(unix_id(&path.child("runAsUser"), context.run_as_user));
    errors.extend(unix_id(&path.child("runAsGroup"), context.run_as_group));
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        errors.extend(unix_id(&path.child("supplementalGroups").index(index), Some(*group)));
    }
    let mut seen = Vec::new();
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = path.child("sysctls").index(index).child("name");
        if sysctl.name.is_empty() {
            errors.push(Error::required(&path, ""));
        } else if !is_sysctl(&sysctl.name) {
            let detail =
                "must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            errors.push(Error::invalid(&path, sysctl.name.as_str(), detail));
        } else if seen.contains(&sysctl.name.as_str()) {
            errors.push(Error::duplicate(&path, sysctl.name.as_str()));
        }
        seen.push(&sysctl.name);
    }
    let policy = context.fs_group_change_policy.as_deref();
    errors.extend(optional_one_of(&path.child("fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]));
    if let Some(profile) = &context.seccomp_profile {
        errors.extend(local_profile(&path.child("seccompProfile"), &profile.type_, profile.localhost_profile.as_deref()));
    }
    errors
}

fn dns_config(path: &Path, config: Option<&PodDNSConfig>, policy: Option<&str>) -> ErrorList {
    let Some(config) = config else {
        return match policy {
            Some("None") => vec![Error::required(path, "must provide `dnsConfig` when `dnsPolicy` is None")],
            _ => Vec::new(),
        };
    };
    let servers = config.nameservers.as_deref().unwrap_or_default();
    let searches = config.searches.as_deref().unwrap_or_default();
    if policy == Some("None") && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return vec![Error::required(&path.child("nameservers"), detail)];
    }
    let mut errors = Vec::new();
    if servers.len() > 3 {
        errors.push(Error::invalid(&path.child("nameservers"), json(&servers), "must not have more than 3 nameservers"));
    }
    for (index, server) in servers.iter().enumerate() {
        errors.extend(invalid(&path.child("nameservers").index(index), server, names::is_valid_ip(server)));
    }
    if searches.len() > 32 {
        errors.push(Error::invalid(&path.child("searches"), json(&searches), "must not have more than 32 search paths"));
    }
    if searches.join(" ").len() > 2048 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errors.push(Error::invalid(&path.child("searches"), json(&searches), detail));
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let name = search.strip_suffix('.').unwrap_or(search);
        errors.extend(invalid(&path.child("searches").index(index), name, names::is_dns1123_subdomain(name)));
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or("").is_empty() {
            errors.push(Error::required(&path.child("options").index(index), "must not be empty"));
        }
    }
    errors
}

fn gates(path: &Path, spec: &PodSpec) -> ErrorList {
    let mut errors = Vec::new();
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let path = path.child("readinessGates").index(index).child("conditionType");
        errors.extend(invalid(&path, &gate.condition_type, names::is_qualified_name(&gate.condition_type)));
    }
    let mut seen = Vec::new();
    for (index, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        let path = path.child("schedulingGates").index(index);
        errors.extend(invalid(&path, &gate.name, names::is_qualified_name(&gate.name)));
        if seen.contains(&gate.name.as_str()) {
            errors.push(Error::duplicate(&path, gate.name.as_str()));
        }
        seen.push(&gate.name);
    }
    errors
}

fn identity(path: &Path, spec: &PodSpec) -> ErrorList {
    let mut errors = Vec::new();
    let mut check = |name: &str, value: Option<&String>, rule: fn(&str) -> Vec<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            errors.extend(invalid(&path.child(name), value, rule(value)));
        }
    };
    check("serviceAccountName", spec.service_account_name.as_ref(), names::is_dns1123_subdomain);
    check("nodeName", spec.node_name.as_ref(), names::is_dns1123_subdomain);
    check("hostname", spec.hostname.as_ref(), names::is_dns1123_label);
    check("subdomain", spec.subdomain.as_ref(), names::is_dns1123_label);
    if let Some(seconds) = spec.active_deadline_seconds.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds)) {
        let detail = names::inclusive_range(1, i64::from(i32::MAX));
        errors.push(Error::invalid(&path.child("activeDeadlineSeconds"), seconds, detail));
    }
    errors
}

fn host_aliases(path: &Path, spec: &PodSpec) -> ErrorList {
    let mut errors = Vec::new();
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.child("hostAliases").index(index);
        errors.extend(invalid(&path.child("ip"), &alias.ip, names::is_valid_ip(&alias.ip)));
        for (i, name) in alias.hostnames.iter().flatten().enumerate() {
            errors.extend(invalid(&path.child("hostnames").index(i), name, names::is_dns1123_subdomain(name)));
        }
    }
    errors
}

fn classes(path: &Path, spec: &PodSpec) -> ErrorList {
    let mut errors = Vec::new();
    for (name, value) in [("priorityClassName", &spec.priority_class_name), ("runtimeClassName", &spec.runtime_class_name)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            errors.extend(invalid(&path.child(name), value, names::is_dns1123_subdomain(value)));
        }
    }
    let policies = ["PreemptLowerPriority", "Never"];
    errors.extend(optional_one_of(&path.child("preemptionPolicy"), spec.preemption_policy.as_deref(), &policies));
    for (name, amount) in spec.overhead.iter().flatten() {
        errors.extend(resource_amount(&path.child("overhead").key(name), name, amount));
    }
    if let Some(os) = &spec.os {
        errors.extend(one_of(&path.child("os").child("name"), Some(&os.name), &["linux", "windows"]));
    }
    errors
}

/// A pod as such; its metadata is checked elsewhere.
pub fn pod(pod: &Pod) -> ErrorList {
    let path = Path::new("spec");
    let Some(pod_spec) = &pod.spec else { return vec![Error::required(&path.child("containers"), "")] };
    let mut errors = spec(&path, pod_spec);
    errors.extend(account_tokens(&path.child("volumes"), pod_spec));
    errors.extend(trimmed_images(&path.child("containers"), &pod_spec.containers));
    errors.extend(trimmed_images(&path.child("initContainers"), pod_spec.init_containers.as_deref().unwrap_or_default()));
    errors
}

/// A token is an account's.
fn account_tokens(path: &Path, spec: &PodSpec) -> ErrorList {
    let mut errors = Vec::new();
    if !spec.service_account_name.as_deref().unwrap_or("").is_empty() {
        return errors;
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        for (i, source) in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()).enumerate() {
            if source.service_account_token.is_some() {
                let path = path.index(index).child("projected").child("sources").index(i).child("serviceAccountToken");
                errors.push(Error::forbidden(&path, "must not be specified when serviceAccountName is not set"));
            }
        }
    }
    errors
}

/// The template of a controller at `path`.
pub fn template(path: &Path, template: &PodTemplateSpec) -> ErrorList {
    let mut errors = template_meta(path, template);
    match &template.spec {
        Some(pod_spec) => {
            errors.extend(spec(&path.child("spec"), pod_spec));
            if pod_spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
                let detail = "ephemeral containers not allowed in pod template";
                errors.push(Error::forbidden(&path.child("spec").child("ephemeralContainers"), detail));
            }
        }
        None => errors.push(Error::required(&path.child("spec").child("containers"), "")),
    }
    errors
}

/// A template's labels and annotations; upstream's paths leave `metadata` out.
pub fn template_meta(path: &Path, template: &PodTemplateSpec) -> ErrorList {
    let meta = json(&template.metadata);
    let of = |name: &str| meta.get(name).and_then(Value::as_object);
    let mut errors = validate_labels(of("labels"), &path.child("labels"));
    errors.extend(validate_annotations(of("annotations"), &path.child("annotations")));
    errors
}

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What differs, once both are valid: of a pod's spec only images, the deadline (downwards), tolerations (more) and a negative grace period may change.
pub fn update(new: &Pod, old: &Pod) -> ErrorList {
    let path = Path::new("spec");
    let (Some(new_spec), Some(old_spec)) = (&new.spec, &old.spec) else { return Vec::new() };
    let mut errors = Vec::new();
    for (name, now, was) in [
        ("containers", new_spec.containers.as_slice(), old_spec.containers.as_slice()),
        (
            "initContainers",
            new_spec.init_containers.as_deref().unwrap_or_default(),
            old_spec.init_containers.as_deref().unwrap_or_default(),
        ),
    ] {
        if now.len() != was.len() {
            errors.push(Error::forbidden(&path.child(name), "pod updates may not add or remove containers"));
            return errors;
        }
        for (index, container) in now.iter().enumerate() {
            let path = path.child(name).index(index).child("image");
            let image = container.image.as_deref().unwrap_or("");
            if image.is_empty() {
                errors.push(Error::required(&path, ""));
            }
            if image.trim() != image {
                errors.push(Error::invalid(&path, image, "must not have leading or trailing whitespace"));
            }
        }
    }
    let late = deadline_update(&path, new_spec.active_deadline_seconds, old_spec.active_deadline_seconds);
    let stop = !late.is_empty() && new_spec.active_deadline_seconds.is_some();
    errors.extend(late);
    if stop {
        return errors;
    }
    errors.extend(tolerations_update(
        &path.child("tolerations"),
        new_spec.tolerations.as_deref().unwrap_or_default(),
        old_spec.tolerations.as_deref().unwrap_or_default(),
    ));
    if old_spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty) {
        let munged = json(&without_updatable(new_spec, old_spec));
        let stored = json(old_spec);
        if munged != stored {
            let detail =
                format!("pod updates may not change fields other than {UPDATABLE}\n{}", difference("core.PodSpec", &munged, &stored));
            errors.push(Error::forbidden(&path, detail));
        }
    }
    errors
}

/// Through their own subresource ephemeral containers are added, and never changed or taken away.
pub fn ephemeral_update(new: &Pod, old: &Pod) -> ErrorList {
    let path = Path::new("spec").child("ephemeralContainers");
    if old.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.mirror")) {
        return vec![Error::forbidden(&Path::nil(), "static pods do not support ephemeral containers")];
    }
    let of = |pod: &Pod| pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).cloned().collect::<Vec<_>>();
    let mut errors = pod(new);
    let now = of(new);
    for was in of(old) {
        let detail = match now.iter().find(|container| container.name == was.name) {
            Some(same) if *same == was => continue,
            Some(other) => {
                let change = difference("core.EphemeralContainer", &json(other), &json(&was));
                format!("existing ephemeral containers {:?} may not be changed\n{change}", was.name)
            }
            None => format!("existing ephemeral containers {:?} may not be removed\n", was.name),
        };
        errors.push(Error::forbidden(&path, detail));
    }
    errors
}

/// The new spec with everything that may change put back.
fn without_updatable(new: &PodSpec, old: &PodSpec) -> PodSpec {
    let mut munged = new.clone();
    let restore = |now: &mut [Container], was: &[Container]| {
        for (now, was) in now.iter_mut().zip(was) {
            now.image.clone_from(&was.image);
        }
    };
    restore(&mut munged.containers, &old.containers);
    restore(munged.init_containers.as_deref_mut().unwrap_or_default(), old.init_containers.as_deref().unwrap_or_default());
    munged.active_deadline_seconds = old.active_deadline_seconds;
    munged.tolerations.clone_from(&old.tolerations);
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0) && new.termination_grace_period_seconds == Some(1) {
        munged.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    munged
}

fn deadline_update(path: &Path, new: Option<i64>, old: Option<i64>) -> ErrorList {
    let path = path.child("activeDeadlineSeconds");
    match (new, old) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            vec![Error::invalid(&path, new, names::inclusive_range(0, i64::from(i32::MAX)))]
        }
        (Some(new), Some(old)) if old < new => {
            vec![Error::invalid(&path, new, "must be less than or equal to previous value")]
        }
        (None, Some(_)) => {
            vec![Error::invalid(&path, Value::Null, "must not update from a positive integer to nil value")]
        }
        _ => Vec::new(),
    }
}

fn tolerations_update(path: &Path, new: &[Toleration], old: &[Toleration]) -> ErrorList {
    let same_but_seconds = |a: &Toleration, b: &Toleration| {
        Toleration { toleration_seconds: None, ..a.clone() } == Toleration { toleration_seconds: None, ..b.clone() }
    };
    if old.iter().all(|was| new.iter().any(|now| same_but_seconds(now, was))) {
        return Vec::new();
    }
    let detail = "existing toleration can not be modified except its tolerationSeconds";
    vec![Error::forbidden(path, detail)]
}

/// The top-level fields that differ, new over old, in the form of a diff.
fn difference(go_type: &str, new: &Value, old: &Value) -> String {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return String::new() };
    let names: std::collections::BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let mut lines = vec![format!("  {go_type}{{")];
    for name in names.into_iter().filter(|name| new.get(*name) != old.get(*name)) {
        let line = |sign: char, value: Option<&Value>| value.map(|value| format!("{sign} \t{name}: {value},"));
        lines.extend(line('-', old.get(name)));
        lines.extend(line('+', new.get(name)));
    }
    lines.push("  }\n".to_owned());
    lines.join("\n")
}

/// An address that cannot be a service's or an endpoint's: upstream's `ValidateNonSpecialIP`.
pub fn non_special_ip(path: &Path, ip: &str) -> ErrorList {
    let mut errors = Vec::new();
    let Some(address) = names::parse_ip(ip) else { return vec![Error::invalid(path, ip, "must be a valid IP address")] };
    let mut refuse = |yes: bool, detail: String| {
        if yes {
            errors.push(Error::invalid(path, ip, detail));
        }
    };
    refuse(address.is_unspecified(), format!("may not be unspecified ({ip})"));
    let (link_local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    refuse(address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    refuse(link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    refuse(multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned());
    errors
}
