//! TLS as every Coracle process sets it up: TLS 1.2+ by rustls and aws-lc-rs, identities and authorities from PEM files.
//!
//! Upstream: `client-go/transport`, `apiserver/pkg/server/options/serving.go`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

/// rustls with aws-lc-rs, chosen once for the whole process. Repeating it is harmless.
pub fn install_crypto() {
    let _already_installed = aws_lc_rs::default_provider().install_default();
}

/// The chain in a PEM file. Errors: a file that can't be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read certificates from {}", path.display()))?;
    ensure!(!chain.is_empty(), "{} holds no certificate", path.display());
    Ok(chain)
}

pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| format!("cannot read a private key from {}", path.display()))
}

/// The authorities of a PEM file.
pub fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("unusable CA in {}", path.display()))?;
    }
    Ok(roots)
}

pub fn certified_key(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<CertifiedKey> {
    let key = aws_lc_rs::sign::any_supported_type(key).context("unusable private key")?;
    Ok(CertifiedKey::new(chain, key))
}

/// A certificate from files, or one that the process signs itself (as upstream does for ports that only probes read).
pub fn certificate(files: Option<(&Path, &Path)>, names: Vec<String>) -> Result<Arc<dyn ResolvesServerCert>> {
    let (chain, key) = match files {
        Some((certificate, file)) => (certificates(certificate)?, key(file)?),
        None => {
            let own = rcgen::generate_simple_self_signed(names).context("cannot sign a certificate")?;
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
            (vec![own.cert.der().clone()], key)
        }
    };
    Ok(Arc::new(SingleCertAndKey::from(certified_key(chain, &key)?)))
}

/// Client certificates, where shown, must chain to `client_ca`; showing none is allowed (the handler then asks for a token).
pub fn server(certificate: Arc<dyn ResolvesServerCert>, client_ca: Option<&Path>) -> Result<Arc<ServerConfig>> {
    install_crypto();
    let builder = ServerConfig::builder();
    let builder = match client_ca {
        Some(path) => {
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots(path)?)).allow_unauthenticated().build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts `authority` and identifies by a certificate and its key.
pub fn client(authority: &Path, certificate: &Path, private: &Path) -> Result<Arc<ClientConfig>> {
    install_crypto();
    let builder = ClientConfig::builder().with_root_certificates(roots(authority)?);
    Ok(Arc::new(builder.with_client_auth_cert(certificates(certificate)?, key(private)?)?))
}

/// A client for probes of pods, and for pods and Services behind the proxy: whoever answers at the address is who was asked for, as upstream has it.
pub fn trusting_client() -> Arc<ClientConfig> {
    install_crypto();
    let verifier = Arc::new(Anyone(Arc::new(aws_lc_rs::default_provider())));
    Arc::new(ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Checks that the other side has the key of the certificate it shows, and nothing of the certificate.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
