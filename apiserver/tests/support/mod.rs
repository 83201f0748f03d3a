//! A real server for tests: certificates, the binary, a client.
#![allow(dead_code)]

pub mod etcd;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;

/// A cluster's keys in a folder: `ca`, `server`, `admin`, `sa`.
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    pub fn new(dir: &Path) -> Self {
        let pki = Pki { dir: dir.to_owned() };
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "test-ca");
        let certificate = ca.self_signed(&ca_key).unwrap();
        pki.write("ca.crt", &certificate.pem());
        let issuer = Issuer::new(ca, ca_key);
        pki.issue(&issuer, "server", "kube-apiserver", None, vec!["127.0.0.1".into(), "localhost".into()]);
        pki.issue(&issuer, "admin", "kubernetes-admin", Some("system:masters"), Vec::new());
        pki.issue(&issuer, "jane", "jane", None, Vec::new());
        pki.write("sa.key", &KeyPair::generate().unwrap().serialize_pem());
        pki
    }

    fn issue(&self, issuer: &Issuer<'_, KeyPair>, file: &str, name: &str, group: Option<&str>, hosts: Vec<String>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        self.write(&format!("{file}.crt"), &params.signed_by(&key, issuer).unwrap().pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn client(&self, user: &str) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.crt")).unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_file(self.path(&format!("{user}.crt"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{user}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// The program itself, on a port of its own; killed when dropped.
pub struct Server {
    pub port: u16,
    pki: Pki,
    dir: PathBuf,
    child: Child,
}

impl Server {
    pub async fn start(dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let pki = Pki::new(dir);
        let child = spawn(&pki, dir, port);
        let server = Server { port, pki, dir: dir.to_owned(), child };
        server.wait_ready().await;
        server
    }

    /// `kill -9`, then the same again on the same data.
    pub async fn crash_and_restart(&mut self) {
        self.kill();
        self.child = spawn(&self.pki, &self.dir, self.port);
        self.wait_ready().await;
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        // It may be dead already: then there is only something to wait for.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }

    pub async fn client(&self, user: &str) -> Client {
        Client::connect(self.port, self.pki.client(user)).await.unwrap()
    }

    async fn wait_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            assert!(Instant::now() < deadline, "the server did not become ready");
            if let Ok(mut client) = Client::connect(self.port, self.pki.client("admin")).await
                && matches!(client.send(Method::GET, "/readyz", None).await, Ok((StatusCode::OK, _)))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(pki: &Pki, dir: &Path, port: u16) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kube-apiserver"))
        .args(["--bind-address", "127.0.0.1", "--advertise-address", "10.88.0.1", "--v", "0", "--secure-port", &port.to_string()])
        .arg("--data-dir")
        .arg(dir.join("db"))
        .arg("--tls-cert-file")
        .arg(pki.path("server.crt"))
        .arg("--tls-private-key-file")
        .arg(pki.path("server.key"))
        .arg("--client-ca-file")
        .arg(pki.path("ca.crt"))
        .arg("--service-account-signing-key-file")
        .arg(pki.path("sa.key"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// One HTTP/2 connection, as one user.
#[derive(Clone)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    async fn connect(port: u16, tls: rustls::ClientConfig) -> anyhow::Result<Self> {
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        let tls = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost")?, tcp).await?;
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(Client { sender })
    }

    pub async fn stream(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<http::Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }

    /// GET in another form than JSON.
    pub async fn get_as(&mut self, path: &str, accept: &str) -> anyhow::Result<(StatusCode, http::HeaderMap, Bytes)> {
        let request = Request::builder().uri(format!("https://localhost{path}")).header("accept", accept).body(Full::default())?;
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok((head.status, head.headers, body.collect().await?.to_bytes()))
    }

    pub async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(StatusCode, Bytes)> {
        let response = self.stream(method, path, body).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// The answer as JSON, with its code.
    pub async fn json(&mut self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let (status, bytes) = self.send(method, path, body).await.unwrap();
        (status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}
