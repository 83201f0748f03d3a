//! Cluster IPs and node ports of Services.
//!
//! What is taken is derived from the Services in the cache plus what writes under way hold, under one lock: nothing to leak, nothing to
//! repair, and never the same address twice. Freed by deleting the Service. Texts as upstream.
//! Upstream counterparts: `pkg/registry/core/service/{storage/alloc.go,ipallocator,portallocator}` (v1.33).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use api::Status;
use api::field::{Error as FieldError, Path};
use ipnet::Ipv4Net;
use kinds::Kind;
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};

use super::cache::{Cache, Selection};
use super::tree::{items, number, object, text};

pub struct Addresses {
    range: Ipv4Net,
    ports: RangeInclusive<u16>,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    ips: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

/// The object with its addresses. Keep `hold` until the write is visible in the cache.
pub struct Lease {
    pub object: Value,
    pub hold: Hold,
}

/// Addresses promised to a write under way; given back when dropped (the cache then shows who has them).
#[derive(Default)]
pub struct Hold {
    ips: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    held: Option<Arc<Mutex<Held>>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(held) = &self.held else { return };
        let mut held = held.lock();
        held.ips.retain(|ip| !self.ips.contains(ip));
        held.ports.retain(|port| !self.ports.contains(port));
    }
}

impl Addresses {
    pub fn new(range: Ipv4Net, ports: RangeInclusive<u16>) -> Self {
        Addresses { range, ports, held: Arc::default() }
    }

    pub fn range(&self) -> Ipv4Net {
        self.range
    }

    /// The address of `default/kubernetes`.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()) + 1)
    }

    /// Give a Service what its type needs; other kinds pass through.
    pub fn assign(&self, cache: &Cache, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<Lease, Status> {
        let mut lease = Lease { object: new.clone(), hold: Hold::default() };
        if kind.plural != "services" || !kind.group.is_empty() {
            return Ok(lease);
        }
        if let Some(old) = old {
            keep_assigned(&mut lease.object, old);
        }
        let Lease { object, hold } = &mut lease;
        hold.held = Some(self.held.clone());
        let mut held = self.held.lock();
        let errors = Assigner { addresses: self, cache, held: &mut held, hold, old }.run(object);
        drop(held);
        if errors.is_empty() {
            return Ok(lease);
        }
        Err(Status::invalid(&kind.group_kind(), text(new, "/metadata/name"), errors))
    }
}

fn service_type(service: &Value) -> &str {
    match text(service, "/spec/type") {
        "" => "ClusterIP",
        other => other,
    }
}

fn needs_ip(service: &Value) -> bool {
    service_type(service) != "ExternalName"
}

fn needs_ports(service: &Value) -> bool {
    let wanted = service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&json!(false));
    matches!(service_type(service), "NodePort") || service_type(service) == "LoadBalancer" && wanted
}

/// An update that is silent about addresses keeps them; one that changes the type lets go of what the new type has no use for.
/// Upstream: `patchAllocatedValues`, `dropTypeDependentFields`.
fn keep_assigned(new: &mut Value, old: &Value) {
    if needs_ip(new) && needs_ip(old) {
        if text(new, "/spec/clusterIP").is_empty() {
            copy(new, old, "clusterIP");
        }
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if new["spec"].get(field).is_none_or(Value::is_null) {
                copy(new, old, field);
            }
        }
    } else if !needs_ip(new) && text(new, "/spec/clusterIP") == text(old, "/spec/clusterIP") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            object(new, "spec").remove(field);
        }
    }
    let (has, keep) = (ports_of(old), matches!(service_type(new), "NodePort" | "LoadBalancer"));
    for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = |(number, protocol, _): &&(i64, String, i64)| *number == self::number(port, "/port").unwrap_or(0) && protocol == protocol_of(port);
        let Some((_, _, assigned)) = has.iter().find(same) else { continue };
        let asked = self::number(port, "/nodePort").unwrap_or(0);
        if keep && asked == 0 {
            port["nodePort"] = json!(assigned);
        } else if !keep
            && asked == *assigned
            && matches!(service_type(old), "NodePort" | "LoadBalancer")
            && let Some(port) = port.as_object_mut()
        {
            port.remove("nodePort");
        }
    }
}

fn copy(new: &mut Value, old: &Value, field: &str) {
    if let Some(value) = old["spec"].get(field) {
        object(new, "spec").insert(field.into(), value.clone());
    }
}

fn protocol_of(port: &Value) -> &str {
    match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

/// (port, protocol, node port) of each port that has one.
fn ports_of(service: &Value) -> Vec<(i64, String, i64)> {
    let port = |p: &Value| Some((number(p, "/port")?, protocol_of(p).to_owned(), number(p, "/nodePort").filter(|n| *n != 0)?));
    items(service, "/spec/ports").iter().filter_map(port).collect()
}

struct Assigner<'a> {
    addresses: &'a Addresses,
    cache: &'a Cache,
    held: &'a mut Held,
    hold: &'a mut Hold,
    old: Option<&'a Value>,
}

impl Assigner<'_> {
    fn run(&mut self, service: &mut Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if needs_ip(service) {
            errors.extend(self.ip(service).err());
            families(service);
        }
        if needs_ports(service) {
            errors.extend(self.ports(service));
        }
        errors
    }

    fn ip(&mut self, service: &mut Value) -> Result<(), FieldError> {
        let asked = text(service, "/spec/clusterIP").to_owned();
        let before = self.old.map(|old| text(old, "/spec/clusterIP")).unwrap_or_default();
        if asked == "None" || !asked.is_empty() && asked == before {
            object(service, "spec").insert("clusterIPs".into(), json!([asked]));
            return Ok(());
        }
        let taken = self.taken_ips();
        let ip = if asked.is_empty() { self.free_ip(&taken)? } else { self.check_ip(&asked, &taken)? };
        self.held.ips.insert(ip);
        self.hold.ips.push(ip);
        let spec = object(service, "spec");
        spec.insert("clusterIP".into(), json!(ip.to_string()));
        spec.insert("clusterIPs".into(), json!([ip.to_string()]));
        Ok(())
    }

    fn taken_ips(&self) -> HashSet<Ipv4Addr> {
        let mut taken = self.held.ips.clone();
        for record in services(self.cache) {
            taken.extend(record.field("spec.clusterIP").and_then(|ip| ip.parse::<Ipv4Addr>().ok()));
        }
        taken
    }

    /// From the upper part of the range first: the lower is for those who choose their address (kube-dns).
    fn free_ip(&self, taken: &HashSet<Ipv4Addr>) -> Result<Ipv4Addr, FieldError> {
        let network = u32::from(self.addresses.range.network());
        let size = u32::from(self.addresses.range.broadcast()) - network;
        let band = (size / 16).clamp(16, 256).min(size.saturating_sub(1));
        let start = rand::rng().random_range(band..size.max(band + 1));
        let candidates = (start..size).chain(band..start).chain(1..band);
        let free = candidates.map(|offset| Ipv4Addr::from(network + offset)).find(|ip| *ip != self.addresses.first() && !taken.contains(ip));
        free.ok_or_else(|| FieldError::internal(&ip_path(), "failed to allocate a serviceIP: range is full"))
    }

    fn check_ip(&self, asked: &str, taken: &HashSet<Ipv4Addr>) -> Result<Ipv4Addr, FieldError> {
        let refuse = |why: String| FieldError::invalid(&ip_path(), json!([asked]), format!("failed to allocate IP {asked}: {why}"));
        let range = self.addresses.range;
        match asked.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) if range.contains(&ip) && ip != range.network() && ip != range.broadcast() => {
                if taken.contains(&ip) { Err(refuse("provided IP is already allocated".into())) } else { Ok(ip) }
            }
            _ => Err(refuse(format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"))),
        }
    }

    fn ports(&mut self, service: &mut Value) -> Vec<FieldError> {
        let mut taken = self.taken_ports();
        let own: HashSet<u16> = self.old.map(ports_of).unwrap_or_default().into_iter().map(|(_, _, p)| p as u16).collect();
        taken.retain(|port| !own.contains(port));
        let (mut errors, mut mine) = (Vec::new(), Vec::<(u16, String)>::new());
        let mut entries: Vec<&mut Value> = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten().collect();
        for (index, port) in entries.iter_mut().enumerate() {
            let path = Path::new("spec").child("ports").index(index).child("nodePort");
            let protocol = protocol_of(port).to_owned();
            let asked = number(port, "/nodePort").unwrap_or(0);
            // TCP and UDP of one Service may share a number.
            let shared = |p: u16| mine.iter().any(|(number, other)| *number == p && *other != protocol);
            let chosen = match asked {
                0 => self.free_port(&taken).ok_or_else(|| FieldError::internal(&path, "failed to allocate a nodePort: range is full")),
                asked => self.check_port(asked, &taken, &path, shared),
            };
            match chosen {
                Ok(number) => {
                    taken.insert(number);
                    mine.push((number, protocol));
                    port["nodePort"] = json!(number);
                }
                Err(error) => errors.push(error),
            }
        }
        for (port, _) in mine {
            self.held.ports.insert(port);
            self.hold.ports.push(port);
        }
        errors
    }

    fn taken_ports(&self) -> HashSet<u16> {
        let mut taken = self.held.ports.clone();
        for record in services(self.cache) {
            if matches!(record.field("spec.type"), Some("NodePort" | "LoadBalancer")) {
                let service = record.value();
                taken.extend(ports_of(&service).into_iter().map(|(_, _, port)| port as u16));
                taken.extend(number(&service, "/spec/healthCheckNodePort").map(|port| port as u16));
            }
        }
        taken
    }

    fn free_port(&self, taken: &HashSet<u16>) -> Option<u16> {
        let (low, high) = (*self.addresses.ports.start(), *self.addresses.ports.end());
        let start = rand::rng().random_range(low..=high);
        (start..=high).chain(low..start).find(|port| !taken.contains(port))
    }

    fn check_port(&self, asked: i64, taken: &HashSet<u16>, path: &Path, shared: impl Fn(u16) -> bool) -> Result<u16, FieldError> {
        let range = &self.addresses.ports;
        match u16::try_from(asked).ok().filter(|port| range.contains(port)) {
            Some(port) if !taken.contains(&port) || shared(port) => Ok(port),
            Some(_) => Err(FieldError::invalid(path, asked, "provided port is already allocated")),
            None => {
                let why = format!("provided port is not in the valid range. The range of valid ports is {}-{}", range.start(), range.end());
                Err(FieldError::invalid(path, asked, why))
            }
        }
    }
}

fn ip_path() -> Path {
    Path::new("spec").child("clusterIPs")
}

/// One family: this cluster's. A headless Service without selector may point at either.
fn families(service: &mut Value) {
    let headless = text(service, "/spec/clusterIP") == "None";
    let selects = service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
    let (policy, families) = if headless && !selects { ("RequireDualStack", json!(["IPv4", "IPv6"])) } else { ("SingleStack", json!(["IPv4"])) };
    let spec = object(service, "spec");
    if spec.get("ipFamilyPolicy").is_none_or(Value::is_null) {
        spec.insert("ipFamilyPolicy".into(), json!(policy));
    }
    if spec.get("ipFamilies").is_none_or(Value::is_null) {
        spec.insert("ipFamilies".into(), families);
    }
}

fn services(cache: &Cache) -> Vec<Arc<super::record::Record>> {
    let kind = cache.get(&api::GroupResource::new("", "services"));
    let listed = kind.and_then(|kind| kind.list(&Selection::all(), None, None, 0, 0).ok());
    listed.map(|l| l.records).unwrap_or_default()
}
