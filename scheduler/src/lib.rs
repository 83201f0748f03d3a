//! kube-scheduler: gives every pod a node.
//!
//! ```text
//! informers → live → core ┬ queue      which pod next
//!                         ├ cache      what is free where
//!                         └ cycle      filter, score, select  ← plugins/ (one table, one file each)
//!                    effects           bind, events, conditions
//! ```
//! Everything but `live` and `effects` is pure: no clock, no network.
//! Upstream: pkg/scheduler, v1.33.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use machinery::shell::{self, CommonArgs, Health};
use machinery::{CancellationToken, Informers, election};

mod affinity;
mod cache;
mod classes;
mod core;
mod cycle;
mod effects;
#[cfg(test)]
mod fixtures;
mod framework;
mod hints;
mod live;
mod metrics;
mod plugins;
mod queue;
mod resources;
mod world;

/// The flags, with upstream's names.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "kube-scheduler", version, about = "Assigns pods to nodes")]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Port to serve health and metrics on
    #[arg(long, default_value_t = 10259)]
    pub secure_port: u16,
    /// Work only while holding the lease kube-system/kube-scheduler
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
    /// Schedule the pods whose spec.schedulerName is this
    #[arg(long, default_value = "default-scheduler")]
    pub scheduler_name: String,
}

/// Runs until the token is cancelled or leadership is lost.
/// Errors: no usable credentials, or the health port is taken.
pub async fn run(config: Config, token: CancellationToken) -> anyhow::Result<()> {
    let client = shell::client(config.common.kubeconfig.as_deref(), "kube-scheduler").await?;
    shell::serve_health(&config.common, config.secure_port, client.clone(), Health::default(), token.clone()).await?;
    let mut leading = token.clone();
    if config.leader_elect {
        match election::acquire(client.clone(), "kube-scheduler", &token).await {
            Some(term) => leading = term,
            None => return Ok(()),
        }
    }
    let informers = Informers::new(client, leading.clone());
    tokio::select! {
        () = live::run(&informers, &config.scheduler_name, leading.clone()) => {}
        // Also while it waits for its caches, which would then never fill.
        () = leading.cancelled() => {}
    }
    if !token.is_cancelled() {
        anyhow::bail!("leader election lost");
    }
    Ok(())
}
