//! What the cluster knows, as the answering code asks for it. Informers answer in the pod, a plain struct in tests.

use std::net::IpAddr;
use std::sync::Arc;

use api::Key;
use api::k8s_openapi::api::core::v1::{Namespace, Service};
use api::k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery::{Informer, Informers};

pub trait Zone: Send + Sync {
    fn has_namespace(&self, name: &str) -> bool;
    fn service(&self, key: &Key) -> Option<Arc<Service>>;
    /// The slices of a service, in no order.
    fn slices(&self, service: &Key) -> Vec<Arc<EndpointSlice>>;
    fn services_at(&self, ip: IpAddr) -> Vec<Arc<Service>>;
    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>>;
}

/// The name of the service a slice belongs to.
pub fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some(Key::new(slice.metadata.namespace.clone()?, name.clone()))
}

/// The addresses clients use; none if the service is headless.
pub fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

#[derive(Clone)]
pub struct LiveZone {
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

const BY_IP: &str = "ip";
const BY_SERVICE: &str = "service";

/// One spelling per address, so that `fd00::1` and `fd00:0::1` meet.
fn spelled(ips: impl Iterator<Item = IpAddr>) -> Vec<String> {
    ips.map(|ip| ip.to_string()).collect()
}

impl LiveZone {
    pub fn new(informers: &Informers) -> Self {
        let zone = LiveZone { namespaces: informers.of(), services: informers.of(), slices: informers.of() };
        zone.services.index(BY_IP, |service| spelled(cluster_ips(service).into_iter()));
        zone.slices.index(BY_IP, |slice| {
            let addresses = slice.endpoints.iter().flat_map(|e| &e.addresses);
            spelled(addresses.filter_map(|a| a.parse().ok()))
        });
        zone.slices.index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
        zone
    }

    pub fn has_synced(&self) -> bool {
        self.namespaces.has_synced() && self.services.has_synced() && self.slices.has_synced()
    }
}

impl Zone for LiveZone {
    fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get(&Key::cluster(name)).is_some()
    }
    fn service(&self, key: &Key) -> Option<Arc<Service>> {
        self.services.get(key)
    }
    fn slices(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        self.slices.by(BY_SERVICE, &service.to_string())
    }
    fn services_at(&self, ip: IpAddr) -> Vec<Arc<Service>> {
        self.services.by(BY_IP, &ip.to_string())
    }
    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by(BY_IP, &ip.to_string())
    }
}
