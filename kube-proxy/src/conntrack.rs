//! UDP has no connections, so the kernel would send a client's packets to a dead endpoint as long as they keep coming.
//! Entries of endpoints that are gone are deleted, and, when a service gets its first endpoints, those that went astray.
//!
//! Upstream: pkg/proxy/conntrack/cleanup.go, v1.33.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tokio::process::Command;

use crate::model::{Endpoint, Port, Protocol};

/// Which entries to delete, in terms of the packet that opened them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stale {
    /// Packets to this address (the service's) and port that were sent on to this endpoint.
    Endpoint { to: Option<IpAddr>, port: u16, endpoint: IpAddr },
    /// Packets to this address and port, wherever they went.
    Service { to: Option<IpAddr>, port: u16 },
}

/// Compares the ports of one Service before and after.
pub fn plan(old: &[Port], new: &[Port]) -> BTreeSet<Stale> {
    let mut stale = BTreeSet::new();
    let same = |a: &Port, b: &Port| a.name == b.name && a.protocol == b.protocol && a.port == b.port;
    for port in old.iter().filter(|p| p.protocol == Protocol::Udp) {
        let now = new.iter().find(|p| same(p, port));
        let left: BTreeSet<Endpoint> = now.iter().flat_map(|p| endpoints(p)).collect();
        for gone in endpoints(port).difference(&left) {
            stale.extend(fronts(port).into_iter().map(|(to, port)| Stale::Endpoint { to, port, endpoint: gone.ip }));
        }
    }
    for port in new.iter().filter(|p| p.protocol == Protocol::Udp && !endpoints(p).is_empty()) {
        let before = old.iter().find(|p| same(p, port));
        if before.is_none_or(|p| endpoints(p).is_empty()) {
            stale.extend(fronts(port).into_iter().map(|(to, port)| Stale::Service { to, port }));
        }
    }
    stale
}

fn endpoints(port: &Port) -> BTreeSet<Endpoint> {
    port.endpoints.cluster.iter().chain(&port.endpoints.local).copied().collect()
}

/// Addresses and ports under which clients know the service port; no address: every address of the node.
fn fronts(port: &Port) -> Vec<(Option<IpAddr>, u16)> {
    let ips = port.cluster_ips.iter().chain(&port.external_ips).chain(&port.load_balancer_ips);
    let mut fronts: Vec<_> = ips.map(|ip| (Some(*ip), port.port)).collect();
    fronts.extend(port.node_port.map(|node_port| (None, node_port)));
    fronts
}

impl Stale {
    fn arguments(&self) -> Vec<String> {
        let (to, port, endpoint) = match self {
            Stale::Endpoint { to, port, endpoint } => (to, port, Some(endpoint)),
            Stale::Service { to, port } => (to, port, None),
        };
        let mut arguments: Vec<String> = ["-D", "-p", "udp"].map(str::to_owned).into();
        let v6 = to.as_ref().or(endpoint).is_some_and(IpAddr::is_ipv6);
        arguments.extend(["-f".to_owned(), if v6 { "ipv6" } else { "ipv4" }.to_owned()]);
        if let Some(to) = to {
            arguments.extend(["--orig-dst".to_owned(), to.to_string()]);
        }
        arguments.extend(["--orig-port-dst".to_owned(), port.to_string()]);
        if let Some(endpoint) = endpoint {
            arguments.extend(["--dst-nat".to_owned(), endpoint.to_string()]);
        }
        arguments
    }
}

/// Deletes the entries. That there is none is no error; a missing tool is told once per change.
pub async fn delete(stale: BTreeSet<Stale>) {
    for entry in stale {
        match Command::new("conntrack").args(entry.arguments()).output().await {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let complaint = String::from_utf8_lossy(&output.stderr);
                if !complaint.contains("0 flow entries") {
                    tracing::warn!(?entry, "conntrack: {}", complaint.trim());
                }
            }
            Err(error) => return tracing::warn!("cannot run conntrack (Debian package conntrack): {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fixtures::{endpoint, service, slice};
    use crate::model::{Place, ports};

    fn udp(endpoints: &[&str]) -> Vec<Port> {
        let spec =
            serde_json::json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 53, "protocol": "UDP", "nodePort": 30053}]});
        let mut slice = (*slice("dns", endpoints.iter().map(|ip| endpoint(ip, "n1", "ready")).collect())).clone();
        slice.ports.as_mut().unwrap()[0].protocol = Some("UDP".into());
        ports(&service("dns", spec), &BTreeMap::from([("s".to_owned(), slice.into())]), &Place::default())
    }

    #[test]
    fn what_becomes_stale() {
        let vip: Option<IpAddr> = Some("10.96.0.10".parse().unwrap());
        let gone: IpAddr = "10.0.0.2".parse().unwrap();
        let stale = plan(&udp(&["10.0.0.1", "10.0.0.2"]), &udp(&["10.0.0.1"]));
        let expected = [Stale::Endpoint { to: None, port: 30053, endpoint: gone }, Stale::Endpoint { to: vip, port: 53, endpoint: gone }];
        assert_eq!(stale.into_iter().collect::<Vec<_>>(), expected);
        let first = plan(&udp(&[]), &udp(&["10.0.0.1"]));
        assert_eq!(first.into_iter().collect::<Vec<_>>(), [Stale::Service { to: None, port: 30053 }, Stale::Service { to: vip, port: 53 }]);
        assert!(plan(&udp(&["10.0.0.1"]), &udp(&["10.0.0.1", "10.0.0.2"])).is_empty());
    }
}
