//! Endpoints: the older, whole view of the pods behind a Service, one object per Service.
//!
//! Upstream: `pkg/controller/endpoint/endpoints_controller.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::key::Key;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::endpoints::{self, Port};
use crate::shared::{meta, pods, watch, write};

const NAME: &str = "endpoints-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses than this are cut off.
const CAPACITY: usize = 1000;

struct Controller {
    client: kube::Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        services: context.informers.of(),
        pods: context.informers.of(),
        endpoints: context.informers.of(),
    });
    watch::itself(&this.services, &queue);
    watch::itself(&this.endpoints, &queue);
    endpoints::watch_pods(&this.pods, &this.services, &queue);
    this.services.synced().await;
    this.pods.synced().await;
    this.endpoints.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let current = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            // Ours only: an Endpoints without a Service may be a lock or a hand-made list.
            if let Some(ours) = current.filter(|current| meta::label(&**current, MANAGED_BY).is_some()) {
                let only = write::only(meta::uid(&*ours));
                write::unless_gone(write::delete::<Endpoints>(&self.client, key, &only).await)?;
            }
            return Ok(Next::Done);
        };
        if endpoints::selector(&service).is_none() || meta::is_deleting(&*service) {
            return Ok(Next::Done);
        }
        let wanted = plan(&service, &endpoints::members(&service, &self.pods), current.as_deref());
        let result = match current {
            None => write::create(&self.client, &wanted).await,
            Some(current) if *current == wanted => return Ok(Next::Done),
            Some(_) => write::update(&self.client, &wanted).await,
        };
        match result {
            Err(error) if write::is_namespace_terminating(&error) => {}
            result => drop(result?),
        }
        Ok(Next::Done)
    }
}

fn plan(service: &Service, members: &[Arc<Pod>], current: Option<&Endpoints>) -> Endpoints {
    let family_is_v6 = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref()?.first()).is_some_and(|f| f == "IPv6");
    let lenient = endpoints::publishes_not_ready(service);
    let mut groups: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    for pod in members {
        let address = endpoints::addresses(pod).into_iter().find(|address| address.is_ipv6() == family_is_v6);
        let Some(address) = address.filter(|_| lenient || !meta::is_deleting(&**pod)) else { continue };
        count += 1;
        if count > CAPACITY {
            break;
        }
        let ports = endpoints::ports(service, pod);
        // A Service whose ports the pod does not have leads nowhere; one that names no port leads to the pod.
        if ports.is_empty() && service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_some_and(|p| !p.is_empty()) {
            continue;
        }
        let subset = groups.entry(ports).or_default();
        let list = if lenient || pods::is_ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(EndpointAddress {
            ip: address.to_string(),
            hostname: endpoints::hostname(service, pod),
            node_name: Some(pods::node(pod).to_owned()).filter(|node| !node.is_empty()),
            target_ref: Some(endpoints::target(pod)),
        });
    }
    let subsets: Vec<EndpointSubset> = groups.into_iter().map(|(ports, subset)| finish(ports, subset)).collect();
    Endpoints { metadata: metadata(service, current, count > CAPACITY), subsets: Some(subsets).filter(|subsets| !subsets.is_empty()) }
}

fn finish(ports: Vec<Port>, mut subset: EndpointSubset) -> EndpointSubset {
    for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
    }
    let port = |port: Port| EndpointPort {
        name: Some(port.name).filter(|name| !name.is_empty()),
        port: port.port,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    };
    let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
    subset.ports = Some(ports).filter(|ports| !ports.is_empty());
    subset
}

fn metadata(service: &Service, current: Option<&Endpoints>, over_capacity: bool) -> ObjectMeta {
    let mut metadata = current.map(|current| current.metadata.clone()).unwrap_or_default();
    metadata.name = service.metadata.name.clone();
    metadata.namespace = service.metadata.namespace.clone();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if endpoints::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    metadata.labels = Some(labels);
    let annotations = metadata.annotations.get_or_insert_default();
    match over_capacity {
        true => annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned()),
        false => annotations.remove(OVER_CAPACITY),
    };
    metadata.annotations.take_if(|annotations| annotations.is_empty());
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::endpoints::fixtures::{backend, service};

    #[test]
    fn ready_and_other_addresses_are_told_apart() {
        let pods = [
            backend("b", "10.0.0.2").ready(1).arc(),
            backend("a", "10.0.0.1").ready(1).arc(),
            backend("c", "10.0.0.3").arc(),
            backend("d", "10.0.0.4").ready(1).deleting().arc(),
        ];
        let made = plan(&service("web"), &pods, None);
        let subset = &made.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| list.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>();
        assert_eq!(ips(&subset.addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(plan(&service("web"), &pods, Some(&made)), made);
        assert_eq!(plan(&service("web"), &[], None).subsets, None);
    }
}
