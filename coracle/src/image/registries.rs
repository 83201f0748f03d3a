//! Registries with a certificate of a private authority: what `image trust` remembers, and what containerd reads on every machine.
//!
//! ```text
//! /var/lib/coracle/NAME/registries/HOST[:PORT]/ca.crt             the record
//! /etc/containerd/certs.d/HOST[:PORT]/{hosts.toml,ca.crt}         on each machine
//! ```
//! A registry with a folder of its own is no longer served by `_default`, so the folder names the cluster's store as first mirror too.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, write_file};
use crate::machine::files::{File, mirror};

pub fn add(cluster: &Cluster, registry: &str, certificate: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if registry.is_empty() || !registry.chars().all(fits) || !registry.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') {
        bail!("a registry is named HOST or HOST:PORT, without https:// and path: {registry:?}");
    }
    if !certificate.contains("-----BEGIN CERTIFICATE-----") {
        bail!("the authority's certificate is not PEM: it lacks -----BEGIN CERTIFICATE-----");
    }
    write_file(&cluster.dir().join("registries").join(registry).join("ca.crt"), certificate.as_bytes(), 0o644)
}

/// The files of all trusted registries, below /etc.
pub fn files(cluster: &Cluster) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(cluster.dir().join("registries")).into_iter().flatten() {
        let entry = entry?;
        let registry = entry.file_name().to_string_lossy().into_owned();
        let certificate = fs::read_to_string(entry.path().join("ca.crt")).with_context(|| format!("the certificate of {registry}"))?;
        let dir = format!("containerd/certs.d/{registry}");
        files.push(File { path: format!("{dir}/ca.crt"), content: certificate, mode: 0o644 });
        files.push(File { path: format!("{dir}/hosts.toml"), content: hosts(cluster, &registry), mode: 0o644 });
    }
    Ok(files)
}

fn hosts(cluster: &Cluster, registry: &str) -> String {
    format!(
        "server = \"https://{registry}\"\n\n{}\n[host.\"https://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"/etc/containerd/certs.d/{registry}/ca.crt\"\n",
        mirror(cluster)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Options;

    #[test]
    fn the_store_comes_first_then_the_registry() {
        let text = hosts(&Cluster::new("c", 3, 0, Options::default()), "r.example:5443");
        let (store, registry) = (text.find("https://10.88.3.2:5000").unwrap(), text.find("[host.\"https://r.example:5443\"]").unwrap());
        assert!(store < registry && text.starts_with("server = \"https://r.example:5443\""), "{text}");
    }

    #[test]
    fn names_that_are_none() {
        let cluster = Cluster::new("c", 3, 0, Options::default());
        for bad in ["", "https://r", "r/a", "../x"] {
            assert!(add(&cluster, bad, "-----BEGIN CERTIFICATE-----").is_err(), "{bad:?}");
        }
        assert!(add(&cluster, "r", "").is_err());
    }
}
