//! Services: fields that come and go with the type, and what makes the rest valid. Addresses and node ports
//! are allocated by the registry, after these fields are shaped and before they are validated: a valid Service has them.
//!
//! Upstream: `pkg/registry/core/service/{strategy,storage/alloc}.go`, `pkg/apis/core/validation/validation.go` (v1.33).

use std::collections::{BTreeMap, BTreeSet};

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{LoadBalancerIngress, Service as CoreService, ServicePort, ServiceSpec};
use api::names;
use serde_json::{Value, json};

use crate::meta::validate_object_meta_update;
use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{invalid, json as to_json, labels, one_of, optional_one_of, port, port_or_name, required, with, with_both};
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
            let mut errors = topology_annotations(service.metadata.annotations.as_ref());
            errors.extend(service.spec.as_ref().map_or(Vec::new(), |spec| service_spec(&Path::new("spec"), spec)));
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(with_both(new, old, |new: &CoreService, old: &CoreService| {
            new.spec.as_ref().zip(old.spec.as_ref()).map_or(Vec::new(), |(new, old)| spec_update(new, old))
        }));
        errors.extend(self.validate_whole(kind, new));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(with(new, |service: &CoreService| {
            let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
            let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            balancer.map_or(Vec::new(), |balancer| balancer_status(kind, balancer.ingress.as_deref().unwrap_or_default()))
        }));
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let ignored = |field: &str| format!("spec.{field} is ignored for headless services");
        let set = [
            ("loadBalancerIP", !text(object, "/spec/loadBalancerIP").is_empty()),
            ("externalIPs", is_set(object, "/spec/externalIPs/0")),
            ("SessionAffinity", text(object, "/spec/sessionAffinity") == "ClientIP"),
        ];
        let set = set.iter().filter(|(_, set)| *set && is_headless(object));
        set.map(|(field, _)| ignored(field)).collect()
    }
}

/// `clusterIP` and `clusterIPs[0]` say the same; a client that knows only the first sets only the first.
fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let ip = text(new, "/spec/clusterIP").to_owned();
    let changed = match old {
        None => list(new, "/spec/clusterIPs").is_empty() && !ip.is_empty(),
        Some(old) => ip != text(old, "/spec/clusterIP") && list(new, "/spec/clusterIPs") == list(old, "/spec/clusterIPs"),
    };
    if !changed {
        return;
    }
    let spec = child(new, "spec");
    if ip.is_empty() { remove(spec, "clusterIPs") } else { spec["clusterIPs"] = json!([ip]) }
}

/// The caller asked for no address.
pub fn is_headless(service: &Value) -> bool {
    text(service, "/spec/clusterIP") == "None"
}

pub fn needs_cluster_ip(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// A type whose ports may have node ports.
pub fn has_node_ports(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer")
}

/// Every port gets a node port, asked for or not.
pub fn needs_node_port(service: &Value) -> bool {
    let wanted = service.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true);
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => wanted,
        _ => false,
    }
}

pub fn needs_health_port(service: &Value) -> bool {
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
        // Ports are known by their names; whatever else of them the caller may have changed.
        let was: BTreeMap<&str, i64> = list(old, "/spec/ports").iter().map(|port| (text(port, "/name"), int(port, "/nodePort"))).collect();
        let used: BTreeSet<i64> = list(new, "/spec/ports").iter().map(|port| int(port, "/nodePort")).collect();
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten().filter(|port| int(port, "/nodePort") == 0) {
            if let Some(was) = was.get(text(port, "/name")).filter(|was| **was != 0 && !used.contains(was)) {
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
    errors.extend(cluster_ips(path, spec));
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        let path = path.child("externalIPs").index(index);
        let messages = names::is_valid_ip(ip);
        errors.extend(if messages.is_empty() { non_special_ip(&path, ip) } else { invalid(&path, ip, messages) });
    }
    errors.extend(one_of(&path.child("type"), spec.type_.as_deref(), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    errors.extend(port_sets(path, ports, kind));
    errors.extend(load_balancer(path, spec, kind));
    errors.extend(traffic_policies(path, spec, kind));
    errors.extend(optional_one_of(&path.child("trafficDistribution"), spec.traffic_distribution.as_deref(), &["PreferClose"]));
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

/// What is wrong with `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`. Upstream: `ValidateServiceClusterIPsRelatedFields`.
pub fn address_fields(service: &Value) -> ErrorList {
    with(service, |service: &CoreService| service.spec.as_ref().map_or(Vec::new(), |spec| cluster_ips(&Path::new("spec"), spec)))
}

fn cluster_ips(path: &Path, spec: &ServiceSpec) -> ErrorList {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let first = spec.cluster_ip.as_deref().unwrap_or("");
    let (path_ips, path_families) = (path.child("clusterIPs"), path.child("ipFamilies"));
    let mut errors = Vec::new();
    if ips.is_empty() && !first.is_empty() {
        errors.push(Error::required(&path_ips, ""));
    } else if first.is_empty() && !ips.is_empty() {
        errors.push(Error::invalid(&path_ips, to_json(&ips), "must be empty when `clusterIP` is not specified"));
    } else if ips.first().is_some_and(|ip| ip != first) {
        errors.push(Error::invalid(&path_ips, to_json(&ips), "first value must match `clusterIP`"));
    }
    let mut seen = BTreeSet::new();
    for (index, family) in families.iter().enumerate() {
        errors.extend(optional_one_of(&path_families.index(index), Some(family), &["IPv4", "IPv6"]));
        if !seen.insert(family) {
            errors.push(Error::duplicate(&path_families.index(index), family.as_str()));
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    errors.extend(optional_one_of(&path.child("ipFamilyPolicy"), spec.ip_family_policy.as_deref(), &policies));
    let mut unusable = Vec::new();
    for (index, ip) in ips.iter().enumerate() {
        if index == 0 && ip == "None" {
            if ips.len() > 1 {
                unusable.push(Error::invalid(&path_ips, to_json(&ips), "'None' must be the first and only value"));
            }
        } else {
            unusable.extend(invalid(&path_ips.index(index), ip, names::is_valid_ip(ip)));
        }
    }
    let bad = !unusable.is_empty();
    errors.extend(unusable);
    if ips.len() > 2 {
        errors.push(Error::invalid(&path_ips, to_json(&ips), "may only hold up to 2 values"));
    }
    if !bad {
        errors.extend(ips_and_families(&path_ips, ips, families, errors.is_empty()));
    }
    errors
}

/// At most one address of each family, in the order of the families.
fn ips_and_families(path: &Path, ips: &[String], families: &[String], sound: bool) -> ErrorList {
    let family = |ip: &str| names::parse_ip(ip).map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" });
    let mut errors = Vec::new();
    let found: BTreeSet<_> = ips.iter().map(|ip| family(ip)).collect();
    if ips.len() > 1 && found.len() != ips.len() {
        errors.push(Error::invalid(path, to_json(&ips), "may specify no more than one IP for each IP family"));
    }
    let pairs = ips.iter().zip(families).enumerate().filter(|_| sound && errors.is_empty());
    let wrong: ErrorList = pairs
        .filter(|(_, (ip, wanted))| family(ip).is_some_and(|family| family != wanted.as_str()))
        .map(|(index, (ip, wanted))| {
            let detail = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            Error::invalid(&path.index(index), ip.as_str(), detail)
        })
        .collect();
    errors.extend(wrong);
    errors
}

/// The two annotations by which zones were asked for before `trafficDistribution` say the same.
fn topology_annotations(annotations: Option<&BTreeMap<String, String>>) -> ErrorList {
    const OLD: &str = "service.kubernetes.io/topology-aware-hints";
    const NEW: &str = "service.kubernetes.io/topology-mode";
    let value = |name: &str| annotations.and_then(|all| all.get(name));
    match (value(OLD), value(NEW)) {
        (Some(old), Some(new)) if old != new => {
            let path = Path::new("metadata").child("annotations").key(NEW);
            vec![Error::invalid(&path, new.as_str(), format!("must match annotations[{OLD}] when both are specified"))]
        }
        _ => Vec::new(),
    }
}

fn balancer_status(kind: Option<&str>, ingress: &[LoadBalancerIngress]) -> ErrorList {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    if kind != Some("LoadBalancer") && !ingress.is_empty() {
        return vec![Error::forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'")];
    }
    let mut errors = Vec::new();
    for (index, point) in ingress.iter().enumerate() {
        let path = path.index(index);
        let (ip, hostname) = (point.ip.as_deref().unwrap_or(""), point.hostname.as_deref().unwrap_or(""));
        if !ip.is_empty() {
            errors.extend(invalid(&path.child("ip"), ip, names::is_valid_ip(ip)));
        }
        let mode = path.child("ipMode");
        match point.ip_mode.as_deref() {
            None if !ip.is_empty() => errors.push(Error::required(&mode, "must be specified when `ip` is set")),
            Some(_) if ip.is_empty() => errors.push(Error::forbidden(&mode, "may not be specified when `ip` is not set")),
            value => errors.extend(optional_one_of(&mode, value, &["Proxy", "VIP"])),
        }
        if !hostname.is_empty() {
            errors.extend(invalid(&path.child("hostname"), hostname, names::is_dns1123_subdomain(hostname)));
            if names::parse_ip(hostname).is_some() {
                errors.push(Error::invalid(&path.child("hostname"), hostname, "must be a DNS name, not an IP address"));
            }
        }
    }
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
    let has_external = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let external = matches!(kind, "NodePort" | "LoadBalancer") || kind == "ClusterIP" && has_external;
    let policy = spec.external_traffic_policy.as_deref().unwrap_or("");
    let policy_path = path.child("externalTrafficPolicy");
    if external {
        errors.extend(one_of(&policy_path, Some(policy), &["Cluster", "Local"]));
    } else if !policy.is_empty() {
        errors.push(Error::invalid(&policy_path, policy, "may only be set for externally-accessible services"));
    }
    let (health, health_path) = (spec.health_check_node_port.unwrap_or(0), path.child("healthCheckNodePort"));
    match (kind == "LoadBalancer" && policy == "Local", health) {
        (true, 0) => errors.push(Error::required(&health_path, "")),
        (true, health) => errors.extend(port(&health_path, i64::from(health))),
        (false, 0) => {}
        (false, health) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(Error::invalid(&health_path, health, detail));
        }
    }
    if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        let path = path.child("internalTrafficPolicy");
        errors.extend(one_of(&path, spec.internal_traffic_policy.as_deref(), &["Cluster", "Local"]));
    }
    errors
}

fn spec_update(new: &ServiceSpec, old: &ServiceSpec) -> ErrorList {
    let kind = |spec: &ServiceSpec| spec.type_.clone().unwrap_or_default();
    let path = Path::new("spec");
    let mut errors = Vec::new();
    if kind(old) != "ExternalName" && kind(new) != "ExternalName" {
        let policy = new.ip_family_policy.as_deref();
        let lists = [
            ("clusterIPs", "clusterIP", "cluster IP", &new.cluster_ips, &old.cluster_ips),
            ("ipFamilies", "ipFamily", "ipFamily", &new.ip_families, &old.ip_families),
        ];
        let by_hand =
            |spec: &ServiceSpec| spec.cluster_ip.as_deref() == Some("None") && spec.selector.as_ref().is_none_or(|s| s.is_empty());
        for (field, one, words, new_list, old_list) in lists {
            // A headless Service without selector may have its families changed.
            if field == "clusterIPs" || !(by_hand(new) && by_hand(old)) {
                errors.extend(once_set(
                    &path,
                    (field, one, words),
                    new_list.as_deref().unwrap_or_default(),
                    old_list.as_deref().unwrap_or_default(),
                    policy,
                ));
            }
        }
    }
    if kind(old) == "LoadBalancer" && kind(new) == "LoadBalancer" && new.load_balancer_class != old.load_balancer_class {
        errors.push(Error::invalid(&path.child("loadBalancerClass"), to_json(&new.load_balancer_class), "may not change once set"));
    }
    errors
}

/// The first address or family stays; the second may come and, with policy SingleStack, go.
fn once_set(path: &Path, (field, one, words): (&str, &str, &str), new: &[String], old: &[String], policy: Option<&str>) -> ErrorList {
    let at = |index: usize| path.child(field).index(index);
    let mut errors = Vec::new();
    match (new.first(), old.first()) {
        (None, Some(_)) => errors.push(Error::invalid(&at(0), to_json(&new), format!("primary {one} can not be unset"))),
        (Some(now), Some(was)) if now != was => errors.push(Error::invalid(&at(0), to_json(&new), "may not change once set")),
        _ => {}
    }
    match (new.get(1), old.get(1)) {
        (Some(now), Some(was)) if now != was => errors.push(Error::invalid(&at(1), to_json(&new), "may not change once set")),
        (None, Some(_)) if new.len() == 1 && policy != Some("SingleStack") => {
            let detail = format!("must be set to 'SingleStack' when releasing the secondary {words}");
            errors.push(Error::invalid(&path.child("ipFamilyPolicy"), policy, detail));
        }
        _ => {}
    }
    errors
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
        assert_eq!(
            new["spec"],
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"port": 80, "protocol": "TCP"}]})
        );
    }

    #[test]
    fn ports_are_known_by_name() {
        let old = json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"name": "b", "port": 90}, {"name": "c", "port": 80}, {"name": "a", "port": 70, "nodePort": 30082}]}});
        Service.prepare_for_update(by_kind("", "Service").unwrap(), &mut new, &old);
        let ports: Vec<_> = list(&new, "/spec/ports").iter().map(|port| int(port, "/nodePort")).collect();
        assert_eq!(ports, [30081, 0, 30082]);
    }

    fn said(errors: ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_refused() {
        for (spec, expected) in [
            (
                json!({"trafficDistribution": "Near"}),
                r#"spec.trafficDistribution: Unsupported value: "Near": supported values: "PreferClose""#,
            ),
            (
                json!({"externalTrafficPolicy": "Local"}),
                r#"spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#,
            ),
            (
                json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": true, "externalTrafficPolicy": "Local"}),
                "spec.healthCheckNodePort: Required value",
            ),
            (
                json!({"clusterIPs": ["10.96.0.7", "10.96.0.8"]}),
                r#"spec.clusterIPs: Invalid value: []string{"10.96.0.7", "10.96.0.8"}: may specify no more than one IP for each IP family"#,
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                r#"spec.clusterIPs[0]: Invalid value: "10.96.0.7": expected an IPv6 value as indicated by `ipFamilies[0]`"#,
            ),
            (json!({"ipFamilies": ["IPv4", "IPv4"]}), r#"spec.ipFamilies[1]: Duplicate value: "IPv4""#),
        ] {
            let mut whole = json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "clusterIP": "10.96.0.7",
                "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            assert_eq!(said(Service.validate(by_kind("", "Service").unwrap(), &json!({"spec": whole}))), [expected], "{spec}");
        }
    }

    #[test]
    fn a_status_names_usable_addresses() {
        let check = |kind: &str, ingress: Value| {
            let service = json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": ingress}}});
            said(Service.validate_status_update(by_kind("", "Service").unwrap(), &service, &service))
        };
        assert!(check("LoadBalancer", json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"hostname": "a.example"}])).is_empty());
        assert_eq!(
            check("ClusterIP", json!([{"ip": "192.0.2.1", "ipMode": "VIP"}])),
            ["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"]
        );
        assert_eq!(
            check("LoadBalancer", json!([{"hostname": "a", "ipMode": "VIP"}])),
            ["status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set"]
        );
    }
}
