//! The `proxy` subresources of pods, services and nodes: a request is sent on to what they serve.
//!
//! ```text
//! /api/v1/namespaces/NS/services/[http:|https:]NAME[:PORT]/proxy/PATH?QUERY  ─▶  http[s]://ENDPOINT/PATH?QUERY
//! ```
//! Links that lead back to the same host, in `Location` and in HTML, are prefixed so that they come through the proxy again.
//! Upstream counterparts: `apimachinery/pkg/util/proxy`, `pkg/registry/core/{pod,service,node}` (`ResourceLocation`, v1.33).

use std::io::{Read, Write};
use std::net::IpAddr;

use api::{GroupResource, Key, Status};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use http::{HeaderMap, Method, Uri};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::Value;

use crate::backend::{self, Place, Security};
use crate::html;
use crate::http::negotiate::media_type;
use crate::http::respond::{self, Answer, Body};
use crate::http::{App, Call};
use crate::kubelet::kubelet_of;
use crate::registry::Target;
use crate::registry::tree::{items, number, text};

pub async fn serve(app: &App, call: &Call, target: &Target, upgrade: Option<OnUpgrade>, body: Body) -> Result<Answer, Status> {
    app.registry.catch_up().await?;
    let route = Route::of(call, target);
    let mut place = match target.kind.plural {
        "pods" => pod_place(app, target)?,
        "services" => service_place(app, target)?,
        _ => node_place(app, target)?,
    };
    place.path = route.onward(&call.raw_query);
    let host = host_of(call);
    let mut request = backend::onward(call, &place, &host, body, upgrade.is_some())?;
    forwarded(request.headers_mut(), call, &route);
    if let Some(upgrade) = upgrade {
        return backend::tunnel(app, &place, request, upgrade).await;
    }
    if route.path.is_empty() && matches!(call.method, Method::GET | Method::HEAD) {
        return Ok(respond_moved(call));
    }
    let response =
        backend::send(app, &place, request).await.map_err(|e| Status::unclassified(format!("error trying to reach service: {e}")))?;
    let mut answer = backend::pass_on(response);
    for name in ["origin", "methods", "headers", "credentials"] {
        answer.headers_mut().remove(format!("access-control-allow-{name}"));
    }
    rewrite(answer, &Rewriter { prefix: &route.prefix, place: &place, host: &host }).await
}

/// Where the proxy ends and the path behind it begins.
struct Route {
    /// `/api/v1/namespaces/ns/services/name/proxy`
    prefix: String,
    /// As the client wrote it: empty, or with its slash.
    path: String,
}

impl Route {
    fn of(call: &Call, target: &Target) -> Self {
        let segments = if target.kind.namespaced { 7 } else { 5 };
        let whole = &call.info.path;
        let end = whole.match_indices('/').nth(segments).map_or(whole.len(), |(at, _)| at);
        Route { prefix: whole[..end].to_owned(), path: whole[end..].to_owned() }
    }

    fn onward(&self, query: &str) -> String {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
    }
}

/// A page's relative links are right only below a slash.
fn respond_moved(call: &Call) -> Answer {
    let query = if call.raw_query.is_empty() { String::new() } else { format!("?{}", call.raw_query) };
    let mut answer = respond::bytes(301, "text/plain; charset=utf-8", Bytes::new());
    respond::header(&mut answer, "location", &format!("{}/{query}", call.info.path));
    answer
}

/// The name under which the client knows this server.
fn host_of(call: &Call) -> String {
    let header = call.headers.get(HOST).and_then(|v| v.to_str().ok()).map(str::to_owned);
    header.or_else(|| call.authority.clone()).unwrap_or_default()
}

fn forwarded(headers: &mut HeaderMap, call: &Call, route: &Route) {
    if let Ok(uri) = HeaderValue::from_str(&format!("{}{}", route.prefix, route.path)) {
        headers.insert("x-forwarded-uri", uri);
    }
    let Some(client) = call.client else { return };
    let before = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok()).map(|v| format!("{v}, ")).unwrap_or_default();
    if let Ok(chain) = HeaderValue::from_str(&format!("{before}{client}")) {
        headers.insert("x-forwarded-for", chain);
    }
}

/// `[scheme:]name[:port]`
fn split_name<'a>(kind: &str, id: &'a str) -> Result<(&'a str, &'a str, &'a str), Status> {
    let (scheme, name, port) = match *id.split(':').collect::<Vec<_>>() {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => ("?", "", ""),
    };
    if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
        return Err(Status::bad_request(format!("invalid {kind} request {id:?}")));
    }
    Ok((scheme, name, port))
}

fn security(scheme: &str) -> Security {
    if scheme == "https" { Security::Anyone } else { Security::Plain }
}

/// Not to this machine itself, nor to everyone. Upstream: `IsProxyableIP`.
fn allowed(host: &str) -> Result<(), Status> {
    let barred = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast(),
    };
    if host.parse().is_ok_and(|ip| !barred(ip)) { Ok(()) } else { Err(Status::bad_request("address not allowed")) }
}

fn node_place(app: &App, target: &Target) -> Result<Place, Status> {
    let (scheme, name, port) = split_name("node", &target.key.name)?;
    let place = kubelet_of(app, name)?;
    match port.parse() {
        Ok(port) if port != place.port => Ok(Place { port, security: security(scheme), ..place }),
        _ => Ok(place),
    }
}

fn pod_place(app: &App, target: &Target) -> Result<Place, Status> {
    let (scheme, name, port) = split_name("pod", &target.key.name)?;
    let pod = app.registry.find(&Target { key: Key::new(target.key.namespace.clone(), name), ..target.clone() })?.value();
    let ports = items(&pod, "/spec/containers").iter().flat_map(|c| items(c, "/ports"));
    let declared =
        |wanted: &str| ports.clone().find(|p| wanted.is_empty() || p["name"] == wanted).and_then(|p| p["containerPort"].as_u64());
    let default = if scheme == "https" { 443 } else { 80 };
    let port = port.parse().ok().or_else(|| declared(port).and_then(|p| u16::try_from(p).ok())).unwrap_or(default);
    let host = text(&pod, "/status/podIP");
    allowed(host)?;
    Ok(Place { host: host.to_owned(), port, security: security(scheme), path: String::new() })
}

fn service_place(app: &App, target: &Target) -> Result<Place, Status> {
    let (scheme, name, port) = split_name("service", &target.key.name)?;
    let key = Key::new(target.key.namespace.clone(), name);
    let mut port_name = port.to_owned();
    if let Ok(number_asked) = port.parse::<i64>() {
        let service = app.registry.find(&Target { key: key.clone(), ..target.clone() })?.value();
        let found = items(&service, "/spec/ports").iter().find(|p| number(p, "/port") == Some(number_asked));
        let missing = || Status::service_unavailable(format!("no service port {number_asked} found for service {name:?}"));
        port_name = text(found.ok_or_else(missing)?, "/name").to_owned();
    }
    let endpoints = app
        .registry
        .cache
        .get(&GroupResource::new("", "endpoints"))
        .and_then(|e| e.get(&key))
        .ok_or_else(|| Status::not_found(&target.resource(), name))?
        .value();
    let subsets = items(&endpoints, "/subsets");
    if subsets.is_empty() {
        return Err(Status::service_unavailable(format!("no endpoints available for service {name:?}")));
    }
    let mut order: Vec<&Value> = subsets.iter().collect();
    order.shuffle(&mut rand::rng());
    let found = order.into_iter().find_map(|subset| {
        let port =
            items(subset, "/ports").iter().find(|p| text(p, "/name") == port_name).and_then(|p| u16::try_from(p["port"].as_u64()?).ok())?;
        let ready: Vec<&Value> = items(subset, "/addresses").iter().filter(|address| is_of_its_pod(app, address)).collect();
        Some((text(ready.choose(&mut rand::rng())?, "/ip").to_owned(), port))
    });
    let (host, port) =
        found.ok_or_else(|| Status::service_unavailable(format!("no endpoints available for service {:?}", target.key.name)))?;
    Ok(Place { host, port, security: security(scheme), path: String::new() })
}

/// Endpoints are what anyone may write; the pod they name must have the address. Upstream: `isValidAddress`.
fn is_of_its_pod(app: &App, address: &Value) -> bool {
    let key = Key::new(text(address, "/targetRef/namespace"), text(address, "/targetRef/name"));
    let pod = app.registry.cache.get(&GroupResource::new("", "pods")).and_then(|pods| pods.get(&key));
    pod.is_some_and(|pod| items(&pod.value(), "/status/podIPs").iter().any(|ip| ip["ip"] == address["ip"]))
}

/// Makes links lead back through the proxy.
struct Rewriter<'a> {
    prefix: &'a str,
    place: &'a Place,
    host: &'a str,
}

impl Rewriter<'_> {
    /// Links to other hosts, and relative ones, stay.
    fn link(&self, link: &str) -> String {
        let Ok(uri) = link.parse::<Uri>() else { return link.to_owned() };
        let authority = uri.authority().map_or("", |a| a.as_str());
        let same_host = authority.is_empty() || authority == self.place.authority() || authority == self.host;
        if !same_host || !uri.path().starts_with('/') || authority.is_empty() && !link.starts_with('/') || link.starts_with("//") {
            return link.to_owned();
        }
        let scheme = uri
            .scheme_str()
            .filter(|_| authority == self.host && !authority.is_empty())
            .map(|s| format!("{s}://{authority}"))
            .unwrap_or_default();
        let (behind, anchor) = link.split_once('#').map_or((link, ""), |(link, anchor)| (link, anchor));
        let query = behind.split_once('?').map_or("", |(_, query)| query);
        let prefix = if uri.path().starts_with(self.prefix) { "" } else { self.prefix };
        let mut out = format!("{scheme}{prefix}{}", uri.path());
        for (mark, part) in [('?', query), ('#', anchor)] {
            if !part.is_empty() {
                out.push(mark);
                out.push_str(part);
            }
        }
        out
    }
}

async fn rewrite(mut answer: Answer, rewriter: &Rewriter<'_>) -> Result<Answer, Status> {
    let value =
        |answer: &Answer, name| answer.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default().to_owned();
    let location = value(&answer, LOCATION);
    if !location.is_empty() {
        respond::header(&mut answer, "location", &rewriter.link(&location));
        return Ok(answer);
    }
    let encoding = value(&answer, CONTENT_ENCODING);
    if media_type(&value(&answer, CONTENT_TYPE)) != "text/html" || !matches!(encoding.as_str(), "" | "gzip") {
        return Ok(answer);
    }
    let (mut parts, body) = answer.into_parts();
    let broken = |error: &dyn std::fmt::Display| Status::unclassified(format!("error trying to reach service: {error}"));
    let page = body.collect().await.map_err(|e| broken(&e))?.to_bytes();
    let page = if encoding.is_empty() { page.to_vec() } else { unpack(&page).map_err(|e| broken(&e))? };
    let page = html::rewrite_links(&page, |link| rewriter.link(link));
    let page = if encoding.is_empty() { page } else { pack(&page).map_err(|e| broken(&e))? };
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Answer::from_parts(parts, respond::full(page)))
}

fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut plain)?;
    Ok(plain)
}

fn pack(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_same_host_come_back_through_the_proxy() {
        let place = Place { host: "10.0.0.5".into(), port: 8080, security: Security::Plain, path: String::new() };
        let prefix = "/api/v1/namespaces/ns/services/web/proxy";
        let rewriter = Rewriter { prefix, place: &place, host: "localhost:8001" };
        let cases = [
            ("/a?b=c#d", "{}/a?b=c#d"),
            ("/", "{}/"),
            ("a/b", "a/b"),
            ("#top", "#top"),
            ("http://10.0.0.5:8080/a", "{}/a"),
            ("http://localhost:8001/a/", "http://localhost:8001{}/a/"),
            ("http://elsewhere/a", "http://elsewhere/a"),
            ("//elsewhere/a", "//elsewhere/a"),
            ("/api/v1/namespaces/ns/services/web/proxy/a", "{}/a"),
            ("mailto:a@b.c", "mailto:a@b.c"),
        ];
        for (link, expected) in cases {
            assert_eq!(rewriter.link(link), expected.replace("{}", prefix), "{link}");
        }
    }

    #[test]
    fn names_carry_scheme_and_port() {
        for (id, expected) in [
            ("web", Some(("", "web", ""))),
            ("web:http", Some(("", "web", "http"))),
            ("https:web:443", Some(("https", "web", "443"))),
            ("https:web:", Some(("https", "web", ""))),
            ("ftp:web:21", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(split_name("pod", id).ok(), expected, "{id}");
        }
        for (host, ok) in
            [("10.1.2.3", true), ("127.0.0.1", false), ("169.254.1.1", false), ("224.0.0.1", false), ("::1", false), ("", false)]
        {
            assert_eq!(allowed(host).is_ok(), ok, "{host}");
        }
    }
}
