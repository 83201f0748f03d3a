//! Discovery: the table of kinds, as clients read it. Plain (`/api`, `/apis`, …) and aggregated (v2), made once at start.
//!
//! Upstream counterparts: `apiserver/pkg/endpoints/discovery`, `…/discovery/aggregated` (v1.33).

use std::collections::BTreeMap;

use api::Status;
use bytes::Bytes;
use http::header::{ETAG, IF_NONE_MATCH};
use kinds::{KINDS, Kind, Subresource};
use schema::Media;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use crate::http::Call;
use crate::http::negotiate::{self, Offers, Shape, Want};
use crate::http::respond::{self, Answer};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

struct Document {
    body: Bytes,
    etag: String,
}

pub struct Discovery {
    plain: BTreeMap<String, Document>,
    aggregated: BTreeMap<&'static str, Document>,
}

impl Document {
    fn new(body: &impl Serialize) -> Self {
        // What is made of strings, lists and flags has a JSON form.
        let body = Bytes::from(serde_json::to_string(body).unwrap_or_default() + "\n");
        let digest = Sha512::digest(&body);
        let etag = digest.iter().map(|b| format!("{b:02X}")).collect::<String>();
        Document { body, etag: format!("\"{etag}\"") }
    }

    /// For the few who want no plain JSON.
    fn rewritten(&self, want: Want) -> Result<Answer, Status> {
        let mut tree: Value = serde_json::from_slice(&self.body).map_err(Status::internal)?;
        // The lists of old are of v1 though they do not say so.
        tree.as_object_mut().map(|tree| tree.entry("apiVersion").or_insert_with(|| json!("v1")));
        Ok(respond::tree(200, &tree, want))
    }
}

impl Discovery {
    /// `address`: host:port, told to clients of `/api`.
    pub fn new(address: &str) -> Self {
        let mut plain = BTreeMap::new();
        plain.insert("/api".to_owned(), Document::new(&Versions::at(address)));
        let named: Vec<Group> = groups().into_iter().filter(|g| !g.is_empty()).map(group).collect();
        for entry in &named {
            let one = Group { kind: Some("APIGroup"), api_version: Some("v1"), ..entry.clone() };
            plain.insert(format!("/apis/{}", entry.name), Document::new(&one));
        }
        plain.insert("/apis".to_owned(), Document::new(&Groups { kind: "APIGroupList", api_version: "v1", groups: named }));
        for name in groups() {
            for version in versions(name) {
                let path = if name.is_empty() { format!("/api/{version}") } else { format!("/apis/{name}/{version}") };
                plain.insert(path, Document::new(&resources(name, version)));
            }
        }
        let (core, others): (Vec<&str>, Vec<&str>) = groups().into_iter().partition(|g| g.is_empty());
        let list = |groups: Vec<&'static str>| {
            let items: Vec<Value> = groups.into_iter().map(aggregated_group).collect();
            Document::new(&json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}))
        };
        let aggregated = BTreeMap::from([("/api", list(core)), ("/apis", list(others))]);
        Discovery { plain, aggregated }
    }

    pub fn serve(&self, path: &str, call: &Call) -> Result<Answer, Status> {
        let plain = self.plain.get(path).ok_or_else(Status::no_such_resource)?;
        let aggregated = self.aggregated.get(path);
        let want = negotiate::accept(&call.headers, &call.query, if aggregated.is_some() { Offers::Discovery } else { Offers::Objects })?;
        let (document, content_type) = match aggregated {
            Some(document) if want.shape == Shape::Discovery => (document, AGGREGATED),
            _ if want.media != Media::Json || want.pretty => return plain.rewritten(want),
            _ => (plain, negotiate::JSON),
        };
        let known = call.headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == document.etag.as_bytes());
        let mut answer =
            if known { respond::bytes(304, content_type, Bytes::new()) } else { respond::bytes(200, content_type, document.body.clone()) };
        if let Ok(etag) = document.etag.parse() {
            answer.headers_mut().insert(ETAG, etag);
        }
        respond::header(&mut answer, "vary", "Accept");
        Ok(answer)
    }

    /// What `GET /` lists.
    pub fn paths(&self) -> Vec<String> {
        let fixed = [
            "/.well-known/openid-configuration",
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
        ];
        let mut paths: Vec<String> = self.plain.keys().cloned().chain(fixed.map(str::to_owned)).collect();
        paths.sort();
        paths
    }
}

/// In the table's order, core first.
fn groups() -> Vec<&'static str> {
    let mut groups = Vec::new();
    for kind in KINDS {
        if !groups.contains(&kind.group) {
            groups.push(kind.group);
        }
    }
    groups
}

fn kinds_of(group: &str) -> impl Iterator<Item = &'static Kind> + '_ {
    KINDS.iter().filter(move |kind| kind.group == group)
}

/// Preferred first.
fn versions(group: &str) -> Vec<&'static str> {
    let mut versions = Vec::new();
    for version in kinds_of(group).flat_map(|kind| kind.versions) {
        if !versions.contains(version) {
            versions.push(*version);
        }
    }
    versions
}

fn group(name: &'static str) -> Group {
    let versions: Vec<GroupVersion> =
        versions(name).into_iter().map(|version| GroupVersion { group_version: format!("{name}/{version}"), version }).collect();
    Group { kind: None, api_version: None, name, preferred_version: versions.first().cloned(), versions }
}

fn resources(group: &'static str, version: &str) -> Resources {
    let mut resources = Vec::new();
    let mut kinds: Vec<&'static Kind> = kinds_of(group).filter(|k| k.versions.contains(&version)).collect();
    kinds.sort_by_key(|k| k.plural);
    for kind in kinds {
        resources.push(resource(kind));
        resources.extend(kind.subresources.iter().map(|sub| subresource(kind, sub)));
    }
    let api_version = (!group.is_empty()).then_some("v1");
    Resources { kind: "APIResourceList", api_version, group_version: api::key::api_version(group, version), resources }
}

fn resource(kind: &'static Kind) -> Resource {
    Resource {
        name: kind.plural.to_owned(),
        singular_name: kind.singular,
        namespaced: kind.namespaced,
        group: None,
        version: None,
        kind: kind.kind,
        verbs: kind.verbs,
        short_names: kind.short_names,
        categories: kind.categories,
    }
}

fn subresource(kind: &'static Kind, sub: &'static Subresource) -> Resource {
    let other = sub.served.as_ref().filter(|s| s.group != kind.group);
    Resource {
        name: format!("{}/{}", kind.plural, sub.name),
        singular_name: "",
        group: other.map(|s| s.group),
        version: other.map(|s| s.version),
        kind: sub.served.as_ref().map_or(kind.kind, |s| s.kind),
        verbs: sub.verbs,
        short_names: &[],
        categories: &[],
        ..resource(kind)
    }
}

/// The plain documents, their fields in upstream's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions<'a> {
    kind: &'a str,
    versions: [&'a str; 1],
    #[serde(rename = "serverAddressByClientCIDRs")]
    addresses: [ServerAddress<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServerAddress<'a> {
    #[serde(rename = "clientCIDR")]
    client_cidr: &'a str,
    server_address: &'a str,
}

impl<'a> Versions<'a> {
    fn at(server_address: &'a str) -> Self {
        Versions { kind: "APIVersions", versions: ["v1"], addresses: [ServerAddress { client_cidr: "0.0.0.0/0", server_address }] }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Groups {
    kind: &'static str,
    api_version: &'static str,
    groups: Vec<Group>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    name: &'static str,
    versions: Vec<GroupVersion>,
    preferred_version: Option<GroupVersion>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersion {
    group_version: String,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resources {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    group_version: String,
    resources: Vec<Resource>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    name: String,
    singular_name: &'static str,
    namespaced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    kind: &'static str,
    verbs: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    short_names: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    categories: &'static [&'static str],
}

fn aggregated_group(name: &'static str) -> Value {
    let version = |version: &str| {
        let mut kinds: Vec<&Kind> = kinds_of(name).filter(|k| k.versions.contains(&version)).collect();
        kinds.sort_by_key(|k| k.plural);
        let resources: Vec<Value> = kinds.into_iter().map(|kind| aggregated_resource(kind, version)).collect();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    };
    let versions: Vec<Value> = versions(name).into_iter().map(version).collect();
    let meta = if name.is_empty() { json!({"creationTimestamp": null}) } else { json!({"name": name, "creationTimestamp": null}) };
    json!({"metadata": meta, "versions": versions})
}

fn aggregated_resource(kind: &Kind, version: &str) -> Value {
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    let sub = |sub: &Subresource| {
        let (group, version, name) = sub.served.as_ref().map_or((kind.group, version, kind.kind), |s| (s.group, s.version, s.kind));
        json!({"subresource": sub.name, "responseKind": {"group": group, "version": version, "kind": name}, "verbs": sub.verbs})
    };
    if !kind.subresources.is_empty() {
        entry["subresources"] = kind.subresources.iter().map(sub).collect();
    }
    entry
}
