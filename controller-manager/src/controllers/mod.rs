//! The table of controllers: a new one is a file here and a row below.

pub mod deployment;
pub mod replicaset;
pub mod replication;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::context::Context;

pub struct Controller {
    /// Upstream's name, as in `--controllers`.
    pub name: &'static str,
    pub by_default: bool,
    /// Runs until the context's token is cancelled.
    pub run: fn(Arc<Context>) -> BoxFuture<'static, anyhow::Result<()>>,
}

macro_rules! row {
    ($name:literal, $controller:ident) => {
        Controller { name: $name, by_default: true, run: |context| Box::pin($controller::run(context)) }
    };
}

pub const CONTROLLERS: &[Controller] = &[
    row!("deployment-controller", deployment),
    row!("replicaset-controller", replicaset),
    row!("replicationcontroller-controller", replication),
];
