//! Services and what belongs to them, policies.

use serde_json::{Value, json};

use super::{at, each, filled_number, flag, given, is_empty, number, set, text, text_of};

pub fn service(service: &mut Value) {
    let spec = at(service, "spec");
    text(spec, "type", "ClusterIP");
    text(spec, "sessionAffinity", "None");
    match text_of(spec, "sessionAffinity") {
        "ClientIP" => number(at(at(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", 10_800),
        _ => drop(spec.as_object_mut().and_then(|spec| spec.remove("sessionAffinityConfig"))),
    }
    for port in each(spec, "ports") {
        text(port, "protocol", "TCP");
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        if is_empty(port, "targetPort")
            && let Some(port) = port.as_object_mut()
        {
            port.remove("targetPort");
        }
        filled_number(port, "targetPort", number);
    }
    let kind = text_of(spec, "type").to_owned();
    let reachable = matches!(kind.as_str(), "NodePort" | "LoadBalancer") || kind == "ClusterIP" && !is_empty(spec, "externalIPs");
    if reachable {
        text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        text(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        flag(spec, "allocateLoadBalancerNodePorts", true);
        for ingress in given(service, "status")
            .and_then(|status| given(status, "loadBalancer"))
            .into_iter()
            .flat_map(|balancer| each(balancer, "ingress"))
        {
            if !is_empty(ingress, "ip") {
                set(ingress, "ipMode", "VIP");
            }
        }
    }
}

pub fn endpoints(endpoints: &mut Value) {
    for subset in each(endpoints, "subsets") {
        each(subset, "ports").for_each(|port| text(port, "protocol", "TCP"));
    }
}

pub fn endpoint_slice(slice: &mut Value) {
    for port in each(slice, "ports") {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    }
}

pub fn policy(policy: &mut Value) {
    let spec = at(policy, "spec");
    for list in ["ingress", "egress"] {
        for rule in each(spec, list) {
            each(rule, "ports").for_each(|port| set(port, "protocol", "TCP"));
        }
    }
    if is_empty(spec, "policyTypes") {
        let types = if is_empty(spec, "egress") { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
        if let Some(spec) = spec.as_object_mut() {
            spec.insert("policyTypes".to_owned(), types);
        }
    }
}

pub fn ingress_class(class: &mut Value) {
    if let Some(parameters) = given(at(class, "spec"), "parameters") {
        set(parameters, "scope", "Cluster");
    }
}
