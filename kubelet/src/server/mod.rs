//! The kubelet's HTTPS port: logs, exec, attach, port-forward, pods, statistics, health.
//!
//! Who asks and whether they may is the API server's to say, for every path (TokenReview, SubjectAccessReview).
//! Upstream: `pkg/kubelet/server/{server,auth}.go`, v1.33.

mod logs;
mod stats;
mod stream;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Container, Pod};
use machinery::delegated::{Action, Delegated};
use machinery::https::{self, Body, Peer};
use machinery::tls;
use tokio::net::TcpListener;

use crate::kubelet::Kubelet;
use crate::pod::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID, PodExt};
use crate::serving::Serving;

/// An HTTP code and what to say.
pub type Refusal = (u16, String);
type Answer = Result<Response<Body>, Refusal>;

pub async fn run(kubelet: Arc<Kubelet>, serving: Arc<Serving>) -> Result<()> {
    let address = (kubelet.config.bind_address, kubelet.config.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {}:{}", address.0, address.1))?;
    let certificate: Arc<dyn rustls::server::ResolvesServerCert> = match &kubelet.config.tls_files {
        Some((certificate, key)) => tls::certificate(Some((certificate, key)), Vec::new())?,
        None => serving,
    };
    let config = tls::server(certificate, kubelet.config.client_ca.as_deref())?;
    let delegated = Arc::new(Delegated::new(kubelet.client.clone()));
    let token = kubelet.token.clone();
    let handler = move |request, peer| handle(kubelet.clone(), delegated.clone(), request, peer);
    https::serve(listener, config, handler, token).await;
    Ok(())
}

async fn handle(kubelet: Arc<Kubelet>, delegated: Arc<Delegated>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
    let path = request.uri().path().to_owned();
    for (index, action) in actions(&kubelet.config.node_name, request.method(), &path).into_iter().enumerate().rev() {
        match delegated.check(&peer, request.headers(), action).await {
            Ok(_) => break,
            Err(refusal) if index == 0 => return https::text(refusal.code(), refusal.to_string()),
            Err(_) => {}
        }
    }
    match route(&kubelet, request, &path).await {
        Ok(response) => response,
        Err((code, message)) => https::text(code, message),
    }
}

/// What a request asks leave for: the broad permission first, then, where there is one, the fine one, which is tried before it.
fn actions(node: &str, method: &Method, path: &str) -> Vec<Action> {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let ask = |subresource: &str| Action::Resource {
        verb: verb.into(),
        resource: "nodes".into(),
        subresource: subresource.into(),
        name: node.into(),
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => vec![ask("stats")],
        "metrics" => vec![ask("metrics")],
        "logs" => vec![ask("log")],
        "healthz" | "pods" | "configz" => vec![ask("proxy"), ask(first)],
        "runningpods" => vec![ask("proxy"), ask("pods")],
        _ => vec![ask("proxy")],
    }
}

pub struct Query(HashMap<String, Vec<String>>);

impl Query {
    fn of(request: &Request<Incoming>) -> Self {
        let mut query: HashMap<String, Vec<String>> = HashMap::new();
        for (key, value) in form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
            query.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        Query(query)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str)
    }

    pub fn all(&self, key: &str) -> Vec<String> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    /// `1` and `true`, as the API server and curl write it.
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "true"))
    }
}

async fn route(kubelet: &Arc<Kubelet>, request: Request<Incoming>, path: &str) -> Answer {
    let query = Query::of(&request);
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Ok(https::text(200, "ok")),
        ["pods"] => pods(kubelet),
        ["runningpods"] => running_pods(kubelet).await,
        ["containerLogs", namespace, pod, container] => logs::logs(kubelet, &find(kubelet, namespace, pod)?, container, &query).await,
        ["exec", namespace, pod, rest @ ..] => {
            let (pod, container) = (find(kubelet, namespace, pod)?, last(rest)?);
            stream::exec(kubelet, &pod, container, &query, request).await
        }
        ["attach", namespace, pod, rest @ ..] => {
            let (pod, container) = (find(kubelet, namespace, pod)?, last(rest)?);
            stream::attach(kubelet, &pod, container, &query, request).await
        }
        ["portForward", namespace, pod, ..] => {
            let pod = find(kubelet, namespace, pod)?;
            stream::port_forward(kubelet, &pod, &query, request).await
        }
        ["run", namespace, pod, rest @ ..] => {
            let pod = find(kubelet, namespace, pod)?;
            stream::run(kubelet, &pod, last(rest)?, &query).await
        }
        ["stats", "summary"] => stats::summary(kubelet).await,
        ["metrics"] => stats::metrics(kubelet).await,
        ["metrics", "resource"] => stats::resource_metrics(kubelet).await,
        ["metrics", "cadvisor" | "probes"] => Ok(https::text(200, "")),
        _ => Err((404, "404 page not found".into())),
    }
}

/// The container is the last part of a path; a pod's uid may stand before it.
fn last<'a>(rest: &[&'a str]) -> Result<&'a str, Refusal> {
    rest.last().copied().ok_or_else(|| (404, "404 page not found".into()))
}

fn find(kubelet: &Kubelet, namespace: &str, name: &str) -> Result<Arc<Pod>, Refusal> {
    let pod = kubelet.pods.get(&api::key::Key::new(namespace, name));
    pod.ok_or_else(|| (404, format!("pod {name:?} not found in namespace {namespace:?}")))
}

fn pods(kubelet: &Kubelet) -> Answer {
    let items = kubelet.pods.list().iter().map(|pod| (**pod).clone()).collect();
    json(&List::<Pod> { items, ..List::default() })
}

/// The pods that have a running container, by what the runtime itself knows of them.
async fn running_pods(kubelet: &Kubelet) -> Answer {
    let containers = kubelet.cri.list_containers(HashMap::new()).await.map_err(|e| (500, e.to_string()))?;
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    for found in containers.into_iter().filter(|c| c.state == k8s_cri::v1::ContainerState::ContainerRunning as i32) {
        let label = |name: &str| found.labels.get(name).cloned();
        let Some(uid) = label(LABEL_POD_UID) else { continue };
        let pod = pods.entry(uid.clone()).or_default();
        pod.metadata.uid = Some(uid);
        pod.metadata.name = label(LABEL_POD_NAME);
        pod.metadata.namespace = label(LABEL_POD_NAMESPACE);
        let image = found.image.map(|image| image.image);
        let container = Container { name: label(LABEL_CONTAINER_NAME).unwrap_or_default(), image, ..Container::default() };
        pod.spec.get_or_insert_default().containers.push(container);
    }
    json(&List::<Pod> { items: pods.into_values().collect(), ..List::default() })
}

fn json(value: &impl serde::Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(|e| (500, e.to_string()))?;
    let mut response = Response::new(https::full(body));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The running container of this name.
async fn running(kubelet: &Kubelet, pod: &Pod, container: &str) -> Result<Option<String>, Refusal> {
    let labels = [(LABEL_POD_UID, pod.uid()), (LABEL_CONTAINER_NAME, container)];
    let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let found = kubelet.cri.list_containers(labels).await.map_err(|e| (500, e.to_string()))?;
    let running = found.into_iter().filter(|c| c.state == k8s_cri::v1::ContainerState::ContainerRunning as i32);
    Ok(running.max_by_key(|c| c.created_at).map(|c| c.id))
}
