//! The cluster's certificates: a table says who holds one, [`ensure`] issues what is missing.
//!
//! etcd has an authority of its own: it knows no permissions, so the cluster's other certificates must not open it.
//! All keys are ECDSA P-256. Workers get only their own files (see `machine::files`); the authority's key stays on the master.
//! Upstream: `cmd/kubeadm/app/phases/certs/certlist.go`, v1.33.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use time::{Duration, OffsetDateTime};

use crate::cluster::{Cluster, Role, SERVICE_GATEWAY, write_file};

/// What a certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    Both,
}

/// A row: one certificate and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// File name without ending, below `pki/`.
    pub file: String,
    pub common_name: String,
    pub organization: Option<&'static str>,
    pub usage: Usage,
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

const YEARS: i64 = 10;

/// Every certificate the cluster needs.
pub fn table(cluster: &Cluster) -> Vec<Row> {
    let master = IpAddr::V4(cluster.address(cluster.master()));
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let client = |file: &str, name: &str, organization| Row {
        file: file.into(),
        common_name: name.into(),
        organization,
        usage: Usage::Client,
        dns: Vec::new(),
        addresses: Vec::new(),
    };
    let server = |file: &str, dns: &[&str], addresses: &[IpAddr]| Row {
        file: file.into(),
        common_name: file.into(),
        organization: None,
        usage: Usage::Server,
        dns: dns.iter().map(|name| name.to_string()).collect(),
        addresses: addresses.to_vec(),
    };
    let api_names =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost", "master"];
    let mut rows = vec![
        server("kube-apiserver", &api_names, &[IpAddr::V4(SERVICE_GATEWAY), master, loopback]),
        server("kube-controller-manager-server", &["localhost", "master"], &[master, loopback]),
        server("kube-scheduler-server", &["localhost", "master"], &[master, loopback]),
        server("image-server", &["master"], &[master, loopback]),
        client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters")),
        client("admin", "kubernetes-admin", Some("system:masters")),
        client("kube-controller-manager", "system:kube-controller-manager", None),
        client("kube-scheduler", "system:kube-scheduler", None),
        client("kube-proxy", "system:kube-proxy", None),
    ];
    for machine in &cluster.machines {
        let address = IpAddr::V4(cluster.address(machine));
        rows.push(server(&format!("kube-proxy-server-{}", machine.name), &["localhost", &machine.name], &[address, loopback]));
        rows.push(client(&format!("kubelet-{}", machine.name), &format!("system:node:{}", machine.name), Some("system:nodes")));
    }
    rows
}

/// Every certificate of etcd's authority, below `pki/etcd/`.
fn etcd_table(cluster: &Cluster) -> Vec<Row> {
    let row = |file: &str, name: &str, organization, usage| Row {
        file: file.into(),
        common_name: name.into(),
        organization,
        usage,
        dns: Vec::new(),
        addresses: Vec::new(),
    };
    let addresses = vec![IpAddr::V4(cluster.address(cluster.master())), IpAddr::from([127, 0, 0, 1])];
    let dns = vec!["localhost".into(), "master".into()];
    vec![
        // etcd is its own client (peers, its JSON gateway).
        Row { dns, addresses, ..row("server", "master", None, Usage::Both) },
        row("apiserver-etcd-client", "kube-apiserver-etcd-client", Some("system:masters"), Usage::Client),
        row("healthcheck-client", "kube-etcd-healthcheck-client", Some("system:masters"), Usage::Client),
    ]
}

/// Files below `pki/` that a master with etcd holds besides, by name there and on the machine. etcd's authority stays away.
pub const ETCD_FILES: [&str; 7] = [
    "etcd/ca.crt",
    "etcd/server.crt",
    "etcd/server.key",
    "etcd/apiserver-etcd-client.crt",
    "etcd/apiserver-etcd-client.key",
    "etcd/healthcheck-client.crt",
    "etcd/healthcheck-client.key",
];

/// Files below `pki/` that a machine of this role holds, by name there and by name on the machine.
pub fn files_of(role: Role, machine: &str) -> Vec<(String, String)> {
    let pair = |from: &str, to: &str| [(format!("{from}.crt"), format!("{to}.crt")), (format!("{from}.key"), format!("{to}.key"))];
    let mut files = vec![("ca.crt".to_string(), "ca.crt".to_string())];
    files.extend(pair(&format!("kubelet-{machine}"), "kubelet"));
    files.extend(pair("kube-proxy", "kube-proxy"));
    files.extend(pair(&format!("kube-proxy-server-{machine}"), "kube-proxy-server"));
    if role == Role::Master {
        for name in [
            "kube-apiserver",
            "kube-controller-manager-server",
            "kube-scheduler-server",
            "image-server",
            "apiserver-kubelet-client",
            "kube-controller-manager",
            "kube-scheduler",
        ] {
            files.extend(pair(name, name));
        }
        files.push(("ca.key".into(), "ca.key".into()));
        files.push(("sa.key".into(), "sa.key".into()));
        files.push(("sa.pub".into(), "sa.pub".into()));
    }
    files
}

/// Makes whatever is missing below `pki/`. What is there stays, so that a second `up` changes no identity.
pub fn ensure(cluster: &Cluster) -> Result<()> {
    ensure_in(&cluster.pki_dir(), &table(cluster))?;
    if cluster.runs_etcd() {
        issue_all(&cluster.pki_dir().join("etcd"), "etcd-ca", &etcd_table(cluster))?;
    }
    Ok(())
}

/// As [`ensure`], for any folder and rows.
pub fn ensure_in(dir: &Path, rows: &[Row]) -> Result<()> {
    if !dir.join("sa.key").exists() {
        let key = KeyPair::generate()?;
        write_file(&dir.join("sa.pub"), key.public_key_pem().as_bytes(), 0o644)?;
        write_file(&dir.join("sa.key"), key.serialize_pem().as_bytes(), 0o600)?;
    }
    issue_all(dir, "kubernetes", rows)
}

/// An authority of this name in `dir`, and its certificates.
fn issue_all(dir: &Path, authority: &str, rows: &[Row]) -> Result<()> {
    if !dir.join("ca.key").exists() {
        make_authority(dir, authority)?;
    }
    let authority_key = KeyPair::from_pem(&fs::read_to_string(dir.join("ca.key"))?)?;
    let authority = Issuer::from_ca_cert_pem(&fs::read_to_string(dir.join("ca.crt"))?, authority_key)?;
    for row in rows {
        if !dir.join(format!("{}.crt", row.file)).exists() {
            issue(dir, row, &authority).with_context(|| format!("issue the certificate {}", row.file))?;
        }
    }
    Ok(())
}

fn make_authority(dir: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = dated(CertificateParams::new(Vec::<String>::new())?);
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    write_file(&dir.join("ca.crt"), certificate.pem().as_bytes(), 0o644)?;
    write_file(&dir.join("ca.key"), key.serialize_pem().as_bytes(), 0o600)
}

fn issue(dir: &Path, row: &Row, authority: &Issuer<'_, KeyPair>) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = dated(CertificateParams::new(row.dns.clone())?);
    params.subject_alt_names.extend(row.addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.distinguished_name = Default::default();
    if let Some(organization) = row.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, row.common_name.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match row.usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, authority)?;
    // The key first: a certificate that exists means the pair is whole.
    write_file(&dir.join(format!("{}.key", row.file)), key.serialize_pem().as_bytes(), 0o600)?;
    write_file(&dir.join(format!("{}.crt", row.file)), certificate.pem().as_bytes(), 0o644)
}

/// Valid from five minutes ago (clocks differ between machines) for ten years.
fn dated(mut params: CertificateParams) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + Duration::days(365 * YEARS);
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Options;

    #[test]
    fn a_worker_never_holds_the_authoritys_key() {
        let files = files_of(Role::Worker, "worker1");
        let from: Vec<&str> = files.iter().map(|(from, _)| from.as_str()).collect();
        let own = ["ca.crt", "kubelet-worker1.crt", "kubelet-worker1.key", "kube-proxy.crt", "kube-proxy.key"];
        assert_eq!(from, [&own[..], &["kube-proxy-server-worker1.crt", "kube-proxy-server-worker1.key"]].concat());
    }

    #[test]
    fn every_file_a_machine_holds_is_made() {
        let cluster = Cluster::new("c", 0, 1, Options::default());
        let mut made: Vec<String> = ["ca.crt", "ca.key", "sa.key", "sa.pub"].map(String::from).to_vec();
        made.extend(table(&cluster).iter().flat_map(|row| [format!("{}.crt", row.file), format!("{}.key", row.file)]));
        for machine in &cluster.machines {
            for (from, _) in files_of(machine.role, &machine.name) {
                assert!(made.contains(&from), "{from}");
            }
        }
    }
}
