//! Health check node ports: a load balancer asks whether this node has endpoints of a service with
//! externalTrafficPolicy Local. Plain HTTP, as load balancers expect.
//!
//! Upstream: pkg/proxy/healthcheck/service_health.go, v1.33.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use api::Key;
use machinery::CancellationToken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What each service wants: a port, and how many endpoints are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub port: u16,
    pub local_endpoints: usize,
}

struct Listener {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    token: CancellationToken,
}

pub struct HealthChecks {
    listeners: HashMap<Key, Listener>,
    /// Are the rules in the kernel those that are wanted?
    healthy: Arc<AtomicBool>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl HealthChecks {
    pub fn new(healthy: Arc<AtomicBool>) -> Self {
        HealthChecks { listeners: HashMap::new(), healthy }
    }

    /// Makes the service's listener what is wanted; `None`: it needs none.
    pub async fn ensure(&mut self, service: &Key, wanted: Option<Wanted>) {
        let Some(wanted) = wanted else {
            self.listeners.remove(service);
            return;
        };
        if let Some(listener) = self.listeners.get(service).filter(|l| l.port == wanted.port) {
            listener.local_endpoints.store(wanted.local_endpoints, Ordering::Relaxed);
            return;
        }
        self.listeners.remove(service);
        let socket = match TcpListener::bind(("0.0.0.0", wanted.port)).await {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%service, port = wanted.port, "cannot listen for health checks: {error}"),
        };
        let local_endpoints = Arc::new(AtomicUsize::new(wanted.local_endpoints));
        let token = CancellationToken::new();
        let state = State { service: service.clone(), endpoints: local_endpoints.clone(), healthy: self.healthy.clone() };
        tokio::spawn(serve(socket, state, token.clone()));
        self.listeners.insert(service.clone(), Listener { port: wanted.port, local_endpoints, token });
    }
}

/// What an answer depends on.
struct State {
    service: Key,
    endpoints: Arc<AtomicUsize>,
    healthy: Arc<AtomicBool>,
}

async fn serve(socket: TcpListener, state: State, token: CancellationToken) {
    loop {
        let stream = tokio::select! {
            accepted = socket.accept() => accepted,
            () = token.cancelled() => return,
        };
        if let Ok((stream, _)) = stream {
            let answer = answer(&state.service, state.endpoints.load(Ordering::Relaxed), state.healthy.load(Ordering::Relaxed));
            tokio::spawn(async move {
                // A client that hangs up early does not matter.
                drop(tokio::time::timeout(std::time::Duration::from_secs(5), reply(stream, answer)).await);
            });
        }
    }
}

async fn reply(mut stream: TcpStream, answer: String) -> std::io::Result<()> {
    // Whatever is asked, the answer is the same: one read takes the request off the wire.
    let mut request = [0; 2048];
    let _length = stream.read(&mut request).await?;
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(service: &Key, local_endpoints: usize, healthy: bool) -> String {
    let body = serde_json::json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": healthy,
    })
    .to_string();
    let status = if local_endpoints > 0 && healthy { "200 OK" } else { "503 Service Unavailable" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {local_endpoints}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_well_if_it_has_endpoints_and_rules() {
        let service = Key::new("default", "web");
        for (endpoints, healthy, status) in
            [(2, true, "200 OK"), (0, true, "503 Service Unavailable"), (2, false, "503 Service Unavailable")]
        {
            let text = answer(&service, endpoints, healthy);
            assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{text}");
            assert!(
                text.contains(&format!("\"localEndpoints\":{endpoints}")) && text.contains(&format!("\"serviceProxyHealthy\":{healthy}")),
                "{text}"
            );
        }
    }
}
