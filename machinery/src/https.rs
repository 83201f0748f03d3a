//! HTTPS as every Coracle process serves it: TLS 1.2+, HTTP/1.1 and 2, client certificates known to the handler.
//!
//! Upstream: `apiserver/pkg/server/secure_serving.go`.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::CancellationToken;

pub type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// The client's verified certificate chain; empty if it showed none.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

pub fn full(body: impl Into<Bytes>) -> Body {
    use http_body_util::{BodyExt, Full};
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn text(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Accepts connections until `token` is cancelled. Upgrades (SPDY, WebSocket) work on HTTP/1.1.
pub async fn serve<H, F>(listener: TcpListener, tls: Arc<ServerConfig>, handler: H, token: CancellationToken)
where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let (stream, address) = tokio::select! {
            () = token.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: give the process a moment.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, handler, token) = (acceptor.clone(), handler.clone(), token.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = connection(acceptor, stream, address, handler) => {}
                () = token.cancelled() => {}
            }
        });
    }
}

async fn connection<H, F>(acceptor: TlsAcceptor, stream: tokio::net::TcpStream, address: SocketAddr, handler: H)
where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // Without it small frames wait for the peer's delayed acknowledgement; a failure only costs that speed.
    let _best_effort = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(std::time::Duration::from_secs(10), acceptor.accept(stream)).await;
    let Ok(Ok(stream)) = handshake else {
        tracing::debug!(%address, "TLS handshake failed");
        return;
    };
    let certificates: Arc<[CertificateDer<'static>]> = stream.get_ref().1.peer_certificates().unwrap_or_default().into();
    let peer = Peer { address, certificates };
    let service = service_fn(move |request| {
        let response = handler(request, peer.clone());
        async move { Ok::<_, std::convert::Infallible>(response.await) }
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%address, %error, "connection ended");
    }
}
