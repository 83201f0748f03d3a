//! Deployment: rolls ReplicaSets forward, one per pod template.
//!
//! ```text
//! Deployment + its ReplicaSets ─▶ rollout::plan ─▶ create / update / delete ReplicaSets ─▶ status::next ─▶ status
//! ```
//! `plan` is pure and works on copies; what the API server answered goes into the status of the same sync. A stale
//! cache can do no harm: every write of a ReplicaSet is conditional, and a new one has its name from its template.
//! Upstream: `pkg/controller/deployment`. Rollback is kubectl's: it writes an old template into the Deployment.

mod rollout;
mod status;

use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::{claim, meta, pods, watch, write};
use rollout::{Observed, Plan, Step};

const NAME: &str = "deployment-controller";

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder(NAME),
        deployments: context.informers.of(),
        replica_sets: context.informers.of(),
        pods: context.informers.of(),
    });
    watch::itself(&this.deployments, &queue);
    watch::controller(&this.replica_sets, &queue, "Deployment");
    watch::index_orphans(&this.replica_sets);
    watch_orphans(&this, &queue);
    watch_last_pods(&this, &queue);
    this.deployments.synced().await;
    this.replica_sets.synced().await;
    this.pods.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

/// A ReplicaSet without a controller may be adopted.
fn watch_orphans(this: &Controller, queue: &WorkQueue<Key>) {
    let (queue, deployments) = (queue.clone(), this.deployments.clone());
    this.replica_sets.on_change(move |change| {
        let rs = change.object();
        if meta::controller_of(&rs.metadata).is_some() || change.is_delete() {
            return;
        }
        for deployment in deployments.in_namespace(meta::namespace(&**rs)) {
            if selector(&deployment).is_some_and(|selector| selector.matches_opt(rs.metadata.labels.as_ref())) {
                queue.add_caused(meta::key(&*deployment), change.cause());
            }
        }
    });
}

/// Recreate waits for the old pods to be gone, which ReplicaSets don't tell: they forget a pod when its deletion starts.
fn watch_last_pods(this: &Controller, queue: &WorkQueue<Key>) {
    let (queue, deployments, replica_sets) = (queue.clone(), this.deployments.clone(), this.replica_sets.clone());
    this.pods.on_change(move |change| {
        if !change.is_delete() {
            return;
        }
        let deployment = watch::controller_key(&**change.object(), "ReplicaSet")
            .and_then(|key| replica_sets.get(&key))
            .and_then(|rs| watch::controller_key(&*rs, "Deployment"))
            .and_then(|key| deployments.get(&key));
        if let Some(deployment) = deployment.filter(|deployment| rollout::is_recreate(deployment)) {
            queue.add_caused(meta::key(&*deployment), change.cause());
        }
    });
}

/// None for a selector that is empty or invalid.
fn selector(deployment: &Deployment) -> Option<LabelSelector> {
    let selector = LabelSelector::from_k8s(Some(&deployment.spec.as_ref()?.selector)).ok()?;
    Some(selector).filter(|selector| !selector.is_everything())
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Next::Done) };
        let Some(selector) = selector(&deployment) else {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&meta::reference(&*deployment), "SelectingAll", text);
            return Ok(Next::Done);
        };
        let candidates = watch::candidates(&self.replica_sets, &*deployment);
        let mut replica_sets = claim::claim(&self.client, &*deployment, &selector, candidates, |_| true).await?;
        let plan =
            rollout::plan(&Observed { deployment: &deployment, replica_sets: &replica_sets, running: &|rs| self.has_running_pods(rs) })?;
        let mut progress = status::Progress::default();
        let applied = self.apply(&deployment, &plan, &mut replica_sets, &mut progress).await;
        if let Err(error) = &applied {
            tracing::debug!(%key, %error, "rollout step failed");
        }
        let now = Timestamp::now();
        let next = status::next(&deployment, &replica_sets, &plan, &progress, now);
        if next != *deployment && !write::is_conflict_in(&applied) {
            write::unless_gone(write::update_status(&self.client, &next).await)?;
        }
        applied?;
        Ok(match status::deadline(&next) {
            Some(at) => Next::After(watch::until(at, now)),
            None => Next::Done,
        })
    }

    fn has_running_pods(&self, rs: &ReplicaSet) -> bool {
        self.pods.owned_by(meta::uid(rs)).iter().any(|pod| !pods::is_finished(pod))
    }

    /// Carries the plan out; `replica_sets` follow what the API server answers.
    async fn apply(
        &self,
        deployment: &Deployment,
        plan: &Plan,
        replica_sets: &mut Vec<Arc<ReplicaSet>>,
        progress: &mut status::Progress,
    ) -> kube::Result<()> {
        for step in &plan.steps {
            match step {
                Step::Create(rs) => {
                    if let Some(made) = self.create(deployment, rs, progress).await? {
                        replica_sets.push(Arc::new(made));
                    }
                }
                Step::Update { rs, from } => {
                    let updated = write::update(&self.client, &**rs).await?;
                    self.tell_scaling(deployment, &updated, *from);
                    if let Some(slot) = replica_sets.iter_mut().find(|old| meta::uid(&***old) == meta::uid(&**rs)) {
                        *slot = Arc::new(updated);
                    }
                }
                Step::Delete(rs) => {
                    let only = write::only(meta::uid(&**rs));
                    write::unless_gone(write::delete::<ReplicaSet>(&self.client, &meta::key(&**rs), &only).await)?;
                }
            }
        }
        Ok(())
    }

    /// Creates the ReplicaSet of a new template. A namesake is either our own, not yet in the cache, or a hash collision.
    async fn create(&self, deployment: &Deployment, rs: &ReplicaSet, progress: &mut status::Progress) -> kube::Result<Option<ReplicaSet>> {
        match write::create(&self.client, rs).await {
            Ok(made) => {
                progress.created = Some(meta::name(&made).to_owned());
                self.tell_scaling(deployment, &made, 0);
                Ok(Some(made))
            }
            Err(error) if write::is_already_exists(&error) => {
                let Some(existing) = write::get::<ReplicaSet>(&self.client, &meta::key(rs)).await? else { return Err(error) };
                let ours = meta::is_controlled_by(&existing, meta::uid(deployment));
                if ours && rollout::same_template(&existing, deployment) {
                    return Ok(Some(existing));
                }
                progress.collided = true;
                Err(error)
            }
            Err(error) if write::is_namespace_terminating(&error) => Err(error),
            Err(error) => {
                let text = format!("Failed to create new replica set {:?}: {}", meta::name(rs), write::message(&error));
                self.recorder.warning(&meta::reference(deployment), "ReplicaSetCreateError", text.clone());
                progress.create_error = Some(text);
                Err(error)
            }
        }
    }

    fn tell_scaling(&self, deployment: &Deployment, rs: &ReplicaSet, from: i32) {
        let to = rollout::replicas(rs);
        if from == to {
            return;
        }
        let direction = if to > from { "up" } else { "down" };
        let text = format!("Scaled {direction} replica set {} from {from} to {to}", meta::name(rs));
        self.recorder.normal(&meta::reference(deployment), "ScalingReplicaSet", text);
    }
}
