//! EndpointSlice: the pods behind each Service, in slices of at most 100.
//!
//! ```text
//! Service + pods ─▶ wanted endpoints by (address family, ports) ─▶ plan against existing slices ─▶ fewest writes
//! ```
//! Invariant: a Service is not planned while the cache lacks one of our own writes, as slices have random names and
//! a second look would make them twice. Slices of deleted Services fall to the garbage collector.
//! Upstream: `pkg/controller/endpointslice`, `staging/src/k8s.io/endpointslice/reconciler.go`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::key::Key;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::{Informer, Next, WorkQueue};
use parking_lot::Mutex;

use crate::context::Context;
use crate::shared::endpoints::{self, Port};
use crate::shared::meta::{self, Labels};
use crate::shared::{pods, watch, write};

const NAME: &str = "endpointslice-controller";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MAX_ENDPOINTS: usize = 100;
/// After this long a write that the cache never showed is taken for lost.
const LAG_LIMIT: Duration = Duration::from_secs(60);

struct Controller {
    client: kube::Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    written: Mutex<HashMap<Key, Written>>,
}

/// Our latest writes of a Service's slices, by slice.
struct Written {
    at: Instant,
    revisions: HashMap<Key, u64>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        services: context.informers.of(),
        pods: context.informers.of(),
        nodes: context.informers.of(),
        slices: context.informers.of(),
        written: Mutex::default(),
    });
    this.slices.index(SERVICE_NAME, |slice| service_key(slice).map(|key| key.to_string()).into_iter().collect());
    watch::itself(&this.services, &queue);
    watch_slices(&this, &queue);
    endpoints::watch_pods(&this.pods, &this.services, &queue);
    this.services.synced().await;
    this.pods.synced().await;
    this.nodes.synced().await;
    this.slices.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

/// The Service of a slice that is ours.
fn service_key(slice: &EndpointSlice) -> Option<Key> {
    let name = meta::label(slice, SERVICE_NAME).filter(|_| meta::label(slice, MANAGED_BY) == Some(MANAGER))?;
    Some(Key::new(meta::namespace(slice), name))
}

fn watch_slices(this: &Arc<Controller>, queue: &WorkQueue<Key>) {
    let (queue, this_weak) = (queue.clone(), Arc::downgrade(this));
    this.slices.on_change(move |change| {
        let Some(key) = service_key(change.object()) else { return };
        if let Some(this) = this_weak.upgrade().filter(|_| change.is_delete())
            && let Some(written) = this.written.lock().get_mut(&key)
        {
            written.revisions.remove(&change.key());
        }
        queue.add_caused(key, change.cause());
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(service) = self.services.get(key).filter(|service| endpoints::selector(service).is_some()) else {
            self.written.lock().remove(key);
            return Ok(Next::Done);
        };
        if meta::is_deleting(&*service) {
            return Ok(Next::Done);
        }
        if let Some(wait) = self.lag(key) {
            return Ok(Next::After(wait));
        }
        let existing = self.slices.by(SERVICE_NAME, &key.to_string());
        let zone = |node: &str| {
            let node = self.nodes.get(&Key::cluster(node))?;
            meta::label(&*node, "topology.kubernetes.io/zone").map(str::to_owned)
        };
        let plan = plan(&service, &endpoints::members(&service, &self.pods), &existing, &zone);
        self.apply(key, plan).await?;
        Ok(Next::Done)
    }

    /// How long to wait at most for the cache to show our own writes; their arrival wakes the key anyway.
    fn lag(&self, key: &Key) -> Option<Duration> {
        let mut all = self.written.lock();
        let written = all.get_mut(key)?;
        written.revisions.retain(|slice, revision| self.slices.get(slice).is_none_or(|seen| revision_of(&seen) < *revision));
        if written.revisions.is_empty() || written.at.elapsed() > LAG_LIMIT {
            all.remove(key);
            return None;
        }
        Some(LAG_LIMIT.saturating_sub(written.at.elapsed()))
    }

    async fn apply(&self, key: &Key, plan: Plan) -> kube::Result<()> {
        let remember = |slice: EndpointSlice| {
            let mut all = self.written.lock();
            let new = || Written { at: Instant::now(), revisions: HashMap::new() };
            let written = all.entry(key.clone()).or_insert_with(new);
            written.at = Instant::now();
            written.revisions.insert(meta::key(&slice), revision_of(&slice));
        };
        let creates = plan.create.iter().map(|slice| async { write::create(&self.client, slice).await.map(remember) });
        let updates = plan.update.iter().map(|slice| async { write::update(&self.client, slice).await.map(remember) });
        let deletes = plan.delete.iter().map(|slice| async {
            let only = write::only(meta::uid(&**slice));
            write::unless_gone(write::delete::<EndpointSlice>(&self.client, &meta::key(&**slice), &only).await)
        });
        match try_join_all(creates).await {
            Err(error) if write::is_namespace_terminating(&error) => return Ok(()),
            created => created?,
        };
        try_join_all(updates).await?;
        try_join_all(deletes).await?;
        Ok(())
    }
}

fn revision_of(slice: &EndpointSlice) -> u64 {
    slice.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

#[derive(Debug, Default)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<Arc<EndpointSlice>>,
}

/// What makes slices comparable: address family and ports.
type Group = (String, Vec<Port>);

fn plan(service: &Service, members: &[Arc<Pod>], existing: &[Arc<EndpointSlice>], zone: &dyn Fn(&str) -> Option<String>) -> Plan {
    let mut wanted: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for family in families(service) {
        for pod in members {
            if let Some(endpoint) = endpoint(service, pod, &family, zone) {
                wanted.entry((family.clone(), endpoints::ports(service, pod))).or_default().push(endpoint);
            }
        }
    }
    let mut slices: BTreeMap<Group, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        slices.entry((slice.address_type.clone(), slice_ports(slice))).or_default().push(slice.clone());
    }
    // A family without endpoints keeps one empty slice, which says that someone looked.
    for family in families(service) {
        if !wanted.keys().any(|(of, _)| *of == family) {
            wanted.insert((family, Vec::new()), Vec::new());
        }
    }
    let mut plan = Plan::default();
    for (group, endpoints) in wanted {
        let existing = slices.remove(&group).unwrap_or_default();
        plan_group(&mut plan, service, &group, endpoints, existing);
    }
    plan.delete.extend(slices.into_values().flatten());
    // An empty slice about to be deleted and one about to be made: change the one into the other.
    while plan.create.len().min(plan.delete.len()) > 0 && reuse(&mut plan) {}
    plan
}

/// Turns a slice to delete into one to create, if one of the same family is there.
fn reuse(plan: &mut Plan) -> bool {
    let Some(new) = plan.create.pop() else { return false };
    let Some(at) = plan.delete.iter().position(|old| old.address_type == new.address_type) else {
        plan.create.push(new);
        return false;
    };
    let old = plan.delete.remove(at);
    plan.update.push(EndpointSlice { endpoints: new.endpoints, ports: new.ports, ..(*old).clone() });
    true
}

/// Existing slices lose what is gone, take what fits, and only the rest makes new slices.
fn plan_group(plan: &mut Plan, service: &Service, group: &Group, wanted: Vec<Endpoint>, existing: Vec<Arc<EndpointSlice>>) {
    let mut missing: BTreeMap<String, Endpoint> = wanted.into_iter().map(|e| (identity(&e), e)).collect();
    let placeholder = missing.is_empty();
    let labels = labels(service);
    let mut slices: Vec<(Arc<EndpointSlice>, EndpointSlice)> = existing
        .into_iter()
        .map(|old| {
            let mut new = (*old).clone();
            new.endpoints = old.endpoints.iter().filter_map(|e| missing.remove(&identity(e))).collect();
            new.metadata.labels = Some(labels.clone());
            new.metadata.owner_references = Some(vec![meta::controller_ref(service)]);
            (old, new)
        })
        .collect();
    let mut missing: Vec<Endpoint> = missing.into_values().collect();
    // Slices that must be written anyway are filled first.
    slices.sort_by_key(|(old, new)| **old == *new);
    for (old, new) in &mut slices {
        let room = MAX_ENDPOINTS.saturating_sub(new.endpoints.len());
        if **old != *new || missing.len() <= room {
            new.endpoints.extend(missing.drain(..missing.len().min(room)));
        }
    }
    let mut kept = false;
    for (old, new) in slices {
        if new.endpoints.is_empty() && (!placeholder || kept) {
            plan.delete.push(old);
            continue;
        }
        kept = true;
        if *old != new {
            plan.update.push(new);
        }
    }
    while !missing.is_empty() {
        let rest = missing.split_off(missing.len().min(MAX_ENDPOINTS));
        plan.create.push(new_slice(service, group, std::mem::replace(&mut missing, rest)));
    }
    if placeholder && !kept {
        plan.create.push(new_slice(service, group, Vec::new()));
    }
}

fn families(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if listed.is_empty() { vec!["IPv4".to_owned()] } else { listed }
}

fn endpoint(service: &Service, pod: &Pod, family: &str, zone: &dyn Fn(&str) -> Option<String>) -> Option<Endpoint> {
    let address = endpoints::addresses(pod).into_iter().find(|address| address.is_ipv6() == (family == "IPv6"))?;
    let (serving, terminating) = (pods::is_ready(pod), meta::is_deleting(pod));
    let node = Some(pods::node(pod).to_owned()).filter(|node| !node.is_empty());
    let zone = node.as_deref().and_then(zone);
    let ready = endpoints::publishes_not_ready(service) || (serving && !terminating);
    let close = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref()) == Some("PreferClose");
    let hints = zone
        .clone()
        .filter(|_| close && ready)
        .map(|name| EndpointHints { for_zones: Some(vec![ForZone { name }]), ..EndpointHints::default() });
    Some(Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
        hostname: endpoints::hostname(service, pod),
        zone,
        hints,
        node_name: node,
        target_ref: Some(endpoints::target(pod)),
        ..Endpoint::default()
    })
}

/// The same endpoint in another state is still that endpoint.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{}/{uid}", endpoint.addresses.join(","))
}

fn slice_ports(slice: &EndpointSlice) -> Vec<Port> {
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or(0),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if endpoints::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), meta::name(service).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(service: &Service, (family, ports): &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |port: &Port| EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    };
    EndpointSlice {
        address_type: family.clone(),
        endpoints,
        ports: Some(ports.iter().map(port).collect()),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", meta::name(service))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![meta::controller_ref(service)]),
            ..ObjectMeta::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::endpoints::fixtures::{backend, service};
    use k8s_openapi::api::core::v1::{Container, ContainerPort};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn planned(members: &[Arc<Pod>], existing: &[EndpointSlice]) -> Plan {
        let existing: Vec<_> = existing.iter().cloned().map(Arc::new).collect();
        plan(&service("web"), members, &existing, &|_| Some("z1".into()))
    }

    fn stored(mut slice: EndpointSlice, name: &str) -> EndpointSlice {
        slice.metadata.name = Some(name.into());
        slice
    }

    fn crowd(count: usize) -> Vec<Arc<Pod>> {
        (0..count).map(|i| backend(&format!("p{i}"), &format!("10.0.{}.{}", i / 250, i % 250 + 1)).ready(1).arc()).collect()
    }

    #[test]
    fn conditions_follow_the_pod() {
        let pods =
            [backend("a", "10.0.0.1").ready(1).arc(), backend("b", "10.0.0.2").arc(), backend("c", "10.0.0.3").ready(1).deleting().arc()];
        let plan = planned(&pods, &[]);
        let states: Vec<_> = plan.create[0]
            .endpoints
            .iter()
            .map(|e| e.conditions.as_ref().map(|c| (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())).unwrap())
            .collect();
        assert_eq!(states, [(true, true, false), (false, false, false), (false, true, true)]);
        assert_eq!(plan.create[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(plan.create[0].endpoints[0].zone.as_deref(), Some("z1"));
    }

    #[test]
    fn named_ports_may_differ_from_pod_to_pod() {
        let mut service = service("web");
        let mut pods = Vec::new();
        service.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].target_port = Some(IntOrString::String("http".into()));
        for (name, ip, port) in [("a", "10.0.0.1", 8080), ("b", "10.0.0.2", 8081), ("c", "10.0.0.3", 8080)] {
            let mut pod = (*backend(name, ip).ready(1).arc()).clone();
            let ports = vec![ContainerPort { name: Some("http".into()), container_port: port, ..ContainerPort::default() }];
            pod.spec.as_mut().unwrap().containers = vec![Container { ports: Some(ports), ..Container::default() }];
            pods.push(Arc::new(pod));
        }
        let plan = plan(&service, &pods, &[], &|_| None);
        let mut found: Vec<_> =
            plan.create.iter().map(|slice| (slice.ports.as_ref().unwrap()[0].port.unwrap(), slice.endpoints.len())).collect();
        found.sort_unstable();
        assert_eq!(found, [(8080, 2), (8081, 1)]);
    }

    #[test]
    fn close_endpoints_are_hinted_when_the_service_prefers_them() {
        let mut near = service("web");
        near.spec.as_mut().unwrap().traffic_distribution = Some("PreferClose".into());
        let pods = [backend("a", "10.0.0.1").ready(1).arc(), backend("b", "10.0.0.2").arc()];
        let zones = |service: &Service| -> Vec<Option<String>> {
            let plan = plan(service, &pods, &[], &|_| Some("z1".into()));
            plan.create[0].endpoints.iter().map(|e| Some(e.hints.as_ref()?.for_zones.as_ref()?[0].name.clone())).collect()
        };
        assert_eq!(zones(&near), [Some("z1".to_owned()), None]);
        assert_eq!(zones(&service("web")), [None, None]);
    }

    #[test]
    fn slices_hold_a_hundred_and_change_as_little_as_possible() {
        let plan = planned(&crowd(250), &[]);
        let sizes: Vec<usize> = plan.create.iter().map(|slice| slice.endpoints.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let slices: Vec<_> = plan.create.into_iter().enumerate().map(|(i, s)| stored(s, &format!("s{i}"))).collect();
        let settled = planned(&crowd(250), &slices);
        assert_eq!((settled.create.len(), settled.update.len(), settled.delete.len()), (0, 0, 0));
        let grown = planned(&crowd(260), &slices);
        assert_eq!((grown.create.len(), grown.update.len()), (0, 1));
        assert_eq!(grown.update[0].endpoints.len(), 60);
    }

    #[test]
    fn a_service_without_endpoints_keeps_one_empty_slice() {
        let empty = planned(&[], &[]);
        assert_eq!((empty.create.len(), empty.create[0].endpoints.len()), (1, 0));
        let placeholder = stored(empty.create[0].clone(), "s0");
        let steady = planned(&[], std::slice::from_ref(&placeholder));
        assert_eq!((steady.create.len(), steady.update.len(), steady.delete.len()), (0, 0, 0));
        let filled = planned(&crowd(1), &[placeholder]);
        assert_eq!((filled.create.len(), filled.update.len(), filled.delete.len()), (0, 1, 0));
        let emptied = planned(&[], &[stored(filled.update[0].clone(), "s0")]);
        assert_eq!((emptied.create.len(), emptied.update.len(), emptied.delete.len()), (0, 1, 0));
    }
}
