//! Requests that end at a kubelet: logs, exec, attach, port-forward.
//!
//! ```text
//! kubectl ══ SPDY or WebSocket v4 ══ API server ══ the same bytes over mutual TLS ══ kubelet ══ runtime
//! ```
//! An upgraded connection is a byte tunnel: nothing here understands the frames. WebSocket v5 (and port-forward over WebSocket) would
//! need translation and is refused, upon which kubectl falls back to SPDY. Logs over a WebSocket are written here: the kubelet sends text.
//! Upstream counterparts: `pkg/registry/core/pod/{rest/subresources.go,strategy.go}`, `pkg/kubelet/client` (v1.33).

use api::field::{Error as FieldError, Path};
use api::{GroupKind, GroupResource, Key, Status};
use form_urlencoded::Serializer;
use http::HeaderMap;
use http::header::UPGRADE;
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;

use crate::backend::{self, Place, Security};
use crate::http::info::Query;
use crate::http::options::optional_integer;
use crate::http::respond::{self, Answer};
use crate::http::{App, Call, websocket};
use crate::registry::Target;
use crate::registry::tree::{items, number, text};

const DEFAULT_KUBELET_PORT: i64 = 10250;
/// How much of a kubelet's refusal is passed on.
const MAX_REFUSAL: usize = 2048;

/// Serve a subresource of a pod that its kubelet answers.
pub async fn serve(app: &App, call: &Call, target: &Target, upgrade: Option<OnUpgrade>) -> Result<Answer, Status> {
    app.registry.catch_up().await?;
    let place = match target.subresource.as_str() {
        "log" => return logs(app, call, target, upgrade).await,
        "exec" | "attach" => stream_place(app, call, target)?,
        "portforward" => forward_place(app, call, target)?,
        _ => return Err(Status::no_such_resource()),
    };
    let upgrade = upgrade.ok_or_else(|| Status::bad_request("Upgrade request required"))?;
    refuse_untranslatable(&call.headers)?;
    let request = backend::onward(call, &place, &place.authority(), respond::full(""), true)?;
    backend::tunnel(app, &place, request, upgrade).await
}

async fn logs(app: &App, call: &Call, target: &Target, upgrade: Option<OnUpgrade>) -> Result<Answer, Status> {
    let answer = match log_place(app, call, target)? {
        Some(place) => ask(app, call, target, &place).await?,
        None => respond::text(200, ""),
    };
    match upgrade {
        Some(upgrade) => websocket::deliver(&call.headers, upgrade, answer, websocket::Contents::Bytes),
        None => Ok(answer),
    }
}

/// A plain request, its answer streamed. Refusals of the kubelet become a Status, as upstream.
async fn ask(app: &App, call: &Call, target: &Target, place: &Place) -> Result<Answer, Status> {
    let request = backend::onward(call, place, &place.authority(), respond::full(""), false)?;
    let response = backend::send(app, place, request).await.map_err(|e| Status::internal(format!("error dialing backend: {e}")))?;
    if response.status().is_success() {
        return Ok(backend::pass_on(response));
    }
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let said = String::from_utf8_lossy(&body[..body.len().min(MAX_REFUSAL)]).trim().to_owned();
    Err(match code {
        400 => Status::bad_request(said),
        404 => Status {
            message: format!("the server could not find the requested resource ( {} {})", target.resource(), target.key.name),
            ..Status::not_found(&target.resource(), &target.key.name)
        },
        503 => Status::service_unavailable(said),
        _ => Status::internal(said),
    })
}

/// WebSocket clients may offer several protocols; one that the kubelet speaks must be among them.
fn refuse_untranslatable(headers: &HeaderMap) -> Result<(), Status> {
    let is_websocket = headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        return Ok(());
    }
    let offered: Vec<&str> = headers
        .get_all("sec-websocket-protocol")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    let spoken =
        |p: &&str| matches!(*p, "v4.channel.k8s.io" | "v4.base64.channel.k8s.io" | "channel.k8s.io" | "base64.channel.k8s.io" | "");
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

pub fn kubelet_of(app: &App, name: &str) -> Result<Place, Status> {
    let nodes = GroupResource::new("", "nodes");
    let record = app.registry.cache.get(&nodes).and_then(|n| n.get(&Key::cluster(name))).ok_or_else(|| Status::not_found(&nodes, name))?;
    let node = record.value();
    let addresses = items(&node, "/status/addresses");
    let of_type = |wanted: &str| addresses.iter().find(|a| a["type"] == wanted).and_then(|a| a["address"].as_str());
    let host = ["InternalIP", "ExternalIP", "Hostname"].into_iter().find_map(of_type);
    let host =
        host.ok_or_else(|| Status::internal(format!("no preferred addresses found; known addresses: {}", node["status"]["addresses"])))?;
    let port = number(&node, "/status/daemonEndpoints/kubeletEndpoint/Port").filter(|p| *p != 0).unwrap_or(DEFAULT_KUBELET_PORT);
    Ok(Place { host: host.to_owned(), port: port as u16, security: Security::Kubelet, path: String::new() })
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

/// Upstream: `ValidatePodLogOptions`.
fn check_log_options(query: &Query, target: &Target) -> Result<(), Status> {
    let mut errors = Vec::new();
    for (name, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(number) = optional_integer(query, name)?.filter(|number| *number < least) {
            errors.push(FieldError::invalid(&Path::new(name), number, why));
        }
    }
    if !query.get("sinceSeconds").is_empty() && !query.get("sinceTime").is_empty() {
        errors.push(FieldError::forbidden(&Path::new(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&GroupKind::new("", "PodLogOptions"), &target.key.name, errors)) }
}

fn log_place(app: &App, call: &Call, target: &Target) -> Result<Option<Place>, Status> {
    check_log_options(&call.query, target)?;
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
    place.path =
        format!("/containerLogs/{}/{}/{}?{}", encode(&target.key.namespace), encode(&target.key.name), encode(&container), query.finish());
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
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {}",
            text(&pod, "/status/phase")
        )));
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
