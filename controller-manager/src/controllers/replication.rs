//! ReplicationController: the older ReplicaSet, with a plain map as selector. Same mechanism.
//!
//! Upstream: `pkg/controller/replication`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ReplicationController;

use crate::context::Context;
use crate::shared::replicas;

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    replicas::run::<ReplicationController>(context, "replication-controller").await
}
