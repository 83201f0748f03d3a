//! StatefulSet: pods with names and claims that stay.
//!
//! Pods have fixed names, so a lagging cache cannot make one twice and no expectations are kept.
//! Upstream: `pkg/controller/statefulset`.

mod identity;
mod plan;

use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue};
use serde_json::json;

use crate::context::Context;
use crate::shared::pod_control::watch_pods;
use crate::shared::{claim, meta, revisions, watch, write};
use plan::{Revisions, Step};

const NAME: &str = "statefulset-controller";

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    history: Informer<ControllerRevision>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder(NAME),
        sets: context.informers.of(),
        pods: context.informers.of(),
        claims: context.informers.of(),
        history: context.informers.of(),
    });
    watch::itself(&this.sets, &queue);
    watch::controller(&this.history, &queue, "StatefulSet");
    watch::index_orphans(&this.history);
    watch_pods(&this.pods, &this.sets, &queue, Arc::default(), selector);
    this.sets.synced().await;
    this.pods.synced().await;
    this.claims.synced().await;
    this.history.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

fn selector(set: &StatefulSet) -> Option<LabelSelector> {
    let selector = LabelSelector::from_k8s(Some(&set.spec.as_ref()?.selector)).ok()?;
    Some(selector).filter(|selector| !selector.is_everything())
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(set) = self.sets.get(key) else { return Ok(Next::Done) };
        let (Some(spec), Some(selector)) = (&set.spec, selector(&set)) else { return Ok(Next::Done) };
        let candidates = watch::candidates(&self.pods, &*set);
        let adoptable = |pod: &Pod| identity::ordinal(&set, pod).is_some();
        let pods = claim::claim(&self.client, &*set, &selector, candidates, adoptable).await?;
        let history = revisions::of(&self.history, &*set);
        let before = set.status.clone().unwrap_or_default();
        let ensured = revisions::ensure(&self.client, &*set, &spec.template, before.collision_count, &history).await?;
        let Some(update) = ensured else {
            let collision_count = Some(before.collision_count.unwrap_or(0) + 1);
            self.update_status(&set, StatefulSetStatus { collision_count, ..before }).await?;
            return Ok(Next::Done);
        };
        let known = before.current_revision.as_deref().and_then(|name| history.iter().find(|r| meta::name(&***r) == name));
        let current = known.unwrap_or(&update).clone();
        let now = Timestamp::now();
        let names = Revisions { current: meta::name(&*current), update: meta::name(&*update) };
        let plan = plan::plan(&set, &pods, &names, now);
        let applied = self.apply(&set, spec, &plan.steps, &current, &update).await;
        self.update_status(&set, plan.status).await?;
        applied?;
        let in_use = |revision: &ControllerRevision| {
            let name = meta::name(revision);
            name == names.current || name == names.update || pods.iter().any(|pod| identity::revision_of(pod) == name)
        };
        revisions::delete(&self.client, &revisions::expired(&history, spec.revision_history_limit, in_use)).await?;
        Ok(match plan.again {
            Some(at) => Next::After(watch::until(at, now)),
            None => Next::Done,
        })
    }

    async fn apply(
        &self,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
        steps: &[Step],
        current: &ControllerRevision,
        update: &ControllerRevision,
    ) -> anyhow::Result<()> {
        for step in steps {
            match step {
                Step::Create { ordinal, current: old } => {
                    let revision = if *old { current } else { update };
                    self.create(set, spec, *ordinal, revision).await?;
                }
                Step::Recreate(pod) => {
                    let text = format!("StatefulSet {} is recreating terminated Pod {}", meta::key(set), meta::name(&**pod));
                    self.recorder.warning(&meta::reference(set), "RecreatingTerminatedPod", text);
                    self.delete(set, pod).await?;
                }
                Step::Update(pod) => self.delete(set, pod).await?,
                Step::Condemn(pod) => {
                    if identity::dies_when_scaled(spec) {
                        self.tie_claims(set, spec, pod).await?;
                    }
                    self.delete(set, pod).await?;
                }
            }
        }
        Ok(())
    }

    async fn create(&self, set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32, revision: &ControllerRevision) -> anyhow::Result<()> {
        let pod = identity::pod(set, spec, ordinal, revision)?;
        let (pod_name, set_name) = (meta::name(&pod), meta::name(set));
        for claim in identity::claims(set, spec, ordinal) {
            if self.claims.get(&meta::key(&claim)).is_some() {
                continue;
            }
            let subject = format!("create Claim {} Pod {pod_name} in StatefulSet {set_name}", meta::name(&claim));
            let result = write::create(&self.client, &claim).await;
            self.settle(set, "Create", &subject, "success", result)?;
        }
        let result = write::create(&self.client, &pod).await;
        self.settle(set, "Create", &format!("create Pod {pod_name} in StatefulSet {set_name}"), "successful", result)?;
        Ok(())
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> kube::Result<()> {
        let only = write::only(meta::uid(pod));
        let result = write::delete::<Pod>(&self.client, &meta::key(pod), &only).await;
        let subject = format!("delete Pod {} in StatefulSet {}", meta::name(pod), meta::name(set));
        match result {
            Err(error) if write::is_not_found(&error) => Ok(()),
            result => self.settle(set, "Delete", &subject, "successful", result),
        }
    }

    /// Tells how it went. What exists already was made before the cache could show it.
    fn settle<T>(&self, set: &StatefulSet, verb: &str, subject: &str, success: &str, result: kube::Result<T>) -> kube::Result<()> {
        let reference = meta::reference(set);
        match result {
            Ok(_) => self.recorder.normal(&reference, &format!("Successful{verb}"), format!("{subject} {success}")),
            Err(error) if write::is_already_exists(&error) || write::is_namespace_terminating(&error) => {}
            Err(error) => {
                let text = format!("{subject} failed error: {}", write::message(&error));
                self.recorder.warning(&reference, &format!("Failed{verb}"), text);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes the pod the owner of its claims, so that they are collected with it.
    async fn tie_claims(&self, set: &StatefulSet, spec: &StatefulSetSpec, pod: &Pod) -> kube::Result<()> {
        let owner = OwnerReference { controller: None, block_owner_deletion: None, ..meta::controller_ref(pod) };
        let Some(ordinal) = identity::ordinal(set, pod) else { return Ok(()) };
        for claim in identity::claims(set, spec, ordinal) {
            let patch = json!({"metadata": {"ownerReferences": [owner]}});
            write::unless_gone(write::strategic::<PersistentVolumeClaim>(&self.client, &meta::key(&claim), &patch).await)?;
        }
        Ok(())
    }

    async fn update_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> kube::Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = StatefulSet { status: Some(status), ..set.clone() };
        write::unless_gone(write::update_status(&self.client, &updated).await)
    }
}
