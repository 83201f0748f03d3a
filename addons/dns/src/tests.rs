//! The specification's examples, question by question.

use std::net::IpAddr;
use std::sync::Arc;

use api::Key;
use api::k8s_openapi::api::core::v1::Service;
use api::k8s_openapi::api::discovery::v1::EndpointSlice;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};

use crate::forward::Forwarder;
use crate::server::Server;
use crate::zone::{Zone, cluster_ips, service_of};

struct Fake {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Zone for Fake {
    fn has_namespace(&self, name: &str) -> bool {
        name == "default"
    }
    fn service(&self, key: &Key) -> Option<Arc<Service>> {
        self.services.iter().find(|s| Key::of(&***s) == *key).cloned()
    }
    fn slices(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        self.slices.iter().filter(|s| service_of(s).as_ref() == Some(service)).cloned().collect()
    }
    fn services_at(&self, ip: IpAddr) -> Vec<Arc<Service>> {
        self.services.iter().filter(|s| cluster_ips(s).contains(&ip)).cloned().collect()
    }
    fn slices_at(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        let text = ip.to_string();
        self.slices.iter().filter(|s| s.endpoints.iter().any(|e| e.addresses.contains(&text))).cloned().collect()
    }
}

fn service(name: &str, spec: Value) -> Arc<Service> {
    let service = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    Arc::new(serde_json::from_value(service).unwrap())
}

fn server() -> Server {
    let port = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let slice = json!({
        "metadata": {"namespace": "default", "name": "db-x", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.244.1.5"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.1.6"], "conditions": {"ready": true}},
            {"addresses": ["10.244.1.7"], "conditions": {"ready": false}},
        ],
    });
    let zone = Fake {
        services: vec![
            service("web", json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": port})),
            service("db", json!({"clusterIP": "None", "ports": port})),
            service("empty", json!({"clusterIP": "None", "ports": port})),
            service("ext", json!({"type": "ExternalName", "externalName": "example.com"})),
            service("alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
        ],
        slices: vec![Arc::new(serde_json::from_value(slice).unwrap())],
    };
    Server { zone: Arc::new(zone), domain: Name::from_ascii("cluster.local.").unwrap(), forwarder: Forwarder::new(Vec::new()) }
}

async fn ask(name: &str, kind: RecordType) -> Message {
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    server().respond(&request).await
}

#[tokio::test]
async fn answers() {
    use RecordType::{A, AAAA, CNAME, PTR, SRV, TXT};
    let cases: &[(&str, RecordType, &[&str])] = &[
        ("web.default.svc.cluster.local.", A, &["10.96.0.7"]),
        ("WEB.Default.svc.cluster.local.", A, &["10.96.0.7"]),
        ("web.default.svc.cluster.local.", AAAA, &["fd00::7"]),
        ("_http._tcp.web.default.svc.cluster.local.", SRV, &["0 100 80 web.default.svc.cluster.local."]),
        ("db.default.svc.cluster.local.", A, &["10.244.1.5", "10.244.1.6"]),
        ("db-0.db.default.svc.cluster.local.", A, &["10.244.1.5"]),
        ("10-244-1-6.db.default.svc.cluster.local.", A, &["10.244.1.6"]),
        (
            "_http._tcp.db.default.svc.cluster.local.",
            SRV,
            &["0 50 8080 db-0.db.default.svc.cluster.local.", "0 50 8080 10-244-1-6.db.default.svc.cluster.local."],
        ),
        ("ext.default.svc.cluster.local.", CNAME, &["example.com."]),
        ("ext.default.svc.cluster.local.", A, &["example.com."]),
        ("alias.default.svc.cluster.local.", A, &["web.default.svc.cluster.local.", "10.96.0.7"]),
        ("10-244-9-9.default.pod.cluster.local.", A, &["10.244.9.9"]),
        ("7.0.96.10.in-addr.arpa.", PTR, &["web.default.svc.cluster.local."]),
        ("5.1.244.10.in-addr.arpa.", PTR, &["db-0.db.default.svc.cluster.local."]),
        ("dns-version.cluster.local.", TXT, &["1.1.0"]),
    ];
    for (name, kind, expected) in cases {
        let response = ask(name, *kind).await;
        let data: Vec<String> = response.answers.iter().map(|r| r.data.to_string()).collect();
        assert_eq!(data, *expected, "{name} {kind}");
        assert!(response.metadata.authoritative && response.metadata.response_code == ResponseCode::NoError, "{name} {kind}");
    }
}

#[tokio::test]
async fn what_is_not_there() {
    let cases = [
        ("web.default.svc.cluster.local.", RecordType::MX, ResponseCode::NoError),
        ("db.default.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError),
        ("default.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        ("svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        ("_tcp.web.default.svc.cluster.local.", RecordType::SRV, ResponseCode::NoError),
        ("nobody.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("empty.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("web.other.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("other.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("db-9.db.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("_ftp._tcp.web.default.svc.cluster.local.", RecordType::SRV, ResponseCode::NXDomain),
        ("10-244-9.default.pod.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("google.com.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
    ];
    for (name, kind, code) in cases {
        let response = ask(name, kind).await;
        assert_eq!((response.metadata.response_code, response.answers.len()), (code, 0), "{name} {kind}");
        assert_eq!(response.authorities[0].record_type(), RecordType::SOA, "{name} {kind}");
    }
    assert_eq!(ask("example.com.", RecordType::A).await.metadata.response_code, ResponseCode::ServFail, "no resolver in this test");
}
