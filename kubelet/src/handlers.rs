//! The actions of probes and lifecycle hooks: exec, HTTP, TCP, gRPC, sleep.
//!
//! Upstream: `pkg/probe/{exec,http,tcp,grpc}`, `pkg/kubelet/lifecycle/handlers.go`, v1.33.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::cri::Cri;
use crate::http_get::{self, Answer, Place};

pub struct Target {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub container_id: String,
    /// Where HTTP, TCP and gRPC go if they name no host.
    pub ip: String,
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Success,
    /// Success, with something to say of it.
    Warning(String),
    /// With what the event says.
    Failure(String),
}

/// What of an answer's body stands in an event.
pub const MAX_BODY: usize = 10 * 1024;

pub async fn probe(cri: &Cri, target: &Target, probe: &Probe, timeout: Duration) -> Verdict {
    let result = if let Some(exec) = &probe.exec {
        return exec_probe(cri, target, exec, timeout).await;
    } else if let Some(get) = &probe.http_get {
        match http(target, get, timeout, "kube-probe/1.33").await {
            Ok(answer) => match answer.status {
                200..300 => Ok(()),
                300..400 => return Verdict::Warning(format!("Probe terminated redirects, Response body: {}", answer.body)),
                status => Err(format!("HTTP probe failed with statuscode: {status}")),
            },
            Err(error) => Err(error),
        }
    } else if let Some(socket) = &probe.tcp_socket {
        tcp(target, socket.host.as_deref(), &socket.port, timeout).await
    } else if let Some(grpc) = &probe.grpc {
        grpc_health(target, grpc, timeout).await
    } else {
        Err("missing probe handler".to_owned())
    };
    result.map_or_else(Verdict::Failure, |()| Verdict::Success)
}

async fn exec_probe(cri: &Cri, target: &Target, exec: &ExecAction, timeout: Duration) -> Verdict {
    let command = exec.command.clone().unwrap_or_default();
    match cri.exec_sync(&target.container_id, command.clone(), timeout).await {
        Ok(answer) if answer.exit_code == 0 => Verdict::Success,
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend(answer.stderr);
            output.truncate(MAX_BODY);
            Verdict::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(error) if error.code == tonic::Code::DeadlineExceeded => {
            Verdict::Failure(format!("command timed out: {:?} timed out after {}s", command.join(" "), timeout.as_secs()))
        }
        Err(error) => Verdict::Failure(error.to_string()),
    }
}

/// A port by number or by the name of one of the container's.
fn port(target: &Target, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let mut ports = target.container.ports.iter().flatten();
                let found = ports.find(|p| p.name.as_deref() == Some(name));
                found.map(|p| p.container_port).ok_or_else(|| format!("couldn't find port: {name} in container"))?
            }
        },
    };
    u16::try_from(number).map_err(|_| format!("invalid port number: {number}"))
}

pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub async fn connect(address: &str) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| {
        let text = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {address}: {text}")
    })
}

async fn tcp(target: &Target, host: Option<&str>, at: &IntOrString, timeout: Duration) -> Result<(), String> {
    let host = host.filter(|h| !h.is_empty()).unwrap_or(&target.ip);
    let address = host_port(host, port(target, at)?);
    match tokio::time::timeout(timeout, connect(&address)).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

async fn http(target: &Target, get: &HTTPGetAction, timeout: Duration, agent: &str) -> Result<Answer, String> {
    let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.ip).to_owned();
    let path = get.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let place = Place { tls: get.scheme.as_deref() == Some("HTTPS"), host, port: port(target, &get.port)?, path };
    http_get::get(place, get.http_headers.as_deref().unwrap_or_default(), timeout, agent).await
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

async fn grpc_health(target: &Target, grpc: &GRPCAction, timeout: Duration) -> Result<(), String> {
    let address = host_port(&target.ip, u16::try_from(grpc.port).map_err(|e| e.to_string())?);
    let seconds = timeout.as_secs();
    let check = async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
        let endpoint = endpoint.user_agent("kube-probe/1.33").map_err(|e| e.to_string())?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|_| format!("timeout: failed to connect service {address:?} within {seconds}s: context deadline exceeded"))?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| e.to_string())?;
        let request = tonic::Request::new(HealthCheckRequest { service: grpc.service.clone().unwrap_or_default() });
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let answer = client.unary(request, path, codec).await.map_err(|e| match e.code() {
            tonic::Code::Unimplemented => {
                format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}", e.message())
            }
            _ => format!("error: health rpc probe failed: {}", e.message()),
        })?;
        let status = usize::try_from(answer.into_inner().status).ok().and_then(|status| STATUSES.get(status)).unwrap_or(&"UNKNOWN");
        if *status == "SERVING" { Ok(()) } else { Err(format!("service unhealthy (responded with {status:?})")) }
    };
    tokio::time::timeout(timeout, check)
        .await
        .unwrap_or_else(|_| Err(format!("timeout: health rpc did not complete within {seconds}s: context deadline exceeded")))
}

/// Runs a lifecycle hook to its end.
pub async fn hook(cri: &Cri, target: &Target, handler: &LifecycleHandler) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let answer = cri.exec_sync(&target.container_id, command, Duration::ZERO).await.map_err(|e| e.to_string())?;
        return match answer.exit_code {
            0 => Ok(()),
            code => Err(format!("command exited with {code}: {}", String::from_utf8_lossy(&answer.stderr))),
        };
    }
    if let Some(get) = &handler.http_get {
        // An answer is enough, whatever it says.
        return http(target, get, Duration::from_secs(60), "kube-lifecycle/1.33").await.map(drop);
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    if let Some(socket) = &handler.tcp_socket {
        return tcp(target, socket.host.as_deref(), &socket.port, Duration::from_secs(60)).await;
    }
    Err("invalid handler".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::BodyExt;
    use hyper_util::rt::TokioIo;
    use std::net::SocketAddr;

    /// A gRPC server of few words: healthy for the service "", not so for "sick", and without the protocol for "none".
    async fn health_server() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async {
                    use prost::Message;
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let body = request.into_body().collect().await?.to_bytes();
                    let asked = HealthCheckRequest::decode(&body[5..]).unwrap();
                    let message = HealthCheckResponse { status: if asked.service.is_empty() { 1 } else { 2 } }.encode_to_vec();
                    let frame = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], message.as_slice()].concat();
                    let code = if asked.service == "none" { "12" } else { "0" };
                    let trailers =
                        http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static(code))]);
                    let body = http_body_util::Full::new(Bytes::from(frame)).with_trailers(async { Some(Ok(trailers)) });
                    Ok::<_, hyper::Error>(http::Response::builder().header("content-type", "application/grpc").body(body).unwrap())
                });
                let executor = hyper_util::rt::TokioExecutor::new();
                tokio::spawn(hyper::server::conn::http2::Builder::new(executor).serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    #[tokio::test]
    async fn grpc_health_by_a_real_server() {
        let address = health_server().await;
        let target =
            Target { pod: Arc::default(), container: Container::default(), container_id: String::new(), ip: address.ip().to_string() };
        let ask = async |port: u16, service: &str| {
            let action = GRPCAction { port: port.into(), service: Some(service.into()) };
            grpc_health(&target, &action, Duration::from_secs(5)).await
        };
        assert_eq!(ask(address.port(), "").await, Ok(()));
        assert_eq!(ask(address.port(), "sick").await, Err("service unhealthy (responded with \"NOT_SERVING\")".into()));
        assert!(
            ask(address.port(), "none").await.unwrap_err().starts_with("error: this server does not implement the grpc health protocol")
        );
        assert!(ask(1, "").await.unwrap_err().starts_with("timeout: failed to connect service \"127.0.0.1:1\" within 5s"));
    }
}
