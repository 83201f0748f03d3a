//! DaemonSet: one pod on every node that is meant.
//!
//! Upstream: `pkg/controller/daemon`.

mod nodes;
mod plan;

use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::expectations::Expectations;
use crate::shared::pod_control::{PodControl, from_template, watch_pods};
use crate::shared::{claim, meta, revisions, taints, watch, write};
use plan::Plan;

/// The template's generation, which the API server counts, and the label that tells pods' by it. Deprecated, and still set.
const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
const NAME: &str = "daemonset-controller";

struct Controller {
    control: PodControl,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    history: Informer<ControllerRevision>,
    books: Arc<Expectations>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        control: PodControl { client: context.client.clone(), recorder: context.recorder(NAME) },
        sets: context.informers.of(),
        pods: context.informers.of(),
        nodes: context.informers.of(),
        history: context.informers.of(),
        books: Arc::default(),
    });
    watch::itself(&this.sets, &queue);
    watch::controller(&this.history, &queue, "DaemonSet");
    watch::index_orphans(&this.history);
    watch_pods(&this.pods, &this.sets, &queue, this.books.clone(), selector);
    watch_nodes(&this, &queue);
    this.sets.synced().await;
    this.pods.synced().await;
    this.nodes.synced().await;
    this.history.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

fn selector(set: &DaemonSet) -> Option<LabelSelector> {
    let selector = LabelSelector::from_k8s(Some(&set.spec.as_ref()?.selector)).ok()?;
    Some(selector).filter(|selector| !selector.is_everything())
}

/// Nodes matter when they come, go, or change labels or taints; not with each heartbeat.
fn watch_nodes(this: &Controller, queue: &WorkQueue<Key>) {
    let (queue, sets) = (queue.clone(), this.sets.clone());
    this.nodes.on_change(move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && old.metadata.labels == new.metadata.labels
            && taints::taints(old) == taints::taints(new)
        {
            return;
        }
        for set in sets.list() {
            queue.add_caused(meta::key(&*set), change.cause());
        }
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(set) = self.sets.get(key) else {
            self.books.forget(key);
            return Ok(Next::Done);
        };
        let Some(selector) = selector(&set) else {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.recorder.warning(&meta::reference(&*set), "SelectingAll", text);
            return Ok(Next::Done);
        };
        let Some(spec) = &set.spec else { return Ok(Next::Done) };
        let client = &self.control.client;
        let settled = self.books.satisfied(&*set);
        let candidates = watch::candidates(&self.pods, &*set);
        let pods = claim::claim(client, &*set, &selector, candidates, |_| true).await?;
        let history = revisions::of(&self.history, &*set);
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let Some(current) = revisions::ensure(client, &*set, &spec.template, collisions, &history).await? else {
            return self.collided(&set).await;
        };
        let hash = revisions::hash_of(&current);
        let now = Timestamp::now();
        let plan = plan::plan(&set, &self.nodes.list(), &pods, hash, now);
        let managed = if settled { self.apply(&set, &plan, hash).await } else { Ok(()) };
        self.update_status(&set, plan.status).await?;
        managed?;
        let in_use = |revision: &ControllerRevision| {
            let hash = revisions::hash_of(revision);
            hash == revisions::hash_of(&current) || pods.iter().any(|pod| meta::label(&**pod, revisions::HASH_LABEL) == Some(hash))
        };
        revisions::delete(client, &revisions::expired(&history, spec.revision_history_limit, in_use)).await?;
        Ok(match plan.again {
            Some(at) => Next::After(watch::until(at, now)),
            None => Next::Done,
        })
    }

    async fn collided(&self, set: &DaemonSet) -> anyhow::Result<Next> {
        let mut status = set.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.update_status(set, status).await?;
        Ok(Next::Done)
    }

    async fn apply(&self, set: &DaemonSet, plan: &Plan, hash: &str) -> kube::Result<()> {
        for pod in &plan.failed {
            let node = nodes::node_of(pod).unwrap_or_default();
            let text = format!("Found failed daemon pod {} on node {node}, will try to kill it", meta::key(&**pod));
            self.control.recorder.warning(&meta::reference(set), "FailedDaemonPod", text);
        }
        if !plan.create.is_empty() || !plan.delete.is_empty() {
            let deleted = plan.delete.iter().map(|pod| meta::uid(&**pod).to_owned());
            self.books.expect(set, plan.create.len(), deleted);
        }
        let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let generation = set.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION)?.parse::<i64>().ok());
        let pod_on = |node: &String| {
            let mut pod = from_template(set, &template);
            let labels = pod.metadata.labels.get_or_insert_default();
            labels.insert(revisions::HASH_LABEL.to_owned(), hash.to_owned());
            labels.extend(generation.map(|generation| (GENERATION_LABEL.to_owned(), generation.to_string())));
            nodes::pin(&mut pod, node);
            pod
        };
        let created = self.control.create_all(set, &self.books, plan.create.iter().map(pod_on).collect()).await;
        self.control.delete_all(set, &self.books, &plan.delete).await?;
        created
    }

    async fn update_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> kube::Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = DaemonSet { status: Some(status), ..set.clone() };
        write::unless_gone(write::update_status(&self.control.client, &updated).await)
    }
}
