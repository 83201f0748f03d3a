//! Flags, in upstream's names. Upstream counterpart: `cmd/kube-apiserver/app/options` (v1.33).

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser};
use ipnet::Ipv4Net;

use crate::storage::Storage;
use crate::storage::embedded::Embedded;
use crate::storage::etcd::{self, Etcd};

/// The gate to the cluster: every read and write of every object passes here.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube-apiserver", version)]
pub struct Config {
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// The address at which the cluster reaches this server. Default: the address of the default route.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    #[command(flatten)]
    pub store: StoreFlags,
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cluster_ip_range: Ipv4Net,
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    pub service_node_port_range: RangeInclusive<u16>,
    /// This server's certificate, PEM.
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// Who may identify by certificate: signed by one of these, PEM.
    #[arg(long)]
    pub client_ca_file: PathBuf,
    /// Keys that verify service account tokens, PEM. Repeatable. Default: the signing key.
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    #[arg(long)]
    pub service_account_signing_key_file: PathBuf,
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    pub service_account_issuer: String,
    /// Audiences of service account tokens. Default: the issuer.
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// How this server identifies to kubelets.
    #[arg(long, requires = "kubelet_client_key")]
    pub kubelet_client_certificate: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    /// Who signs kubelets' serving certificates. Default: the client CA.
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// How much to log: 0 warnings, 2 what happens, 4 each sync, 6 each request.
    #[arg(short = 'v', long = "v", default_value_t = 2)]
    pub verbosity: u8,
    /// The commit this program was built from, for `/version`; from the program, so that a new commit compiles no library.
    #[arg(skip)]
    pub git_commit: &'static str,
}

/// Where the state is: in the embedded store, or in etcd if servers are given.
#[derive(Clone, Debug, Args)]
pub struct StoreFlags {
    /// The folder of the embedded store.
    #[arg(long, default_value = "/var/lib/coracle/apiserver")]
    pub data_dir: PathBuf,
    /// etcd servers as https://ADDRESS:2379, separated by commas. Default: none, the embedded store is used.
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// Who signs etcd's certificates, PEM.
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// How this server identifies to etcd, PEM.
    #[arg(long, requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    #[arg(long, requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// The folder of all keys in etcd.
    #[arg(long, default_value = "/registry")]
    pub etcd_prefix: String,
}

impl StoreFlags {
    pub fn etcd(&self) -> etcd::Options {
        etcd::Options {
            servers: self.etcd_servers.clone(),
            ca: self.etcd_cafile.clone(),
            certificate: self.etcd_certfile.clone(),
            key: self.etcd_keyfile.clone(),
            prefix: self.etcd_prefix.clone(),
        }
    }

    /// The store these flags name. Errors: a folder that is locked or damaged, an etcd that does not answer.
    pub async fn open(&self) -> anyhow::Result<Arc<dyn Storage>> {
        if !self.etcd_servers.is_empty() {
            return Ok(Arc::new(Etcd::connect(&self.etcd()).await?));
        }
        let opened = Embedded::open(&self.data_dir).with_context(|| format!("opening the store in {}", self.data_dir.display()))?;
        Ok(Arc::new(opened))
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let error = || format!("{text:?} is not a range of ports like 30000-32767");
    let (low, high) = text.split_once('-').ok_or_else(error)?;
    let (low, high) = (low.parse().map_err(|_| error())?, high.parse().map_err(|_| error())?);
    if low == 0 || low > high { Err(error()) } else { Ok(low..=high) }
}
