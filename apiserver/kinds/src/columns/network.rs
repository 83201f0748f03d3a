//! Services, what stands behind them and in front of them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{AGE, NAME, label_selector, labels, or, or_none, string, wide};
use crate::Column;
use crate::value::{int, list, scalar, text};

pub const SERVICE: &[Column] = &[
    NAME,
    string("Type", |o, _| text(o, "/spec/type").into()),
    string("Cluster-IP", |o, _| or_none(text(o, "/spec/clusterIPs/0").to_owned()).into()),
    string("External-IP", |o, _| external_ip(o).into()),
    string("Port(s)", |o, _| or_none(ports(o)).into()),
    AGE,
    wide(string("Selector", |o, _| labels(o, "/spec/selector").into())),
];

fn ports(service: &Value) -> String {
    let one = |port: &Value| {
        let (number, node_port, protocol) = (int(port, "/port"), int(port, "/nodePort"), text(port, "/protocol"));
        if node_port > 0 { format!("{number}:{node_port}/{protocol}") } else { format!("{number}/{protocol}") }
    };
    list(service, "/spec/ports").iter().map(one).collect::<Vec<_>>().join(",")
}

fn external_ip(service: &Value) -> String {
    let external: Vec<String> = strings(list(service, "/spec/externalIPs"));
    match text(service, "/spec/type") {
        "ClusterIP" | "NodePort" => or_none(external.join(",")),
        "LoadBalancer" => {
            let all: Vec<String> = load_balancer(service).into_iter().chain(external).collect();
            or(all.join(","), "<pending>")
        }
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn load_balancer(object: &Value) -> BTreeSet<String> {
    list(object, "/status/loadBalancer/ingress")
        .iter()
        .map(|point| match text(point, "/ip") {
            "" => text(point, "/hostname"),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .map(str::to_owned)
        .collect()
}

fn strings(values: &[Value]) -> Vec<String> {
    values.iter().map(|value| scalar(Some(value)).into_owned()).collect()
}

/// The first three, and how many more.
fn first_three(items: &[String]) -> String {
    match items {
        [a, b, c, rest @ ..] if !rest.is_empty() => format!("{a},{b},{c} + {} more...", rest.len()),
        all => all.join(","),
    }
}

pub const ENDPOINTS: &[Column] = &[NAME, string("Endpoints", |o, _| endpoints(o).into()), AGE];

fn endpoints(object: &Value) -> String {
    let mut found = Vec::new();
    for subset in list(object, "/subsets") {
        let addresses = strings(&list(subset, "/addresses").iter().map(|a| a["ip"].clone()).collect::<Vec<_>>());
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            found.extend(addresses);
            continue;
        }
        for port in ports {
            found.extend(addresses.iter().map(|ip| host_port(ip, int(port, "/port"))));
        }
    }
    if list(object, "/subsets").is_empty() { "<none>".to_owned() } else { first_three(&found) }
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    string("AddressType", |o, _| text(o, "/addressType").into()),
    string("Ports", |o, _| {
        let port = |p: &Value| {
            let number = scalar(p.get("port"));
            let name = scalar(p.get("name"));
            match (number.is_empty(), p.get("name").is_some_and(|n| !n.is_null())) {
                (false, _) => number.into_owned(),
                (true, true) => name.into_owned(),
                (true, false) => "*".to_owned(),
            }
        };
        or(first_three(&list(o, "/ports").iter().map(port).collect::<Vec<_>>()), "<unset>").into()
    }),
    string("Endpoints", |o, _| {
        let all: Vec<String> = list(o, "/endpoints").iter().flat_map(|e| strings(list(e, "/addresses"))).collect();
        or(first_three(&all), "<unset>").into()
    }),
    AGE,
];

pub const INGRESS: &[Column] = &[
    NAME,
    string("Class", |o, _| or_none(text(o, "/spec/ingressClassName").to_owned()).into()),
    Column {
        description: "Hosts that incoming requests are matched against before the ingress rule",
        ..string("Hosts", |o, _| hosts(o).into())
    },
    Column {
        description: "Address is a list containing ingress points for the load-balancer",
        ..string("Address", |o, _| load_balancer(o).into_iter().collect::<Vec<_>>().join(",").into())
    },
    Column {
        description: "Ports of TLS configurations that open",
        ..string("Ports", |o, _| if list(o, "/spec/tls").is_empty() { "80".into() } else { "80, 443".into() })
    },
    AGE,
];

fn hosts(ingress: &Value) -> String {
    let rules = list(ingress, "/spec/rules");
    let mut found: Vec<&str> = Vec::new();
    for (seen, host) in rules.iter().map(|rule| text(rule, "/host")).enumerate() {
        if found.len() == 3 {
            return format!("{} + {} more...", found.join(","), rules.len() - seen.min(3));
        }
        if !host.is_empty() {
            found.push(host);
        }
    }
    or(found.join(","), "*")
}

pub const INGRESS_CLASS: &[Column] = &[
    NAME,
    Column {
        description: "Controller that is responsible for handling this class",
        ..string("Controller", |o, _| text(o, "/spec/controller").into())
    },
    Column { description: "A reference to a resource with additional parameters", ..string("Parameters", |o, _| parameters(o).into()) },
    AGE,
];

fn parameters(class: &Value) -> String {
    let Some(target) = class.pointer("/spec/parameters").filter(|p| !p.is_null()) else { return "<none>".to_owned() };
    let group = text(target, "/apiGroup");
    let dot = if group.is_empty() { "" } else { "." };
    format!("{}{dot}{group}/{}", text(target, "/kind"), text(target, "/name"))
}

pub const NETWORK_POLICY: &[Column] = &[NAME, string("Pod-Selector", |o, _| label_selector(o, "/spec/podSelector").into()), AGE];

pub const IP_ADDRESS: &[Column] = &[NAME, string("ParentRef", |o, _| parent(&o["spec"]["parentRef"]).into()), AGE];

fn parent(reference: &Value) -> String {
    let mut name = text(reference, "/resource").to_lowercase();
    for (separator, field) in [(".", "/group"), ("/", "/namespace"), ("/", "/name")] {
        let part = text(reference, field);
        if !part.is_empty() {
            name = format!("{name}{separator}{part}");
        }
    }
    name
}

pub const SERVICE_CIDR: &[Column] = &[NAME, string("CIDRs", |o, _| strings(list(o, "/spec/cidrs")).join(",").into()), AGE];
