//! The way to the API server: one TLS connection, HTTP/2, for every request and watch of the process.
//!
//! A connection costs both ends its buffers and the server a handshake, and a controller manager watches eighty resources: so all of
//! them share one. A connection that answers no ping is given up, and the next request makes a new one. Nothing is retried here
//! but a request that never left: whoever asked knows better.
//! Upstream: `client-go/transport`, the same ping times.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tower::{BoxError, Layer};

use crate::{cause, metrics};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// What one watch may have on its way to a reader that is busy.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What all of them may, so that one such reader holds nobody else up.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// A client with the configured identity that sends the running task's cause with every write.
/// Errors: unusable certificates or an address that names no host.
pub fn connect(config: &Config) -> Result<Client> {
    let pipe = tower::util::option_layer(config.auth_layer()?).layer(config.extra_headers_layer()?.layer(Pipe::new(config)?));
    let stack = cause::Layer.layer(config.base_uri_layer().layer(pipe));
    Ok(Client::new(stack, config.default_namespace.clone()))
}

/// The one connection, made when it is needed.
#[derive(Clone)]
struct Pipe {
    server: Arc<Server>,
}

struct Server {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
    sender: Mutex<Option<SendRequest<Body>>>,
}

impl Pipe {
    fn new(config: &Config) -> Result<Self> {
        let url = &config.cluster_url;
        let host = url.host().with_context(|| format!("{url} names no host"))?.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(config.tls_server_name.clone().unwrap_or_else(|| host.clone()))?;
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let (port, tls) = (url.port_u16().unwrap_or(443), TlsConnector::from(Arc::new(tls)));
        Ok(Pipe { server: Arc::new(Server { host, port, name, tls, sender: Mutex::default() }) })
    }
}

impl Server {
    async fn sender(&self) -> Result<SendRequest<Body>, BoxError> {
        let mut held = self.sender.lock().await;
        if let Some(sender) = held.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let sender = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await??;
        Ok(held.insert(sender).clone())
    }

    async fn connect(&self) -> Result<SendRequest<Body>, BoxError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.name.clone(), stream).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the API server ended");
            }
        });
        Ok(sender)
    }

    /// A request that a closing connection gave back goes over a new one, once.
    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let returned = match self.sender().await?.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(mut failed) => failed.take_message().ok_or_else(|| failed.into_error())?,
        };
        Ok(self.sender().await?.send_request(returned).await?)
    }
}

impl tower::Service<Request<Body>> for Pipe {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.server.clone();
        let method: Method = request.method().clone();
        Box::pin(async move {
            let answer = server.send(request).await;
            let code = answer.as_ref().map_or("<error>".to_owned(), |answer| answer.status().as_u16().to_string());
            metrics::get().request(&method, code, format!("{}:{}", server.host, server.port));
            answer
        })
    }
}
