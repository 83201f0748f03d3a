//! ReplicaSet: a number of like pods, by [`crate::shared::replicas`].
//!
//! Upstream: `pkg/controller/replicaset`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;

use crate::context::Context;
use crate::shared::replicas;

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    replicas::run::<ReplicaSet>(context, "replicaset-controller").await
}
