//! How a webhook is reached: over TLS, at a URL or at a Service's address.
//!
//! Its certificate must be good for that name and signed by `caBundle`, or without one by an authority that this host trusts.
//! Upstream: `apiserver/pkg/util/webhook/client.go` (v1.33).

use std::sync::Arc;
use std::time::Duration;

use auth::lookup::LookupExt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::registry::cache::Cache;
use crate::registry::tree::{items, number, text};

/// Where this host keeps the authorities it trusts.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Largest answer, in bytes: as much as the largest object twice.
const LIMIT: usize = 6 * 1024 * 1024;

/// Where a request goes: `url` is what it says, `host` and `port` where the connection leads.
#[derive(Debug, PartialEq)]
pub struct Place {
    url: String,
    host: String,
    port: u16,
}

/// Errors: a Service that is not there or has no such port, a URL that is none.
pub fn place(config: &Value, timeout: Duration, cache: &Cache) -> Result<Place, String> {
    let seconds = timeout.as_secs();
    if let Some(service) = config.get("service").filter(|service| service.is_object()) {
        let (namespace, name) = (text(service, "/namespace"), text(service, "/name"));
        let port = number(service, "/port").unwrap_or(443);
        let path = text(service, "/path").trim_start_matches('/');
        let found = cache.core("services", namespace, name).ok_or_else(|| format!("service {name:?} not found"))?;
        if !items(&found, "/spec/ports").iter().any(|p| number(p, "/port") == Some(port)) {
            return Err(format!("no service port {port} found for service {name:?}"));
        }
        let host = match text(&found, "/spec/type") {
            "ExternalName" => text(&found, "/spec/externalName"),
            _ => text(&found, "/spec/clusterIP"),
        };
        let url = format!("https://{name}.{namespace}.svc:{port}/{path}?timeout={seconds}s");
        return Ok(Place { url, host: host.to_owned(), port: u16::try_from(port).unwrap_or_default() });
    }
    let url = text(config, "/url");
    let uri: Uri = url.parse().map_err(|error| format!("Unparsable webhook URL: {error}"))?;
    let host = uri.host().ok_or("webhook URL without a host")?.trim_matches(['[', ']']).to_owned();
    Ok(Place { url: format!("{url}?timeout={seconds}s"), host, port: uri.port_u16().unwrap_or(443) })
}

/// The answer's body. Errors are in the words of Go's HTTP client.
pub async fn post(place: &Place, authorities: &str, body: Vec<u8>, timeout: Duration) -> Result<Bytes, String> {
    let failed = |why: String| format!("failed to call webhook: Post {:?}: {why}", place.url);
    match tokio::time::timeout(timeout, exchange(place, authorities, body)).await {
        Ok(Ok((StatusCode::OK, body))) => Ok(body),
        Ok(Ok((code, _))) => Err(format!(
            "failed to call webhook: the server responded with the status code {} but did not return more information",
            code.as_u16()
        )),
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(_) => Err(failed("context deadline exceeded".to_owned())),
    }
}

async fn exchange(place: &Place, authorities: &str, body: Vec<u8>) -> anyhow::Result<(StatusCode, Bytes)> {
    let uri: Uri = place.url.parse()?;
    let authority = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    let name = ServerName::try_from(uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned())?;
    let tls = tls(authorities)?;
    let tcp = TcpStream::connect((place.host.as_str(), place.port)).await?;
    tcp.set_nodelay(true)?;
    let stream = tls.connect(name, tcp).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string).parse()?;
    let headers = request.headers_mut();
    headers.insert(HOST, authority.parse()?);
    headers.insert(CONTENT_TYPE, "application/json".parse()?);
    headers.insert(ACCEPT, "application/json, */*".parse()?);
    let response = sender.send_request(request).await?;
    let code = response.status();
    let body = Limited::new(response.into_body(), LIMIT).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
    driver.abort();
    Ok((code, body.to_bytes()))
}

fn tls(authorities: &str) -> anyhow::Result<TlsConnector> {
    let pem = match authorities {
        "" => std::fs::read(TRUSTED)?,
        bundle => STANDARD.decode(bundle)?,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|error| anyhow::anyhow!("caBundle: {error}"))?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}
