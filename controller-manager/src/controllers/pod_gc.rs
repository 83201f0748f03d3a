//! Pod garbage: pods that no kubelet will ever finish, and finished pods beyond a threshold.
//!
//! - bound to a node that is gone (after a while, as nodes come back)
//! - deleted before they were bound
//! - finished, oldest first, when there are more than `--terminated-pod-gc-threshold`
//!
//! Keys are nodes, for pods on gone nodes and unbound ones (`""`), and one key for the threshold.
//! Upstream: `pkg/controller/podgc/gc_controller.go`, which looks around every 20 seconds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::core::params::DeleteParams;
use machinery::{Informer, Next, WorkQueue};
use serde_json::json;

use super::node_lifecycle::{BY_NODE, index_pods};
use crate::context::Context;
use crate::shared::conditions::Condition;
use crate::shared::{meta, pods, write};

const NAME: &str = "pod-garbage-collector-controller";
/// How long a node must be gone.
const QUARANTINE: Duration = Duration::from_secs(40);
const UNBOUND_AND_DELETED: &str = "unbound-and-deleted";
const FINISHED: &str = "finished-pods";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    GoneNode(String),
    Unbound,
    Finished,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::GoneNode(node) => write!(f, "pods of {node}"),
            Work::Unbound => f.write_str("unbound pods"),
            Work::Finished => f.write_str("finished pods"),
        }
    }
}

struct Controller {
    client: kube::Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    threshold: usize,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        nodes: context.informers.of(),
        pods: context.informers.of(),
        threshold: context.config.terminated_pod_gc_threshold,
    });
    index_pods(&this.pods);
    this.pods.index(UNBOUND_AND_DELETED, |pod| {
        let stuck = pods::node(pod).is_empty() && meta::is_deleting(pod);
        stuck.then(String::new).into_iter().collect()
    });
    this.pods.index(FINISHED, |pod| pods::is_finished(pod).then(String::new).into_iter().collect());
    this.nodes.synced().await;
    watch_all(&this, &queue);
    this.pods.synced().await;
    context
        .run(NAME, queue, move |work| {
            let this = this.clone();
            async move { this.sync(&work).await }
        })
        .await
}

fn watch_all(this: &Controller, queue: &WorkQueue<Work>) {
    let gone = queue.clone();
    this.nodes.on_change(move |change| {
        if change.is_delete() {
            gone.add_after(Work::GoneNode(change.key().name), QUARANTINE);
        }
    });
    let (queue, nodes) = (queue.clone(), this.nodes.clone());
    this.pods.on_change(move |change| {
        let Some(pod) = &change.new else { return };
        match pods::node(pod) {
            "" if meta::is_deleting(&**pod) => queue.add_caused(Work::Unbound, change.cause()),
            "" => {}
            node if nodes.get(&Key::cluster(node)).is_none() => queue.add_after(Work::GoneNode(node.to_owned()), QUARANTINE),
            _ => {}
        }
        if pods::is_finished(pod) {
            queue.add_caused(Work::Finished, change.cause());
        }
    });
}

impl Controller {
    async fn sync(&self, work: &Work) -> anyhow::Result<Next> {
        match work {
            Work::GoneNode(name) => {
                // The cache may be behind: ask before killing.
                if write::get::<Node>(&self.client, &Key::cluster(name.as_str())).await?.is_none() {
                    for pod in self.pods.by(BY_NODE, name) {
                        self.delete(&pod, Some("PodGC: node no longer exists")).await?;
                    }
                }
            }
            Work::Unbound => {
                for pod in self.pods.by(UNBOUND_AND_DELETED, "") {
                    self.delete(&pod, None).await?;
                }
            }
            Work::Finished => {
                for pod in excess(self.pods.by(FINISHED, ""), self.threshold) {
                    self.delete(&pod, None).await?;
                }
            }
        }
        Ok(Next::Done)
    }

    async fn delete(&self, pod: &Pod, disruption: Option<&str>) -> kube::Result<()> {
        let key = meta::key(pod);
        if !pods::is_finished(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(text) = disruption {
                let condition = PodCondition::new("DisruptionTarget", "True", "DeletionByPodGC", text, Timestamp::now());
                status["conditions"] = json!([condition]);
            }
            let patch = json!({"metadata": {"uid": meta::uid(pod)}, "status": status});
            write::unless_gone(write::strategic_status::<Pod>(&self.client, &key, &patch).await)?;
        }
        let now = DeleteParams { grace_period_seconds: Some(0), ..write::only(meta::uid(pod)) };
        write::unless_gone(write::delete::<Pod>(&self.client, &key, &now).await)
    }
}

/// The oldest finished pods beyond the threshold.
fn excess(mut finished: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    if threshold == 0 || finished.len() <= threshold {
        return Vec::new();
    }
    finished.sort_by_key(|pod| (meta::created(&**pod), meta::key(&**pod)));
    finished.truncate(finished.len() - threshold);
    finished
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::pods::fixtures::pod;

    #[test]
    fn the_oldest_finished_pods_go() {
        let pods = || ["b", "a", "c"].map(|name| pod(name).phase("Succeeded").arc()).to_vec();
        let names = |list: Vec<Arc<Pod>>| list.iter().map(|pod| meta::name(&**pod).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(excess(pods(), 2)), ["a"]);
        assert!(excess(pods(), 3).is_empty() && excess(pods(), 0).is_empty());
    }
}
