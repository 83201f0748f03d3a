//! Real packets through real rules: a node, two pods and an outside client, each a network namespace of this machine.
//!
//! ```text
//! pod1 10.244.1.5 ─┐
//!                  ├─ node 192.0.2.1 ── client 192.0.2.2
//! pod2 10.244.1.6 ─┘
//! ```
//! Needs root, `ip`, `nft` and `conntrack`, as the proxy does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use api::{Cause, GroupResource, Key};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::fixtures::{endpoint, service, slice};
use crate::index::Index;
use crate::model::Place;
use crate::ruleset::{Family, Table};
use crate::{conntrack, nft};

const POD1: &str = "10.244.1.5";
const POD2: &str = "10.244.1.6";
const VIP: &str = "10.96.0.7:80";
const NODE_PORT: &str = "192.0.2.1:30080";

struct Lab {
    prefix: String,
    index: Index,
    table: Table,
    stop: Arc<AtomicBool>,
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for name in ["node", "pod1", "pod2", "client"] {
            drop(Command::new("ip").args(["netns", "del", &format!("{}-{name}", self.prefix)]).output());
        }
    }
}

impl Lab {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("kp{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let lab = Lab { prefix: prefix.clone(), index: Index::default(), table: Table::new(Family::V4), stop: Arc::default() };
        sh(&format!("for n in node pod1 pod2 client; do ip netns add {prefix}-$n; ip -n {prefix}-$n link set lo up; done"));
        for (name, ip, gateway) in [("pod1", POD1, "169.254.1.1"), ("pod2", POD2, "169.254.1.1"), ("client", "192.0.2.2", "192.0.2.1")] {
            sh(&format!(
                "ip -n {prefix}-node link add {name} type veth peer name eth0 netns {prefix}-{name}
                 ip -n {prefix}-node addr add {gateway}/32 dev {name}; ip -n {prefix}-node link set {name} up
                 ip -n {prefix}-node route add {ip}/32 dev {name}
                 ip -n {prefix}-{name} addr add {ip}/32 dev eth0; ip -n {prefix}-{name} link set eth0 up
                 ip -n {prefix}-{name} route add {gateway}/32 dev eth0; ip -n {prefix}-{name} route add default via {gateway} dev eth0"
            ));
        }
        sh(&format!(
            "ip netns exec {prefix}-node sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'; ip -n {prefix}-node route add default via 192.0.2.2 dev client"
        ));
        let base = lab.table.full();
        lab.inside("node", move || apply(&base));
        for pod in ["pod1", "pod2"] {
            lab.serve(pod);
        }
        lab
    }

    /// Runs `work` on a thread inside the namespace.
    fn inside<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(name, work).join().unwrap()
    }

    fn start<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let namespace = File::open(format!("/var/run/netns/{}-{name}", self.prefix)).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// A server on 8080, TCP and UDP, that answers with its name and the address it sees: `pod1 10.244.1.6`.
    fn serve(&self, pod: &'static str) {
        let (ready, started) = mpsc::channel();
        let (stop, told) = (self.stop.clone(), ready.clone());
        drop(self.start(pod, move || {
            let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
            listener.set_nonblocking(true).unwrap();
            told.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, peer)) => drop(stream.write_all(format!("{pod} {}", peer.ip()).as_bytes())),
                    Err(_) => std::thread::sleep(Duration::from_micros(200)),
                }
            }
        }));
        let stop = self.stop.clone();
        drop(self.start(pod, move || {
            let socket = UdpSocket::bind("0.0.0.0:8080").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            ready.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut [0; 16]) {
                    socket.send_to(format!("{pod} {}", peer.ip()).as_bytes(), peer).unwrap();
                }
            }
        }));
        started.recv().unwrap();
        started.recv().unwrap();
    }

    /// Writes the Service and its endpoints as the proxy would: one transaction, then conntrack.
    /// Applies the change; the lines of its transaction.
    fn set(&mut self, spec: Value, endpoints: Vec<Value>) -> usize {
        let cause = || Cause::new(GroupResource::new("", "services"), Key::new("default", "web"), 1);
        let mut slice = (*slice("web", endpoints)).clone();
        slice.ports.as_mut().unwrap()[0].protocol = spec["ports"][0]["protocol"].as_str().map(str::to_owned);
        self.index.set_service(Key::new("default", "web"), Some(Arc::new(service("web", spec))), cause());
        self.index.set_slice(&Arc::new(slice), false, cause());
        let place = Place { node: "n1".into(), zone: None, cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()] };
        let changes = self.index.compile(&place);
        let text = self.table.update(changes.v4);
        let lines = text.lines().count();
        self.inside("node", move || {
            apply(&text);
            runtime().block_on(conntrack::delete(changes.stale));
        });
        lines
    }

    fn tcp(&self, from: &str, to: &'static str) -> std::io::Result<String> {
        self.inside(from, move || tcp(to))
    }

    /// The servers that answer twenty connections.
    fn who(&self, from: &str, to: &'static str) -> BTreeSet<String> {
        self.inside(from, move || (0..20).map(|_| tcp(to).unwrap().split(' ').next().unwrap().to_owned()).collect())
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn apply(text: &str) {
    if !text.is_empty() {
        runtime().block_on(nft::apply(text)).unwrap();
    }
}

fn tcp(to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn spec(extra: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.96.0.7", "type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    spec
}

fn ready(ips: &[&str]) -> Vec<Value> {
    ips.iter().map(|ip| endpoint(ip, "n1", "ready")).collect()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn cluster_ip_and_node_port() {
    let mut lab = Lab::new();
    lab.set(spec(json!({})), ready(&[POD1, POD2]));
    for from in ["pod1", "pod2", "node", "client"] {
        assert_eq!(lab.who(from, VIP), names(&["pod1", "pod2"]), "{from}");
    }
    assert_eq!(lab.who("client", NODE_PORT), names(&["pod1", "pod2"]));
    assert_eq!(lab.who("pod1", NODE_PORT), names(&["pod1", "pod2"]));
    lab.set(spec(json!({})), ready(&[POD1]));
    assert_eq!(lab.tcp("pod2", VIP).unwrap(), format!("pod1 {POD2}"), "pods keep their address");
    assert!(!lab.tcp("client", NODE_PORT).unwrap().contains("192.0.2.2"), "outsiders are masqueraded");
    assert!(lab.tcp("pod1", VIP).unwrap().starts_with("pod1 "), "hairpin");
}

#[test]
fn no_endpoints_are_refused_at_once() {
    let mut lab = Lab::new();
    lab.set(spec(json!({})), vec![]);
    for (from, to) in [("pod1", VIP), ("node", VIP), ("client", VIP), ("client", NODE_PORT)] {
        let error = lab.tcp(from, to).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{from} {to}");
    }
    lab.set(spec(json!({})), ready(&[POD2]));
    assert_eq!(lab.who("pod1", VIP), names(&["pod2"]));
    let other_port = lab.tcp("pod1", "10.96.0.7:81").unwrap_err();
    assert_eq!(other_port.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn policy_local_keeps_the_client_and_the_node() {
    let mut lab = Lab::new();
    let local = || spec(json!({"externalTrafficPolicy": "Local"}));
    lab.set(local(), vec![endpoint(POD1, "n1", "ready"), endpoint(POD2, "n2", "ready")]);
    assert_eq!(lab.who("client", NODE_PORT), names(&["pod1"]));
    assert_eq!(lab.tcp("client", NODE_PORT).unwrap(), "pod1 192.0.2.2");
    assert_eq!(lab.who("pod1", NODE_PORT), names(&["pod1", "pod2"]), "pods are inside");
    lab.set(local(), vec![endpoint(POD2, "n2", "ready")]);
    assert_eq!(lab.tcp("client", NODE_PORT).unwrap_err().kind(), std::io::ErrorKind::TimedOut, "dropped, so that balancers notice");
    lab.set(spec(json!({"internalTrafficPolicy": "Local"})), vec![endpoint(POD1, "n1", "ready"), endpoint(POD2, "n2", "ready")]);
    assert_eq!(lab.who("pod2", VIP), names(&["pod1"]));
}

#[test]
fn affinity_sticks() {
    let mut lab = Lab::new();
    lab.set(spec(json!({"sessionAffinity": "ClientIP"})), ready(&[POD1, POD2]));
    for from in ["pod1", "pod2", "node"] {
        assert_eq!(lab.who(from, VIP).len(), 1, "{from}");
    }
    let first = lab.who("pod1", VIP);
    let left = if first.contains("pod1") { POD2 } else { POD1 };
    lab.set(spec(json!({"sessionAffinity": "ClientIP"})), ready(&[left]));
    assert_ne!(lab.who("pod1", VIP), first, "a gone endpoint is forgotten");
}

#[test]
fn affinity_ends_with_its_timeout_and_takes_a_new_one() {
    let mut lab = Lab::new();
    let sticky =
        |seconds: i32| spec(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}));
    lab.set(sticky(600), ready(&[POD1, POD2]));
    let first = lab.who("client", NODE_PORT);
    assert_eq!(first.len(), 1);
    lab.set(sticky(1), ready(&[POD1, POD2]));
    assert_eq!(lab.who("client", NODE_PORT), first, "a change of the timeout forgets nobody");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        std::thread::sleep(Duration::from_millis(1100));
        if lab.who("client", NODE_PORT) != first {
            break;
        }
        assert!(Instant::now() < deadline, "the client sticks for ever");
    }
}

#[test]
fn balancer_and_external_addresses() {
    let mut lab = Lab::new();
    let balanced = |extra: Value| {
        let mut spec = spec(
            json!({"type": "LoadBalancer", "ingress": [{"ip": "203.0.113.9", "ipMode": "VIP"}, {"ip": "192.0.2.1", "ipMode": "VIP"}], "externalIPs": ["203.0.113.10"]}),
        );
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        spec
    };
    let both = || vec![endpoint(POD1, "n1", "ready"), endpoint(POD2, "n2", "ready")];
    lab.set(balanced(json!({})), both());
    for address in ["203.0.113.9:80", "203.0.113.10:80", "192.0.2.1:80"] {
        assert_eq!(lab.who("client", address), names(&["pod1", "pod2"]), "{address}");
        assert_eq!(lab.who("pod1", address), names(&["pod1", "pod2"]), "{address}");
    }
    lab.set(balanced(json!({"externalTrafficPolicy": "Local"})), both());
    assert_eq!(lab.tcp("client", "203.0.113.9:80").unwrap(), "pod1 192.0.2.2", "the client is seen");
    lab.set(balanced(json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]})), both());
    assert_eq!(lab.who("client", "203.0.113.9:80").len(), 2);
    lab.set(balanced(json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]})), both());
    assert_eq!(lab.tcp("client", "203.0.113.9:80").unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(lab.who("client", "203.0.113.10:80").len(), 2, "the ranges are for the balancer's addresses");
    lab.set(balanced(json!({"ingress": [{"ip": "203.0.113.9", "ipMode": "Proxy"}]})), both());
    assert!(lab.tcp("client", "203.0.113.9:80").is_err(), "a proxy's address is its own affair");
}

#[test]
fn udp_moves_to_the_new_endpoint() {
    let mut lab = Lab::new();
    let udp = || json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "protocol": "UDP"}]});
    lab.set(udp(), ready(&[POD2]));
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answers) = mpsc::channel();
    // One socket, so one conntrack entry, all along.
    let client = lab.start("pod1", move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        for () in asked {
            let mut buffer = [0; 64];
            socket.send_to(b"?", VIP).unwrap();
            let length = socket.recv(&mut buffer).unwrap_or(0);
            answer.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).unwrap();
        }
    });
    ask.send(()).unwrap();
    assert!(answers.recv().unwrap().starts_with("pod2"));
    lab.set(udp(), ready(&[POD1]));
    ask.send(()).unwrap();
    assert!(answers.recv().unwrap().starts_with("pod1"));
    drop(ask);
    client.join().unwrap();
}

#[test]
fn no_connection_is_lost_while_endpoints_change() {
    let mut lab = Lab::new();
    lab.set(spec(json!({})), ready(&[POD1, POD2]));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = [("client", NODE_PORT), ("pod1", VIP)]
        .into_iter()
        .map(|(from, to)| {
            let stop = stop.clone();
            lab.start(from, move || {
                let (mut good, mut bad) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match tcp(to) {
                        Ok(_) => good += 1,
                        Err(error) => bad.push(error.to_string()),
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                (good, bad)
            })
        })
        .collect();
    for round in 0..30 {
        lab.set(spec(json!({})), ready(if round % 2 == 0 { &[POD1] } else { &[POD2, POD1] }));
        std::thread::sleep(Duration::from_millis(30));
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let (good, bad) = client.join().unwrap();
        assert!(good > 100 && bad.is_empty(), "{good} good, {bad:?}");
    }
}

#[test]
fn a_change_writes_its_own_rules_whatever_the_number_of_services() {
    let mut lab = Lab::new();
    let place = Place { node: "n1".into(), zone: None, cluster_cidrs: vec![] };
    let fragments: BTreeMap<Key, _> = (0..2000_u32)
        .map(|i| {
            let ip = IpAddr::from([10, 97, (i / 250) as u8, (i % 250) as u8 + 1]);
            let name = format!("s{i}");
            let service = service(&name, json!({"clusterIP": ip.to_string()}));
            let slices = BTreeMap::from([("s".to_owned(), slice(&name, ready(&[POD1, POD2])))]);
            let ports = crate::model::ports(&service, &slices, &place);
            (Key::new("default", name), crate::compile::fragment(&ports, Family::V4, &place))
        })
        .collect();
    let text = lab.table.update(fragments);
    lab.inside("node", move || apply(&text));
    let lines = lab.set(spec(json!({})), ready(&[POD1]));
    assert!(lines < 100, "{lines} lines for one change");
    assert_eq!(lab.who("pod2", VIP), names(&["pod1"]));
}
