//! kube-controller-manager: the control loops that move the cluster from the observed state to the wished one.
//!
//! One file per controller in [`controllers`], one row per file in [`controllers::CONTROLLERS`]. All share the
//! informers of one process, one work queue kind, one loop (`machinery::controller`), and the helpers in [`shared`].
//! Invariants: a sync is started by a key and looks at the caches only; it writes through the API server, never polls
//! where a watch tells; only the leader runs controllers.
//! Upstream: `cmd/kube-controller-manager/app/controllermanager.go`, v1.33.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod context;
pub mod controllers;
pub mod shared;

use std::sync::Arc;

use machinery::{CancellationToken, Informers, election, shell};
use tokio::task::JoinSet;

use config::Config;
use context::Context;

/// How long controllers may take to end: a little longer than their syncs get.
const GRACE: std::time::Duration = std::time::Duration::from_secs(6);

/// Serves health and metrics, waits for leadership, and runs all chosen controllers until `token` is cancelled
/// or leadership is lost (then with an error: a fresh process must start from fresh caches).
pub async fn run(config: Config, token: CancellationToken) -> anyhow::Result<()> {
    let client = shell::client(config.common.kubeconfig.as_deref(), "kube-controller-manager").await?;
    let health = shell::Health::default();
    shell::serve_health(&config.common, config.secure_port, client.clone(), health, token.clone()).await?;
    let leading = match config.leader_elect {
        true => election::acquire(client.clone(), "kube-controller-manager", &token).await,
        false => Some(token.child_token()),
    };
    let Some(leading) = leading else { return Ok(()) };
    run_controllers(config, client, leading).await?;
    anyhow::ensure!(token.is_cancelled(), "leadership lost");
    Ok(())
}

async fn run_controllers(config: Config, client: kube::Client, token: CancellationToken) -> anyhow::Result<()> {
    let informers = Informers::new(client.clone(), token.clone());
    let context = Arc::new(Context { client, informers, config: Arc::new(config), token, departures: Default::default() });
    let mut running = JoinSet::new();
    for row in controllers::CONTROLLERS {
        if context.config.enables(row.name) {
            tracing::info!(controller = row.name, "starting");
            running.spawn((row.run)(context.clone()));
        }
    }
    let all_ended = async {
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        // Every controller may be off, or end early for want of configuration.
        context.token.cancelled().await;
        anyhow::Ok(())
    };
    // A controller that was still waiting for its caches would wait for ever.
    let grace = async {
        context.token.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = all_ended => result,
        () = grace => Ok(()),
    }
}
