//! Signs approved requests with the cluster's CA.
//!
//! Upstream: `pkg/controller/certificates/signer/signer.go`, `authority/policies.go`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use machinery::{Informer, Next, WorkQueue};
use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose as Extended, IsCa, Issuer, KeyPair, KeyUsagePurpose as Usage, SerialNumber,
};

use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, Subject};
use crate::context::Context;
use crate::shared::conditions::{self, Condition};
use crate::shared::{watch, write};

const NAME: &str = "certificatesigningrequest-signing-controller";
/// Clocks differ: certificates are valid from a little earlier.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Shortest life that a request may ask for.
const SHORTEST: Duration = Duration::from_secs(10 * 60);

struct Controller {
    client: kube::Client,
    requests: Informer<CertificateSigningRequest>,
    authority: Issuer<'static, KeyPair>,
    longest: Duration,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let config = &context.config;
    let (Some(certificate), Some(key)) = (&config.cluster_signing_cert_file, &config.cluster_signing_key_file) else {
        tracing::info!("no --cluster-signing-cert-file: certificate requests are not signed");
        return Ok(());
    };
    let read =
        async |path: &std::path::Path| tokio::fs::read_to_string(path).await.with_context(|| format!("cannot read {}", path.display()));
    let key_pair = KeyPair::from_pem(&read(key).await?).context("cannot use --cluster-signing-key-file")?;
    let authority = Issuer::from_ca_cert_pem(&read(certificate).await?, key_pair).context("cannot use --cluster-signing-cert-file")?;
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        requests: context.informers.of(),
        authority,
        longest: config.cluster_signing_duration,
    });
    watch::itself(&this.requests, &queue);
    this.requests.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(csr) = self.requests.get(key) else { return Ok(Next::Done) };
        let waiting = super::has(&csr, "Approved") && !super::has(&csr, "Failed") && !super::has(&csr, "Denied");
        let ours = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY].contains(&csr.spec.signer_name.as_str());
        if !waiting || !ours || super::is_issued(&csr) {
            return Ok(Next::Done);
        }
        let now = Timestamp::now();
        let mut updated = (*csr).clone();
        let status = updated.status.get_or_insert_default();
        match sign(&csr, &self.authority, self.longest, now) {
            Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
            Err(error) => {
                let text = format!("{error:#}");
                let failed = CertificateSigningRequestCondition::new("Failed", "True", "SignerValidationFailure", &text, now);
                conditions::set(&mut status.conditions, failed);
            }
        }
        write::unless_gone(write::update_status(&self.client, &updated).await)?;
        Ok(Next::Done)
    }
}

fn sign(
    csr: &CertificateSigningRequest,
    authority: &Issuer<'static, KeyPair>,
    longest: Duration,
    now: Timestamp,
) -> anyhow::Result<String> {
    let der = super::der(csr)?;
    let subject = super::subject(&der)?;
    check(&csr.spec.signer_name, &subject)?;
    let mut request = CertificateSigningRequestParams::from_der(&der.into())?;
    let asked = csr.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let life = asked.map_or(longest, |asked| asked.clamp(SHORTEST.min(longest), longest));
    let at = |time: Timestamp| std::time::UNIX_EPOCH + Duration::from_secs(time.as_second().max(0).unsigned_abs());
    let params = &mut request.params;
    params.not_before = (at(now) - BACKDATE).into();
    params.not_after = (at(now) + life).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages.clear();
    params.extended_key_usages.clear();
    for usage in csr.spec.usages.iter().flatten() {
        add_usage(usage, &mut params.key_usages, &mut params.extended_key_usages)?;
    }
    Ok(request.signed_by(authority)?.pem())
}

/// Rules of each signer, whoever approved.
fn check(signer: &str, subject: &Subject) -> anyhow::Result<()> {
    // Our certificate writer keeps one organization; dropping groups silently would be worse than refusing.
    anyhow::ensure!(subject.organizations.len() <= 1, "only one organization is supported");
    if signer == KUBELET_CLIENT || signer == KUBELET_SERVING {
        anyhow::ensure!(subject.organizations == ["system:nodes"], "subject organization is not system:nodes");
        anyhow::ensure!(subject.common_name.starts_with("system:node:"), "subject common name does not begin with system:node:");
    }
    Ok(())
}

fn serial() -> [u8; 16] {
    let mut bytes: [u8; 16] = rand::random();
    // Positive, as X.509 wants it.
    bytes[0] &= 0x7f;
    bytes
}

fn add_usage(usage: &str, keys: &mut Vec<Usage>, extended: &mut Vec<Extended>) -> anyhow::Result<()> {
    match usage {
        "signing" | "digital signature" => keys.push(Usage::DigitalSignature),
        "content commitment" => keys.push(Usage::ContentCommitment),
        "key encipherment" => keys.push(Usage::KeyEncipherment),
        "key agreement" => keys.push(Usage::KeyAgreement),
        "data encipherment" => keys.push(Usage::DataEncipherment),
        "server auth" => extended.push(Extended::ServerAuth),
        "client auth" => extended.push(Extended::ClientAuth),
        "code signing" => extended.push(Extended::CodeSigning),
        "email protection" | "s/mime" => extended.push(Extended::EmailProtection),
        "timestamping" => extended.push(Extended::TimeStamping),
        "ocsp signing" => extended.push(Extended::OcspSigning),
        other => anyhow::bail!("unsupported key usage {other:?}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::request;
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams};
    use x509_parser::prelude::{FromDer, X509Certificate};

    fn authority() -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Issuer::from_ca_cert_pem(&pem, key).unwrap()
    }

    #[test]
    fn signs_what_was_asked_and_no_more() {
        let mut csr = request(KUBELET_SERVING, "system:node:n1", "system:nodes", &["n1", "10.0.0.1"], &["server auth"]);
        csr.spec.expiration_seconds = Some(3600);
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let pem = sign(&csr, &authority(), Duration::from_secs(86400), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
        assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), "system:node:n1");
        assert_eq!(certificate.subject().iter_organization().next().unwrap().as_str().unwrap(), "system:nodes");
        assert_eq!(certificate.validity().not_after.timestamp(), 1_000_003_600);
        assert!(certificate.extended_key_usage().unwrap().unwrap().value.server_auth);
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        assert!(!certificate.is_ca());
    }

    #[test]
    fn a_kubelet_signer_certifies_nodes_only() {
        let csr = request(KUBELET_CLIENT, "admin", "system:masters", &[], &["client auth"]);
        assert!(sign(&csr, &authority(), Duration::from_secs(86400), Timestamp::now()).is_err());
    }
}
