//! What every controller is given at its start.

use std::future::Future;
use std::sync::Arc;

use kube::Client;
use machinery::controller::{self, Next};
use machinery::events::Recorder;
use machinery::queue::Item;
use machinery::{CancellationToken, Informers, WorkQueue};

use crate::config::Config;
use crate::shared::departures::Departures;

/// Syncs of one controller that may run at once; each is mostly waiting for the API server.
const WORKERS: usize = 8;

pub struct Context {
    pub client: Client,
    pub informers: Informers,
    pub config: Arc<Config>,
    pub token: CancellationToken,
    pub departures: Departures,
}

impl Context {
    /// Events in the name of a controller.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), component, None)
    }

    /// Works on the queue until the program stops.
    pub async fn run<T, S, F>(&self, name: &'static str, queue: WorkQueue<T>, sync: S) -> anyhow::Result<()>
    where
        T: Item + std::fmt::Display,
        S: Fn(T) -> F + Send + Sync + 'static,
        F: Future<Output = anyhow::Result<Next>> + Send,
    {
        controller::run(name, queue, WORKERS, sync, self.token.clone()).await;
        Ok(())
    }
}
