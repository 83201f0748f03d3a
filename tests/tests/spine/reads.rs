//! What other clients than kubectl's common verbs read: through proxies, and over WebSockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;
use crate::verbs::{available, deployment};

pub fn proxies(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("r-proxy")?;
    kubectl.apply(&deployment("web", 1))?;
    kubectl.ok("expose deployment web --port=80 --target-port=8080")?;
    available(&kubectl, "web")?;
    let raw = |path: &str| kubectl.ok(&format!("get --raw /api/v1/{path}"));
    let refused = |path: &str| kubectl.fails(&format!("get --raw /api/v1/{path}"));
    until(20, "the service through the proxy", || ensure_contains(&raw("namespaces/r-proxy/services/web:80/proxy/")?, &["Coracle"]))?;
    ensure_contains(&raw("namespaces/r-proxy/services/http:web:80/proxy/index.html?a=b")?, &["Coracle"])?;
    let pod = kubectl.ok("get pods -o name")?;
    let pod = pod.trim().trim_start_matches("pod/");
    ensure_contains(&raw(&format!("namespaces/r-proxy/pods/{pod}/proxy/"))?, &["Coracle"])?;
    ensure_contains(&raw(&format!("namespaces/r-proxy/pods/{pod}:8080/proxy/"))?, &["Coracle"])?;
    let node = kubectl.path(&format!("pod/{pod}"), "{.spec.nodeName}")?;
    ensure_contains(&raw(&format!("nodes/{node}/proxy/stats/summary"))?, &[&format!("\"nodeName\":\"{node}\""), pod])?;
    ensure_contains(&raw(&format!("nodes/{node}:10250/proxy/pods"))?, &[pod])?;
    ensure_contains(&raw(&format!("nodes/{node}:10250/proxy/runningpods"))?, &[pod])?;
    ensure_contains(&refused("namespaces/r-proxy/services/web:81/proxy/")?, &["no service port 81 found for service \"web\""])?;
    ensure_contains(&refused("namespaces/r-proxy/services/none/proxy/")?, &["services \"none\" not found"])?;
    ensure_contains(&refused("namespaces/r-proxy/services/ftp:web:80/proxy/")?, &["invalid service request \"ftp:web:80\""])?;
    ensure_contains(&refused(&format!("namespaces/r-proxy/pods/{pod}:9/proxy/"))?, &["error trying to reach service: dial tcp 10.244."])?;
    let asked = kubectl.fails("get --raw /api/v1/namespaces/r-proxy/services/web:80/proxy/ --as=jane")?;
    ensure_contains(&asked, &["User \"jane\" cannot get resource \"services/proxy\" in API group \"\" in the namespace \"r-proxy\""])
}

pub fn websockets(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("r-socket")?;
    kubectl.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: talk}\nspec:\n  containers: [{name: main, image: 'coracle/web:1', command: [sh, -c, 'echo container is alive; sleep 600']}]\n")?;
    kubectl.ok("wait --for=condition=Ready pod/talk --timeout=60s")?;
    let mut proxy = kubectl.spawn("proxy --port=0 --disable-filter=true")?;
    let mut said = BufReader::new(proxy.0.stdout.take().context("pipe")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    let pod = "/api/v1/namespaces/r-socket/pods/talk";
    let log = messages(&address, &format!("{pod}/log?container=main"), "binary.k8s.io")?;
    ensure_eq(String::from_utf8_lossy(&log.concat()).into_owned(), "container is alive\n".into(), "logs")?;
    let encoded = messages(&address, &format!("{pod}/log"), "base64.binary.k8s.io")?;
    ensure_eq(String::from_utf8_lossy(&encoded.concat()).into_owned(), "Y29udGFpbmVyIGlzIGFsaXZlCg==".into(), "logs in base64")?;
    let path = format!("{pod}/exec?stdout=1&stderr=1&container=main&command=echo&command=remote%20execution");
    let streams = messages(&address, &path, "channel.k8s.io")?;
    let output: Vec<u8> = streams.iter().filter(|m| m.first() == Some(&1)).flat_map(|m| m[1..].to_vec()).collect();
    ensure_eq(String::from_utf8_lossy(&output).into_owned(), "remote execution\n".into(), "exec")?;
    let events = messages(&address, "/api/v1/namespaces/r-socket/pods?watch=1&timeoutSeconds=1", "")?;
    ensure_contains(&String::from_utf8_lossy(&events.concat()), &["{\"type\":\"ADDED\",\"object\":{", "\"name\":\"talk\""])?;
    proxy.end().map(drop)
}

/// All messages of a WebSocket, to its end.
fn messages(address: &str, path: &str, protocol: &str) -> Result<Vec<Vec<u8>>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let offered = if protocol.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {protocol}\r\n") };
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offered}\r\n"
    )?;
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            bail!("no handshake: {head}");
        }
    }
    ensure_contains(&head, &["101 Switching Protocols"])?;
    ensure_contains(&head.to_lowercase(), &["sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=", protocol])?;
    let mut messages = Vec::new();
    loop {
        let mut start = [0; 2];
        if stream.read_exact(&mut start).is_err() || start[0] & 0x0f == 8 {
            return Ok(messages);
        }
        let mut length = u64::from(start[1] & 0x7f);
        if length >= 126 {
            let mut long = [0; 8];
            stream.read_exact(if length == 126 { &mut long[6..] } else { &mut long })?;
            length = u64::from_be_bytes(long);
        }
        let mut message = vec![0; length as usize];
        stream.read_exact(&mut message)?;
        messages.push(message);
    }
}
