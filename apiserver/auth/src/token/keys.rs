//! Signing and verifying keys: RSA (RS256) and P-256 (ES256), read from PEM.
//!
//! A key's id is the base64url SHA-256 of its public key's DER (SubjectPublicKeyInfo), as upstream's.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256,
    RsaKeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("no RSA or P-256 key found in PEM")]
    NoKey,
    #[error("reading PEM: {0}")]
    Pem(pem::Error),
    #[error("{0} is not an RSA or P-256 key")]
    Unsupported(&'static str),
    #[error("the key could not sign")]
    Sign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Es256,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
        }
    }
}

enum Pair {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
}

pub struct SigningKey {
    pair: Pair,
    public: VerifyingKey,
}

impl SigningKey {
    /// The first private key in `pem`: PKCS#8, PKCS#1 or SEC1.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        for (kind, der) in sections(pem)? {
            if let Some(pair) = private_key(kind, &der) {
                return SigningKey::of(pair);
            }
        }
        Err(KeyError::NoKey)
    }

    fn of(pair: Pair) -> Result<Self, KeyError> {
        let spki = match &pair {
            Pair::Rsa(rsa) => AsDer::<PublicKeyX509Der>::as_der(rsa.public_key()).map(|der| der.as_ref().to_vec()),
            Pair::Ecdsa(ec) => AsDer::<PublicKeyX509Der>::as_der(ec.public_key()).map(|der| der.as_ref().to_vec()),
        };
        let public = VerifyingKey::from_spki(&spki.map_err(|_| KeyError::Unsupported("private key"))?)?;
        Ok(SigningKey { pair, public })
    }

    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    pub fn algorithm(&self) -> Algorithm {
        self.public.algorithm
    }

    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(rsa) => {
                let mut out = vec![0; rsa.public_modulus_len()];
                rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut out).map_err(|_| KeyError::Sign)?;
                Ok(out)
            }
            Pair::Ecdsa(ec) => Ok(ec.sign(&random, message).map_err(|_| KeyError::Sign)?.as_ref().to_vec()),
        }
    }
}

#[derive(Clone)]
pub struct VerifyingKey {
    pub id: String,
    pub algorithm: Algorithm,
    /// What the verifier takes: PKCS#1 for RSA, the uncompressed point for P-256.
    bytes: Vec<u8>,
    jwk: Value,
}

impl VerifyingKey {
    /// Every key in `pem`; of private keys the public half, of certificates their subject's key.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for (kind, der) in sections(pem)? {
            match kind {
                SectionKind::PublicKey => keys.push(VerifyingKey::from_spki(&der)?),
                SectionKind::Certificate => keys.push(VerifyingKey::from_certificate(&der)?),
                kind => keys.extend(private_key(kind, &der).map(SigningKey::of).transpose()?.map(|key| key.public)),
            }
        }
        if keys.is_empty() { Err(KeyError::NoKey) } else { Ok(keys) }
    }

    fn from_certificate(der: &[u8]) -> Result<Self, KeyError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| KeyError::Unsupported("certificate"))?;
        VerifyingKey::from_spki(certificate.public_key().raw)
    }

    fn from_spki(spki: &[u8]) -> Result<Self, KeyError> {
        let unsupported = || KeyError::Unsupported("public key");
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| unsupported())?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(spki));
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let bytes = info.subject_public_key.data.to_vec();
        match info.parsed().map_err(|_| unsupported())? {
            PublicKey::RSA(rsa) => {
                let (n, e) = (without_leading_zeros(rsa.modulus), without_leading_zeros(rsa.exponent));
                let jwk = json!({"use": "sig", "kty": "RSA", "kid": id, "alg": "RS256", "n": encode(n), "e": encode(e)});
                Ok(VerifyingKey { id, algorithm: Algorithm::Rs256, bytes, jwk })
            }
            // Only P-256 has an uncompressed point of 65 bytes among the curves Go and we read.
            PublicKey::EC(point) if point.data().len() == 65 => {
                let (x, y) = (encode(&point.data()[1..33]), encode(&point.data()[33..]));
                let jwk = json!({"use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": x, "y": y});
                Ok(VerifyingKey { id, algorithm: Algorithm::Es256, bytes, jwk })
            }
            _ => Err(unsupported()),
        }
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok()
    }

    /// The key as an entry of a JSON Web Key Set.
    pub fn jwk(&self) -> &Value {
        &self.jwk
    }
}

fn without_leading_zeros(mut bytes: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

fn sections(pem: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, KeyError> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(KeyError::Pem)
}

fn private_key(kind: SectionKind, der: &[u8]) -> Option<Pair> {
    let ecdsa = &ECDSA_P256_SHA256_FIXED_SIGNING;
    match kind {
        SectionKind::PrivateKey => {
            RsaKeyPair::from_pkcs8(der).map(Pair::Rsa).or_else(|_| EcdsaKeyPair::from_pkcs8(ecdsa, der).map(Pair::Ecdsa)).ok()
        }
        SectionKind::RsaPrivateKey => RsaKeyPair::from_der(der).map(Pair::Rsa).ok(),
        SectionKind::EcPrivateKey => EcdsaKeyPair::from_private_key_der(ecdsa, der).map(Pair::Ecdsa).ok(),
        _ => None,
    }
}
