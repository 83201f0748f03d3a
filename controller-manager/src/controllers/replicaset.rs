//! ReplicaSet: a number of like pods. The mechanism is [`crate::shared::replicas`]; here is what is the kind's own.
//!
//! Upstream: `pkg/controller/replicaset`.

use std::sync::Arc;

use api::selector::LabelSelector;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use crate::context::Context;
use crate::shared::replicas::{self, Replicated, Status};

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    replicas::run::<ReplicaSet>(context, "replicaset-controller").await
}

impl Replicated for ReplicaSet {
    type Condition = ReplicaSetCondition;

    fn selector(&self) -> Option<LabelSelector> {
        LabelSelector::from_k8s(Some(&self.spec.as_ref()?.selector)).ok().filter(|selector| !selector.is_everything())
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

    fn status(&self) -> Status<ReplicaSetCondition> {
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

    fn set_status(&mut self, status: Status<ReplicaSetCondition>) {
        self.status = Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: Some(status.fully_labeled),
            ready_replicas: Some(status.ready),
            available_replicas: Some(status.available),
            observed_generation: Some(status.observed_generation),
            conditions: status.conditions,
            terminating_replicas: None,
        });
    }
}
