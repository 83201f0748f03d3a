//! How the administrator reaches the cluster's processes: certificates, and one GET of a health page.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use machinery::tls;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::Cluster;

/// How the administrator speaks to the cluster's processes.
pub fn admin(cluster: &Cluster) -> Result<Arc<rustls::ClientConfig>> {
    client(&cluster.pki_dir(), "admin")
}

/// How the administrator speaks to etcd.
pub fn etcd(cluster: &Cluster) -> Result<Arc<rustls::ClientConfig>> {
    client(&cluster.pki_dir().join("etcd"), "healthcheck-client")
}

fn client(pki: &Path, name: &str) -> Result<Arc<rustls::ClientConfig>> {
    tls::client(&pki.join("ca.crt"), &pki.join(format!("{name}.crt")), &pki.join(format!("{name}.key")))
}

/// GET of a health page: its status and text. No answer within two seconds is an error.
pub async fn get(tls: Option<Arc<rustls::ClientConfig>>, address: Ipv4Addr, port: u16, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let stream = TcpStream::connect((address, port)).await?;
        match tls {
            Some(config) => {
                let name = ServerName::IpAddress(std::net::IpAddr::V4(address).into());
                converse(tokio_rustls::TlsConnector::from(config).connect(name, stream).await?, address, path).await
            }
            None => converse(stream, address, path).await,
        }
    };
    tokio::time::timeout(Duration::from_secs(2), exchange).await.context("no answer in 2 s")?
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: Ipv4Addr, path: &str) -> Result<(u16, String)> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut bytes = Vec::new();
    // A peer may close without TLS's farewell; what counts is the answer before it.
    if let Err(e) = stream.read_to_end(&mut bytes).await
        && bytes.is_empty()
    {
        return Err(e.into());
    }
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split_whitespace().nth(1).and_then(|code| code.parse().ok()).context("not an HTTP answer")?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default();
    Ok((status, body))
}
