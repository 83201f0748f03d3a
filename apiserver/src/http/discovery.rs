//! Discovery: what groups, versions and resources there are. Derived from the `KINDS` rows.
//!
//! Plain documents (`/api`, `/apis`, `/apis/GROUP`, `/apis/GROUP/VERSION`) and the aggregated one that kubectl asks for first.
//! Upstream: `apiserver/pkg/endpoints/discovery`, `apidiscovery.k8s.io/v2`.

use std::collections::BTreeMap;

use api::key::api_version;
use kinds::{KINDS, Kind, Subresource};
use serde_json::{Value, json};

/// The media type parameters with which a client asks for the aggregated document.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Upstream's order of groups, by which kubectl resolves short names; others follow alphabetically.
const GROUP_ORDER: &[&str] = &[
    "apiregistration.k8s.io", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch",
    "certificates.k8s.io", "networking.k8s.io", "policy", "rbac.authorization.k8s.io", "storage.k8s.io",
    "admissionregistration.k8s.io", "apiextensions.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io",
    "discovery.k8s.io", "flowcontrol.apiserver.k8s.io",
];

fn rank(group: &str) -> (usize, &str) {
    let place = match group {
        "" => 0,
        "apps" => 2,
        _ => match GROUP_ORDER.iter().position(|g| *g == group) {
            Some(0) => 1,
            Some(1) => 2,
            Some(place) => place + 2,
            None => usize::MAX,
        },
    };
    (place, group)
}

/// Groups in discovery order, each with its versions, preferred first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut versions: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
    for kind in KINDS {
        let known = versions.entry(kind.group).or_default();
        known.extend(kind.versions.iter().filter(|v| !known.contains(v)).copied().collect::<Vec<_>>());
    }
    let mut groups: Vec<_> = versions.into_iter().collect();
    groups.iter_mut().for_each(|(_, versions)| versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v))));
    groups.sort_by_key(|(group, _)| rank(group));
    groups
}

/// GA before beta before alpha, then the higher number: `v2`, `v1`, `v1beta2`, `v1alpha1`.
fn version_rank(version: &str) -> (u8, u32, u32) {
    let number = |text: &str| text.parse().unwrap_or(0);
    let rest = version.trim_start_matches('v');
    match (rest.split_once("beta"), rest.split_once("alpha")) {
        (Some((major, minor)), _) => (1, number(major), number(minor)),
        (_, Some((major, minor))) => (0, number(major), number(minor)),
        _ => (2, number(rest), 0),
    }
}

fn rows(group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |kind| kind.group == group && kind.versions.contains(&version))
}

/// `/api`. `address` is the server's own, as clients inside the cluster's network reach it.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`
pub fn group_list() -> Value {
    let groups: Vec<Value> = groups().iter().filter(|(group, _)| !group.is_empty()).map(|(group, versions)| group_body(group, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_body(group: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": api_version(group, v), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// `/apis/GROUP`, if there is such a group.
pub fn group(name: &str) -> Option<Value> {
    let (group, versions) = groups().into_iter().find(|(group, _)| !group.is_empty() && *group == name)?;
    let mut body = group_body(group, &versions);
    body["kind"] = json!("APIGroup");
    body["apiVersion"] = json!("v1");
    Some(body)
}

/// `/api/v1` or `/apis/GROUP/VERSION`, if that is served.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources: Vec<Value> = rows(group, version).flat_map(resources_of).collect();
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": resources,
    }))
}

/// A resource and its subresources, as one `APIResource` each.
fn resources_of(kind: &'static Kind) -> Vec<Value> {
    let mut own = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        own["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        own["categories"] = json!(kind.categories);
    }
    let mut all = if kind.verbs.is_empty() { Vec::new() } else { vec![own] };
    all.extend(kind.subresources.iter().map(|sub| subresource(kind, sub)));
    all
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut body = json!({
        "name": format!("{}/{}", kind.plural, sub.name),
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": sub.served.map_or(kind.kind, |served| served.kind),
        "verbs": sub.verbs,
    });
    if let Some(served) = sub.served {
        body["group"] = json!(served.group);
        body["version"] = json!(served.version);
    }
    body
}

/// The aggregated document: `/api` with `core`, `/apis` with the rest.
pub fn aggregated(core: bool) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions.iter().map(|version| aggregated_version(group, version)).collect();
            let metadata = if group.is_empty() { json!({"creationTimestamp": null}) } else { json!({"name": group, "creationTimestamp": null}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let mut resources: Vec<Value> = rows(group, version).map(|kind| aggregated_resource(kind, version)).collect();
    resources.sort_by(|a, b| a["resource"].as_str().cmp(&b["resource"].as_str()));
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(kind: &'static Kind, version: &str) -> Value {
    let response = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            let served = sub.served.map_or_else(|| response(kind.group, version, kind.kind), |s| response(s.group, s.version, s.kind));
            json!({"subresource": sub.name, "responseKind": served, "verbs": sub.verbs})
        })
        .collect();
    let mut body = json!({
        "resource": kind.plural,
        "responseKind": response(kind.group, version, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    for (name, list) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
        if !list.is_empty() {
            body[name] = json!(list);
        }
    }
    if !subresources.is_empty() {
        body["subresources"] = json!(subresources);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_kubernetes_sorts_them() {
        let mut versions = ["v1alpha1", "v1", "v1beta2", "v2", "v1beta1"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1"]);
    }

    #[test]
    fn every_row_is_discoverable_in_both_forms() {
        for kind in KINDS.iter().filter(|k| !k.verbs.is_empty()) {
            for version in kind.versions {
                let list = resource_list(kind.group, version).unwrap();
                assert!(list["resources"].as_array().unwrap().iter().any(|r| r["name"] == kind.plural), "{}", kind.plural);
            }
        }
        let names = |v: &Value| v["items"].as_array().unwrap().iter().map(|g| g["metadata"]["name"].clone()).collect::<Vec<_>>();
        assert_eq!(names(&aggregated(true)).len(), 1);
        assert_eq!(names(&aggregated(false)).len(), group_list()["groups"].as_array().unwrap().len());
    }
}
