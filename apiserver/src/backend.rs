//! Connections onward: to kubelets, and to what pods and services serve.
//!
//! A request goes on as it came, less what was said to this server alone; an upgraded connection is a byte tunnel.
//! Upstream counterpart: `apimachinery/pkg/util/proxy/upgradeaware.go` (v1.33).

use std::time::Duration;

use api::Status;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::respond::{self, Answer, Body};
use crate::http::{App, Call};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How this server shows itself to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    /// As itself, to a kubelet it knows.
    Kubelet,
    /// To whoever answers: a pod's certificate is signed by nobody we know.
    Anyone,
}

/// Where a request goes on.
#[derive(Clone, Debug)]
pub struct Place {
    pub host: String,
    pub port: u16,
    pub security: Security,
    /// With the query.
    pub path: String,
}

impl Place {
    /// `host:port`, as a URL writes it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }
}

pub struct Backends {
    /// `None`: no client certificate, so kubelets can't be reached.
    pub kubelet: Option<TlsConnector>,
    pub anyone: TlsConnector,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Backends {
    async fn connect(&self, place: &Place) -> Result<Box<dyn Stream>, String> {
        let dialing = |error: &dyn std::fmt::Display| format!("dial tcp {}: {error}", place.authority());
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((place.host.as_str(), place.port)));
        let tcp = connecting.await.map_err(|_| dialing(&"i/o timeout"))?.map_err(|e| dialing(&in_go(&e)))?;
        tcp.set_nodelay(true).map_err(|e| dialing(&e))?;
        let tls = match place.security {
            Security::Plain => return Ok(Box::new(tcp)),
            Security::Kubelet => self.kubelet.as_ref().ok_or("no kubelet client certificate is configured")?,
            Security::Anyone => &self.anyone,
        };
        let name = ServerName::try_from(place.host.clone()).map_err(|e| e.to_string())?;
        Ok(Box::new(tls.connect(name, tcp).await.map_err(|e| e.to_string())?))
    }
}

/// What Go says of the errors that people meet.
fn in_go(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        _ => error.to_string(),
    }
}

/// The request as the other side gets it. `host`: what it hears as its name.
pub fn onward(call: &Call, place: &Place, host: &str, body: Body, upgrading: bool) -> Result<Request<Body>, Status> {
    let uri: Uri = place.path.parse().map_err(|e| Status::bad_request(format!("bad path: {e}")))?;
    let mut request = Request::new(body);
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri;
    let length = call.headers.get(CONTENT_LENGTH).map(|length| (CONTENT_LENGTH, length.clone()));
    let passed = call.headers.iter().filter(|(name, _)| passes(name, upgrading)).map(|(name, value)| (name.clone(), value.clone()));
    request.headers_mut().extend(passed.chain(length));
    request.headers_mut().insert(HOST, host.parse().map_err(Status::internal)?);
    Ok(request)
}

/// Not what concerns one connection only, nor what was said to this server.
fn passes(name: &HeaderName, upgrading: bool) -> bool {
    let hop = matches!(
        name.as_str(),
        "connection" | "upgrade" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "content-length" | "host"
    );
    let ours = *name == AUTHORIZATION || name.as_str().starts_with("impersonate-") || name.as_str() == api::cause::HEADER;
    !ours && (!hop || upgrading && matches!(*name, CONNECTION | UPGRADE))
}

/// Errors: what went wrong, for the caller to put in its words.
pub async fn send(app: &App, place: &Place, request: Request<Body>) -> Result<Response<Incoming>, String> {
    let stream = app.backends.connect(place).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    sender.send_request(request).await.map_err(|e| e.to_string())
}

/// Hand the client's connection through once the other side has agreed to the upgrade.
pub async fn tunnel(app: &App, place: &Place, request: Request<Body>, upgrade: OnUpgrade) -> Result<Answer, Status> {
    let mut response = send(app, place, request).await.map_err(|e| Status::internal(format!("error dialing backend: {e}")))?;
    match response.status().as_u16() {
        101 => {}
        code @ 200..400 => return Err(Status::unclassified(format!("invalid upgrade response: status code {code}"))),
        _ => return Ok(pass_on(response)),
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
    answer.headers_mut().entry(CONNECTION).or_insert(HeaderValue::from_static("Upgrade"));
    Ok(answer)
}

/// The answer, streamed.
pub fn pass_on(response: Response<Incoming>) -> Answer {
    let (mut parts, body) = response.into_parts();
    for name in ["connection", "keep-alive", "transfer-encoding", "upgrade"] {
        parts.headers.remove(name);
    }
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}
