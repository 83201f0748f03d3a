//! `/health` and `/ready` over plain HTTP, as the kubelet probes them: alive, and knowing the cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves until dropped. Errors: the address is taken.
pub async fn serve(address: SocketAddr, ready: Arc<dyn Fn() -> bool + Send + Sync>) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let ready = ready.clone();
            tokio::spawn(async move {
                // A prober that hangs up does not matter.
                drop(tokio::time::timeout(std::time::Duration::from_secs(5), reply(stream, &*ready)).await);
            });
        }
    }
}

async fn reply(mut stream: TcpStream, ready: &(dyn Fn() -> bool + Send + Sync)) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await?;
    let text = String::from_utf8_lossy(&request[..length]);
    let (status, body) = match text.split_whitespace().nth(1) {
        Some("/health") => ("200 OK", "OK"),
        Some("/ready") if ready() => ("200 OK", "OK"),
        Some("/ready") => ("503 Service Unavailable", "kubernetes"),
        _ => ("404 Not Found", "not found"),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    stream.shutdown().await
}
