//! Services and slices for tests.

use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Service;
use api::k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

/// A Service `default/<name>` with one TCP port `http` 80, changed by the fields of `spec`.
pub fn service(name: &str, spec: Value) -> Service {
    let mut whole = json!({"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let ingress: Vec<Value> = whole["ingress"].as_array().cloned().unwrap_or_default();
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name}, "spec": whole,
        "status": {"loadBalancer": {"ingress": ingress}},
    }))
    .unwrap()
}

/// An endpoint on a node: `ready`, `unready` or `terminating` (and still serving).
pub fn endpoint(ip: &str, node: &str, state: &str) -> Value {
    let terminating = state == "terminating";
    json!({"addresses": [ip], "nodeName": node,
        "conditions": {"ready": state == "ready", "serving": state != "unready", "terminating": terminating}})
}

/// A slice of `service` with port `http` 8080.
pub fn slice(service: &str, endpoints: Vec<Value>) -> Arc<EndpointSlice> {
    let v6 = endpoints.first().is_some_and(|e| e["addresses"][0].as_str().unwrap().contains(':'));
    let slice = json!({
        "metadata": {"namespace": "default", "name": format!("{service}-{}", if v6 { "v6" } else { "v4" }), "labels": {"kubernetes.io/service-name": service}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    });
    Arc::new(serde_json::from_value(slice).unwrap())
}
