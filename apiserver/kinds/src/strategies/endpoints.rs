//! What stands behind services.
//!
//! Upstream: `pkg/apis/core/validation/validation.go`, `pkg/apis/discovery/validation/validation.go` (v1.33).

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{EndpointSubset, Endpoints as CoreEndpoints};
use api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice as Slice};
use api::names;
use serde_json::Value;

use crate::meta::validate_object_meta_update;
use crate::strategy::prepare_for_update;
use crate::validation::field::{immutable, invalid, one_of, port, with};
use crate::validation::pod::non_special_ip;
use crate::value::{child, int, set};
use crate::{Kind, Strategy};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub struct Endpoints;

impl Strategy for Endpoints {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |endpoints: &CoreEndpoints| {
            let subsets = endpoints.subsets.iter().flatten().enumerate();
            subsets.flat_map(|(index, item)| subset(&Path::new("subsets").index(index), item)).collect()
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(self.validate_whole(kind, new));
        errors
    }
}

fn subset(path: &Path, subset: &EndpointSubset) -> ErrorList {
    let mut errors = Vec::new();
    let groups = [("addresses", subset.addresses.as_deref()), ("notReadyAddresses", subset.not_ready_addresses.as_deref())];
    if groups.iter().all(|(_, addresses)| addresses.is_none_or(<[_]>::is_empty)) {
        errors.push(Error::required(path, "must specify `addresses` or `notReadyAddresses`"));
    }
    for (name, addresses) in groups {
        for (index, address) in addresses.into_iter().flatten().enumerate() {
            let path = path.child(name).index(index);
            errors.extend(invalid(&path.child("ip"), &address.ip, names::is_valid_ip(&address.ip)));
            if let Some(hostname) = address.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
                errors.extend(invalid(&path.child("hostname"), hostname, names::is_dns1123_label(hostname)));
            }
            if let Some(node) = &address.node_name {
                errors.extend(invalid(&path.child("nodeName"), node, names::is_dns1123_subdomain(node)));
            }
            errors.extend(non_special_ip(&path.child("ip"), &address.ip));
        }
    }
    let ports = subset.ports.as_deref().unwrap_or_default();
    for (index, item) in ports.iter().enumerate() {
        let path = path.child("ports").index(index);
        match item.name.as_deref().unwrap_or("") {
            "" if ports.len() > 1 => errors.push(Error::required(&path.child("name"), "")),
            "" => {}
            name => errors.extend(invalid(&path.child("name"), name, names::is_dns1123_label(name))),
        }
        errors.extend(port(&path.child("port"), i64::from(item.port)));
        errors.extend(one_of(&path.child("protocol"), item.protocol.as_deref(), PROTOCOLS));
    }
    errors
}

pub struct EndpointSlice;

impl Strategy for EndpointSlice {
    /// Labels count as substance here: they say whose slice it is.
    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        let generation = int(old, "/metadata/generation");
        if new["metadata"]["labels"] != old["metadata"]["labels"] && int(new, "/metadata/generation") == generation {
            set(child(new, "metadata"), "generation", (generation + 1).into());
        }
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |slice: &Slice| {
            let mut errors = one_of(&Path::new("addressType"), Some(&slice.address_type), &["FQDN", "IPv4", "IPv6"]);
            let path = Path::new("endpoints");
            if slice.endpoints.len() > 1000 {
                errors.push(Error::too_many(&path, slice.endpoints.len(), 1000));
            } else {
                for (index, item) in slice.endpoints.iter().enumerate() {
                    errors.extend(endpoint(&path.index(index), item, &slice.address_type));
                }
            }
            errors.extend(slice_ports(&Path::new("ports"), slice.ports.as_deref().unwrap_or_default()));
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(immutable(&Path::new("addressType"), &new["addressType"], &old["addressType"]));
        errors
    }
}

fn endpoint(path: &Path, endpoint: &Endpoint, kind: &str) -> ErrorList {
    let mut errors = Vec::new();
    let addresses = path.child("addresses");
    match endpoint.addresses.len() {
        0 => errors.push(Error::required(&addresses, "must contain at least 1 address")),
        count if count > 100 => errors.push(Error::too_many(&addresses, count, 100)),
        _ => {}
    }
    for (index, address) in endpoint.addresses.iter().enumerate() {
        let path = addresses.index(index);
        let messages = match kind {
            "IPv4" => names::is_valid_ipv4(address),
            "IPv6" => names::is_valid_ipv6(address),
            "FQDN" => names::is_fully_qualified_domain_name(address),
            _ => Vec::new(),
        };
        let special = messages.is_empty() && matches!(kind, "IPv4" | "IPv6");
        errors.extend(invalid(&path, address, messages));
        if special {
            errors.extend(non_special_ip(&path, address));
        }
    }
    if let Some(node) = &endpoint.node_name {
        errors.extend(invalid(&path.child("nodeName"), node, names::is_dns1123_subdomain(node)));
    }
    let topology = endpoint.deprecated_topology.as_ref();
    errors.extend(crate::validation::field::labels(&path.child("deprecatedTopology"), topology));
    if let Some(hostname) = &endpoint.hostname {
        errors.extend(invalid(&path.child("hostname"), hostname, names::is_dns1123_label(hostname)));
    }
    errors
}

fn slice_ports(path: &Path, ports: &[EndpointPort]) -> ErrorList {
    if ports.len() > 20_000 {
        return vec![Error::too_many(path, ports.len(), 20_000)];
    }
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, item) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = item.name.as_deref().unwrap_or("");
        if !name.is_empty() {
            errors.extend(invalid(&path.child("name"), name, names::is_dns1123_label(name)));
        }
        if !seen.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        errors.extend(one_of(&path.child("protocol"), item.protocol.as_deref(), PROTOCOLS));
        if let Some(protocol) = &item.app_protocol {
            errors.extend(invalid(&path.child("appProtocol"), protocol, names::is_qualified_name(protocol)));
        }
    }
    errors
}
