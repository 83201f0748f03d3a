//! The seam between an object's JSON and the bytes at rest.
//!
//! A transformer may encrypt (`k8s:enc:` prefixes) or read what stock Kubernetes wrote (`k8s\0` protobuf). Today there is the
//! identity only. Upstream counterpart: `k8s.io/apiserver/pkg/storage/value`.

use bytes::Bytes;

/// Turns object bytes into stored bytes and back. `key` is authenticated data: bytes moved to another key must not decode.
pub trait Transformer: Send + Sync + 'static {
    fn seal(&self, key: &str, plain: Bytes) -> anyhow::Result<Bytes>;
    fn open(&self, key: &str, stored: Bytes) -> anyhow::Result<Bytes>;
}

/// Stores JSON as it is.
pub struct Identity;

impl Transformer for Identity {
    fn seal(&self, _key: &str, plain: Bytes) -> anyhow::Result<Bytes> {
        Ok(plain)
    }

    fn open(&self, _key: &str, stored: Bytes) -> anyhow::Result<Bytes> {
        Ok(stored)
    }
}
