//! Signs the tokens of Secrets, with the key that signs the API server's own.
//!
//! These tokens have no end: the Secret that holds one is its life. Upstream: `pkg/serviceaccount/{jwt,legacy}.go`.

use anyhow::Context as _;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::ServiceAccount;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::shared::meta;

/// Who signs tokens of this kind, whatever the issuer of all others is called.
const ISSUER: &str = "kubernetes/serviceaccount";

enum Pair {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
}

pub struct Signer {
    pair: Pair,
    /// The part before the first dot, encoded.
    header: String,
}

impl Signer {
    /// RSA or P-256, as PKCS#8, PKCS#1 or SEC1.
    pub fn from_pem(pem: &[u8]) -> anyhow::Result<Self> {
        let pair =
            read(&PrivateKeyDer::from_pem_slice(pem).context("no private key in PEM")?).context("the key is neither RSA nor P-256")?;
        let (algorithm, public) = match &pair {
            Pair::Rsa(rsa) => ("RS256", AsDer::<PublicKeyX509Der>::as_der(rsa.public_key())),
            Pair::Ecdsa(ec) => ("ES256", AsDer::<PublicKeyX509Der>::as_der(ec.public_key())),
        };
        let public = public.context("the key has no public half")?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(public.as_ref()));
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": algorithm, "kid": id}).to_string());
        Ok(Signer { pair, header })
    }

    /// The token of `account` that lives in the Secret `secret`.
    pub fn token(&self, account: &ServiceAccount, secret: &str) -> anyhow::Result<String> {
        let mut token = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims(account, secret).to_string()));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(rsa) => {
                let mut out = vec![0; rsa.public_modulus_len()];
                rsa.sign(&RSA_PKCS1_SHA256, &random, token.as_bytes(), &mut out).map(|()| out)
            }
            Pair::Ecdsa(ec) => ec.sign(&random, token.as_bytes()).map(|signature| signature.as_ref().to_vec()),
        };
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.context("the key could not sign")?, &mut token);
        Ok(token)
    }
}

fn read(key: &PrivateKeyDer<'_>) -> Option<Pair> {
    let ecdsa = &ECDSA_P256_SHA256_FIXED_SIGNING;
    match key {
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).map(Pair::Rsa).ok(),
        PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(ecdsa, der.secret_sec1_der()).map(Pair::Ecdsa).ok(),
        PrivateKeyDer::Pkcs8(der) => {
            let der = der.secret_pkcs8_der();
            RsaKeyPair::from_pkcs8(der).map(Pair::Rsa).or_else(|_| EcdsaKeyPair::from_pkcs8(ecdsa, der).map(Pair::Ecdsa)).ok()
        }
        _ => None,
    }
}

fn claims(account: &ServiceAccount, secret: &str) -> Value {
    let (namespace, name) = (meta::namespace(account), meta::name(account));
    json!({
        "iss": ISSUER,
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": secret,
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": meta::uid(account),
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    })
}
