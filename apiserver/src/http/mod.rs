//! The path of a request: identity → permission → resource → handler → answer.
//!
//! ```text
//! TLS ([`serve`]) ─▶ authenticate ─▶ impersonate ─▶ RequestInfo ─▶ authorize ─▶ read | write | watch | tunnel | plain
//! ```
//! Invariants: nothing but health probes is answered before it is authorized; a panic costs one request; a write goes on when its client
//! goes away. Upstream counterpart: `apiserver/pkg/server/config.go` (`DefaultBuildHandlerChain`, v1.33).

pub mod connect;
pub mod info;
pub mod metrics;
pub mod negotiate;
pub mod options;
pub mod plain;
pub mod read;
pub mod respond;
pub mod serve;
pub mod table;
pub mod watch;
pub mod websocket;
pub mod write;
pub mod write_options;

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use api::{Gvr, Key, Status};
use auth::User;
use auth::authn::{Authenticator, Impersonation, bearer, bearer_of_protocols, impersonate};
use auth::authz::Attributes;
use auth::token::{Discovery as TokenDiscovery, Issuer};
use bytes::Bytes;
use futures::FutureExt;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE, USER_AGENT};
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use rustls_pki_types::CertificateDer;
use schema::Media;
use tokio_util::sync::CancellationToken;

use crate::backend::Backends;
use crate::discovery::Discovery;
use crate::registry::{Caller, Registry, Target};
use crate::{components, kubelet, proxy};
use info::{Query, RequestInfo};
use metrics::Metrics;
use negotiate::{Offers, Want};
use respond::Answer;

/// Largest body, as upstream.
const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// How much more is read of a larger one.
const BODY_OVERRUN: usize = 8 * 1024 * 1024;
/// For requests that are expected to end.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything a request handler needs.
pub struct App {
    pub registry: Arc<Registry>,
    pub authenticator: Authenticator,
    pub issuer: Issuer,
    pub token_discovery: TokenDiscovery,
    pub backends: Backends,
    /// Where this server is reached.
    pub advertised: SocketAddr,
    pub discovery: Discovery,
    /// Empty when it was built outside of a repository.
    pub git_commit: &'static str,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
    /// Bootstrap objects are there; `/readyz` says so.
    pub ready: AtomicBool,
}

/// The other end of a connection.
pub struct Peer {
    pub address: Option<IpAddr>,
    pub certificates: Vec<CertificateDer<'static>>,
}

/// One request, understood and permitted.
pub struct Call {
    pub method: Method,
    pub info: RequestInfo,
    pub query: Query,
    pub raw_query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub caller: Caller,
    pub want: Want,
    pub gzip: bool,
    /// The host of a request in HTTP/2, which has no `Host`.
    pub authority: Option<String>,
    pub client: Option<IpAddr>,
}

/// Answer one request. Never fails: every refusal is an answer.
pub async fn handle<B>(app: Arc<App>, peer: Arc<Peer>, request: Request<B>) -> Answer
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<respond::BoxError>,
{
    let started = Instant::now();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let info = RequestInfo::new(request.method(), request.uri().path(), &query);
    let long = is_long_running(&info, &query);
    let series = metrics::Series::of(&info);
    let refusal = negotiate::accept_error(request.headers(), &query);
    let guarded = AssertUnwindSafe(respond_to(app.clone(), peer, request, info, query)).catch_unwind();
    let outcome = if long { Ok(guarded.await) } else { tokio::time::timeout(REQUEST_TIMEOUT, guarded).await };
    let mut answer = match outcome {
        Ok(Ok(Ok(answer))) => answer,
        Ok(Ok(Err(status))) => respond::status(&status, refusal),
        Ok(Err(_)) => respond::status(&Status::internal("the server panicked while serving this request"), refusal),
        Err(_) => respond::status(&Status::timeout("request did not complete within 60s", 0), refusal),
    };
    // What is true now may be false in a moment.
    answer.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    app.metrics.observe(series, answer.status().as_u16(), started.elapsed(), long);
    answer
}

fn is_long_running(info: &RequestInfo, query: &Query) -> bool {
    info.verb == "watch"
        || info.subresource == "log" && query.flag("follow")
        || matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy")
}

async fn respond_to<B>(app: Arc<App>, peer: Arc<Peer>, mut request: Request<B>, info: RequestInfo, query: Query) -> Result<Answer, Status>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<respond::BoxError>,
{
    if plain::is_open(&info.path) {
        return Ok(plain::health(&app, &info.path, &query).await);
    }
    let user = Arc::new(identify(&app, &peer, request.headers_mut())?);
    authorize(&app, &info, &query, &user)?;
    let upgrade = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let target = if info.is_resource { Some(resolve(&info)?) } else { None };
    let want = match &target {
        Some(target) if !tunnels(&info) => negotiate::accept(&parts.headers, &query, offers(&info, target))?,
        _ => negotiate::accept_error(&parts.headers, &query),
    };
    let mut call = Call {
        want,
        method: parts.method,
        raw_query: parts.uri.query().unwrap_or_default().to_owned(),
        gzip: mentions_gzip(&parts.headers),
        caller: caller(user, &parts.headers)?,
        headers: parts.headers,
        body: Bytes::new(),
        info,
        query,
        authority: parts.uri.authority().map(ToString::to_string),
        client: peer.address,
    };
    call.caller.patches = call.method == Method::PATCH;
    if let Some(target) = target.as_ref().filter(|_| tunnels(&call.info)) {
        let body = if upgrade.is_some() { respond::full("") } else { body.map_err(Into::into).boxed_unsync() };
        return tunnel(&app, &call, target, upgrade, body).await;
    }
    if !matches!(call.method, Method::GET | Method::HEAD) {
        call.body = read_body(body).await?;
    }
    match target {
        Some(target) => finish(app, call, target, upgrade).await,
        None => plain::serve(&app, &call),
    }
}

/// What an answer can be shown as.
fn offers(info: &RequestInfo, target: &Target) -> Offers {
    match (info.verb.as_str(), info.subresource.as_str()) {
        ("watch", _) => Offers::Watch,
        (_, "binding" | "eviction" | "token" | "scale") => Offers::Objects,
        _ if target.kind.is_virtual() && target.kind.columns.is_empty() => Offers::Objects,
        _ => Offers::Tables,
    }
}

/// Writes run in a task of their own, so that they finish whatever happens to their client.
async fn finish(app: Arc<App>, call: Call, target: Target, upgrade: Option<OnUpgrade>) -> Result<Answer, Status> {
    let is_write = matches!(call.info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
    if !is_write {
        let answer = dispatch(&app, &call, &target).await?;
        let contents =
            if call.want.media == Media::Protobuf { websocket::Contents::ProtobufEvents } else { websocket::Contents::JsonEvents };
        return match upgrade {
            Some(upgrade) if call.info.verb == "watch" && websocket::is_asked(&call.headers) => {
                websocket::deliver(&call.headers, upgrade, answer, contents)
            }
            _ => Ok(answer),
        };
    }
    let task = tokio::spawn(async move {
        let mut outcome = dispatch(&app, &call, &target).await;
        if let Ok(answer) = &mut outcome {
            respond::add_warnings(answer, call.caller.take_warnings());
        }
        outcome
    });
    task.await.map_err(|error| Status::internal(format!("the write was interrupted: {error}")))?
}

fn tunnels(info: &RequestInfo) -> bool {
    matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log")
}

/// What another server answers.
async fn tunnel(app: &App, call: &Call, target: &Target, upgrade: Option<OnUpgrade>, body: respond::Body) -> Result<Answer, Status> {
    connect::admit(app, call, target).await?;
    match call.info.subresource.as_str() {
        "proxy" => proxy::serve(app, call, target, upgrade, body).await,
        _ => kubelet::serve(app, call, target, upgrade).await,
    }
}

async fn dispatch(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    if target.kind.kind == "ComponentStatus" {
        return components::serve(app, call, target).await;
    }
    match (call.info.verb.as_str(), target.subresource.as_str()) {
        ("get", "scale") => write::show_scale(app, call, target),
        ("get", _) => read::get(app, call, target).await,
        ("list", _) => read::list(app, call, target).await,
        ("watch", _) => read::watch(app, call, target).await,
        ("create", _) => write::create(app, call, target).await,
        ("update", _) => write::update(app, call, target).await,
        ("patch", _) => write::patch(app, call, target).await,
        ("delete", _) => write::delete(app, call, target).await,
        ("deletecollection", _) => write::delete_collection(app, call, target).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Who asks: certificate or token, then whom they act as. A token among a WebSocket's protocols is taken out: it goes no further.
fn identify(app: &App, peer: &Peer, headers: &mut HeaderMap) -> Result<User, Status> {
    let cache = &*app.registry.cache;
    let protocols = bearer_of_protocols(headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok()));
    let spoken = protocols.map_err(|why| {
        tracing::info!(why, "bearer token among protocols refused");
        Status::unauthorized("Unauthorized")
    })?;
    if let Some((_, others)) = &spoken {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(others).map_err(Status::internal)?);
    }
    let sent = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(bearer);
    let token = sent.or(spoken.as_ref().map(|(token, _)| token.as_str()));
    let user = app.authenticator.authenticate(&peer.certificates, token, jiff::Timestamp::now(), cache)?;
    let user = user.unwrap_or_else(User::anonymous);
    let pairs = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    match Impersonation::from_headers(pairs)? {
        Some(asked) => impersonate(&Arc::new(user), &asked, &app.registry.authorizer),
        None => Ok(user),
    }
}

fn authorize(app: &App, info: &RequestInfo, query: &Query, user: &Arc<User>) -> Result<(), Status> {
    let selectors = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    let attributes = Attributes {
        user: user.clone(),
        verb: info.verb.clone(),
        namespace: info.namespace.clone(),
        api_group: info.group.clone(),
        api_version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        name: info.name.clone(),
        path: info.path.clone(),
        resource_request: info.is_resource,
        field_selector: selectors.then(|| api::FieldSelector::parse(query.get("fieldSelector")).ok()).flatten(),
        label_selector: selectors.then(|| api::LabelSelector::parse(query.get("labelSelector")).ok()).flatten(),
    };
    app.registry.authorizer.check(&attributes)
}

fn caller(user: Arc<User>, headers: &HeaderMap) -> Result<Caller, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let agent = text(USER_AGENT.as_str()).split(' ').next().unwrap_or_default().to_owned();
    let cause = match text(api::cause::HEADER) {
        "" => None,
        given => Some(given.parse().map_err(|e| Status::bad_request(format!("{}: {e}", api::cause::HEADER)))?),
    };
    Ok(Caller::new(user, agent, cause))
}

fn mentions_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).any(|v| v.contains("gzip"))
}

async fn read_body<B>(body: B) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<respond::BoxError>,
{
    let mut body = std::pin::pin!(body);
    let (mut read, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("reading the request's body: {}", error.into())))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        match length {
            // A client that is still writing would not see the answer, so some more is read for nothing.
            length if length > BODY_LIMIT + BODY_OVERRUN => break,
            length if length > BODY_LIMIT => read.clear(),
            _ => read.push(data),
        }
    }
    if length > BODY_LIMIT {
        return Err(Status::too_large(format!("limit is {BODY_LIMIT}")));
    }
    Ok(match read.as_slice() {
        [one] => one.clone(),
        many => many.concat().into(),
    })
}

/// The row and object a path names. 404 for what is not served, 405 for verbs it does not have.
fn resolve(info: &RequestInfo) -> Result<Target, Status> {
    let gvr = Gvr::new(info.group.clone(), info.version.clone(), info.resource.clone());
    let kind = kinds::by_gvr(&gvr).ok_or_else(Status::no_such_resource)?;
    let version = kind.versions.iter().find(|v| **v == info.version).ok_or_else(Status::no_such_resource)?;
    let is_collection = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    let misplaced = if kind.namespaced {
        info.namespace.is_empty() && !is_collection
    } else {
        !info.namespace.is_empty() && kind.plural != "namespaces"
    };
    if misplaced {
        return Err(if info.verb == "create" { Status::method_not_allowed() } else { Status::no_such_resource() });
    }
    let verbs = match info.subresource.as_str() {
        "" => kind.verbs,
        name => kind.subresource(name).ok_or_else(Status::no_such_resource)?.verbs,
    };
    let verb = if info.verb == "watch" && !info.name.is_empty() { "get" } else { &info.verb };
    // A proxy passes on every method.
    if !verbs.contains(&verb) && info.subresource != "proxy" {
        return Err(Status::method_not_allowed());
    }
    let namespace = if kind.namespaced { info.namespace.clone() } else { String::new() };
    // A list of one name (by field selector) is still a list.
    let name = if is_collection && info.path.ends_with(&format!("/{}", info.resource)) { String::new() } else { info.name.clone() };
    Ok(Target { kind, version, key: Key::new(namespace, name), subresource: info.subresource.clone() })
}
