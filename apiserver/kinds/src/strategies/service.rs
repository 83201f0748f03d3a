//! Services: fields that come and go with the type, and what makes the rest valid. Addresses and node ports
//! are allocated by the registry, after these fields are shaped and before they are validated.
//!
//! Upstream: `pkg/registry/core/service/{strategy,storage/alloc}.go`, `pkg/apis/core/validation/validation.go` (v1.33).

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{Service as CoreService, ServicePort, ServiceSpec};
use api::names;
use serde_json::{Value, json};

use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{
    invalid, json as to_json, labels, one_of, optional_one_of, port, port_or_name, required, with, with_both,
};
use crate::validation::pod::non_special_ip;
use crate::value::{child, copy_field, int, is_set, list, remove, text};
use crate::{Kind, Strategy};

pub struct Service;

impl Strategy for Service {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        normalize_cluster_ips(object, None);
    }

    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        normalize_cluster_ips(new, Some(old));
        drop_type_dependent(new, old);
        keep_allocated(new, old);
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |service: &CoreService| {
            service.spec.as_ref().map_or(Vec::new(), |spec| service_spec(&Path::new("spec"), spec))
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = with_both(new, old, |new: &CoreService, old: &CoreService| {
            new.spec.as_ref().zip(old.spec.as_ref()).map_or(Vec::new(), |(new, old)| cluster_ips_update(new, old))
        });
        errors.extend(self.validate(kind, new));
        errors
    }
}

/// `clusterIP` and `clusterIPs[0]` say the same; a client that knows only the first sets only the first.
fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let ip = text(new, "/spec/clusterIP").to_owned();
    let changed = match old {
        None => list(new, "/spec/clusterIPs").is_empty() && !ip.is_empty(),
        Some(old) => {
            ip != text(old, "/spec/clusterIP") && list(new, "/spec/clusterIPs") == list(old, "/spec/clusterIPs")
        }
    };
    if !changed {
        return;
    }
    let spec = child(new, "spec");
    if ip.is_empty() { remove(spec, "clusterIPs") } else { spec["clusterIPs"] = json!([ip]) }
}

fn needs_cluster_ip(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_port(service: &Value) -> bool {
    let wanted = service.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true);
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => wanted,
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn is_external(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer") || is_set(service, "/spec/externalIPs/0")
}

/// Takes away what the old type had and the new has not, unless the caller changed it in the same breath
/// (then validation has its say).
fn drop_type_dependent(new: &mut Value, old: &Value) {
    let mut dropped: Vec<&str> = Vec::new();
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        dropped.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if needs_health_port(old) && !needs_health_port(new) {
        dropped.push("healthCheckNodePort");
    }
    if text(old, "/spec/type") == "LoadBalancer" && text(new, "/spec/type") != "LoadBalancer" {
        dropped.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(old) && !is_external(new) {
        dropped.push("externalTrafficPolicy");
    }
    for name in dropped {
        if new["spec"].get(name) == old["spec"].get(name) {
            remove(child(new, "spec"), name);
        }
    }
    let node_ports = |service: &Value| -> Vec<i64> { list(service, "/spec/ports").iter().map(|p| int(p, "/nodePort")).collect() };
    if needs_node_port(old) && !needs_node_port(new) && node_ports(new) == node_ports(old) {
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
            remove(port, "nodePort");
        }
    }
}

/// A replacement that leaves allocated values out keeps them.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        if text(new, "/spec/clusterIP").is_empty() {
            copy_field(child(new, "spec"), &old["spec"], "clusterIP");
        }
        if list(new, "/spec/clusterIPs").is_empty() && text(new, "/spec/clusterIP") == text(old, "/spec/clusterIP") {
            copy_field(child(new, "spec"), &old["spec"], "clusterIPs");
        }
    }
    if needs_node_port(new) && needs_node_port(old) {
        let mut used: BTreeSet<i64> = list(new, "/spec/ports").iter().map(|p| int(p, "/nodePort")).collect();
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let same = |old: &&Value| old["port"] == port["port"] && text(old, "/protocol") == text(port, "/protocol");
            let Some(was) = list(old, "/spec/ports").iter().find(same).map(|old| int(old, "/nodePort")) else { continue };
            if int(port, "/nodePort") == 0 && was != 0 && used.insert(was) {
                port["nodePort"] = json!(was);
            }
        }
    }
    if needs_health_port(new) && needs_health_port(old) && int(new, "/spec/healthCheckNodePort") == 0 {
        copy_field(child(new, "spec"), &old["spec"], "healthCheckNodePort");
    }
}

fn service_spec(path: &Path, spec: &ServiceSpec) -> ErrorList {
    let kind = spec.type_.as_deref().unwrap_or("");
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let headless = ips.first().is_some_and(|ip| ip == "None");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(Error::required(&path.child("ports"), ""));
    }
    errors.extend(by_type(path, spec, kind, headless));
    let mut names = BTreeSet::new();
    for (index, item) in ports.iter().enumerate() {
        errors.extend(service_port(&path.child("ports").index(index), item, ports.len() > 1, &mut names));
    }
    errors.extend(labels(&path.child("selector"), spec.selector.as_ref()));
    errors.extend(session_affinity(path, spec));
    errors.extend(cluster_ips(path, spec, kind));
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        let path = path.child("externalIPs").index(index);
        let messages = names::is_valid_ip(ip);
        errors.extend(if messages.is_empty() { non_special_ip(&path, ip) } else { invalid(&path, ip, messages) });
    }
    errors.extend(one_of(&path.child("type"), spec.type_.as_deref(), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    errors.extend(port_sets(path, ports, kind));
    errors.extend(load_balancer(path, spec, kind));
    errors.extend(traffic_policies(path, spec, kind));
    errors
}

fn by_type(path: &Path, spec: &ServiceSpec, kind: &str, headless: bool) -> ErrorList {
    let mut errors = Vec::new();
    match kind {
        "LoadBalancer" | "NodePort" => {
            for (index, port) in spec.ports.iter().flatten().enumerate() {
                if kind == "LoadBalancer" && port.port == 10250 {
                    let detail = "may not expose port 10250 externally since it is used by kubelet";
                    errors.push(Error::invalid(&path.child("ports").index(index), port.port, detail));
                }
            }
            if headless {
                let detail = format!("may not be set to 'None' for {kind} services");
                errors.push(Error::invalid(&path.child("clusterIPs").index(0), "None", detail));
            }
        }
        "ExternalName" => {
            let set = [
                ("clusterIPs", spec.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty())),
                ("ipFamilies", spec.ip_families.as_ref().is_some_and(|families| !families.is_empty())),
                ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
            ];
            for (name, _) in set.iter().filter(|(_, set)| *set) {
                errors.push(Error::forbidden(&path.child(name), "may not be set for ExternalName services"));
            }
            let name = spec.external_name.as_deref().unwrap_or("");
            let name = name.strip_suffix('.').unwrap_or(name);
            let path = path.child("externalName");
            errors.extend(if name.is_empty() { required(&path, "") } else { invalid(&path, name, names::is_dns1123_subdomain(name)) });
        }
        _ => {}
    }
    errors
}

fn service_port<'a>(path: &Path, item: &'a ServicePort, named: bool, seen: &mut BTreeSet<&'a str>) -> ErrorList {
    let mut errors = Vec::new();
    let name = item.name.as_deref().unwrap_or("");
    if named && name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else if !name.is_empty() {
        errors.extend(invalid(&path.child("name"), name, names::is_dns1123_label(name)));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
    }
    errors.extend(port(&path.child("port"), i64::from(item.port)));
    errors.extend(one_of(&path.child("protocol"), item.protocol.as_deref(), &["SCTP", "TCP", "UDP"]));
    if let Some(target) = &item.target_port {
        errors.extend(port_or_name(&path.child("targetPort"), target));
    }
    if let Some(protocol) = &item.app_protocol {
        errors.extend(invalid(&path.child("appProtocol"), protocol, names::is_qualified_name(protocol)));
    }
    errors
}

fn port_sets(path: &Path, ports: &[ServicePort], kind: &str) -> ErrorList {
    let mut errors = Vec::new();
    let (mut node_ports, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, item) in ports.iter().enumerate() {
        let path = path.child("ports").index(index);
        let node_port = item.node_port.unwrap_or(0);
        if kind == "ClusterIP" && node_port != 0 {
            errors.push(Error::forbidden(&path.child("nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
        if node_port != 0 && !node_ports.insert((&item.protocol, node_port)) {
            errors.push(Error::duplicate(&path.child("nodePort"), node_port));
        }
        if !numbers.insert((&item.protocol, item.port)) {
            let key = json!({"name": "", "protocol": item.protocol, "port": item.port, "targetPort": 0});
            errors.push(Error::duplicate(&path, key));
        }
    }
    errors
}

fn session_affinity(path: &Path, spec: &ServiceSpec) -> ErrorList {
    let affinity = spec.session_affinity.as_deref();
    let mut errors = one_of(&path.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let path = path.child("sessionAffinityConfig");
    match (affinity, &spec.session_affinity_config) {
        (Some("ClientIP"), config) => {
            let path_ip = path.child("clientIP");
            match config.as_ref().and_then(|config| config.client_ip.as_ref()).and_then(|ip| ip.timeout_seconds) {
                None => errors.push(Error::required(&path, "when session affinity type is ClientIP")),
                Some(seconds) if !(1..=86400).contains(&seconds) => {
                    let detail = "must be greater than 0 and less than 86400";
                    errors.push(Error::invalid(&path_ip.child("timeoutSeconds"), seconds, detail));
                }
                Some(_) => {}
            }
        }
        (Some("None"), Some(_)) => {
            errors.push(Error::forbidden(&path, "must not be set when session affinity is None"));
        }
        _ => {}
    }
    errors
}

fn cluster_ips(path: &Path, spec: &ServiceSpec, kind: &str) -> ErrorList {
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let first = spec.cluster_ip.as_deref().unwrap_or("");
    let mut errors = Vec::new();
    if kind == "ExternalName" {
        return errors;
    }
    let path_ips = path.child("clusterIPs");
    if ips.is_empty() && !first.is_empty() {
        errors.push(Error::required(&path_ips, ""));
    } else if ips.first().is_some_and(|ip| ip != first) {
        errors.push(Error::invalid(&path_ips, to_json(&ips), "first value must match `clusterIP`"));
    }
    for (index, ip) in ips.iter().enumerate() {
        if ip == "None" && ips.len() > 1 {
            errors.push(Error::invalid(&path_ips.index(index), ip.as_str(), "'None' must be the first and only value"));
        }
        if ip != "None" {
            errors.extend(invalid(&path_ips.index(index), ip, names::is_valid_ip(ip)));
        }
    }
    if ips.len() > 2 {
        errors.push(Error::invalid(&path_ips, to_json(&ips), "may only hold up to 2 values"));
    }
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        let path = path.child("ipFamilies").index(index);
        errors.extend(optional_one_of(&path, Some(family), &["IPv4", "IPv6"]));
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    errors.extend(optional_one_of(&path.child("ipFamilyPolicy"), spec.ip_family_policy.as_deref(), &policies));
    errors
}

fn load_balancer(path: &Path, spec: &ServiceSpec, kind: &str) -> ErrorList {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let mut errors = Vec::new();
    let other = kind != "LoadBalancer";
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if !ranges.is_empty() {
        let path = path.child("LoadBalancerSourceRanges");
        if other {
            errors.push(Error::forbidden(&path, ONLY));
        }
        if ranges.iter().any(|range| names::parse_cidr(range.trim()).is_none()) {
            let detail = "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24 ";
            errors.push(Error::invalid(&path, format!("[{}]", ranges.join(" ")), detail));
        }
    }
    if other && spec.allocate_load_balancer_node_ports.is_some() {
        errors.push(Error::forbidden(&path.child("allocateLoadBalancerNodePorts"), ONLY));
    }
    if !other && spec.allocate_load_balancer_node_ports.is_none() {
        errors.push(Error::required(&path.child("allocateLoadBalancerNodePorts"), ""));
    }
    if let Some(class) = &spec.load_balancer_class {
        let path = path.child("loadBalancerClass");
        if other {
            errors.push(Error::forbidden(&path, ONLY));
        }
        errors.extend(invalid(&path, class, names::is_qualified_name(class)));
    }
    errors
}

fn traffic_policies(path: &Path, spec: &ServiceSpec, kind: &str) -> ErrorList {
    let mut errors = Vec::new();
    let external = matches!(kind, "NodePort" | "LoadBalancer") || spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let policy = spec.external_traffic_policy.as_deref().unwrap_or("");
    let policy_path = path.child("externalTrafficPolicy");
    if !external && !policy.is_empty() {
        errors.push(Error::invalid(&policy_path, policy, "may only be set for externally-accessible services"));
    } else if matches!(kind, "NodePort" | "LoadBalancer") {
        errors.extend(one_of(&policy_path, Some(policy), &["Cluster", "Local"]));
    }
    let health = spec.health_check_node_port.unwrap_or(0);
    if health < 0 {
        errors.push(Error::invalid(&path.child("healthCheckNodePort"), health, "must be greater than or equal to 0"));
    }
    if health > 0 && !(kind == "LoadBalancer" && policy == "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(Error::invalid(&path.child("healthCheckNodePort"), health, detail));
    }
    if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        let path = path.child("internalTrafficPolicy");
        errors.extend(one_of(&path, spec.internal_traffic_policy.as_deref(), &["Cluster", "Local"]));
    }
    errors
}

fn cluster_ips_update(new: &ServiceSpec, old: &ServiceSpec) -> ErrorList {
    let kind = |spec: &ServiceSpec| spec.type_.clone().unwrap_or_default();
    if kind(old) == "ExternalName" || kind(new) == "ExternalName" {
        return Vec::new();
    }
    let path = Path::new("spec").child("clusterIPs").index(0);
    let (now, was) = (new.cluster_ips.as_deref().unwrap_or_default(), old.cluster_ips.as_deref().unwrap_or_default());
    match (now.first(), was.first()) {
        (None, Some(_)) => vec![Error::invalid(&path, to_json(&now), "primary clusterIP can not be unset")],
        (Some(now_first), Some(was_first)) if now_first != was_first => {
            vec![Error::invalid(&path, to_json(&now), "may not change once set")]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::by_kind;

    #[test]
    fn allocated_values_survive_a_bare_replacement() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        Service.prepare_for_update(by_kind("", "Service").unwrap(), &mut new, &old);
        assert_eq!(new, old);
    }

    #[test]
    fn a_type_takes_its_fields_with_it() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        Service.prepare_for_update(by_kind("", "Service").unwrap(), &mut new, &old);
        assert_eq!(new["spec"], json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"port": 80, "protocol": "TCP"}]}));
    }
}
