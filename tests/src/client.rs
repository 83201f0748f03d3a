//! A small HTTPS client with a client certificate: one connection, kept open, opened anew when it breaks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;

/// Where an API server is, and the administrator's certificate for it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Holds ca.crt, admin.crt, admin.key.
    pub pki: PathBuf,
}

impl Endpoint {
    /// The current server of a kubeconfig, which must name it by address. Certificates inside the file are written to `dir`.
    pub fn of_kubeconfig(file: &Path, dir: &Path) -> Result<Endpoint> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let config: serde_json::Value = serde_yaml::from_str(&text).with_context(|| format!("{} is not YAML", file.display()))?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let server = cluster["server"].as_str().context("a server")?.trim_start_matches("https://");
        let rows =
            [(cluster, "certificate-authority", "ca.crt"), (user, "client-certificate", "admin.crt"), (user, "client-key", "admin.key")];
        std::fs::create_dir_all(dir)?;
        for (entry, field, name) in rows {
            let content = match (entry[field].as_str(), entry[format!("{field}-data")].as_str()) {
                (Some(path), _) => std::fs::read(path).with_context(|| format!("read {path}"))?,
                (None, Some(data)) => base64::engine::general_purpose::STANDARD.decode(data)?,
                (None, None) => bail!("{} has no {field}", file.display()),
            };
            std::fs::write(dir.join(name), content)?;
        }
        Ok(Endpoint { address: server.parse().with_context(|| format!("{server} is no address"))?, pki: dir.to_owned() })
    }
}

pub struct Client {
    endpoint: Endpoint,
    tls: Arc<ClientConfig>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

impl Client {
    pub fn new(endpoint: &Endpoint) -> Result<Client> {
        // The second call of a process finds the first's provider in place.
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Ok(Client { endpoint: endpoint.clone(), tls: Arc::new(config(&endpoint.pki)?), connection: None })
    }

    /// One request and its whole answer.
    pub async fn request(&mut self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let answer = self.open(method, path, body.into()).await?;
        let status = answer.status().as_u16();
        let collected = answer.into_body().collect().await;
        if collected.is_err() {
            self.connection = None;
        }
        Ok(Answer { status, body: collected.context("read the answer")?.to_bytes() })
    }

    /// The same with a body of another type: a patch.
    pub async fn send(&mut self, method: Method, path: &str, content_type: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let answer = self.open_as(method, path, content_type, body.into()).await?;
        let status = answer.status().as_u16();
        Ok(Answer { status, body: answer.into_body().collect().await.context("read the answer")?.to_bytes() })
    }

    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// A request whose answer's body is read piece by piece: a watch.
    pub async fn open(&mut self, method: Method, path: &str, body: Bytes) -> Result<http::Response<Incoming>> {
        self.open_as(method, path, "application/json", body).await
    }

    async fn open_as(&mut self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<http::Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.endpoint.address.to_string())
            .header("content-type", content_type)
            .header("accept", "application/json")
            .header("user-agent", "bench/1")
            .body(Full::new(body))?;
        let mut connection = match self.connection.take() {
            Some(open) if !open.is_closed() => open,
            _ => self.connect().await?,
        };
        connection.ready().await?;
        let answer = connection.send_request(request).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.endpoint.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.endpoint.address.ip().into());
        let stream = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its errors reach the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn config(pki: &Path) -> Result<ClientConfig> {
    let read = |name: &str| CertificateDer::pem_file_iter(pki.join(name)).with_context(|| format!("read {name} in {}", pki.display()));
    let mut roots = RootCertStore::empty();
    for authority in read("ca.crt")? {
        roots.add(authority?)?;
    }
    let chain = read("admin.crt")?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pki.join("admin.key"))?;
    Ok(ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?)
}
