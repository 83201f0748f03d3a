//! What a Service and its EndpointSlices mean on this node: addresses, ports and the endpoints that may be used.
//!
//! Pure. Upstream: pkg/proxy/{serviceport,endpoint,topology}.go, v1.33.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use api::Key;
use api::k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use api::k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};
use ipnet::IpNet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

/// As nftables spells it.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// Where this proxy runs.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub node: String,
    /// `topology.kubernetes.io/zone` of the node.
    pub zone: Option<String>,
    /// Pod addresses; a source outside of them is masqueraded. Empty: nothing is known to be outside.
    pub cluster_cidrs: Vec<IpNet>,
}

/// One endpoint of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: u16,
    /// On this node.
    pub local: bool,
}

/// One port of a Service with everything its rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub service: Key,
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub cluster_ips: Vec<IpAddr>,
    /// External and load balancer addresses.
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use the load balancer addresses; empty: everyone.
    pub source_ranges: Vec<IpNet>,
    pub node_port: Option<u16>,
    /// Seconds that a client sticks to its endpoint.
    pub affinity_seconds: Option<i32>,
    pub internal_local: bool,
    pub external_local: bool,
    pub endpoints: Endpoints,
}

/// The endpoints that take new connections, both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For traffic under policy Cluster.
    pub cluster: Vec<Endpoint>,
    /// For traffic under policy Local.
    pub local: Vec<Endpoint>,
    /// How many of this node are ready: what a load balancer that checks the node's health wants to know.
    pub ready_here: usize,
}

/// An endpoint of a slice as it stands there.
#[derive(Clone, Debug)]
struct Candidate {
    endpoint: Endpoint,
    ready: bool,
    /// Serving while it terminates: better than nothing.
    fallback: bool,
    zones: Vec<String>,
}

/// The ports of a Service; none if it is headless (or labelled so), an ExternalName or another proxy's.
pub fn ports(service: &Service, slices: &BTreeMap<String, Arc<EndpointSlice>>, place: &Place) -> Vec<Port> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let labels = service.metadata.labels.as_ref();
    let not_ours = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
    let other_proxy = labels.is_some_and(|l| not_ours.iter().any(|label| l.contains_key(*label)));
    let cluster_ips = cluster_ips(spec);
    if spec.type_.as_deref() == Some("ExternalName") || cluster_ips.is_empty() || other_proxy {
        return Vec::new();
    }
    let ports = spec.ports.iter().flatten();
    ports.filter_map(|port| service_port(service, spec, port, cluster_ips.clone(), slices, place)).collect()
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten();
    let all = if spec.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
        listed.collect()
    } else {
        spec.cluster_ip.iter().collect::<Vec<_>>()
    };
    // "None" does not parse: a headless service has no address here.
    all.into_iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn service_port(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    cluster_ips: Vec<IpAddr>,
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
    place: &Place,
) -> Option<Port> {
    let name = port.name.clone().unwrap_or_default();
    let protocol = Protocol::parse(port.protocol.as_deref())?;
    let parse = |ips: Option<&Vec<String>>| ips.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    let ingress = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref());
    let ingress = ingress.into_iter().flatten().filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let timeout = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds).unwrap_or(10800);
    let local = |policy: Option<&str>| policy == Some("Local");
    let candidates = candidates(slices, &name, protocol, place);
    Some(Port {
        service: Key::of(service),
        name,
        protocol,
        port: u16::try_from(port.port).ok()?,
        cluster_ips,
        external_ips: parse(spec.external_ips.as_ref()),
        load_balancer_ips: ingress.filter_map(|i| i.ip.as_ref()?.parse().ok()).collect(),
        source_ranges: spec.load_balancer_source_ranges.iter().flatten().filter_map(|r| r.trim().parse().ok()).collect(),
        node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
        affinity_seconds: affinity.then_some(timeout),
        internal_local: local(spec.internal_traffic_policy.as_deref()),
        external_local: local(spec.external_traffic_policy.as_deref()),
        endpoints: usable(&candidates, place),
    })
}

fn candidates(slices: &BTreeMap<String, Arc<EndpointSlice>>, name: &str, protocol: Protocol, place: &Place) -> Vec<Candidate> {
    let mut found: BTreeMap<(IpAddr, u16), Candidate> = BTreeMap::new();
    for slice in slices.values().filter(|s| s.address_type != "FQDN") {
        let matches = |p: &&api::k8s_openapi::api::discovery::v1::EndpointPort| {
            p.name.as_deref().unwrap_or_default() == name && Protocol::parse(p.protocol.as_deref()) == Some(protocol)
        };
        let ports = slice.ports.iter().flatten().filter(matches).filter_map(|p| u16::try_from(p.port?).ok());
        for port in ports {
            for candidate in slice.endpoints.iter().filter_map(|e| candidate(e, port, place)) {
                let known = found.entry((candidate.endpoint.ip, port)).or_insert_with(|| candidate.clone());
                // A pod may stand in two slices while it moves between them: the better word counts.
                known.ready |= candidate.ready;
            }
        }
    }
    found.into_values().collect()
}

fn candidate(endpoint: &SliceEndpoint, port: u16, place: &Place) -> Option<Candidate> {
    let ip = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    let hints = endpoint.hints.as_ref().and_then(|h| h.for_zones.as_ref());
    Some(Candidate {
        endpoint: Endpoint { ip, port, local: endpoint.node_name.as_deref() == Some(&place.node) },
        ready,
        fallback: serving && conditions.terminating.unwrap_or(false),
        zones: hints.into_iter().flatten().map(|z| z.name.clone()).collect(),
    })
}

/// Ready endpoints; if there is none, those that still serve while they terminate.
fn usable(candidates: &[Candidate], place: &Place) -> Endpoints {
    let pick = |from: &dyn Fn(&Candidate) -> bool| -> Vec<&Candidate> {
        let ready: Vec<&Candidate> = candidates.iter().filter(|c| c.ready && from(c)).collect();
        if !ready.is_empty() { ready } else { candidates.iter().filter(|c| c.fallback && from(c)).collect() }
    };
    let endpoints = |chosen: Vec<&Candidate>| chosen.into_iter().map(|c| c.endpoint).collect();
    let all = pick(&|_| true);
    let near: Vec<&Candidate> = match &place.zone {
        Some(zone) if all.iter().all(|c| !c.zones.is_empty()) => all.iter().copied().filter(|c| c.zones.contains(zone)).collect(),
        _ => Vec::new(),
    };
    Endpoints {
        cluster: endpoints(if near.is_empty() { all } else { near }),
        local: endpoints(pick(&|c| c.endpoint.local)),
        ready_here: candidates.iter().filter(|c| c.ready && c.endpoint.local).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{endpoint, service, slice};

    fn endpoints(json: Vec<serde_json::Value>, zone: Option<&str>) -> (Vec<String>, Vec<String>) {
        let place = Place { node: "n1".into(), zone: zone.map(str::to_owned), ..Place::default() };
        let slices = BTreeMap::from([("s".to_owned(), slice("web", json))]);
        let ports = ports(&service("web", serde_json::json!({"clusterIP": "10.96.0.1"})), &slices, &place);
        let ips = |list: &[Endpoint]| list.iter().map(|e| e.ip.to_string()).collect();
        (ips(&ports[0].endpoints.cluster), ips(&ports[0].endpoints.local))
    }

    #[test]
    fn terminating_endpoints_serve_only_if_nobody_else_does() {
        let ready = endpoint("10.0.0.1", "n2", "ready");
        let leaving = endpoint("10.0.0.2", "n1", "terminating");
        let broken = endpoint("10.0.0.3", "n1", "unready");
        let one = |ip: &str| vec![ip.to_owned()];
        assert_eq!(endpoints(vec![ready, leaving.clone(), broken.clone()], None), (one("10.0.0.1"), one("10.0.0.2")));
        assert_eq!(endpoints(vec![leaving, broken.clone()], None), (one("10.0.0.2"), one("10.0.0.2")));
        assert_eq!(endpoints(vec![broken], None), (vec![], vec![]));
    }

    #[test]
    fn zone_hints_count_when_every_endpoint_has_one() {
        let hinted = |ip: &str, zone: &str| {
            let mut json = endpoint(ip, "n2", "ready");
            json["hints"] = serde_json::json!({"forZones": [{"name": zone}]});
            json
        };
        let both = vec![hinted("10.0.0.1", "a"), hinted("10.0.0.2", "b")];
        assert_eq!(endpoints(both.clone(), Some("b")).0, ["10.0.0.2"]);
        assert_eq!(endpoints(both.clone(), Some("c")).0.len(), 2);
        assert_eq!(endpoints(both, None).0.len(), 2);
        assert_eq!(endpoints(vec![hinted("10.0.0.1", "a"), endpoint("10.0.0.3", "n2", "ready")], Some("a")).0.len(), 2);
    }

    #[test]
    fn headless_and_external_names_have_no_rules() {
        let place = Place::default();
        for spec in [serde_json::json!({"clusterIP": "None"}), serde_json::json!({"type": "ExternalName", "externalName": "x"})] {
            assert!(ports(&service("web", spec), &BTreeMap::new(), &place).is_empty());
        }
    }

    #[test]
    fn what_is_labelled_for_no_proxy_or_another_has_no_rules() {
        let mut web = service("web", serde_json::json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}));
        assert_eq!(ports(&web, &BTreeMap::new(), &Place::default()).len(), 1);
        for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
            web.metadata.labels = Some([(label.to_owned(), String::new())].into());
            assert!(ports(&web, &BTreeMap::new(), &Place::default()).is_empty(), "{label}");
        }
    }
}
