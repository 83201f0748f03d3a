//! Taint eviction: deletes pods from nodes whose NoExecute taints they don't (or no longer) tolerate.
//!
//! Upstream: `pkg/controller/tainteviction/taint_eviction.go`.

use std::collections::HashSet;
use std::sync::Arc;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::core::params::DeleteParams;
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue};
use parking_lot::Mutex;
use serde_json::json;

use super::node_lifecycle::{BY_NODE, index_pods};
use crate::context::Context;
use crate::shared::conditions::Condition;
use crate::shared::taints::{self, Verdict};
use crate::shared::{meta, pods, watch, write};

const NAME: &str = "taint-eviction-controller";

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// Pods that are to leave later; to tell when one may stay after all.
    leaving: Mutex<HashSet<Key>>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder(NAME),
        nodes: context.informers.of(),
        pods: context.informers.of(),
        leaving: Mutex::default(),
    });
    index_pods(&this.pods);
    watch_pods(&this, &queue);
    watch_nodes(&this, &queue);
    this.nodes.synced().await;
    this.pods.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

/// A pod matters when it comes to a node or its tolerations change.
fn watch_pods(this: &Controller, queue: &WorkQueue<Key>) {
    let queue = queue.clone();
    this.pods.on_change(move |change| {
        let facts = |pod: &Arc<Pod>| pod.spec.as_ref().map(|spec| (spec.node_name.clone(), spec.tolerations.clone()));
        if change.is_delete() || change.old.as_ref().map(facts) != change.new.as_ref().map(facts) {
            queue.add_caused(change.key(), change.cause());
        }
    });
}

fn watch_nodes(this: &Controller, queue: &WorkQueue<Key>) {
    let (queue, pods) = (queue.clone(), this.pods.clone());
    this.nodes.on_change(move |change| {
        let (Some(new), old) = (&change.new, &change.old) else { return };
        if old.as_ref().is_some_and(|old| taints::taints(old) == taints::taints(new)) {
            return;
        }
        for pod in pods.by(BY_NODE, meta::name(&**new)) {
            queue.add_caused(meta::key(&*pod), change.cause());
        }
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(pod) = self.pods.get(key).filter(|pod| !meta::is_deleting(&**pod) && !pods::is_finished(pod)) else {
            self.leaving.lock().remove(key);
            return Ok(Next::Done);
        };
        let now = Timestamp::now();
        let node = self.nodes.get(&Key::cluster(pods::node(&pod)));
        match taints::verdict(&pod, node.as_deref().map_or(&[], taints::taints), now) {
            Verdict::Stay => {
                if self.leaving.lock().remove(key) {
                    self.tell(&pod, format!("Cancelling deletion of Pod {key}"));
                }
                Ok(Next::Done)
            }
            Verdict::LeaveAt(at) if at > now => {
                self.leaving.lock().insert(key.clone());
                Ok(Next::After(watch::until(at, now)))
            }
            Verdict::LeaveAt(_) => {
                self.evict(&pod, now).await?;
                self.leaving.lock().remove(key);
                Ok(Next::Done)
            }
        }
    }

    async fn evict(&self, pod: &Pod, now: Timestamp) -> kube::Result<()> {
        let key = meta::key(pod);
        self.tell(pod, format!("Marking for deletion Pod {key}"));
        let text = "Taint manager: deleting due to NoExecute taint";
        let condition = PodCondition::new("DisruptionTarget", "True", "DeletionByTaintManager", text, now);
        let patch = json!({"metadata": {"uid": meta::uid(pod)}, "status": {"conditions": [condition]}});
        write::unless_gone(write::strategic_status::<Pod>(&self.client, &key, &patch).await)?;
        let params = DeleteParams { ..write::only(meta::uid(pod)) };
        write::unless_gone(write::delete::<Pod>(&self.client, &key, &params).await)
    }

    fn tell(&self, pod: &Pod, text: String) {
        self.recorder.normal(&meta::reference(pod), "TaintManagerEviction", text);
    }
}
