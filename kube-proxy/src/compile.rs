//! A service port becomes chains and elements.
//!
//! ```text
//! services    (address . protocol . port)  ─▶ service-…   dnat to one of the endpoints
//! nodeports   (protocol . port)            ─▶ external-…  masquerade or keep to local endpoints ─▶ service-…
//! no-endpoints, no-endpoint-nodeports      ─▶ refuse, or drop where only other nodes have endpoints
//! ```
//! Pure. Upstream: pkg/proxy/nftables/proxier.go (syncProxyRules), v1.33.

use std::net::IpAddr;

use crate::model::{Endpoint, Place, Port};
use crate::ruleset::{Family, Fragment, MASQUERADE, Slot};

/// Names longer than this are cut; the hash in front keeps them apart. nftables allows 128 with prefix and endpoint.
const MAX_NAME: usize = 70;

pub fn fragment(ports: &[Port], family: Family, place: &Place) -> Fragment {
    let mut fragment = Fragment::default();
    for port in ports {
        let mut compiler = Compiler::new(port, family, place, &mut fragment);
        compiler.run();
    }
    fragment
}

struct Compiler<'a> {
    port: &'a Port,
    family: Family,
    place: &'a Place,
    fragment: &'a mut Fragment,
    /// `1a2b3c4d-default/web/tcp/http`
    name: String,
    cluster: Vec<Endpoint>,
    local: Vec<Endpoint>,
}

impl<'a> Compiler<'a> {
    fn new(port: &'a Port, family: Family, place: &'a Place, fragment: &'a mut Fragment) -> Self {
        let of_family = |list: &[Endpoint]| list.iter().copied().filter(|e| is(family, &e.ip)).collect();
        let (cluster, local) = (of_family(&port.endpoints.cluster), of_family(&port.endpoints.local));
        Compiler { port, family, place, fragment, name: name(port), cluster, local }
    }

    fn run(&mut self) {
        let cluster_ips = self.addresses(&self.port.cluster_ips);
        if cluster_ips.is_empty() {
            return;
        }
        for ip in &cluster_ips {
            self.element("cluster-ips", ip.to_string(), "");
        }
        let internal = if self.port.internal_local { self.local.clone() } else { self.cluster.clone() };
        self.addressed(&cluster_ips, !internal.is_empty(), !self.cluster.is_empty(), "service");
        self.service_chain(&cluster_ips, &internal);
        self.external();
        self.hairpin();
    }

    fn addresses(&self, all: &[IpAddr]) -> Vec<IpAddr> {
        all.iter().copied().filter(|ip| is(self.family, ip)).collect()
    }

    fn element(&mut self, set: &'static str, key: String, value: &str) {
        self.fragment.elements.insert(Slot { set, key }, value.to_owned());
    }

    fn chain(&mut self, name: String, rules: Vec<String>) {
        self.fragment.chains.insert(name, rules);
    }

    /// What happens to new connections that find no usable endpoint.
    fn verdict_without(anywhere: bool) -> &'static str {
        if anywhere { "drop" } else { "goto refuse" }
    }

    /// Map entries of addresses: to the chain if it has endpoints, else to a refusal.
    fn addressed(&mut self, ips: &[IpAddr], usable: bool, anywhere: bool, chain: &str) {
        for ip in ips {
            let key = format!("{ip} . {} . {}", self.port.protocol, self.port.port);
            if usable || anywhere {
                let goto = format!("goto {chain}-{}", self.name);
                self.element("services", key.clone(), &goto);
            }
            if !usable {
                self.element("no-endpoints", key, Self::verdict_without(anywhere));
            }
        }
    }

    /// Sources outside of the cluster's pods would not be answered through this node.
    fn not_from_pods(&self) -> Option<String> {
        let cidrs: Vec<String> = self.place.cluster_cidrs.iter().filter(|c| is(self.family, &c.addr())).map(ToString::to_string).collect();
        (!cidrs.is_empty()).then(|| format!("{} saddr != {{ {} }}", self.family, cidrs.join(", ")))
    }

    fn service_chain(&mut self, cluster_ips: &[IpAddr], internal: &[Endpoint]) {
        // Policy Local wants two choices of endpoints: one chain for each.
        if self.cluster.is_empty() && internal.is_empty() {
            return;
        }
        let mut rules = Vec::new();
        if let Some(outside) = self.not_from_pods() {
            rules.extend(cluster_ips.iter().map(|ip| format!("{} daddr {ip} {outside} {MASQUERADE}", self.family)));
        }
        rules.extend(self.choose(internal));
        self.chain(format!("service-{}", self.name), rules);
    }

    /// Rules that send a new connection to one of the endpoints.
    fn choose(&mut self, endpoints: &[Endpoint]) -> Vec<String> {
        match (endpoints, self.port.affinity_seconds) {
            ([], _) => Vec::new(),
            (endpoints, Some(seconds)) => self.choose_sticky(endpoints, seconds),
            ([only], None) => vec![format!("meta l4proto {} dnat to {}", self.port.protocol, target(only))],
            (endpoints, None) => {
                let entries: Vec<String> = endpoints.iter().enumerate().map(|(i, e)| format!("{i} : {} . {}", e.ip, e.port)).collect();
                let choice = format!("numgen random mod {} map {{ {} }}", endpoints.len(), entries.join(", "));
                vec![format!("meta l4proto {} dnat {} addr . port to {choice}", self.port.protocol, self.family)]
            }
        }
    }

    /// Each endpoint remembers its clients in a set with a timeout; a known client goes where it was.
    fn choose_sticky(&mut self, endpoints: &[Endpoint], seconds: i32) -> Vec<String> {
        let address = if self.family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        let mut rules = Vec::new();
        let mut entries = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let id = format!("{}/{}", self.name, endpoint_name(endpoint));
            let (set, chain) = (format!("affinity-{id}"), format!("endpoint-{id}"));
            // The rule has the timeout, so that another one needs no other set and forgets nobody.
            self.fragment.sets.insert(set.clone(), format!("type {address}; flags dynamic,timeout;"));
            let remember = format!("update @{set} {{ {} saddr timeout {seconds}s }}", self.family);
            let dnat = format!("meta l4proto {} dnat to {}", self.port.protocol, target(endpoint));
            self.chain(chain.clone(), vec![remember, dnat]);
            rules.push(format!("{} saddr @{set} goto {chain}", self.family));
            entries.push(format!("{index} : goto {chain}"));
        }
        rules.push(format!("numgen random mod {} vmap {{ {} }}", endpoints.len(), entries.join(", ")));
        rules
    }

    /// NodePort, external and load balancer addresses.
    fn external(&mut self) {
        let external_ips = self.addresses(&self.port.external_ips);
        let balancer_ips = self.addresses(&self.port.load_balancer_ips);
        if external_ips.is_empty() && balancer_ips.is_empty() && self.port.node_port.is_none() {
            return;
        }
        let usable = if self.port.external_local { !self.local.is_empty() } else { !self.cluster.is_empty() };
        let anywhere = !self.cluster.is_empty();
        self.addressed(&external_ips, usable, anywhere, "external");
        self.addressed(&balancer_ips, usable, anywhere, "external");
        if let Some(node_port) = self.port.node_port {
            let key = format!("{} . {node_port}", self.port.protocol);
            if anywhere {
                let goto = format!("goto external-{}", self.name);
                self.element("nodeports", key.clone(), &goto);
            }
            if !usable {
                self.element("no-endpoint-nodeports", key, Self::verdict_without(anywhere));
            }
        }
        if anywhere {
            self.external_chain();
        }
        self.firewall(&balancer_ips);
    }

    fn external_chain(&mut self) {
        let (family, cluster) = (self.family, self.all_endpoints_chain());
        let mut rules = Vec::new();
        if self.port.external_local {
            // Pods and this node itself are inside: they may use every endpoint.
            let cidrs =
                self.place.cluster_cidrs.iter().filter(|c| is(family, &c.addr())).map(|c| format!("{family} saddr {c} goto {cluster}"));
            rules.extend(cidrs);
            rules.push(format!("fib saddr type local {MASQUERADE} goto {cluster}"));
            // Keeps the client's address, which is what policy Local is for.
            let local = self.local.clone();
            rules.extend(self.choose(&local));
        } else {
            rules.push(format!("{MASQUERADE} goto {cluster}"));
        }
        self.chain(format!("external-{}", self.name), rules);
    }

    /// The chain over all endpoints: the service's own, unless that is restricted to this node.
    fn all_endpoints_chain(&mut self) -> String {
        if !self.port.internal_local {
            return format!("service-{}", self.name);
        }
        let cluster = self.cluster.clone();
        let rules = self.choose(&cluster);
        let chain = format!("cluster-{}", self.name);
        self.chain(chain.clone(), rules);
        chain
    }

    /// Only the listed sources may use the load balancer's addresses.
    fn firewall(&mut self, balancer_ips: &[IpAddr]) {
        let ranges: Vec<String> = self.port.source_ranges.iter().filter(|r| is(self.family, &r.addr())).map(ToString::to_string).collect();
        if balancer_ips.is_empty() || ranges.is_empty() {
            return;
        }
        let chain = format!("firewall-{}", self.name);
        for ip in balancer_ips {
            self.element("firewall", format!("{ip} . {} . {}", self.port.protocol, self.port.port), &format!("goto {chain}"));
        }
        self.chain(chain, vec![format!("{} saddr != {{ {} }} drop", self.family, ranges.join(", "))]);
    }

    /// A pod that reaches itself through its Service must see another source address than its own.
    fn hairpin(&mut self) {
        let local: Vec<IpAddr> = self.cluster.iter().chain(&self.local).filter(|e| e.local).map(|e| e.ip).collect();
        for ip in local {
            self.element("hairpin", format!("{ip} . {ip}"), "");
        }
    }
}

fn is(family: Family, ip: &IpAddr) -> bool {
    ip.is_ipv4() == (family == Family::V4)
}

fn target(endpoint: &Endpoint) -> String {
    match endpoint.ip {
        IpAddr::V4(ip) => format!("{ip}:{}", endpoint.port),
        IpAddr::V6(ip) => format!("[{ip}]:{}", endpoint.port),
    }
}

/// nftables' names have no colons.
fn endpoint_name(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.ip.to_string().replace(':', "."), endpoint.port)
}

fn name(port: &Port) -> String {
    let full = format!("{}/{}/{}", port.service, port.protocol, port.name);
    let mut text = format!("{:08x}-{full}", hash(&full));
    text.truncate(MAX_NAME);
    text.trim_end_matches('/').to_owned()
}

/// FNV-1a: short, and the same in every run, so that names don't change with a restart.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
