//! ReplicationController: the older ReplicaSet, with a plain map as selector. Same mechanism.
//!
//! Upstream: `pkg/controller/replication`.

use std::sync::Arc;

use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};

use crate::context::Context;
use crate::shared::replicas::{self, Replicated, Status};

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    replicas::run::<ReplicationController>(context, "replication-controller").await
}

impl Replicated for ReplicationController {
    type Condition = ReplicationControllerCondition;

    fn selector(&self) -> Option<LabelSelector> {
        let labels = self.spec.as_ref()?.selector.as_ref()?;
        Some(LabelSelector::from_map(labels)).filter(|selector| !selector.is_everything())
    }

    fn desired(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
    }

    fn status(&self) -> Status<ReplicationControllerCondition> {
        let status = self.status.clone().unwrap_or_default();
        Status {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: status.conditions,
        }
    }

    fn set_status(&mut self, status: Status<ReplicationControllerCondition>) {
        self.status = Some(ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: Some(status.fully_labeled),
            ready_replicas: Some(status.ready),
            available_replicas: Some(status.available),
            observed_generation: Some(status.observed_generation),
            conditions: status.conditions,
        });
    }
}
