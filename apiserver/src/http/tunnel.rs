//! Byte tunnels: logs, exec, attach and port-forward to a kubelet; proxying to nodes, pods and services.
//!
//! The API server authorizes, finds the target, and then copies bytes: it does not look into SPDY or WebSocket frames. What the target
//! answers is passed on, its upgrade included. Upstream: `pkg/registry/core/{pod,node,service}/rest`, `apimachinery/pkg/util/proxy/upgradeaware.go`.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::Status;
use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A response or request body of any origin.
pub type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a tunnel leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub address: IpAddr,
    pub port: u16,
    pub scheme: Scheme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A kubelet: our client certificate, its certificate checked against the cluster's CA.
    Kubelet,
    /// A pod or service, plainly.
    Http,
    /// A pod or service by TLS. As upstream, its certificate is not checked: it is the user's own.
    Https,
}

/// Opens connections to kubelets, pods and services.
#[derive(Clone)]
pub struct Dialer {
    kubelet: TlsConnector,
    any: TlsConnector,
}

impl Dialer {
    /// `certificate` and `key`: the API server's client identity towards kubelets; `ca`: whom to believe that it is a kubelet.
    pub fn new(certificate: &Path, key: &Path, ca: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in machinery::https::read_certificates(ca)? {
            roots.add(authority).with_context(|| format!("unusable CA in {}", ca.display()))?;
        }
        let chain = machinery::https::read_certificates(certificate)?;
        let kubelet = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, machinery::https::read_key(key)?)
            .context("unusable kubelet client certificate")?;
        let any = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unchecked))
            .with_no_client_auth();
        Ok(Dialer { kubelet: TlsConnector::from(Arc::new(kubelet)), any: TlsConnector::from(Arc::new(any)) })
    }

    /// Passes `request` on to `target` under `path_and_query` and its answer back; if the target switches protocols, so does the caller's connection.
    /// Errors: 503 when the target can't be reached, as upstream's proxy answers.
    pub async fn forward(&self, target: &Target, mut request: Request<Incoming>, path_and_query: &str) -> Result<Response<Body>, Status> {
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let ours = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let onward = onward_request(request, target, path_and_query)?;
        let mut response = self.send(target, onward).await.map_err(|error| unreachable(target, &error))?;
        if let (Some(ours), StatusCode::SWITCHING_PROTOCOLS) = (ours, response.status()) {
            let theirs = hyper::upgrade::on(&mut response);
            tokio::spawn(join(ours, theirs));
        } else {
            strip_hop_headers(response.headers_mut());
        }
        Ok(response.map(|body| body.map_err(anyhow::Error::from).boxed_unsync()))
    }

    async fn send(&self, target: &Target, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        let connect = TcpStream::connect((target.address, target.port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.context("i/o timeout")??;
        stream.set_nodelay(true)?;
        let connector = match target.scheme {
            Scheme::Http => return exchange(stream, request).await,
            Scheme::Kubelet => &self.kubelet,
            Scheme::Https => &self.any,
        };
        let name = ServerName::IpAddress(target.address.into());
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await.context("TLS handshake timeout")??;
        exchange(stream, request).await
    }
}

/// One HTTP/1.1 exchange on a connection of its own, which an upgrade may then take over.
async fn exchange<S>(stream: S, request: Request<Body>) -> anyhow::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "tunnel connection ended");
        }
    });
    Ok(sender.send_request(request).await?)
}

/// Copies bytes both ways until either side ends.
async fn join(ours: hyper::upgrade::OnUpgrade, theirs: hyper::upgrade::OnUpgrade) {
    match futures::future::try_join(ours, theirs).await {
        Ok((ours, theirs)) => {
            let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
            if let Err(error) = copied {
                tracing::debug!(%error, "tunnel ended");
            }
        }
        Err(error) => tracing::debug!(%error, "a side did not switch protocols"),
    }
}

/// Headers that speak of one connection only (RFC 9110, 7.6.1).
const HOP_HEADERS: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

fn strip_hop_headers(headers: &mut http::HeaderMap) {
    for name in HOP_HEADERS {
        headers.remove(name);
    }
}

/// The request as the target shall see it: its own path and host, and none of the caller's credentials.
fn onward_request(request: Request<Incoming>, target: &Target, path_and_query: &str) -> Result<Request<Body>, Status> {
    let (mut parts, body) = request.into_parts();
    parts.uri = path_and_query.parse::<Uri>().map_err(Status::internal)?;
    parts.version = http::Version::HTTP_11;
    let upgrade = parts.headers.get(header::UPGRADE).cloned();
    strip_hop_headers(&mut parts.headers);
    if let Some(protocol) = upgrade {
        parts.headers.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    parts.headers.remove(header::AUTHORIZATION);
    let impersonation: Vec<HeaderName> = parts.headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        parts.headers.remove(name);
    }
    let host = std::net::SocketAddr::new(target.address, target.port).to_string();
    parts.headers.insert(header::HOST, host.parse().map_err(Status::internal)?);
    Ok(Request::from_parts(parts, body.map_err(anyhow::Error::from).boxed_unsync()))
}

fn unreachable(target: &Target, error: &anyhow::Error) -> Status {
    let address = std::net::SocketAddr::new(target.address, target.port);
    match target.scheme {
        Scheme::Kubelet => Status::internal(format!("error dialing backend: dial tcp {address}: {error:#}")),
        Scheme::Http | Scheme::Https => Status::service_unavailable(format!("error trying to reach service: dial tcp {address}: {error:#}")),
    }
}

/// Accepts any certificate, for [`Scheme::Https`].
#[derive(Debug)]
struct Unchecked;

impl rustls::client::danger::ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls_pki_types::CertificateDer<'_>,
        _intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
