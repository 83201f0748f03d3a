//! The TLS front: accept, handshake, HTTP/1.1 or HTTP/2 by ALPN, graceful end.
//!
//! HTTP/2 limits are what Go clients expect: one connection carries all watches of a client.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{App, Peer, handle};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_STREAMS: u32 = 1000;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// A dead peer is noticed after this and its timeout.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// How long requests under way may take once the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Serve until shutdown, then let what is under way finish.
pub async fn serve(app: Arc<App>, listener: TcpListener, tls: Arc<ServerConfig>) {
    let acceptor = TlsAcceptor::from(tls);
    let server = Arc::new(server());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, from)) => {
                let (app, acceptor, server, watcher) = (app.clone(), acceptor.clone(), server.clone(), graceful.watcher());
                tokio::spawn(async move { connection(app, stream, from.ip(), acceptor, server, watcher).await });
            }
            Err(error) => {
                // Out of descriptors, most likely: others have to end first.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::info!("some requests were cut off");
    }
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    server.http1().timer(TokioTimer::new()).keep_alive(true);
    server
}

async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    from: IpAddr,
    acceptor: TlsAcceptor,
    server: Arc<auto::Builder<TokioExecutor>>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY refused");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Arc::new(Peer { address: Some(from), certificates: certificates.iter().map(|c| c.clone().into_owned()).collect() });
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, peer) = (app.clone(), peer.clone());
        async move { Ok::<_, Infallible>(handle(app, peer, request).await) }
    });
    let serving = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(%error, "connection ended");
    }
}
