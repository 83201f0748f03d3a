//! Carries decisions out: bindings, conditions, events, evictions. Never decides anything.
//!
//! Upstream: pkg/scheduler/schedule_one.go (bindingCycle, handleSchedulingFailure), framework/preemption, v1.33.

use std::sync::Arc;

use anyhow::Context as _;
use api::k8s_openapi::api::core::v1::{Pod, PodCondition};
use api::k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use machinery::cause;
use machinery::events::{EventType, Recorder, reference};
use machinery::informer::cause_of;
use serde_json::json;

use crate::cache::PodInfo;
use crate::cycle::Unfit;
use crate::framework::BindContext;
use crate::plugins::PLUGINS;

pub struct Effects {
    pub context: BindContext,
    pub recorder: Recorder,
}

impl Effects {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    /// Binds with the pod as the cause of all that is written.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> anyhow::Result<()> {
        cause::scope(Some(cause_of(&*pod.pod)), self.pre_bind_and_bind(pod, node)).await?;
        let message = format!("Successfully assigned {} to {node}", pod.key);
        self.recorder.acting(&reference(&*pod.pod), EventType::Normal, "Scheduled", "Binding", message);
        Ok(())
    }

    async fn pre_bind_and_bind(&self, pod: &PodInfo, node: &str) -> anyhow::Result<()> {
        for row in PLUGINS {
            let prepared = row.plugin.pre_bind(&self.context, pod, node).await;
            prepared.with_context(|| format!("running PreBind plugin {:?}", row.plugin.name()))?;
        }
        for row in PLUGINS {
            if let Some(bind) = row.plugin.bind(&self.context, pod, node) {
                return bind.await.context("binding rejected");
            }
        }
        anyhow::bail!("no plugin binds pods")
    }

    /// Tells why the pod can't run, and clears the way if preemption found one.
    pub async fn unschedulable(&self, pod: &PodInfo, unfit: &Unfit) {
        cause::scope(Some(cause_of(&*pod.pod)), async {
            self.failed(pod, unfit.message.clone());
            let nomination = unfit.post_filter.as_ref().and_then(|p| p.nomination.as_ref());
            self.set_condition(pod, "Unschedulable", &unfit.message, nomination.map(|n| n.node.as_str())).await;
            for victim in nomination.iter().flat_map(|n| &n.victims) {
                self.evict(pod, victim).await;
            }
        })
        .await;
    }

    fn failed(&self, pod: &PodInfo, message: String) {
        self.recorder.acting(&reference(&*pod.pod), EventType::Warning, "FailedScheduling", "Scheduling", message);
    }

    pub async fn binding_failed(&self, pod: &PodInfo, error: &anyhow::Error) {
        tracing::warn!(pod = %pod.key, "binding failed: {error:#}");
        self.failed(pod, format!("{error:#}"));
        self.set_condition(pod, "SchedulerError", &format!("{error:#}"), None).await;
    }

    /// Writes nothing if nothing would change.
    async fn set_condition(&self, pod: &PodInfo, reason: &str, message: &str, nominate: Option<&str>) {
        let status = pod.pod.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let old = conditions.iter().find(|c| c.type_ == "PodScheduled");
        let nomination_changes = nominate.is_some_and(|node| pod.nominated_node() != Some(node));
        if old.is_some_and(|c| same(c, reason, message)) && !nomination_changes {
            return;
        }
        let since = old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.as_ref()).map_or_else(now, |t| t.0);
        let mut patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": since,
        }]}});
        if let Some(node) = nominate {
            patch["status"]["nominatedNodeName"] = json!(node);
        }
        self.patch_status(pod, patch).await;
    }

    async fn patch_status(&self, pod: &PodInfo, patch: serde_json::Value) {
        let patched = self.pods(&pod.key.namespace).patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = patched {
            tracing::warn!(pod = %pod.key, "cannot update the pod's status: {error}");
        }
    }

    /// The victim learns why it must go, then goes with its own grace period.
    async fn evict(&self, preemptor: &PodInfo, victim: &Arc<PodInfo>) {
        if victim.is_terminating() {
            return;
        }
        let message = "default-scheduler: preempting to accommodate a higher priority pod";
        let condition = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message,
            "lastProbeTime": null, "lastTransitionTime": now(),
        }]}});
        self.patch_status(victim, condition).await;
        let only_this = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
        let delete = DeleteParams { preconditions: Some(only_this), ..Default::default() };
        match self.pods(&victim.key.namespace).delete(&victim.key.name, &delete).await {
            Ok(_) => {
                let message = format!("Preempted by pod {} on node {}", preemptor.uid, victim.node_name().unwrap_or_default());
                self.recorder.acting(&reference(&*victim.pod), EventType::Normal, "Preempted", "Preempting", message);
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => tracing::warn!(pod = %victim.key, "cannot evict: {error}"),
        }
    }
}

fn now() -> Timestamp {
    // Seconds are all the API stores; finer times would make equal conditions differ.
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn same(condition: &PodCondition, reason: &str, message: &str) -> bool {
    condition.status == "False" && condition.reason.as_deref() == Some(reason) && condition.message.as_deref() == Some(message)
}
