//! From a Service to the pods behind it: shared by EndpointSlice and Endpoints.
//!
//! Upstream: `staging/src/k8s.io/endpointslice/util/controller_utils.go`, `pkg/controller/endpoint`.

use std::net::IpAddr;
use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery::{Informer, WorkQueue};

use super::{meta, pods};

/// A port on which a pod really listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// None for a Service whose endpoints someone else keeps.
pub fn selector(service: &Service) -> Option<LabelSelector> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    spec.selector.as_ref().filter(|labels| !labels.is_empty()).map(LabelSelector::from_map)
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// The pods that may be endpoints: alive, with an address.
pub fn members(service: &Service, all: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let Some(selector) = selector(service) else { return Vec::new() };
    let is_member =
        |pod: &Arc<Pod>| selector.matches_opt(pod.metadata.labels.as_ref()) && !pods::is_finished(pod) && !addresses(pod).is_empty();
    all.in_namespace(meta::namespace(service)).into_iter().filter(is_member).collect()
}

pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut found: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if found.is_empty() {
        found.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    found
}

/// The Service's ports as this pod serves them; a named target port that the pod lacks is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let mut ports: Vec<Port> = wanted.iter().filter_map(|port| resolve(port, pod)).collect();
    ports.sort();
    ports
}

fn resolve(wanted: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = wanted.protocol.as_deref().unwrap_or("TCP");
    let port = match &wanted.target_port {
        Some(IntOrString::Int(port)) if *port != 0 => *port,
        Some(IntOrString::String(name)) => container_port(pod, name, protocol)?,
        _ => wanted.port,
    };
    Some(Port {
        name: wanted.name.clone().unwrap_or_default(),
        port,
        protocol: protocol.to_owned(),
        app_protocol: wanted.app_protocol.clone(),
    })
}

fn container_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let mut named = ports.filter(|port| port.name.as_deref() == Some(name));
    named.find(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol).map(|port| port.container_port)
}

/// The DNS name of its own that the pod has within the (headless) Service.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let here = spec.subdomain.as_deref() == Some(meta::name(service));
    spec.hostname.clone().filter(|hostname| here && !hostname.is_empty())
}

pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Queues the Services that a changed pod is, or was, behind.
pub fn watch_pods(all: &Informer<Pod>, services: &Informer<Service>, queue: &WorkQueue<Key>) {
    let (queue, services) = (queue.clone(), services.clone());
    all.on_change(move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && facts(old) == facts(new)
        {
            return;
        }
        for service in services.in_namespace(meta::namespace(&**change.object())) {
            let Some(selector) = selector(&service) else { continue };
            let behind = |pod: &Arc<Pod>| selector.matches_opt(pod.metadata.labels.as_ref());
            if change.old.iter().chain(&change.new).any(behind) {
                queue.add_caused(meta::key(&*service), change.cause());
            }
        }
    });
}

/// Everything about a pod that an endpoint shows.
fn facts(pod: &Pod) -> impl PartialEq + use<'_> {
    let spec = pod.spec.as_ref();
    let names = spec.map(|spec| (&spec.node_name, &spec.hostname, &spec.subdomain));
    let state = (pods::is_ready(pod), pods::is_finished(pod), meta::is_deleting(pod));
    (names, state, addresses(pod), &pod.metadata.labels, &pod.metadata.uid)
}

#[cfg(test)]
pub mod fixtures {
    use super::*;
    use crate::shared::meta::Labels;
    use crate::shared::pods::fixtures::{Fixture, pod};
    use k8s_openapi::api::core::v1::{PodIP, ServiceSpec};

    pub fn service(name: &str) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some(name.into());
        service.metadata.namespace = Some("default".into());
        service.metadata.uid = Some("svc".into());
        service.spec = Some(ServiceSpec {
            selector: Some(Labels::from([("app".into(), name.into())])),
            cluster_ip: Some("10.96.0.9".into()),
            ip_families: Some(vec!["IPv4".into()]),
            ports: Some(vec![ServicePort {
                name: Some("http".into()),
                port: 80,
                target_port: Some(IntOrString::Int(8080)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        });
        service
    }

    pub fn backend(name: &str, ip: &str) -> Fixture {
        let mut fixture = pod(name).on("n1");
        let status = fixture.0.status.get_or_insert_default();
        status.pod_ip = Some(ip.into());
        status.pod_ips = Some(vec![PodIP { ip: ip.into() }]);
        fixture
    }
}
