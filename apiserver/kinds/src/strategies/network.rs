//! Ingresses, network policies, addresses.
//!
//! Upstream: `pkg/apis/networking/validation/validation.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::networking::v1 as net;
use api::names;
use serde_json::Value;

use crate::meta::{validate_object_meta, validate_object_meta_update};
use crate::validation::field::{immutable, invalid, json, label_selector, optional_one_of, port, port_or_name, required, with};
use crate::value::{is_set, list, text};
use crate::{Kind, Strategy};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub struct Ingress;

impl Strategy for Ingress {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = ingress(object);
        let annotated = object["metadata"]["annotations"].get(CLASS_ANNOTATION);
        if let (Some(value), false) = (annotated, text(object, "/spec/ingressClassName").is_empty()) {
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            errors.push(Error::invalid(&path, value.clone(), "can not be set when the class field is also set"));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(validate_object_meta(kind, new));
        errors.extend(ingress(new));
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        match object["metadata"]["annotations"].get(CLASS_ANNOTATION) {
            Some(_) => vec![format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead")],
            None => Vec::new(),
        }
    }
}

fn ingress(object: &Value) -> ErrorList {
    with(object, |ingress: &net::Ingress| {
        let path = Path::new("spec");
        let spec = ingress.spec.clone().unwrap_or_default();
        let rules = spec.rules.as_deref().unwrap_or_default();
        let mut errors = Vec::new();
        if rules.is_empty() && spec.default_backend.is_none() {
            errors.push(Error::invalid(&path, json(&spec.rules), "either `defaultBackend` or `rules` must be specified"));
        }
        if let Some(default) = &spec.default_backend {
            errors.extend(backend(&path.child("defaultBackend"), default));
        }
        for (index, rule) in rules.iter().enumerate() {
            errors.extend(ingress_rule(&path.child("rules").index(index), rule));
        }
        for (index, tls) in spec.tls.iter().flatten().enumerate() {
            let path = path.child("tls").index(index);
            for (i, host) in tls.hosts.iter().flatten().enumerate() {
                errors.extend(invalid(&path.child("hosts").index(i), host, host_messages(host)));
            }
            if let Some(secret) = tls.secret_name.as_deref().filter(|secret| !secret.is_empty()) {
                errors.extend(invalid(&path.child("secretName"), secret, names::is_dns1123_subdomain(secret)));
            }
        }
        if let Some(class) = &spec.ingress_class_name {
            errors.extend(invalid(&path.child("ingressClassName"), class, names::is_dns1123_subdomain(class)));
        }
        errors
    })
}

fn host_messages(host: &str) -> Vec<String> {
    if host.contains('*') { names::is_wildcard_dns1123_subdomain(host) } else { names::is_dns1123_subdomain(host) }
}

fn ingress_rule(path: &Path, rule: &net::IngressRule) -> ErrorList {
    let mut errors = Vec::new();
    if let Some(host) = rule.host.as_deref().filter(|host| !host.is_empty()) {
        if names::parse_ip(host).is_some() {
            errors.push(Error::invalid(&path.child("host"), host, "must be a DNS name, not an IP address"));
        }
        errors.extend(invalid(&path.child("host"), host, host_messages(host)));
    }
    let Some(http) = &rule.http else { return errors };
    let path = path.child("http").child("paths");
    if http.paths.is_empty() {
        errors.push(Error::required(&path, ""));
    }
    for (index, item) in http.paths.iter().enumerate() {
        errors.extend(http_path(&path.index(index), item));
    }
    errors
}

fn http_path(path: &Path, item: &net::HTTPIngressPath) -> ErrorList {
    let mut errors = Vec::new();
    let value = item.path.as_deref().unwrap_or("");
    let at = path.child("path");
    match item.path_type.as_str() {
        "" => return vec![Error::required(&path.child("pathType"), "pathType must be specified")],
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errors.push(Error::invalid(&at, value, "must be an absolute path"));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|sequence| value.contains(**sequence)) {
                errors.push(Error::invalid(&at, value, format!("must not contain '{sequence}'")));
            }
            for suffix in ["/..", "/."].iter().filter(|suffix| value.ends_with(**suffix)) {
                errors.push(Error::invalid(&at, value, format!("cannot end with '{suffix}'")));
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                errors.push(Error::invalid(&at, value, "must be an absolute path"));
            }
        }
        other => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(Error::not_supported(&path.child("pathType"), other, &known));
        }
    }
    errors.extend(backend(&path.child("backend"), &item.backend));
    errors
}

fn backend(path: &Path, backend: &net::IngressBackend) -> ErrorList {
    let service = match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => return vec![Error::invalid(path, "", "cannot set both resource and service backends")],
        (Some(resource), None) => return local_reference(&path.child("resource"), &json(resource)),
        (None, Some(service)) => service,
        (None, None) => return vec![Error::invalid(path, "", "resource or service backend is required")],
    };
    let whole = path;
    let path = path.child("service");
    let mut errors = Vec::new();
    if service.name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        errors.extend(invalid(&path.child("name"), &service.name, names::is_dns1035_label(&service.name)));
    }
    let given = service.port.clone().unwrap_or_default();
    let (name, number) = (given.name.as_deref().unwrap_or(""), given.number.unwrap_or(0));
    match (name, number) {
        ("", 0) => errors.push(Error::required(whole, "port name or number is required")),
        ("", number) => errors.extend(port(&path.child("port").child("number"), i64::from(number))),
        (name, 0) => errors.extend(invalid(&path.child("port").child("name"), name, names::is_valid_port_name(name))),
        _ => errors.push(Error::invalid(whole, "", "cannot set both port name & port number")),
    }
    errors
}

/// An object of any kind, nearby.
fn local_reference(path: &Path, reference: &Value) -> ErrorList {
    let mut errors = Vec::new();
    if let Some(group) = reference.get("apiGroup").and_then(Value::as_str) {
        errors.extend(invalid(&path.child("apiGroup"), group, names::is_dns1123_subdomain(group)));
    }
    for field in ["kind", "name"] {
        match text(reference, &format!("/{field}")) {
            "" => errors.push(Error::required(&path.child(field), format!("{field} is required"))),
            value => errors.extend(invalid(&path.child(field), value, names::is_path_segment_name(value))),
        }
    }
    errors
}

pub struct IngressClass;

impl Strategy for IngressClass {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec").child("controller");
        let controller = text(object, "/spec/controller");
        let mut errors = Vec::new();
        if controller.len() > 250 {
            errors.push(Error::too_long(&path, controller, 250));
        }
        errors.extend(domain_prefixed(&path, controller));
        if is_set(object, "/spec/parameters") {
            errors.extend(class_parameters(&Path::new("spec").child("parameters"), &object["spec"]["parameters"]));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("spec").child("controller");
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(immutable(&path, &text(new, "/spec/controller"), &text(old, "/spec/controller")));
        errors.extend(self.validate_whole(kind, new));
        errors
    }
}

/// `example.com/path`.
fn domain_prefixed(path: &Path, value: &str) -> ErrorList {
    if value.is_empty() {
        return required(path, "");
    }
    let Some((domain, rest)) = value.split_once('/').filter(|(domain, rest)| !domain.is_empty() && !rest.is_empty()) else {
        return vec![Error::invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")")];
    };
    let mut errors = invalid(path, domain, names::is_dns1123_subdomain(domain));
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !rest.chars().all(plain) {
        let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.push(Error::invalid(path, rest, detail));
    }
    errors
}

fn class_parameters(path: &Path, parameters: &Value) -> ErrorList {
    let mut errors = local_reference(path, parameters);
    let namespace = text(parameters, "/namespace");
    match parameters.get("scope").and_then(Value::as_str) {
        None => errors.push(Error::required(&path.child("scope"), "")),
        Some("Namespace") if namespace.is_empty() => {
            errors.push(Error::required(&path.child("namespace"), "`parameters.scope` is set to 'Namespace'"));
        }
        Some("Namespace") => errors.extend(invalid(&path.child("namespace"), namespace, names::is_dns1123_label(namespace))),
        Some("Cluster") if !namespace.is_empty() => {
            errors.push(Error::forbidden(&path.child("namespace"), "`parameters.scope` is set to 'Cluster'"));
        }
        scope => errors.extend(optional_one_of(&path.child("scope"), scope, &["Cluster", "Namespace"])),
    }
    errors
}

pub struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |policy: &net::NetworkPolicy| {
            let path = Path::new("spec");
            let Some(spec) = &policy.spec else { return Vec::new() };
            let mut errors = label_selector(&path.child("podSelector"), spec.pod_selector.as_ref());
            for (index, rule) in spec.ingress.iter().flatten().enumerate() {
                let path = path.child("ingress").index(index);
                errors.extend(policy_ports(&path, rule.ports.as_deref()));
                errors.extend(peers(&path.child("from"), rule.from.as_deref()));
            }
            for (index, rule) in spec.egress.iter().flatten().enumerate() {
                let path = path.child("egress").index(index);
                errors.extend(policy_ports(&path, rule.ports.as_deref()));
                errors.extend(peers(&path.child("to"), rule.to.as_deref()));
            }
            let types = spec.policy_types.as_deref().unwrap_or_default();
            if types.len() > 2 {
                let detail = "may not specify more than two policyTypes";
                errors.push(Error::invalid(&path.child("policyTypes"), json(&types), detail));
                return errors;
            }
            for (index, kind) in types.iter().enumerate() {
                let path = path.child("policyTypes").index(index);
                errors.extend(optional_one_of(&path, Some(kind), &["Ingress", "Egress"]));
            }
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(self.validate(kind, new));
        errors
    }
}

fn policy_ports(path: &Path, ports: Option<&[net::NetworkPolicyPort]>) -> ErrorList {
    let mut errors = Vec::new();
    for (index, item) in ports.into_iter().flatten().enumerate() {
        let path = path.child("ports").index(index);
        errors.extend(optional_one_of(&path.child("protocol"), item.protocol.as_deref(), &["TCP", "UDP", "SCTP"]));
        let Some(target) = &item.port else {
            if item.end_port.is_some() {
                errors.push(Error::invalid(
                    &path.child("endPort"),
                    json(&item.end_port),
                    "may not be specified when `port` is not specified",
                ));
            }
            continue;
        };
        errors.extend(port_or_name(&path.child("port"), target));
        let api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(first) = target else {
            if item.end_port.is_some() {
                errors.push(Error::invalid(
                    &path.child("endPort"),
                    json(&item.end_port),
                    "may not be specified when `port` is non-numeric",
                ));
            }
            continue;
        };
        if let Some(last) = item.end_port {
            if last < *first {
                errors.push(Error::invalid(&path.child("endPort"), last, "must be greater than or equal to `port`"));
            }
            errors.extend(port(&path.child("endPort"), i64::from(last)));
        }
    }
    errors
}

fn peers(path: &Path, peers: Option<&[net::NetworkPolicyPeer]>) -> ErrorList {
    let mut errors = Vec::new();
    for (index, peer) in peers.into_iter().flatten().enumerate() {
        let path = path.index(index);
        errors.extend(label_selector(&path.child("podSelector"), peer.pod_selector.as_ref()));
        errors.extend(label_selector(&path.child("namespaceSelector"), peer.namespace_selector.as_ref()));
        let selectors = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            None if !selectors => errors.push(Error::required(&path, "must specify a peer")),
            None => {}
            Some(block) => {
                errors.extend(ip_block(&path.child("ipBlock"), block));
                if selectors {
                    errors.push(Error::forbidden(&path, "may not specify both ipBlock and another peer"));
                }
            }
        }
    }
    errors
}

fn ip_block(path: &Path, block: &net::IPBlock) -> ErrorList {
    let mut errors = required(&path.child("cidr"), &block.cidr);
    let messages = names::is_cidr(&block.cidr);
    if !errors.is_empty() || !messages.is_empty() {
        errors.extend(if errors.is_empty() { invalid(&path.child("cidr"), &block.cidr, messages) } else { Vec::new() });
        return errors;
    }
    let Ok(whole) = block.cidr.parse::<ipnet::IpNet>() else { return errors };
    for (index, except) in block.except.iter().flatten().enumerate() {
        let path = path.child("except").index(index);
        let messages = names::is_cidr(except);
        if !messages.is_empty() {
            errors.extend(invalid(&path, except, messages));
            return errors;
        }
        let strict = except.parse::<ipnet::IpNet>().is_ok_and(|part| whole.contains(&part) && whole.prefix_len() < part.prefix_len());
        if !strict {
            errors.push(Error::invalid(&path, except.as_str(), "must be a strict subset of `cidr`"));
        }
    }
    errors
}

pub struct IpAddress;

impl Strategy for IpAddress {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec").child("parentRef");
        if object.pointer("/spec/parentRef").is_none_or(Value::is_null) {
            return vec![Error::required(&path, "")];
        }
        let mut errors = required(&path.child("resource"), text(object, "/spec/parentRef/resource"));
        errors.extend(required(&path.child("name"), text(object, "/spec/parentRef/name")));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let path = Path::new("spec").child("parentRef");
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(immutable(&path, &new["spec"]["parentRef"], &old["spec"]["parentRef"]));
        errors
    }
}

pub struct ServiceCidr;

impl Strategy for ServiceCidr {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec").child("cidrs");
        let ranges = list(object, "/spec/cidrs");
        let mut errors = Vec::new();
        if ranges.is_empty() {
            errors.push(Error::required(&path, "at least one CIDR required"));
        }
        if ranges.len() > 2 {
            let detail = "may only hold up to 2 values";
            errors.push(Error::invalid(&path, Value::Array(ranges.to_vec()), detail));
        }
        for (index, range) in ranges.iter().enumerate() {
            let range = range.as_str().unwrap_or("");
            errors.extend(invalid(&path.index(index), range, names::is_cidr(range)));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let (now, was) = (list(new, "/spec/cidrs"), list(old, "/spec/cidrs"));
        let mut errors = validate_object_meta_update(kind, new, old);
        if !now.starts_with(was) {
            errors.extend(immutable(&Path::new("spec").child("cidrs"), &new["spec"]["cidrs"], &old["spec"]["cidrs"]));
        }
        errors
    }
}
