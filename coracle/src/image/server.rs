//! The image store over the OCI distribution API, read-only: what every machine's containerd asks first.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v2/` | 200 |
//! | `GET, HEAD /v2/NAME/manifests/TAG_OR_DIGEST?ns=REGISTRY` | the manifest, 404 `MANIFEST_UNKNOWN` |
//! | `GET, HEAD /v2/NAME/blobs/DIGEST` | the blob, 404 `BLOB_UNKNOWN` |
//!
//! `ns` is containerd's way to tell a mirror which registry was meant. A 404 sends containerd on to that registry.
//! TLS with the cluster's authority on both sides: only nodes and the administrator read images.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use machinery::tls;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::reference::Reference;
use super::store::{Descriptor, Store};

#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// The store's folder.
    #[arg(long)]
    pub store: PathBuf,
    #[arg(long)]
    pub listen: std::net::SocketAddr,
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// Authority that clients' certificates must come from.
    #[arg(long)]
    pub client_ca_file: PathBuf,
}

type Body = BoxBody<Bytes, std::io::Error>;

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Base,
    Manifest { repository: String, version: String },
    Blob { digest: String },
}

pub async fn run(args: ServerArgs, shutdown: CancellationToken) -> Result<()> {
    let store = Arc::new(Store::open(&args.store)?);
    let clients = WebPkiClientVerifier::builder(Arc::new(tls::roots(&args.client_ca_file)?)).build()?;
    let (chain, key) = (tls::certificates(&args.tls_cert_file)?, tls::key(&args.tls_private_key_file)?);
    let mut config = rustls::ServerConfig::builder().with_client_cert_verifier(clients).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen at {}", args.listen))?;
    tracing::info!("serving images of {} at {}", args.store.display(), args.listen);
    loop {
        let connection = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.cancelled() => return Ok(()),
        };
        let (stream, peer) = match connection {
            Ok(connection) => connection,
            Err(e) => {
                tracing::warn!("accept: {e}");
                continue;
            }
        };
        let (acceptor, store) = (acceptor.clone(), store.clone());
        tokio::spawn(async move {
            let stream = match acceptor.accept(stream).await {
                Ok(stream) => stream,
                Err(e) => return tracing::debug!("{peer}: {e}"),
            };
            let service = service_fn(move |request| {
                let store = store.clone();
                async move { Ok::<_, std::convert::Infallible>(answer(&store, request).await) }
            });
            if let Err(e) = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("{peer}: {e}");
            }
        });
    }
}

async fn answer(store: &Store, request: Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the store is read-only; use `coracle image load`");
    }
    let head = request.method() == Method::HEAD;
    let registry = registry_of(request.uri().query().unwrap_or_default());
    let response = match parse_path(request.uri().path()) {
        Some(Asked::Base) => Ok(respond(StatusCode::OK, "application/json", Bytes::from_static(b"{}"))),
        Some(Asked::Manifest { repository, version }) => manifest(store, &registry, &repository, &version),
        Some(Asked::Blob { digest }) => blob(store, &digest, head).await,
        None => Ok(refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "no such path")),
    };
    let response = response.unwrap_or_else(|e| {
        tracing::warn!("{}: {e:#}", request.uri());
        refuse(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the store cannot be read")
    });
    tracing::info!("{} {} {}", request.method(), request.uri(), response.status().as_u16());
    response
}

fn parse_path(path: &str) -> Option<Asked> {
    let rest = path.strip_prefix("/v2")?.trim_start_matches('/');
    if rest.is_empty() {
        return Some(Asked::Base);
    }
    if let Some((repository, version)) = rest.rsplit_once("/manifests/") {
        return Some(Asked::Manifest { repository: repository.into(), version: version.into() });
    }
    let (_repository, digest) = rest.rsplit_once("/blobs/")?;
    Some(Asked::Blob { digest: digest.into() })
}

fn registry_of(query: &str) -> String {
    let namespace = query.split('&').find_map(|pair| pair.strip_prefix("ns="));
    namespace.unwrap_or("docker.io").replace("%3A", ":").replace("%3a", ":")
}

fn manifest(store: &Store, registry: &str, repository: &str, version: &str) -> Result<Response<Body>> {
    let found = if version.starts_with("sha256:") {
        by_digest(store, version)?
    } else {
        store.find(&Reference { registry: registry.into(), repository: repository.into(), version: version.into() })?
    };
    let Some(descriptor) = found else {
        return Ok(refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "not in the cluster's image store"));
    };
    let mut response = respond(StatusCode::OK, &descriptor.media_type, store.read_blob(&descriptor.digest)?.into());
    response.headers_mut().insert("docker-content-digest", descriptor.digest.parse()?);
    Ok(response)
}

/// A manifest asked for by digest: its media type is in its own text.
fn by_digest(store: &Store, digest: &str) -> Result<Option<Descriptor>> {
    let Some(path) = store.blob_path(digest).filter(|path| path.exists()) else { return Ok(None) };
    let bytes = std::fs::read(path)?;
    let text: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let media_type = text["mediaType"].as_str().unwrap_or(super::store::MANIFEST).to_string();
    Ok(Some(Descriptor { media_type, digest: digest.into(), size: bytes.len() as u64, annotations: Default::default(), platform: None }))
}

async fn blob(store: &Store, digest: &str, head: bool) -> Result<Response<Body>> {
    let Some(path) = store.blob_path(digest).filter(|path| path.exists()) else {
        return Ok(refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "not in the cluster's image store"));
    };
    let file = tokio::fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    let body = if head { empty() } else { BodyExt::boxed(StreamBody::new(ReaderStream::new(file).map_ok(Frame::data))) };
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, size)
        .header("docker-content-digest", digest);
    Ok(response.body(body)?)
}

fn respond(status: StatusCode, media_type: &str, content: Bytes) -> Response<Body> {
    let length = content.len();
    let mut response = Response::new(Full::new(content).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    if let Ok(value) = media_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    respond(status, "application/json", text.into())
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_distribution_api() {
        let manifest = |repository: &str, version: &str| Some(Asked::Manifest { repository: repository.into(), version: version.into() });
        for (path, asked) in [
            ("/v2/", Some(Asked::Base)),
            ("/v2", Some(Asked::Base)),
            ("/v2/library/nginx/manifests/latest", manifest("library/nginx", "latest")),
            ("/v2/a/manifests/b/manifests/v1", manifest("a/manifests/b", "v1")),
            ("/v2/a/blobs/sha256:00", Some(Asked::Blob { digest: "sha256:00".into() })),
            ("/v2/a/tags/list", None),
            ("/", None),
        ] {
            assert_eq!(parse_path(path), asked, "{path}");
        }
    }

    #[test]
    fn the_registry_comes_from_the_query() {
        assert_eq!(registry_of("ns=registry.k8s.io"), "registry.k8s.io");
        assert_eq!(registry_of("a=b&ns=host%3A5000"), "host:5000");
        assert_eq!(registry_of(""), "docker.io");
    }
}
