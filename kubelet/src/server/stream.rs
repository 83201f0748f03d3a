//! exec, attach, port-forward: byte tunnels between the client's upgraded connection and the runtime's streaming server.
//!
//! The kubelet asks the runtime for a URL, repeats the client's handshake there and, once both sides have switched
//! protocols (SPDY or WebSocket, it does not look), copies bytes both ways.
//! Upstream: `pkg/kubelet/server/server.go` (getExec …), `apimachinery/pkg/util/proxy/upgradeaware.go`, v1.33.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use k8s_openapi::api::core::v1::Pod;
use machinery::https;
use tokio::net::TcpStream;

use super::{Answer, Query, Refusal, running};
use crate::kubelet::Kubelet;
use crate::pod::PodExt;

pub async fn exec(kubelet: &Arc<Kubelet>, pod: &Pod, container: &str, query: &Query, request: Request<Incoming>) -> Answer {
    let tty = query.flag("tty");
    let ask = ExecRequest {
        container_id: running(kubelet, pod, container).await?.ok_or_else(|| not_found(container))?,
        cmd: query.all("command"),
        tty,
        stdin: query.flag("input"),
        stdout: query.flag("output"),
        // A terminal has one stream.
        stderr: query.flag("error") && !tty,
    };
    let url = kubelet.cri.exec_url(ask).await.map_err(|e| (500, e.to_string()))?;
    tunnel(&url, request).await
}

pub async fn attach(kubelet: &Arc<Kubelet>, pod: &Pod, container: &str, query: &Query, request: Request<Incoming>) -> Answer {
    // The container's own terminal decides, as it was made.
    let tty = pod.container(container).is_some_and(|c| c.tty == Some(true));
    let absent = || (404, format!("container {container} not found in pod {}_{}", pod.name(), pod.namespace()));
    let ask = AttachRequest {
        container_id: running(kubelet, pod, container).await?.ok_or_else(absent)?,
        stdin: query.flag("input"),
        tty,
        stdout: query.flag("output"),
        stderr: query.flag("error") && !tty,
    };
    let url = kubelet.cri.attach_url(ask).await.map_err(|e| (500, e.to_string()))?;
    tunnel(&url, request).await
}

pub async fn port_forward(kubelet: &Arc<Kubelet>, pod: &Pod, query: &Query, request: Request<Incoming>) -> Answer {
    let labels = [(crate::pod::LABEL_POD_UID.to_owned(), pod.uid().to_owned())].into();
    let sandboxes = kubelet.cri.list_sandboxes(labels).await.map_err(|e| (500, e.to_string()))?;
    let ready = k8s_cri::v1::PodSandboxState::SandboxReady as i32;
    let sandbox = sandboxes.into_iter().filter(|s| s.state == ready).max_by_key(|s| s.created_at);
    let sandbox = sandbox.ok_or_else(|| (404, format!("pod not found ({:?})", pod.full_name())))?;
    let ports = query.all("port").iter().flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
    let ask = PortForwardRequest { pod_sandbox_id: sandbox.id, port: ports };
    let url = kubelet.cri.port_forward_url(ask).await.map_err(|e| (500, e.to_string()))?;
    tunnel(&url, request).await
}

/// `POST /run`: a command without streams; its output is the answer.
pub async fn run(kubelet: &Arc<Kubelet>, pod: &Pod, container: &str, query: &Query) -> Answer {
    let id = running(kubelet, pod, container).await?.ok_or_else(|| not_found(container))?;
    let command = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
    let answer = kubelet.cri.exec_sync(&id, command, Duration::from_secs(60)).await.map_err(|e| (500, e.to_string()))?;
    let mut output = answer.stdout;
    output.extend(answer.stderr);
    Ok(https::text(if answer.exit_code == 0 { 200 } else { 500 }, output))
}

fn not_found(container: &str) -> Refusal {
    (404, format!("container not found ({container:?})"))
}

async fn tunnel(url: &str, mut request: Request<Incoming>) -> Answer {
    let failed = |what: &str, error: &dyn std::fmt::Display| (502, format!("the runtime's streaming server: {what}: {error}"));
    let uri: Uri = url.parse().map_err(|e| failed("its address", &e))?;
    let authority = uri.authority().ok_or_else(|| (502, format!("the runtime's streaming server has no address: {url}")))?;
    let stream = TcpStream::connect(authority.as_str()).await.map_err(|e| failed("connect", &e))?;
    // A failure costs only speed.
    let _best_effort = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed("handshake", &e))?;
    tokio::spawn(connection.with_upgrades());

    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = Request::builder().method(request.method().clone()).uri(path).body(http_body_util::Empty::<bytes::Bytes>::new());
    if let Ok(onward) = &mut onward {
        *onward.headers_mut() = onward_headers(request.headers(), authority.as_str());
    }
    let onward = onward.map_err(|e| failed("request", &e))?;
    let mut response = sender.send_request(onward).await.map_err(|e| failed("send", &e))?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        return Ok(Response::from_parts(parts, body.map_err(anyhow::Error::from).boxed_unsync()));
    }
    let mut answer = Response::new(https::full(""));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = response.headers().clone();
    let (client, runtime) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut response));
    tokio::spawn(async move {
        match tokio::try_join!(client, runtime) {
            Ok((client, runtime)) => {
                let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(runtime)).await;
                tracing::debug!(?copied, "tunnel closed");
            }
            Err(error) => tracing::debug!(%error, "a tunnel was not opened"),
        }
    });
    Ok(answer)
}

/// All but what was said to us alone.
fn onward_headers(headers: &HeaderMap, host: &str) -> HeaderMap {
    let mut onward = headers.clone();
    onward.remove(http::header::AUTHORIZATION);
    onward.remove(http::header::CONTENT_LENGTH);
    if let Ok(host) = http::HeaderValue::from_str(host) {
        onward.insert(http::header::HOST, host);
    }
    onward
}
