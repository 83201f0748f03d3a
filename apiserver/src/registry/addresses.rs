//! Cluster IPs and node ports of Services.
//!
//! What is taken is derived from the Services in the cache plus what writes under way hold, under one lock: nothing to leak, nothing to
//! repair, and never the same address twice. Freed by deleting the Service, or by giving it a type that needs none.
//! Runs before validation, as upstream: a Service without a usable address is refused before anything else is said about it.
//! Upstream counterparts: `pkg/registry/core/service/{storage/alloc.go,ipallocator,portallocator}` (v1.33).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use api::Status;
use api::field::{Error as FieldError, Path};
use ipnet::Ipv4Net;
use kinds::Kind;
use kinds::strategies::service::{address_fields, has_node_ports, is_headless, needs_cluster_ip, needs_health_port, needs_node_port};
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
    ports: HashSet<i64>,
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
    ports: Vec<i64>,
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

    /// Give a Service what its type needs; other kinds pass through. A dry run is given ports of no use, may ask for
    /// such, and holds nothing that another write could want.
    pub fn assign(&self, cache: &Cache, kind: &Kind, new: &Value, old: Option<&Value>, dry_run: bool) -> Result<Lease, Status> {
        let mut lease = Lease { object: new.clone(), hold: Hold::default() };
        if kind.plural != "services" || !kind.group.is_empty() {
            return Ok(lease);
        }
        let Lease { object, hold } = &mut lease;
        hold.held = (!dry_run).then(|| self.held.clone());
        let mut held = self.held.lock();
        let assigned = Assigner { addresses: self, cache, held: &mut held, hold, old, dry_run }.run(object);
        drop(held);
        match assigned {
            Ok(()) => Ok(lease),
            Err(Refused::Fields(errors)) => Err(Status::invalid(&kind.group_kind(), text(new, "/metadata/name"), errors)),
            Err(Refused::Internal(why)) => Err(Status::internal(why)),
        }
    }
}

/// Why a Service cannot have its addresses.
enum Refused {
    Fields(Vec<FieldError>),
    Internal(String),
}

impl From<FieldError> for Refused {
    fn from(error: FieldError) -> Self {
        Refused::Fields(vec![error])
    }
}

/// The first node port of a dry run. Upstream: `portallocator.PortAllocationOperation.AllocateNext`.
const FIRST_DUMMY: i64 = 32769;

/// The only family of addresses that Services of this cluster can have.
const FAMILY: &str = "IPv4";

fn protocol_of(port: &Value) -> &str {
    match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

/// The node ports of a Service, its health check's not among them.
fn node_ports(service: &Value) -> Vec<i64> {
    items(service, "/spec/ports").iter().filter_map(|port| number(port, "/nodePort").filter(|n| *n != 0)).collect()
}

fn strings(service: &Value, pointer: &str) -> Vec<String> {
    items(service, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn same(a: &Value, b: &Value, pointer: &str) -> bool {
    items(a, pointer) == items(b, pointer)
}

fn fewer(new: &Value, old: &Value, pointer: &str) -> bool {
    let (new, old) = (items(new, pointer), items(old, pointer));
    !new.is_empty() && new.len() < old.len()
}

struct Assigner<'a> {
    addresses: &'a Addresses,
    cache: &'a Cache,
    held: &'a mut Held,
    hold: &'a mut Hold,
    old: Option<&'a Value>,
    dry_run: bool,
}

impl Assigner<'_> {
    fn run(&mut self, service: &mut Value) -> Result<(), Refused> {
        if needs_cluster_ip(service) && !self.prefers_both_as_before(service) {
            families(service, self.old)?;
            self.cluster_ip(service)?;
        }
        self.node_ports(service)?;
        self.health_port(service)
    }

    /// A Service content with one family or two stays as it is, whatever became of the cluster meanwhile.
    fn prefers_both_as_before(&self, service: &Value) -> bool {
        let prefers = |service: &Value| text(service, "/spec/ipFamilyPolicy") == "PreferDualStack";
        self.old.is_some_and(|old| {
            let same_type = text(old, "/spec/type") == text(service, "/spec/type");
            same_type
                && prefers(old)
                && prefers(service)
                && same(old, service, "/spec/clusterIPs")
                && same(old, service, "/spec/ipFamilies")
        })
    }

    /// A new Service gets an address, and one that had none (an ExternalName). Another change of address is validation's to refuse.
    fn cluster_ip(&mut self, service: &mut Value) -> Result<(), Refused> {
        if is_headless(service) || self.old.is_some_and(needs_cluster_ip) {
            return Ok(());
        }
        let asked = text(service, "/spec/clusterIP").to_owned();
        let taken = self.taken_ips();
        let ip = if asked.is_empty() { self.free_ip(&taken)? } else { self.check_ip(&asked, &taken)? };
        if !self.dry_run {
            self.held.ips.insert(ip);
        }
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
    fn free_ip(&self, taken: &HashSet<Ipv4Addr>) -> Result<Ipv4Addr, Refused> {
        let network = u32::from(self.addresses.range.network());
        let size = u32::from(self.addresses.range.broadcast()) - network;
        let band = (size / 16).clamp(16, 256).min(size.saturating_sub(1));
        let start = rand::rng().random_range(band..size.max(band + 1));
        let candidates = (start..size).chain(band..start).chain(1..band);
        let free =
            candidates.map(|offset| Ipv4Addr::from(network + offset)).find(|ip| *ip != self.addresses.first() && !taken.contains(ip));
        free.ok_or_else(|| Refused::Internal("failed to allocate a serviceIP: range is full".into()))
    }

    fn check_ip(&self, asked: &str, taken: &HashSet<Ipv4Addr>) -> Result<Ipv4Addr, Refused> {
        let refuse = |why: String| {
            Refused::from(FieldError::invalid(&spec_path("clusterIPs"), json!([asked]), format!("failed to allocate IP {asked}: {why}")))
        };
        let range = self.addresses.range;
        match asked.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) if range.contains(&ip) && ip != range.network() && ip != range.broadcast() => {
                if taken.contains(&ip) {
                    Err(refuse("provided IP is already allocated".into()))
                } else {
                    Ok(ip)
                }
            }
            _ => Err(refuse(format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"))),
        }
    }

    fn node_ports(&mut self, service: &mut Value) -> Result<(), Refused> {
        if !has_node_ports(service) {
            return Ok(());
        }
        let needed = needs_node_port(service);
        let before = self.old.filter(|old| has_node_ports(old)).map(node_ports);
        let mut taken = self.taken_ports();
        taken.retain(|port| !before.iter().flatten().any(|own| own == port));
        let mut chosen = Chosen { requested: requested(service), ..Chosen::default() };
        let ports: Vec<&mut Value> = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten().collect();
        for (index, port) in ports.into_iter().enumerate() {
            let asked = number(port, "/nodePort").unwrap_or(0);
            if asked == 0 && !needed {
                continue;
            }
            let given = match self.old {
                None => self.new_port(port, asked, index, &mut taken, &mut chosen)?,
                Some(_) if asked == 0 => self.free_port(&mut taken)?,
                Some(_) if chosen.numbers.contains(&asked) || before.iter().flatten().any(|own| *own == asked) => asked,
                Some(_) => self.check_port(asked, &mut taken, index)?,
            };
            if self.old.is_some() && chosen.numbers.contains(&given) && chosen.pairs.contains(&(protocol_of(port).to_owned(), given)) {
                return Err(Refused::Internal(format!("duplicate nodePort: {{{} {given}}}", protocol_of(port))));
            }
            chosen.numbers.insert(given);
            chosen.pairs.insert((protocol_of(port).to_owned(), given));
            port["nodePort"] = json!(given);
        }
        Ok(())
    }

    /// TCP and UDP under one number share a node port, unless they ask for two.
    fn new_port(&mut self, port: &Value, asked: i64, index: usize, taken: &mut HashSet<i64>, chosen: &mut Chosen) -> Result<i64, Refused> {
        let number = number(port, "/port").unwrap_or(0);
        match chosen.by_port.get(&number) {
            Some(shared) if asked == 0 || asked == *shared => return Ok(*shared),
            Some(_) => return self.check_port(asked, taken, index),
            None => {}
        }
        let given = match chosen.requested.get(&number) {
            Some(asked) => self.check_port(*asked, taken, index)?,
            None => self.free_port(taken)?,
        };
        chosen.by_port.insert(number, given);
        Ok(given)
    }

    fn health_port(&mut self, service: &mut Value) -> Result<(), Refused> {
        if !needs_health_port(service) {
            return Ok(());
        }
        let asked = number(service, "/spec/healthCheckNodePort").unwrap_or(0);
        if let Some(old) = self.old.filter(|old| needs_health_port(old)) {
            let unchanged = number(old, "/spec/healthCheckNodePort").unwrap_or(0) == asked;
            let refuse = || FieldError::invalid(&spec_path("healthCheckNodePort"), asked, "field is immutable");
            return if unchanged { Ok(()) } else { Err(refuse().into()) };
        }
        let mut taken = self.taken_ports();
        taken.extend(node_ports(service));
        let given = match asked {
            0 => self.reserve(self.any_port(&taken)).ok_or_else(|| "failed to allocate a HealthCheck NodePort 0: range is full".to_owned()),
            asked => match self.usable(asked, &taken) {
                Ok(()) => Ok(self.reserve(Some(asked)).unwrap_or(asked)),
                Err(why) => Err(format!("failed to allocate requested HealthCheck NodePort {asked}: {why}")),
            },
        };
        object(service, "spec").insert("healthCheckNodePort".into(), json!(given.map_err(Refused::Internal)?));
        Ok(())
    }

    fn taken_ports(&self) -> HashSet<i64> {
        let mut taken: HashSet<i64> = self.held.ports.iter().copied().collect();
        for record in services(self.cache) {
            if matches!(record.field("spec.type"), Some("NodePort" | "LoadBalancer")) {
                let service = record.value();
                taken.extend(node_ports(&service));
                taken.extend(number(&service, "/spec/healthCheckNodePort"));
            }
        }
        taken
    }

    fn any_port(&self, taken: &HashSet<i64>) -> Option<i64> {
        if self.dry_run {
            return Some(self.hold.ports.iter().max().map_or(FIRST_DUMMY, |last| last + 1));
        }
        let (low, high) = self.bounds();
        let start = rand::rng().random_range(low..=high);
        (start..=high).chain(low..start).find(|port| !taken.contains(port))
    }

    fn free_port(&mut self, taken: &mut HashSet<i64>) -> Result<i64, Refused> {
        let port =
            self.reserve(self.any_port(taken)).ok_or_else(|| Refused::Internal("failed to allocate a nodePort: range is full".into()))?;
        taken.insert(port);
        Ok(port)
    }

    fn check_port(&mut self, asked: i64, taken: &mut HashSet<i64>, index: usize) -> Result<i64, Refused> {
        let path = || spec_path("ports").index(index).child("nodePort");
        self.usable(asked, taken).map_err(|why| FieldError::invalid(&path(), asked, why))?;
        taken.insert(asked);
        Ok(self.reserve(Some(asked)).unwrap_or(asked))
    }

    fn usable(&self, port: i64, taken: &HashSet<i64>) -> Result<(), String> {
        let (low, high) = self.bounds();
        match port {
            port if !self.dry_run && !(low..=high).contains(&port) => {
                Err(format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"))
            }
            port if taken.contains(&port) => Err("provided port is already allocated".into()),
            _ => Ok(()),
        }
    }

    fn bounds(&self) -> (i64, i64) {
        (i64::from(*self.addresses.ports.start()), i64::from(*self.addresses.ports.end()))
    }

    fn reserve(&mut self, port: Option<i64>) -> Option<i64> {
        if !self.dry_run {
            self.held.ports.extend(port);
        }
        self.hold.ports.extend(port);
        port
    }
}

/// What the ports of one Service have been given so far.
#[derive(Default)]
struct Chosen {
    /// Port → the first node port that any of its entries asks for.
    requested: HashMap<i64, i64>,
    by_port: HashMap<i64, i64>,
    numbers: HashSet<i64>,
    pairs: HashSet<(String, i64)>,
}

fn requested(service: &Value) -> HashMap<i64, i64> {
    let mut found = HashMap::new();
    for port in items(service, "/spec/ports") {
        if let Some(asked) = number(port, "/nodePort").filter(|n| *n != 0) {
            found.entry(number(port, "/port").unwrap_or(0)).or_insert(asked);
        }
    }
    found
}

fn spec_path(field: &str) -> Path {
    Path::new("spec").child(field)
}

/// Family fields of a Service on a cluster of one family: defaulted, inferred from its addresses, and checked. Upstream: `initIPFamilyFields`.
fn families(service: &mut Value, old: Option<&Value>) -> Result<(), Refused> {
    let headless = is_headless(service);
    let selects = service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
    let inherited = old.map(|old| text(old, "/spec/ipFamilyPolicy")).unwrap_or_default();
    let policy = match (text(service, "/spec/ipFamilyPolicy"), inherited) {
        ("", "") if headless && !selects => "RequireDualStack",
        ("", "") => "SingleStack",
        ("", inherited) => inherited,
        (given, _) => given,
    }
    .to_owned();
    object(service, "spec").insert("ipFamilyPolicy".into(), json!(policy));
    let errors = address_fields(service);
    if !errors.is_empty() {
        return Err(Refused::Fields(errors));
    }
    if let Some(old) = old.filter(|_| policy == "SingleStack") {
        for field in ["clusterIPs", "ipFamilies"] {
            let pointer = format!("/spec/{field}");
            if same(service, old, &pointer) {
                service.pointer_mut(&pointer).and_then(Value::as_array_mut).into_iter().for_each(|list| list.truncate(1));
            }
        }
    }
    let mut families = strings(service, "/spec/ipFamilies");
    let mut errors = policy_errors(service, old, &policy);
    let ips = strings(service, "/spec/clusterIPs");
    for (index, ip) in ips.iter().enumerate().skip(families.len()).filter(|(_, ip)| *ip != "None") {
        match ip.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => {
                let why = "IPv6 is not configured on this cluster";
                errors.push(FieldError::invalid(&spec_path("clusterIPs").index(index), json!(ips), why));
            }
            _ => families.push(FAMILY.into()),
        }
    }
    if !errors.is_empty() {
        return Err(Refused::Fields(errors));
    }
    if headless && !selects {
        // Its endpoints are made by hand: they may be of any family.
        if families.is_empty() {
            families.push(FAMILY.into());
        }
        if families.len() < 2 && policy != "SingleStack" {
            families.push(if families[0] == FAMILY { "IPv6".into() } else { FAMILY.into() });
        }
    } else {
        errors.extend(unavailable_families(&families, &policy));
        if families.is_empty() {
            families.push(FAMILY.into());
        }
    }
    object(service, "spec").insert("ipFamilies".into(), json!(families));
    if errors.is_empty() { Ok(()) } else { Err(Refused::Fields(errors)) }
}

/// The policy against the number of addresses and families.
fn policy_errors(service: &Value, old: Option<&Value>, policy: &str) -> Vec<FieldError> {
    let refuse = |why: &str| FieldError::invalid(&spec_path("ipFamilyPolicy"), policy, why);
    let mut errors = Vec::new();
    if policy == "SingleStack" {
        if items(service, "/spec/clusterIPs").len() == 2 {
            errors.push(refuse("must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"));
        }
        if items(service, "/spec/ipFamilies").len() == 2 {
            errors.push(refuse("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"));
        }
    } else if let Some(old) = old {
        if fewer(service, old, "/spec/clusterIPs") {
            errors.push(refuse("must be 'SingleStack' to release the secondary cluster IP"));
        }
        if fewer(service, old, "/spec/ipFamilies") {
            errors.push(refuse("must be 'SingleStack' to release the secondary IP family"));
        }
    }
    errors
}

fn unavailable_families(families: &[String], policy: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if policy == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(&spec_path("ipFamilyPolicy"), policy, why));
    }
    for (index, family) in families.iter().enumerate().filter(|(_, family)| *family != FAMILY) {
        errors.push(FieldError::invalid(&spec_path("ipFamilies").index(index), family.as_str(), "not configured on this cluster"));
    }
    errors
}

fn services(cache: &Cache) -> Vec<Arc<super::record::Record>> {
    let kind = cache.get(&api::GroupResource::new("", "services"));
    let listed = kind.and_then(|kind| kind.list(&Selection::all(), None, None, 0, 0).ok());
    listed.map(|l| l.records).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(mut service: Value, old: Option<&Value>) -> Result<(String, Vec<String>), Vec<String>> {
        match families(&mut service, old) {
            Ok(()) => Ok((text(&service, "/spec/ipFamilyPolicy").to_owned(), strings(&service, "/spec/ipFamilies"))),
            Err(Refused::Fields(errors)) => Err(errors.iter().map(ToString::to_string).collect()),
            Err(Refused::Internal(why)) => Err(vec![why]),
        }
    }

    #[test]
    fn families_on_a_cluster_of_one() {
        let one = |policy: &str| Ok((policy.to_owned(), vec!["IPv4".to_owned()]));
        let two = |first: &str, second: &str| Ok(("RequireDualStack".to_owned(), vec![first.to_owned(), second.to_owned()]));
        for (spec, expected) in [
            (json!({"type": "ClusterIP"}), one("SingleStack")),
            (json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}), one("PreferDualStack")),
            (json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}), one("SingleStack")),
            (json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}}), one("SingleStack")),
            (json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}), two("IPv4", "IPv6")),
            (json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv6"]}), two("IPv6", "IPv4")),
        ] {
            assert_eq!(settled(json!({"spec": spec}), None), expected, "{spec}");
        }
        for (spec, said) in [
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (json!({"ipFamilies": ["IPv6"]}), "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
            (
                json!({"ipFamilies": ["IPv4", "IPv6"]}),
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
            (
                json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
                "spec.clusterIPs[0]: Invalid value: []string{\"fd00::1\"}: IPv6 is not configured on this cluster",
            ),
        ] {
            let mut spec = spec;
            spec["type"] = json!("ClusterIP");
            assert_eq!(settled(json!({"spec": spec}), None), Err(vec![said.to_owned()]), "{spec}");
        }
    }

    #[test]
    fn an_update_keeps_the_policy() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack"}});
        let new = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}});
        assert_eq!(settled(new, Some(&old)), Ok(("PreferDualStack".to_owned(), vec!["IPv4".to_owned()])));
    }
}
