//! Cluster DNS: runs as pods behind the Service kube-system/kube-dns.
//!
//! ```text
//! query ─▶ server ─▶ answer (names of the cluster, from informers)
//!                └─▶ forward (all others, from the machine's resolvers, cached)
//! ```
//! Absent: zone transfers, DNSSEC of its own, metrics. Upstream: CoreDNS with the plugins kubernetes, forward, cache.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use hickory_proto::rr::Name;
use machinery::{CancellationToken, Informers, shell};

mod answer;
mod forward;
mod health;
mod server;
#[cfg(test)]
mod tests;
mod zone;

#[derive(Clone, Debug, clap::Parser)]
#[command(name = "dns", version, about = "Answers the cluster's names")]
pub struct Config {
    /// How to reach the API server; without it, the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    pub zone: String,
    /// Where to answer, UDP and TCP
    #[arg(long, default_value = "0.0.0.0:53")]
    pub address: SocketAddr,
    /// Where to serve /health
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub health_address: SocketAddr,
    /// Where to serve /ready
    #[arg(long, default_value = "0.0.0.0:8181")]
    pub ready_address: SocketAddr,
    /// Resolvers for all other names; without it, those of /etc/resolv.conf
    #[arg(long, value_delimiter = ',')]
    pub upstream: Vec<IpAddr>,
    /// How much to log: 0 warnings, 2 what happens, 4 what failed
    #[arg(short = 'v', long = "v", default_value_t = 2, value_name = "LEVEL")]
    pub v: u8,
}

/// Answers until the token is cancelled.
/// Errors: no credentials, a bad zone, or an address that is taken.
pub async fn run(config: Config, token: CancellationToken) -> anyhow::Result<()> {
    let domain = Name::from_ascii(format!("{}.", config.zone.trim_end_matches('.'))).context("--zone is no domain name")?;
    let upstreams = match config.upstream.as_slice() {
        [] => forward::nameservers(&tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default()),
        given => given.iter().map(|ip| SocketAddr::new(*ip, 53)).collect(),
    };
    let client = shell::client(config.kubeconfig.as_deref(), "dns").await?;
    let zone = Arc::new(zone::LiveZone::new(&Informers::new(client, token.clone())));
    let synced = zone.clone();
    let ready: Arc<dyn Fn() -> bool + Send + Sync> = Arc::new(move || synced.has_synced());
    tracing::info!(?upstreams, "forwarding other names");
    let server = Arc::new(server::Server { zone, domain, forwarder: forward::Forwarder::new(upstreams) });
    tokio::select! {
        ended = server.run(config.address, token) => ended,
        ended = health::serve(config.health_address, ready.clone()) => ended,
        ended = health::serve(config.ready_address, ready) => ended,
    }
}
