//! kube-proxy: makes the addresses of Services work on this node.
//!
//! ```text
//! Services, EndpointSlices ─▶ index ─▶ model ─▶ compile ─▶ ruleset ─▶ one nft transaction
//! ```
//! Look-up is one hash of (address, protocol, port), whatever the number of Services; a change writes the elements and
//! the chain of the Service that changed. Absent: iptables, IPVS; host ports (the CNI plugin's).
//! Upstream: pkg/proxy/nftables, v1.33.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use anyhow::Context;
use ipnet::IpNet;
use machinery::shell::{self, CommonArgs, Health};
use machinery::{CancellationToken, Informers};

mod compile;
mod conntrack;
#[cfg(test)]
mod fixtures;
mod health_check;
mod index;
mod model;
mod nft;
mod proxy;
mod ruleset;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod traffic;

/// The flags, with upstream's names.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "kube-proxy", version, about = "Turns Services into nftables rules")]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Port to serve health and metrics on
    #[arg(long, default_value_t = 10256)]
    pub secure_port: u16,
    /// The name of this node, if it is not the host's name
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Where pods' addresses come from; traffic to Services from elsewhere is masqueraded
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
}

/// Runs until the token is cancelled.
/// Errors: no usable credentials, no node name, or the health port is taken.
pub async fn run(config: Config, token: CancellationToken) -> anyhow::Result<()> {
    let client = shell::client(config.common.kubeconfig.as_deref(), "kube-proxy").await?;
    let node = match config.hostname_override {
        Some(name) => name,
        None => nix::unistd::gethostname().context("cannot read the host's name")?.to_string_lossy().to_lowercase(),
    };
    let health = Health::default();
    let place = model::Place { node, zone: None, cluster_cidrs: config.cluster_cidr };
    let proxy = proxy::Proxy::new(client.clone(), place, &health);
    shell::serve_health(&config.common, config.secure_port, client.clone(), health, token.clone()).await?;
    let informers = Informers::new(client, token.clone());
    proxy.run(&informers, token).await;
    Ok(())
}
