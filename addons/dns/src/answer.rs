//! Names of the cluster: the Kubernetes DNS specification 1.1 as a function from a question to records.
//!
//! ```text
//! SERVICE.NAMESPACE.svc.ZONE                  A/AAAA of the service, or of its ready pods if headless; CNAME for ExternalName
//! _PORT._PROTO.SERVICE.NAMESPACE.svc.ZONE     SRV
//! HOST.SERVICE.NAMESPACE.svc.ZONE             A/AAAA of one pod of a headless service
//! 10-244-1-5.NAMESPACE.pod.ZONE               A/AAAA
//! 5.1.244.10.in-addr.arpa                     PTR
//! ```
//! Pure. Upstream: github.com/kubernetes/dns/docs/specification.md; CoreDNS plugin/kubernetes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::Key;
use api::k8s_openapi::api::core::v1::Service;
use api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::zone::{Zone, cluster_ips, service_of};

/// Seconds that clients may keep an answer. Short, because pods move.
pub const TTL: u32 = 5;

#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// Whether the name exists; without records of the asked type that is "no data", else "no such name".
    pub exists: bool,
    pub answers: Vec<Record>,
    pub additionals: Vec<Record>,
    /// An ExternalName's target outside of the zone, whose addresses the caller must find.
    pub elsewhere: Option<Name>,
}

#[derive(Debug)]
pub enum Lookup {
    /// The name is ours to answer.
    Ours(Answer),
    /// Somebody else knows.
    Forward,
}

/// One address a service port can be reached at.
struct Target {
    ip: IpAddr,
    /// `web-0`, or the address with dashes.
    host: String,
    ports: Vec<(String, String, u16)>,
}

pub struct Answers<'a> {
    zone: &'a dyn Zone,
    /// `cluster.local.`
    domain: &'a Name,
    name: &'a Name,
    kind: RecordType,
}

/// Looks `name` up in the zone `domain`.
pub fn lookup(zone: &dyn Zone, domain: &Name, name: &Name, kind: RecordType) -> Lookup {
    let answers = Answers { zone, domain, name, kind };
    if let Some(ip) = reverse_address(name) {
        let names = answers.reverse(ip);
        return if names.is_empty() { Lookup::Forward } else { Lookup::Ours(answers.pointers(names)) };
    }
    if domain.zone_of(name) { Lookup::Ours(answers.forward()) } else { Lookup::Forward }
}

/// The SOA record that goes with every negative answer.
pub fn start_of_authority(domain: &Name, serial: u32) -> Record {
    let below = |label: &str| Name::from_ascii(label).and_then(|n| n.append_domain(domain)).unwrap_or_else(|_| domain.clone());
    let soa = SOA::new(below("ns.dns"), below("hostmaster"), serial, 7200, 1800, 86400, TTL);
    Record::from_rdata(domain.clone(), TTL, RData::SOA(soa))
}

impl Answers<'_> {
    fn forward(&self) -> Answer {
        let labels: Vec<String> = self.name.to_lowercase().iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        let inner = &labels[..labels.len() - usize::from(self.domain.num_labels())];
        let inner: Vec<&str> = inner.iter().map(String::as_str).collect();
        match inner.as_slice() {
            [] => self.apex(),
            ["dns-version"] => self.records(vec![RData::TXT(TXT::new(vec!["1.1.0".to_owned()]))]),
            ["svc" | "pod"] => Answer { exists: true, ..Answer::default() },
            [namespace, "svc" | "pod"] => Answer { exists: self.zone.has_namespace(namespace), ..Answer::default() },
            [address, namespace, "pod"] => self.pod(address, namespace),
            [service, namespace, "svc"] => self.service(namespace, service),
            [host, service, namespace, "svc"] => self.host(namespace, service, host),
            [port, protocol, service, namespace, "svc"] => self.port(namespace, service, port, protocol),
            _ => Answer::default(),
        }
    }

    fn apex(&self) -> Answer {
        match self.kind {
            RecordType::SOA => Answer { exists: true, answers: vec![start_of_authority(self.domain, 1)], ..Answer::default() },
            RecordType::NS => {
                let ns = Name::from_ascii("ns.dns").and_then(|n| n.append_domain(self.domain));
                self.records(ns.map(|n| RData::NS(NS(n))).into_iter().collect())
            }
            _ => Answer { exists: true, ..Answer::default() },
        }
    }

    /// Those of the records that were asked for; the name exists.
    fn records(&self, data: Vec<RData>) -> Answer {
        let wanted = |data: &RData| data.record_type() == self.kind || self.kind == RecordType::ANY;
        let answers = data.into_iter().filter(wanted).map(|data| Record::from_rdata(self.name.clone(), TTL, data)).collect();
        Answer { exists: true, answers, ..Answer::default() }
    }

    fn pod(&self, address: &str, namespace: &str) -> Answer {
        match dashed(address).filter(|_| self.zone.has_namespace(namespace)) {
            Some(ip) => self.records(vec![address_data(ip)]),
            None => Answer::default(),
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Answer {
        let key = Key::new(namespace, name);
        let Some(service) = self.zone.service(&key) else { return Answer::default() };
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return self.external(spec.external_name.as_deref().unwrap_or_default());
        }
        let ips = cluster_ips(&service);
        if self.kind == RecordType::SRV {
            return self.service_records(&key, &service, |_, _| true);
        }
        if !ips.is_empty() {
            return self.records(ips.into_iter().map(address_data).collect());
        }
        let targets = self.targets(&key, &service);
        // A headless service without ready pods has no name, as in CoreDNS.
        if targets.is_empty() { Answer::default() } else { self.records(targets.into_iter().map(|t| address_data(t.ip)).collect()) }
    }

    fn external(&self, target: &str) -> Answer {
        let Ok(target) = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) else { return Answer::default() };
        let alias = Record::from_rdata(self.name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
        let mut answer = Answer { exists: true, answers: vec![alias], ..Answer::default() };
        if self.kind == RecordType::CNAME {
            return answer;
        }
        // One step inside the zone; an alias of an alias is the client's to follow.
        let inside = Answers { name: &target, ..*self };
        if self.domain.zone_of(&target) {
            let found = if target == *self.name { Answer::default() } else { inside.forward_once() };
            answer.answers.extend(found.answers);
        } else {
            answer.elsewhere = Some(target);
        }
        answer
    }

    fn forward_once(&self) -> Answer {
        let alias = |record: &Record| record.record_type() == RecordType::CNAME;
        let labels: Vec<String> = self.name.to_lowercase().iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        match labels.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [service, namespace, "svc", ..] if !self.is_external(namespace, service) => {
                let mut answer = self.service(namespace, service);
                answer.answers.retain(|r| !alias(r));
                answer
            }
            _ => Answer::default(),
        }
    }

    fn is_external(&self, namespace: &str, name: &str) -> bool {
        let service = self.zone.service(&Key::new(namespace, name));
        service.is_some_and(|s| s.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName"))
    }

    fn host(&self, namespace: &str, service: &str, host: &str) -> Answer {
        let key = Key::new(namespace, service);
        if host.starts_with('_') {
            // `_tcp.web.default.svc`: on the way to a port's name.
            return Answer { exists: self.zone.service(&key).is_some(), ..Answer::default() };
        }
        let Some(object) = self.zone.service(&key) else { return Answer::default() };
        let matching = self.targets(&key, &object).into_iter().filter(|t| t.host.eq_ignore_ascii_case(host));
        let data: Vec<RData> = matching.map(|t| address_data(t.ip)).collect();
        if data.is_empty() { Answer::default() } else { self.records(data) }
    }

    fn port(&self, namespace: &str, service: &str, port: &str, protocol: &str) -> Answer {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else { return Answer::default() };
        let key = Key::new(namespace, service);
        let Some(object) = self.zone.service(&key) else { return Answer::default() };
        let answer = self.service_records(&key, &object, |name, proto| name == port && proto.eq_ignore_ascii_case(protocol));
        let any = Answers { kind: RecordType::SRV, ..*self };
        let exists = !answer.answers.is_empty()
            || !any.service_records(&key, &object, |name, proto| name == port && proto.eq_ignore_ascii_case(protocol)).answers.is_empty();
        Answer { exists, ..answer }
    }

    /// SRV records of the ports `wanted(name, protocol)`, with the addresses of their targets.
    fn service_records(&self, key: &Key, service: &Service, wanted: impl Fn(&str, &str) -> bool) -> Answer {
        let mut answer = Answer { exists: true, ..Answer::default() };
        let ips = cluster_ips(service);
        let name = |prefix: &str| {
            Name::from_ascii(format!("{prefix}{}.{}.svc", key.name, key.namespace)).and_then(|n| n.append_domain(self.domain))
        };
        let mut pairs: Vec<(Name, Vec<IpAddr>, u16)> = Vec::new();
        if ips.is_empty() {
            for target in self.targets(key, service) {
                let Ok(host) = name(&format!("{}.", target.host)) else { continue };
                let ports = target.ports.iter().filter(|(name, protocol, _)| wanted(name, protocol));
                pairs.extend(ports.map(|(_, _, port)| (host.clone(), vec![target.ip], *port)));
            }
        } else if let Ok(host) = name("") {
            let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
            let wanted = ports.filter(|p| wanted(p.name.as_deref().unwrap_or_default(), p.protocol.as_deref().unwrap_or("TCP")));
            pairs.extend(wanted.filter_map(|p| Some((host.clone(), ips.clone(), u16::try_from(p.port).ok()?))));
        }
        if self.kind != RecordType::SRV && self.kind != RecordType::ANY {
            return answer;
        }
        let weight = u16::try_from(100 / pairs.len().clamp(1, 100)).unwrap_or(1);
        for (host, ips, port) in pairs {
            let data = RData::SRV(SRV::new(0, weight, port, host.clone()));
            answer.answers.push(Record::from_rdata(self.name.clone(), TTL, data));
            for ip in ips {
                let record = Record::from_rdata(host.clone(), TTL, address_data(ip));
                if !answer.additionals.contains(&record) {
                    answer.additionals.push(record);
                }
            }
        }
        answer
    }

    /// The ready pods of a headless service, by address.
    fn targets(&self, key: &Key, service: &Service) -> Vec<Target> {
        if !cluster_ips(service).is_empty() {
            return Vec::new();
        }
        let mut found: BTreeMap<IpAddr, Target> = BTreeMap::new();
        for slice in self.zone.slices(key) {
            for (ip, endpoint) in ready(&slice) {
                let host = host_name(ip, endpoint);
                let target = found.entry(ip).or_insert_with(|| Target { ip, host, ports: Vec::new() });
                let ports = slice.ports.iter().flatten();
                target.ports.extend(ports.filter_map(|p| {
                    let name = p.name.clone().unwrap_or_default();
                    Some((name, p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), u16::try_from(p.port?).ok()?))
                }));
            }
        }
        found.into_values().collect()
    }

    /// The names of an address: services first, then pods that have a name under a headless service.
    fn reverse(&self, ip: IpAddr) -> Vec<String> {
        let services = self.zone.services_at(ip);
        if !services.is_empty() {
            let name = |s: &Service| format!("{}.{}.svc", Key::of(s).name, Key::of(s).namespace);
            return services.iter().map(|s| name(s)).collect();
        }
        let mut names = Vec::new();
        for slice in self.zone.slices_at(ip) {
            let Some(key) = service_of(&slice) else { continue };
            if self.zone.service(&key).is_none_or(|s| !cluster_ips(&s).is_empty()) {
                continue;
            }
            let here = ready(&slice).filter(|(address, _)| *address == ip);
            names.extend(here.map(|(ip, e)| format!("{}.{}.{}.svc", host_name(ip, e), key.name, key.namespace)));
        }
        names
    }

    fn pointers(&self, names: Vec<String>) -> Answer {
        let full = |name: String| Name::from_ascii(name).and_then(|n| n.append_domain(self.domain));
        self.records(names.into_iter().filter_map(|n| full(n).ok()).map(|n| RData::PTR(PTR(n))).collect())
    }
}

fn ready(slice: &EndpointSlice) -> impl Iterator<Item = (IpAddr, &Endpoint)> {
    let ready = slice.endpoints.iter().filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    ready.flat_map(|e| e.addresses.iter().filter_map(move |a| Some((a.parse().ok()?, e))))
}

fn host_name(ip: IpAddr, endpoint: &Endpoint) -> String {
    endpoint.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| ip.to_string().replace(['.', ':'], "-"))
}

fn address_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// `10-244-1-5` or `fd00--1` as an address.
fn dashed(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// The address that a name under in-addr.arpa or ip6.arpa spells backwards.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let text = name.to_lowercase().to_ascii();
    let text = text.trim_end_matches('.');
    if let Some(octets) = text.strip_suffix(".in-addr.arpa") {
        let forward: Vec<&str> = octets.rsplit('.').collect();
        return forward.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles: String = text.strip_suffix(".ip6.arpa")?.rsplit('.').collect();
    (nibbles.len() == 32).then(|| u128::from_str_radix(&nibbles, 16).ok()).flatten().map(|bits| IpAddr::V6(bits.into()))
}
