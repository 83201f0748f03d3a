//! EndpointSlice mirroring: Endpoints made by hand, for a Service without selector, as the EndpointSlices that proxies and DNS read.
//!
//! A slice's name follows from its group of ports and family, so that a second look cannot make it twice (upstream's names are random).
//! Slices of deleted Endpoints fall to the garbage collector.
//! Upstream: `pkg/controller/endpointslicemirroring`, v1.33.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::key::Key;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::meta::Labels;
use crate::shared::{endpoints, hash, meta, watch, write};

const NAME: &str = "endpointslice-mirroring-controller";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// A lock of client-go's, not a list of addresses.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Addresses of one subset beyond this are left out.
const MAX_ADDRESSES: usize = 1000;

struct Controller {
    client: kube::Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        services: context.informers.of(),
        endpoints: context.informers.of(),
        slices: context.informers.of(),
    });
    watch::itself(&this.services, &queue);
    watch::itself(&this.endpoints, &queue);
    let to = queue.clone();
    this.slices.on_change(move |change| {
        let slice = change.object();
        if let Some(service) = meta::label(&**slice, SERVICE_NAME).filter(|_| meta::label(&**slice, MANAGED_BY) == Some(MANAGER)) {
            to.add_caused(Key::new(meta::namespace(&**slice), service), change.cause());
        }
    });
    this.services.synced().await;
    this.endpoints.synced().await;
    this.slices.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    meta::label(endpoints, SKIP) != Some("true") && meta::annotation(endpoints, LEADER).is_none() && !meta::is_deleting(endpoints)
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let service = self.services.get(key).filter(|service| endpoints::selector(service).is_none() && !meta::is_deleting(&**service));
        let source = self.endpoints.get(key).filter(|endpoints| service.is_some() && is_mirrored(endpoints));
        let wanted = source.map(|source| plan(&source)).unwrap_or_default();
        let ours = |slice: &Arc<EndpointSlice>| {
            meta::label(&**slice, SERVICE_NAME) == Some(&key.name) && meta::label(&**slice, MANAGED_BY) == Some(MANAGER)
        };
        let mut existing: BTreeMap<String, Arc<EndpointSlice>> = self
            .slices
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(ours)
            .map(|slice| (meta::name(&*slice).to_owned(), slice))
            .collect();
        for slice in wanted {
            match existing.remove(meta::name(&slice)) {
                None => write::unless_exists(write::create(&self.client, &slice).await)?,
                Some(old) => self.correct(&old, slice).await?,
            }
        }
        for slice in existing.values() {
            let only = write::only(meta::uid(&**slice));
            write::unless_gone(write::delete::<EndpointSlice>(&self.client, &meta::key(&**slice), &only).await)?;
        }
        Ok(Next::Done)
    }

    async fn correct(&self, old: &EndpointSlice, wanted: EndpointSlice) -> kube::Result<()> {
        let mut new = old.clone();
        new.endpoints = wanted.endpoints;
        new.ports = wanted.ports;
        new.metadata.labels = wanted.metadata.labels;
        new.metadata.annotations = wanted.metadata.annotations;
        new.metadata.owner_references = wanted.metadata.owner_references;
        if new == *old { Ok(()) } else { write::update(&self.client, &new).await.map(drop) }
    }
}

fn plan(source: &Endpoints) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<(String, String), EndpointSlice> = BTreeMap::new();
    for subset in source.subsets.iter().flatten() {
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(MAX_ADDRESSES) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let ports = ports(subset);
            let group = (family.to_owned(), format!("{ports:?}"));
            let name = format!("{}-{}", meta::name(source), short(&group));
            let slice = groups.entry(group).or_insert_with(|| empty(source, name, family, ports));
            slice.endpoints.push(endpoint(address, ready));
        }
    }
    groups.into_values().collect()
}

/// Five characters, as a generated name has.
fn short(group: &(String, String)) -> String {
    let bits = hash::fnv1a(format!("{group:?}").as_bytes());
    hash::safe_encode(&format!("{:05}", bits % 100_000))
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    };
    subset.ports.iter().flatten().map(port).collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn empty(source: &Endpoints, name: String, family: &str, ports: Vec<EndpointPort>) -> EndpointSlice {
    let mut labels: Labels = source.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), meta::name(source).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = source.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| name != LAST_TRIGGER && name != "kubectl.kubernetes.io/last-applied-configuration");
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Vec::new(),
        ports: Some(ports),
        metadata: ObjectMeta {
            name: Some(name),
            namespace: source.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|all| !all.is_empty()),
            owner_references: Some(vec![meta::controller_ref(source)]),
            ..ObjectMeta::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_become_slices_by_ports_and_family() {
        let source: Endpoints = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "default", "name": "db", "uid": "u", "labels": {"a": "b"}},
            "subsets": [
                {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]},
                {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "http", "port": 80}]},
            ],
        }))
        .unwrap();
        let made = plan(&source);
        let mut shown: Vec<_> = made
            .iter()
            .map(|slice| {
                let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap();
                let endpoints: Vec<_> = slice.endpoints.iter().map(|e| (e.addresses[0].clone(), ready(e))).collect();
                (slice.address_type.clone(), slice.ports.as_ref().unwrap()[0].port.unwrap(), endpoints)
            })
            .collect();
        shown.sort();
        let is = |ip: &str, ready| (ip.to_owned(), ready);
        assert_eq!(
            shown,
            [
                ("IPv4".to_owned(), 80, vec![is("192.0.2.3", true)]),
                ("IPv4".to_owned(), 5432, vec![is("192.0.2.1", true), is("192.0.2.2", false)]),
                ("IPv6".to_owned(), 5432, vec![is("2001:db8::1", true)]),
            ]
        );
        assert_eq!(plan(&source), made, "names are stable");
        assert_eq!(meta::label(&made[0], "a"), Some("b"));
    }
}
