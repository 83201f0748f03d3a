//! The rules of typical Services as text. A changed snapshot is a changed contract with the kernel: read it.

use std::collections::BTreeMap;

use api::Key;
use serde_json::{Value, json};

use crate::compile::fragment;
use crate::fixtures::{endpoint, service, slice};
use crate::model::{Place, ports};
use crate::ruleset::{Family, Table};

fn place() -> Place {
    Place { node: "n1".into(), zone: None, cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/64".parse().unwrap()] }
}

fn rules_of(family: Family, spec: Value, endpoints: Vec<Value>) -> String {
    let slices = BTreeMap::from([("s".to_owned(), slice("web", endpoints))]);
    let ports = ports(&service("web", spec), &slices, &place());
    let mut table = Table::new(family);
    let text = table.update(BTreeMap::from([(Key::new("default", "web"), fragment(&ports, family, &place()))]));
    text.replace(" ip kube-proxy", "").replace(" ip6 kube-proxy", "")
}

fn rules(spec: Value, endpoints: Vec<Value>) -> String {
    rules_of(Family::V4, spec, endpoints)
}

fn two() -> Vec<Value> {
    vec![endpoint("10.244.1.5", "n1", "ready"), endpoint("10.244.2.7", "n2", "ready")]
}

#[test]
fn base_table() {
    insta::assert_snapshot!(crate::ruleset::base(Family::V4));
}

#[test]
fn cluster_ip() {
    insta::assert_snapshot!(rules(json!({"clusterIP": "10.96.0.7"}), two()));
}

#[test]
fn one_endpoint() {
    insta::assert_snapshot!(rules(json!({"clusterIP": "10.96.0.7"}), vec![endpoint("10.244.2.7", "n2", "ready")]));
}

#[test]
fn no_endpoints() {
    insta::assert_snapshot!(rules(json!({"clusterIP": "10.96.0.7", "externalIPs": ["192.0.2.1"]}), vec![]));
}

#[test]
fn node_port() {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    insta::assert_snapshot!(rules(json!({"clusterIP": "10.96.0.7", "type": "NodePort", "ports": ports}), two()));
}

#[test]
fn node_port_local() {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    let spec = json!({"clusterIP": "10.96.0.7", "type": "NodePort", "ports": ports, "externalTrafficPolicy": "Local"});
    insta::assert_snapshot!(rules(spec.clone(), two()));
    insta::assert_snapshot!("node_port_local_without_endpoints_here", rules(spec, vec![endpoint("10.244.2.7", "n2", "ready")]));
}

#[test]
fn load_balancer() {
    let spec = json!({"clusterIP": "10.96.0.7", "type": "LoadBalancer", "ingress": [{"ip": "192.0.2.9"}], "loadBalancerSourceRanges": ["198.51.100.0/24"]});
    insta::assert_snapshot!(rules(spec, two()));
}

#[test]
fn internal_local() {
    let spec = json!({"clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]});
    insta::assert_snapshot!(rules(spec, two()));
}

#[test]
fn session_affinity() {
    let spec =
        json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    insta::assert_snapshot!(rules(spec, two()));
}

#[test]
fn ipv6() {
    let spec = json!({"clusterIPs": ["10.96.0.7", "fd00:2::7"]});
    let endpoints = vec![endpoint("fd00:1::5", "n1", "ready"), endpoint("fd00:1::6", "n2", "ready")];
    insta::assert_snapshot!(rules_of(Family::V6, spec, endpoints));
}

/// nft's own check (`-c`) takes every table we write. Needs root, as the proxy does.
#[test]
fn nft_accepts_the_rules() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let ports_json = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    let specs = [
        json!({"clusterIPs": ["10.96.0.7", "fd00:2::7"], "ports": ports_json, "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}),
        json!({"clusterIPs": ["10.96.0.8", "fd00:2::8"], "ports": ports_json, "internalTrafficPolicy": "Local", "ingress": [{"ip": "192.0.2.9"}], "loadBalancerSourceRanges": ["198.51.100.0/24"]}),
        json!({"clusterIPs": ["10.96.0.9", "fd00:2::9"], "externalIPs": ["192.0.2.1"]}),
    ];
    for spec in specs {
        let v6 = vec![endpoint("fd00:1::5", "n1", "ready"), endpoint("fd00:1::6", "n2", "ready")];
        let slices = BTreeMap::from([("a".to_owned(), slice("web", two())), ("b".to_owned(), slice("web", v6))]);
        let ports = ports(&service("web", spec), &slices, &place());
        for family in [Family::V4, Family::V6] {
            let mut table = Table::new(family);
            table.update(BTreeMap::from([(Key::new("default", "web"), fragment(&ports, family, &place()))]));
            let mut nft =
                Command::new("unshare").args(["-n", "nft", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            nft.stdin.take().unwrap().write_all(table.full().as_bytes()).unwrap();
            let output = nft.wait_with_output().unwrap();
            assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), table.full());
        }
    }
}
