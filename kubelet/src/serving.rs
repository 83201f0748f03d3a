//! The kubelet's serving certificate: asked for with a CertificateSigningRequest, kept on disk, renewed before it ends.
//!
//! Until it is there a certificate signed by the kubelet itself serves, as upstream does.
//! Upstream: `pkg/kubelet/certificate/kubelet.go`, `client-go/util/certificate/certificate_manager.go`, v1.33.

use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use machinery::tls;
use parking_lot::RwLock;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::kubelet::Kubelet;

const SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long one request may wait for its signature before a new one is made.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

#[derive(Debug)]
pub struct Serving {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

impl Serving {
    /// Begins with a certificate of our own making.
    pub fn self_signed(names: Vec<String>) -> Result<Arc<Self>> {
        let own = rcgen::generate_simple_self_signed(names).context("sign a certificate")?;
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).map_err(|e| anyhow::anyhow!(e))?;
        let certified = tls::certified_key(vec![own.cert.der().clone()], &key)?;
        Ok(Arc::new(Serving { current: RwLock::new(Arc::new(certified)) }))
    }

    /// Keeps a signed certificate in place until the kubelet stops.
    pub async fn run(&self, kubelet: &Kubelet) {
        let mut ends = self.load(kubelet).unwrap_or_else(|error| {
            tracing::debug!(error = format!("{error:#}"), "no serving certificate on disk");
            None
        });
        loop {
            if let Some((from, to)) = ends.take() {
                // Between 70 and 90 percent of its life, so that nodes don't all ask at once.
                let life = to.duration_since(from).as_secs_f64();
                let renew = from.as_second() as f64 + life * rand::random_range(0.7..0.9);
                let wait = renew - Timestamp::now().as_second() as f64;
                tokio::time::sleep(Duration::from_secs_f64(wait.max(0.0))).await;
            }
            match self.request(kubelet).await {
                Ok(()) => ends = self.load(kubelet).unwrap_or_default(),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "no serving certificate yet");
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            }
        }
    }

    fn file(kubelet: &Kubelet) -> PathBuf {
        kubelet.config.cert_dir.join("kubelet-server-current.pem")
    }

    /// Takes the certificate on disk into use; its validity, if it still serves and is for this address.
    fn load(&self, kubelet: &Kubelet) -> Result<Option<(Timestamp, Timestamp)>> {
        let file = Self::file(kubelet);
        if !file.exists() {
            return Ok(None);
        }
        let chain = tls::certificates(&file)?;
        let key = tls::key(&file)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(chain.first().context("empty file")?)?;
        let from = Timestamp::from_second(parsed.validity().not_before.timestamp())?;
        let to = Timestamp::from_second(parsed.validity().not_after.timestamp())?;
        let names = parsed.subject_alternative_name()?.map(|n| format!("{:?}", n.value)).unwrap_or_default();
        let octets = match kubelet.config.node_ip {
            std::net::IpAddr::V4(ip) => format!("IPAddress({:?})", ip.octets()),
            std::net::IpAddr::V6(ip) => format!("IPAddress({:?})", ip.octets()),
        };
        if to <= Timestamp::now() || !names.contains(&octets) {
            return Ok(None);
        }
        *self.current.write() = Arc::new(tls::certified_key(chain, &key)?);
        Ok(Some((from, to)))
    }

    async fn request(&self, kubelet: &Kubelet) -> Result<()> {
        let node = &kubelet.config.node_name;
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(vec![node.clone()])?;
        parameters.subject_alt_names.push(SanType::IpAddress(kubelet.config.node_ip));
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "system:nodes");
        subject.push(DnType::CommonName, format!("system:node:{node}"));
        parameters.distinguished_name = subject;
        let pem = parameters.serialize_request(&key)?.pem()?;
        let request = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: SIGNER.into(),
                usages: Some(vec!["digital signature".into(), "server auth".into()]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let api: Api<CertificateSigningRequest> = Api::all(kubelet.client.clone());
        let made = api.create(&PostParams::default(), &request).await?;
        let certificate = tokio::time::timeout(PATIENCE, signature(&api, made)).await.context("not signed in time")??;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate).collect::<Result<_, _>>()?;
        tracing::info!(certificates = chain.len(), "serving certificate signed");
        self.store(kubelet, &certificate, &key.serialize_pem())
    }

    fn store(&self, kubelet: &Kubelet, certificate: &[u8], key: &str) -> Result<()> {
        use std::io::Write;
        let file = Self::file(kubelet);
        std::fs::create_dir_all(&kubelet.config.cert_dir)?;
        let fresh = file.with_extension("new");
        let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        out.write_all(certificate)?;
        out.write_all(key.as_bytes())?;
        out.sync_all()?;
        Ok(std::fs::rename(fresh, file)?)
    }
}

/// Waits for the request's certificate.
async fn signature(api: &Api<CertificateSigningRequest>, made: CertificateSigningRequest) -> Result<Vec<u8>> {
    let name = made.metadata.name.clone().unwrap_or_default();
    let version = made.metadata.resource_version.clone().unwrap_or_default();
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(api.watch(&parameters, &version).await?);
    while let Some(event) = events.try_next().await? {
        let (WatchEvent::Added(request) | WatchEvent::Modified(request)) = event else { continue };
        let status = request.status.unwrap_or_default();
        if let Some(refusal) = status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed") {
            bail!("{} was {}: {}", name, refusal.type_, refusal.message.clone().unwrap_or_default());
        }
        if let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) {
            return Ok(certificate.0);
        }
    }
    bail!("the watch on {name} ended")
}
