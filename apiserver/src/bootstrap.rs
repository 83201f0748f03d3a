//! What must exist before anyone asks: system namespaces, default roles, and the way to this server from inside the cluster.
//!
//! Every start ensures it again; nothing is overwritten that an administrator has changed.
//! Upstream counterparts: `rbac/rest/storage_rbac.go`, `pkg/controlplane/{reconcilers,controller/kubernetesservice}` (v1.33).

use std::net::IpAddr;

use api::{GroupResource, Key, Status};
use kinds::by_resource;
use serde_json::{Value, json};

use crate::registry::write::Part;
use crate::registry::{Caller, Registry, Target, WriteOptions, tree};

/// Where this server can be reached.
pub struct Reach {
    pub address: IpAddr,
    pub port: u16,
}

pub async fn ensure(registry: &Registry, reach: &Reach) -> Result<(), Status> {
    let caller = Caller::system();
    for entry in auth::bootstrap::objects() {
        ensure_object(registry, &caller, &entry.resource, entry.object).await?;
    }
    ensure_service_cidr(registry, &caller).await?;
    ensure_service(registry, &caller, reach).await?;
    ensure_endpoints(registry, &caller, reach).await
}

fn options() -> WriteOptions {
    WriteOptions { manager: Some("kube-apiserver".into()), ..WriteOptions::default() }
}

fn target(resource: &GroupResource, object: &Value) -> Result<Target, Status> {
    let kind = by_resource(&resource.group, &resource.resource).ok_or_else(Status::no_such_resource)?;
    Ok(Target::stored(kind, tree::key_of(object)))
}

async fn ensure_object(registry: &Registry, caller: &Caller, resource: &GroupResource, wanted: Value) -> Result<(), Status> {
    let target = target(resource, &wanted)?;
    let stored = registry.find(&target).ok().map(|record| record.value());
    let Some(object) = auth::bootstrap::reconcile(&wanted, stored.as_ref()) else { return Ok(()) };
    let options = options();
    if stored.is_none() {
        return registry.create(caller, &target, object, &options).await.map(drop);
    }
    if object["metadata"]["resourceVersion"].is_null() {
        // A binding to another role: its roleRef can't be changed, only replaced.
        registry.delete(caller, &target, &crate::registry::delete::DeleteOptions::default()).await?;
        return registry.create(caller, &target, object, &options).await.map(drop);
    }
    registry.update(caller, &target, Part::Main, &options, &|_| Ok(object.clone())).await.map(drop)
}

/// Create the object, or give an existing one the fields in `pointer`.
async fn put(registry: &Registry, caller: &Caller, resource: &GroupResource, wanted: Value, field: &str) -> Result<(), Status> {
    let (target, options) = (target(resource, &wanted)?, options());
    if registry.find(&target).is_err() {
        return registry.create(caller, &target, wanted, &options).await.map(drop);
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        new[field] = wanted[field].clone();
        Ok(new)
    };
    registry.update(caller, &target, Part::Main, &options, &change).await.map(drop)
}

async fn ensure_service_cidr(registry: &Registry, caller: &Caller) -> Result<(), Status> {
    let resource = GroupResource::new("networking.k8s.io", "servicecidrs");
    let wanted = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [registry.addresses.range().to_string()]},
    });
    let target = target(&resource, &wanted)?;
    if registry.find(&target).is_err() {
        registry.create(caller, &target, wanted, &options()).await?;
    }
    Ok(())
}

const LABELS: (&str, &str, &str) = ("component", "provider", "kubernetes.io/service-name");

async fn ensure_service(registry: &Registry, caller: &Caller, reach: &Reach) -> Result<(), Status> {
    let wanted = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {LABELS.0: "apiserver", LABELS.1: "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": registry.addresses.first().to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": reach.port}],
        },
    });
    let services = GroupResource::new("", "services");
    let target = target(&services, &wanted)?;
    if registry.find(&target).is_ok() {
        return Ok(());
    }
    registry.create(caller, &target, wanted, &options()).await.map(drop)
}

async fn ensure_endpoints(registry: &Registry, caller: &Caller, reach: &Reach) -> Result<(), Status> {
    if reach.address.is_loopback() {
        // Endpoints can't hold it: a pod would reach itself.
        tracing::warn!(address = %reach.address, "a loopback address can't be advertised: default/kubernetes has no endpoints");
        return Ok(());
    }
    let (ip, port) = (reach.address.to_string(), reach.port);
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    put(registry, caller, &GroupResource::new("", "endpoints"), endpoints, "subsets").await?;
    let slices = GroupResource::new("discovery.k8s.io", "endpointslices");
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {LABELS.2: "kubernetes"}},
        "addressType": if reach.address.is_ipv6() { "IPv6" } else { "IPv4" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let stale = registry.cache.get(&slices).and_then(|s| s.get(&Key::new("default", "kubernetes")));
    if stale.is_some_and(|s| s.value()["endpoints"] == slice["endpoints"]) {
        return Ok(());
    }
    put(registry, caller, &slices, slice, "endpoints").await
}
