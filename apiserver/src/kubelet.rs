//! Requests that end at a kubelet or in a pod: logs, exec, attach, port-forward, and the proxies.
//!
//! ```text
//! kubectl ══ SPDY or WebSocket v4 ══ API server ══ the same bytes over mutual TLS ══ kubelet ══ runtime
//! ```
//! An upgraded connection is a byte tunnel: nothing here understands the frames. WebSocket v5 (and port-forward over WebSocket) would
//! need translation and is refused, upon which kubectl falls back to SPDY.
//! Upstream counterparts: `pkg/registry/core/pod/{rest/subresources.go,strategy.go}`, `pkg/kubelet/client` (v1.33).

use std::sync::Arc;
use std::time::Duration;

use api::{GroupResource, Key, Status};
use form_urlencoded::Serializer;
use http::header::{CONNECTION, HOST, HeaderName, UPGRADE};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::respond::{self, Answer};
use crate::http::{App, Call};
use crate::registry::Target;
use crate::registry::tree::{items, number, text};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_KUBELET_PORT: i64 = 10250;
/// How much of a kubelet's refusal is passed on.
const MAX_REFUSAL: usize = 2048;

/// How this server reaches kubelets. Without a client certificate it can't.
pub struct Kubelets {
    tls: Option<TlsConnector>,
}

/// Where a request goes on.
struct Place {
    host: String,
    port: u16,
    tls: bool,
    path: String,
}

impl Kubelets {
    pub fn new(config: Option<ClientConfig>) -> Self {
        Kubelets { tls: config.map(|config| TlsConnector::from(Arc::new(config))) }
    }

    async fn connect(&self, place: &Place) -> anyhow::Result<Box<dyn Stream>> {
        let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((place.host.as_str(), place.port))).await??;
        tcp.set_nodelay(true)?;
        if !place.tls {
            return Ok(Box::new(tcp));
        }
        let Some(tls) = &self.tls else { anyhow::bail!("no kubelet client certificate is configured") };
        let name = ServerName::try_from(place.host.clone())?;
        Ok(Box::new(tls.connect(name, tcp).await?))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Serve a connecting subresource.
pub async fn serve(app: &Arc<App>, call: &Call, target: &Target, upgrade: Option<OnUpgrade>) -> Result<Answer, Status> {
    app.registry.catch_up().await?;
    let place = match (target.kind.plural, target.subresource.as_str()) {
        ("pods", "log") => match log_place(app, call, target)? {
            Some(place) => place,
            // Not on a node yet: nothing has been said.
            None => return Ok(respond::text(200, "")),
        },
        ("pods", "exec" | "attach") => stream_place(app, call, target)?,
        ("pods", "portforward") => forward_place(app, call, target)?,
        ("nodes", "proxy") => node_place(app, call, target)?,
        ("pods", "proxy") => pod_place(app, call, target)?,
        ("services", "proxy") => service_place(app, call, target)?,
        _ => return Err(Status::no_such_resource()),
    };
    let streams = matches!(target.subresource.as_str(), "exec" | "attach" | "portforward");
    match upgrade {
        Some(upgrade) => {
            if streams {
                refuse_untranslatable(&call.headers)?;
            }
            tunnel(app, call, &place, upgrade).await
        }
        None if streams => Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr over an upgraded connection: Upgrade request required")),
        None => forward(app, call, target, &place).await,
    }
}

/// WebSocket clients may offer several protocols; one that the kubelet speaks must be among them.
fn refuse_untranslatable(headers: &HeaderMap) -> Result<(), Status> {
    let is_websocket = headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        return Ok(());
    }
    let offered: Vec<&str> =
        headers.get_all("sec-websocket-protocol").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).collect();
    let spoken = |p: &&str| matches!(*p, "v4.channel.k8s.io" | "v4.base64.channel.k8s.io" | "channel.k8s.io" | "base64.channel.k8s.io" | "");
    if offered.is_empty() || offered.iter().any(spoken) {
        return Ok(());
    }
    Err(Status::bad_request(format!("unable to upgrade: none of the offered protocols is supported: {}", offered.join(", "))))
}

/// The pod, and where its kubelet listens; `None` when it is on no node.
fn pod_and_kubelet(app: &App, target: &Target) -> Result<(Value, Option<Place>), Status> {
    let pod = app.registry.find(target)?.value();
    let node = text(&pod, "/spec/nodeName").to_owned();
    if node.is_empty() {
        return Ok((pod, None));
    }
    Ok((pod, Some(kubelet_of(app, &node)?)))
}

fn kubelet_of(app: &App, name: &str) -> Result<Place, Status> {
    let nodes = GroupResource::new("", "nodes");
    let record = app.registry.cache.get(&nodes).and_then(|n| n.get(&Key::cluster(name))).ok_or_else(|| Status::not_found(&nodes, name))?;
    let node = record.value();
    let addresses = items(&node, "/status/addresses");
    let of_type = |wanted: &str| addresses.iter().find(|a| a["type"] == wanted).and_then(|a| a["address"].as_str());
    let host = ["InternalIP", "ExternalIP", "Hostname"].into_iter().find_map(of_type);
    let host = host.ok_or_else(|| Status::internal(format!("no preferred addresses found; known addresses: {}", node["status"]["addresses"])))?;
    let port = number(&node, "/status/daemonEndpoints/kubeletEndpoint/Port").filter(|p| *p != 0).unwrap_or(DEFAULT_KUBELET_PORT);
    Ok(Place { host: host.to_owned(), port: port as u16, tls: true, path: String::new() })
}

/// The container a request means. Upstream: `getContainer` / `LogLocation`.
fn container(pod: &Value, call: &Call, target: &Target) -> Result<String, Status> {
    let names = |field: &str| items(pod, field).iter().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect::<Vec<_>>();
    let (main, init, ephemeral) = (names("/spec/containers"), names("/spec/initContainers"), names("/spec/ephemeralContainers"));
    let (asked, pod_name) = (call.query.get("container"), &target.key.name);
    if !asked.is_empty() {
        if main.iter().chain(&init).chain(&ephemeral).any(|name| name == asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")));
    }
    match main.as_slice() {
        [one] if target.subresource != "log" || init.is_empty() => Ok(one.clone()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {pod_name}"))),
        [one] => Ok(one.clone()),
        many => {
            let mut message = format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", many.join(" "));
            if !init.is_empty() {
                message += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(message))
        }
    }
}

fn encode(segment: &str) -> String {
    form_urlencoded::byte_serialize(segment.as_bytes()).collect::<String>().replace('+', "%20")
}

fn log_place(app: &App, call: &Call, target: &Target) -> Result<Option<Place>, Status> {
    let (pod, kubelet) = pod_and_kubelet(app, target)?;
    let container = container(&pod, call, target)?;
    let Some(mut place) = kubelet else { return Ok(None) };
    let mut query = Serializer::new(String::new());
    for name in ["follow", "previous", "timestamps"] {
        if call.query.flag(name) {
            query.append_pair(name, "true");
        }
    }
    for name in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        let value = call.query.get(name);
        if !value.is_empty() {
            query.append_pair(name, value);
        }
    }
    place.path = format!("/containerLogs/{}/{}/{}?{}", encode(&target.key.namespace), encode(&target.key.name), encode(&container), query.finish());
    Ok(Some(place))
}

fn host_of(kubelet: Option<Place>, target: &Target) -> Result<Place, Status> {
    kubelet.ok_or_else(|| Status::bad_request(format!("pod {} does not have a host assigned", target.key.name)))
}

/// exec and attach: the options in the kubelet's words.
fn stream_place(app: &App, call: &Call, target: &Target) -> Result<Place, Status> {
    let (pod, kubelet) = pod_and_kubelet(app, target)?;
    let container = container(&pod, call, target)?;
    if matches!(text(&pod, "/status/phase"), "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!("cannot exec into a container in a completed pod; current phase is {}", text(&pod, "/status/phase"))));
    }
    let mut place = host_of(kubelet, target)?;
    let mut query = Serializer::new(String::new());
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if call.query.flag(ours) {
            query.append_pair(theirs, "1");
        }
    }
    for word in call.query.all("command") {
        query.append_pair("command", word);
    }
    let (sub, ns, name) = (&target.subresource, encode(&target.key.namespace), encode(&target.key.name));
    place.path = format!("/{sub}/{ns}/{name}/{}?{}", encode(&container), query.finish());
    Ok(place)
}

fn forward_place(app: &App, call: &Call, target: &Target) -> Result<Place, Status> {
    let (_, kubelet) = pod_and_kubelet(app, target)?;
    let mut place = host_of(kubelet, target)?;
    let mut query = Serializer::new(String::new());
    for port in call.query.all("ports") {
        query.append_pair("port", port);
    }
    place.path = format!("/portForward/{}/{}?{}", encode(&target.key.namespace), encode(&target.key.name), query.finish());
    Ok(place)
}

/// The path and query behind `…/proxy`, as the client wrote them.
fn proxied_path(call: &Call, target: &Target) -> String {
    let behind = call.info.path.split_once(&format!("/{}/proxy", &target.key.name)).map_or("", |(_, rest)| rest);
    let path = if behind.is_empty() { "/" } else { behind };
    if call.raw_query.is_empty() { path.to_owned() } else { format!("{path}?{}", call.raw_query) }
}

/// `[scheme:]name[:port]`
fn split_name(name: &str) -> (&str, &str, &str) {
    match *name.split(':').collect::<Vec<_>>() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", name, ""),
    }
}

fn node_place(app: &App, call: &Call, target: &Target) -> Result<Place, Status> {
    let (_, name, port) = split_name(&target.key.name);
    let mut place = kubelet_of(app, name)?;
    if let Ok(port) = port.parse() {
        place.port = port;
    }
    place.path = proxied_path(call, target);
    Ok(place)
}

fn pod_place(app: &App, call: &Call, target: &Target) -> Result<Place, Status> {
    let (scheme, name, port) = split_name(&target.key.name);
    refuse_https(scheme)?;
    let pod = app.registry.find(&Target { key: Key::new(target.key.namespace.clone(), name), ..target.clone() })?.value();
    let ports = items(&pod, "/spec/containers").iter().flat_map(|c| items(c, "/ports"));
    let declared = |wanted: &str| ports.clone().find(|p| wanted.is_empty() || p["name"] == wanted).and_then(|p| p["containerPort"].as_u64());
    let port = port.parse().ok().or_else(|| declared(port).map(|p| p as u16)).unwrap_or(80);
    let host = text(&pod, "/status/podIP");
    if host.is_empty() {
        return Err(Status::bad_request(format!("address not allowed: pod {name} has no address yet")));
    }
    Ok(Place { host: host.to_owned(), port, tls: false, path: proxied_path(call, target) })
}

fn service_place(app: &App, call: &Call, target: &Target) -> Result<Place, Status> {
    let (scheme, name, port) = split_name(&target.key.name);
    refuse_https(scheme)?;
    let key = Key::new(target.key.namespace.clone(), name);
    let service = app.registry.find(&Target { key: key.clone(), ..target.clone() })?.value();
    let wanted = items(&service, "/spec/ports").iter().find(|p| port.is_empty() || p["name"] == port || number(p, "/port") == port.parse().ok());
    let port_name = wanted.map(|p| text(p, "/name").to_owned());
    let unavailable = || Status::service_unavailable(format!("no endpoints available for service {name:?}"));
    let port_name = port_name.ok_or_else(|| Status::service_unavailable(format!("no service port {port:?} found for service {name:?}")))?;
    let endpoints = app.registry.cache.get(&GroupResource::new("", "endpoints")).and_then(|e| e.get(&key)).ok_or_else(unavailable)?.value();
    for subset in items(&endpoints, "/subsets") {
        let port = items(subset, "/ports").iter().find(|p| text(p, "/name") == port_name).and_then(|p| p["port"].as_u64());
        let host = items(subset, "/addresses").first().map(|a| text(a, "/ip"));
        if let (Some(port), Some(host)) = (port, host) {
            return Ok(Place { host: host.to_owned(), port: port as u16, tls: false, path: proxied_path(call, target) });
        }
    }
    Err(unavailable())
}

/// A pod's certificate is signed by nobody we know.
fn refuse_https(scheme: &str) -> Result<(), Status> {
    if scheme == "https" { Err(Status::bad_request("proxying to pods and services over https is not supported")) } else { Ok(()) }
}

/// The request as the other side gets it: our credentials, not the client's.
fn onward(call: &Call, place: &Place, upgrading: bool) -> Result<Request<Full<bytes::Bytes>>, Status> {
    let uri: Uri = place.path.parse().map_err(|e| Status::bad_request(format!("bad path: {e}")))?;
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri;
    for (name, value) in &call.headers {
        if passes(name, upgrading) {
            request.headers_mut().append(name, value.clone());
        }
    }
    let host = format!("{}:{}", place.host, place.port);
    request.headers_mut().insert(HOST, host.parse().map_err(Status::internal)?);
    Ok(request)
}

fn passes(name: &HeaderName, upgrading: bool) -> bool {
    let hop = matches!(name.as_str(), "connection" | "upgrade" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "content-length" | "host");
    let ours = matches!(name.as_str(), "authorization") || name.as_str().starts_with("impersonate-") || name.as_str() == api::cause::HEADER;
    !ours && (!hop || upgrading && matches!(name.as_str(), "connection" | "upgrade"))
}

async fn send(app: &App, place: &Place, request: Request<Full<bytes::Bytes>>) -> Result<http::Response<Incoming>, Status> {
    let failed = |error: &dyn std::fmt::Display| Status::internal(format!("error dialing backend: {error}"));
    let stream = app.kubelets.connect(place).await.map_err(|e| failed(&format!("{e:#}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    sender.send_request(request).await.map_err(|e| failed(&e))
}

/// Hand the client's connection through once the other side has agreed to the upgrade.
async fn tunnel(app: &App, call: &Call, place: &Place, upgrade: OnUpgrade) -> Result<Answer, Status> {
    let mut response = send(app, place, onward(call, place, true)?).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(pass_on(response));
    }
    let theirs = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let joined = async {
            let (client, backend) = tokio::try_join!(upgrade, theirs)?;
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await?;
            anyhow::Ok(())
        };
        if let Err(error) = joined.await {
            tracing::debug!(%error, "tunnel ended");
        }
    });
    let mut answer = respond::bytes(101, "", bytes::Bytes::new());
    *answer.headers_mut() = response.headers().clone();
    answer.headers_mut().entry(CONNECTION).or_insert(http::HeaderValue::from_static("Upgrade"));
    Ok(answer)
}

/// A plain request, its answer streamed. Refusals of the kubelet become a Status, as upstream.
async fn forward(app: &App, call: &Call, target: &Target, place: &Place) -> Result<Answer, Status> {
    let response = send(app, place, onward(call, place, false)?).await?;
    if target.subresource == "proxy" || response.status().is_success() {
        return Ok(pass_on(response));
    }
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let said = String::from_utf8_lossy(&body[..body.len().min(MAX_REFUSAL)]).trim().to_owned();
    Err(match code {
        400 => Status::bad_request(said),
        404 => Status { message: format!("the server could not find the requested resource ( {} {})", target.resource(), target.key.name), ..Status::not_found(&target.resource(), &target.key.name) },
        503 => Status::service_unavailable(said),
        _ => Status::internal(said),
    })
}

fn pass_on(response: http::Response<Incoming>) -> Answer {
    let (mut parts, body) = response.into_parts();
    for name in ["connection", "keep-alive", "transfer-encoding"] {
        parts.headers.remove(name);
    }
    http::Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}
