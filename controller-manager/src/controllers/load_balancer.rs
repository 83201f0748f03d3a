//! Load balancers without a cloud: a Service of type LoadBalancer gets addresses at which clients outside the cluster reach it.
//!
//! ```text
//! --load-balancer-pool given:  one address of the pool, its own; the network must route the pool to any node
//! else:                        the addresses of the nodes themselves; two Services that want one port take turns by age
//! ```
//! kube-proxy on every node does the balancing. What is taken is read from the Services' own status: nothing to leak. Invariant: one
//! Service is planned at a time, so that no address is given twice. A Service with a `loadBalancerClass` is somebody else's.
//! Upstream: `staging/src/k8s.io/cloud-provider/controllers/service/controller.go`, v1.33 (there a cloud makes the balancer; here
//! nothing outlives the Service, so there is no finalizer).

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

use api::key::Key;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue};
use serde_json::json;
use tokio::sync::Mutex;

use crate::context::Context;
use crate::shared::{conditions, meta, watch, write};

const NAME: &str = "service-lb-controller";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Addresses from the first to the last, both included: `192.0.2.10-192.0.2.19`, `192.0.2.16/28` or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no range of IPv4 addresses, write for example 192.0.2.10-192.0.2.19 or 192.0.2.16/28");
        let address = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| bad());
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (address(first)?, address(last)?),
            None if text.contains('/') => {
                let net: ipnet::Ipv4Net = text.parse().map_err(|_| bad())?;
                (net.network(), net.broadcast())
            }
            None => (address(text)?, address(text)?),
        };
        if first > last { Err(format!("{text:?} ends before it begins")) } else { Ok(Range { first, last }) }
    }
}

impl Range {
    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (u32::from(self.first)..=u32::from(self.last)).map(|bits| IpAddr::V4(bits.into()))
    }
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    pool: Vec<Range>,
    /// What was given and the cache may not show yet.
    given: Mutex<HashMap<Key, Vec<IpAddr>>>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("service-controller"),
        services: context.informers.of(),
        nodes: context.informers.of(),
        slices: context.informers.of(),
        pool: context.config.load_balancer_pool.clone(),
        given: Mutex::default(),
    });
    subscribe(&this, &queue);
    this.services.synced().await;
    this.nodes.synced().await;
    this.slices.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

fn subscribe(this: &Arc<Controller>, queue: &WorkQueue<Key>) {
    watch::itself(&this.services, queue);
    let others = |this: &Controller, queue: &WorkQueue<Key>, cause: &api::Cause| {
        for service in this.services.list().iter().filter(|service| is_ours(service)) {
            queue.add_caused(meta::key(&**service), cause.clone());
        }
    };
    let (weak, to) = (Arc::downgrade(this), queue.clone());
    // What one Service gives up another may be waiting for.
    this.services.on_change(move |change| {
        let gives_up = change.old.as_ref().is_some_and(|old| is_ours(old)) && !change.new.as_ref().is_some_and(|new| is_ours(new));
        if let Some(this) = weak.upgrade().filter(|_| gives_up) {
            others(&this, &to, &change.cause());
        }
    });
    let (weak, to) = (Arc::downgrade(this), queue.clone());
    this.nodes.on_change(move |change| {
        let facts = |node: &Option<Arc<Node>>| node.as_ref().and_then(|node| usable(node));
        if let Some(this) = weak.upgrade().filter(|this| this.pool.is_empty() && facts(&change.old) != facts(&change.new)) {
            others(&this, &to, &change.cause());
        }
    });
    let to = queue.clone();
    this.slices.on_change(move |change| {
        if let Some(service) = meta::label(&**change.object(), SERVICE_NAME) {
            to.add_caused(Key::new(meta::namespace(&**change.object()), service), change.cause());
        }
    });
}

fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none())
        && !meta::is_deleting(service)
}

/// The address of a node that may take traffic from outside.
fn usable(node: &Node) -> Option<IpAddr> {
    let status = node.status.as_ref()?;
    let address = status.addresses.iter().flatten().find(|address| address.type_ == "InternalIP")?.address.parse().ok()?;
    let ready = conditions::is_true(&status.conditions, "Ready");
    (ready && meta::label(node, EXCLUDED).is_none() && !meta::is_deleting(node)).then_some(address)
}

fn ingress(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let points = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    points.iter().filter_map(|point: &LoadBalancerIngress| point.ip.as_ref()?.parse().ok()).collect()
}

fn has_status(service: &Service) -> bool {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    balancer.and_then(|balancer| balancer.ingress.as_ref()).is_some_and(|points| !points.is_empty())
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let mut given = self.given.lock().await;
        let Some(service) = self.services.get(key).filter(|service| !meta::is_deleting(&**service)) else {
            given.remove(key);
            return Ok(Next::Done);
        };
        let about = meta::reference(&*service);
        if !is_ours(&service) {
            given.remove(key);
            let left_over = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() != Some("LoadBalancer")) && has_status(&service);
            if left_over {
                self.recorder.normal(&about, "DeletingLoadBalancer", "Deleting load balancer");
                self.write(key, &[]).await?;
                self.recorder.normal(&about, "DeletedLoadBalancer", "Deleted load balancer");
            }
            return Ok(Next::Done);
        }
        let wanted = self.plan(key, &service, &given);
        let has = given.get(key).cloned().unwrap_or_else(|| ingress(&service));
        let addresses = match wanted {
            Ok(addresses) => addresses,
            Err(why) => {
                self.recorder.warning(
                    &about,
                    "SyncLoadBalancerFailed",
                    format!("Error syncing load balancer: failed to ensure load balancer: {why}"),
                );
                Vec::new()
            }
        };
        if addresses == has && ingress(&service) == has {
            return Ok(Next::Done);
        }
        if has.is_empty() && !addresses.is_empty() {
            self.recorder.normal(&about, "EnsuringLoadBalancer", "Ensuring load balancer");
        }
        self.write(key, &addresses).await?;
        match (has.is_empty(), addresses.is_empty()) {
            (true, false) => self.recorder.normal(&about, "EnsuredLoadBalancer", "Ensured load balancer"),
            (false, false) if has != addresses => {
                self.recorder.normal(&about, "UpdatedLoadBalancer", "Updated load balancer with new hosts")
            }
            _ => {}
        }
        given.insert(key.clone(), addresses);
        Ok(Next::Done)
    }

    fn plan(&self, key: &Key, service: &Service, given: &HashMap<Key, Vec<IpAddr>>) -> Result<Vec<IpAddr>, String> {
        let all = self.services.list();
        let others: Vec<Holder<'_>> = all
            .iter()
            .filter(|other| is_ours(other) && meta::key(&***other) != *key)
            .map(|other| Holder { service: other, addresses: given.get(&meta::key(&**other)).cloned().unwrap_or_else(|| ingress(other)) })
            .collect();
        if !self.pool.is_empty() {
            return from_pool(service, &self.pool, &others).map(|address| vec![address]);
        }
        let nodes = self.nodes.list();
        let local = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local");
        let busy = local.then(|| self.nodes_of(key));
        let nodes = nodes.iter().filter(|node| busy.as_ref().is_none_or(|busy| busy.contains(meta::name(&***node))));
        from_nodes(service, nodes.filter_map(|node| usable(node)), &others)
    }

    /// Nodes with ready endpoints of the Service: under policy Local no other would answer.
    fn nodes_of(&self, key: &Key) -> BTreeSet<String> {
        let slices = self.slices.in_namespace(&key.namespace);
        let own = slices.iter().filter(|slice| meta::label(&***slice, SERVICE_NAME) == Some(&key.name));
        let endpoints = own.flat_map(|slice| slice.endpoints.iter());
        let ready = endpoints.filter(|e| e.conditions.as_ref().is_none_or(|c| c.ready.unwrap_or(true)));
        ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
    }

    async fn write(&self, key: &Key, addresses: &[IpAddr]) -> kube::Result<()> {
        let points: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"})).collect();
        let ingress = if points.is_empty() { json!(null) } else { json!(points) };
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        write::unless_gone(write::strategic_status::<Service>(&self.client, key, &patch).await)
    }
}

/// Another Service and what it has.
struct Holder<'a> {
    service: &'a Service,
    addresses: Vec<IpAddr>,
}

/// The Service keeps its address; a new one gets the one it asks for, or the first that is free.
fn from_pool(service: &Service, pool: &[Range], others: &[Holder<'_>]) -> Result<IpAddr, String> {
    let free = |ip: &IpAddr| !others.iter().any(|other| other.addresses.contains(ip));
    let in_pool = |ip: &IpAddr| pool.iter().any(|range| range.addresses().any(|address| address == *ip));
    let asked = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref()).filter(|ip| !ip.is_empty());
    if let Some(asked) = asked {
        let fits = asked.parse().ok().filter(in_pool).ok_or_else(|| format!("the pool does not hold {asked}"))?;
        return Some(fits).filter(free).ok_or_else(|| format!("{asked} is in use"));
    }
    let kept = ingress(service).into_iter().find(|ip| in_pool(ip) && free(ip));
    let next = || pool.iter().flat_map(|range| range.addresses()).find(free);
    kept.or_else(next).ok_or_else(|| "no address of the pool is free".to_owned())
}

/// Every usable node; none if an older Service has one of the ports there.
fn from_nodes(service: &Service, nodes: impl Iterator<Item = IpAddr>, others: &[Holder<'_>]) -> Result<Vec<IpAddr>, String> {
    let mine = ports(service);
    for other in others.iter().filter(|other| !other.addresses.is_empty()) {
        if let Some((port, protocol)) = ports(other.service).intersection(&mine).next() {
            return Err(format!("port {port}/{protocol} of the nodes is in use by {}", meta::key(other.service)));
        }
    }
    let mut addresses: Vec<IpAddr> = nodes.collect();
    addresses.sort_unstable();
    Ok(addresses)
}

fn ports(service: &Service) -> BTreeSet<(i32, String)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.map(|port| (port.port, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{LoadBalancerStatus, ServicePort, ServiceSpec, ServiceStatus};

    fn service(name: &str, port: i32, addresses: &[&str]) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some(name.into());
        service.metadata.namespace = Some("default".into());
        let ports = vec![ServicePort { port, ..ServicePort::default() }];
        service.spec = Some(ServiceSpec { type_: Some("LoadBalancer".into()), ports: Some(ports), ..ServiceSpec::default() });
        let ingress = addresses.iter().map(|ip| LoadBalancerIngress { ip: Some((*ip).into()), ..LoadBalancerIngress::default() }).collect();
        service.status =
            Some(ServiceStatus { load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress) }), ..ServiceStatus::default() });
        service
    }

    fn holder(service: &Service) -> Holder<'_> {
        Holder { service, addresses: ingress(service) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges() {
        for (text, count) in [("192.0.2.10-192.0.2.12", 3), ("192.0.2.16/30", 4), ("192.0.2.1", 1)] {
            assert_eq!(text.parse::<Range>().unwrap().addresses().count(), count, "{text}");
        }
        for bad in ["", "x", "192.0.2.9-192.0.2.1", "192.0.2.0/40", "192.0.2.1-"] {
            assert!(bad.parse::<Range>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pool_gives_each_service_an_address_of_its_own() {
        let pool = ["192.0.2.10-192.0.2.11".parse::<Range>().unwrap()];
        let (first, second) = (service("a", 80, &["192.0.2.10"]), service("b", 80, &[]));
        assert_eq!(from_pool(&second, &pool, &[holder(&first)]), Ok(ip("192.0.2.11")));
        assert_eq!(from_pool(&service("b", 80, &["192.0.2.11"]), &pool, &[]), Ok(ip("192.0.2.11")), "what it has it keeps");
        assert_eq!(from_pool(&service("b", 80, &["198.51.100.1"]), &pool, &[]), Ok(ip("192.0.2.10")), "unless the pool changed");
        let third = service("c", 80, &["192.0.2.11"]);
        assert_eq!(from_pool(&second, &pool, &[holder(&first), holder(&third)]), Err("no address of the pool is free".into()));
        let mut asks = service("d", 80, &[]);
        asks.spec.as_mut().unwrap().load_balancer_ip = Some("192.0.2.10".into());
        assert_eq!(from_pool(&asks, &pool, &[]), Ok(ip("192.0.2.10")));
        assert_eq!(from_pool(&asks, &pool, &[holder(&first)]), Err("192.0.2.10 is in use".into()));
    }

    #[test]
    fn nodes_are_shared_port_by_port() {
        let nodes = || [ip("10.0.0.3"), ip("10.0.0.2")].into_iter();
        let web = service("web", 80, &["10.0.0.2", "10.0.0.3"]);
        assert_eq!(from_nodes(&service("api", 81, &[]), nodes(), &[holder(&web)]), Ok(vec![ip("10.0.0.2"), ip("10.0.0.3")]));
        assert_eq!(
            from_nodes(&service("api", 80, &[]), nodes(), &[holder(&web)]),
            Err("port 80/TCP of the nodes is in use by default/web".into())
        );
        let waiting = service("web", 80, &[]);
        assert!(from_nodes(&service("api", 80, &[]), nodes(), &[holder(&waiting)]).is_ok(), "who has nothing is in nobody's way");
    }
}
