//! Node lifecycle: notices that a node has gone silent, and says so.
//!
//! ```text
//! lease or status renewed ─▶ heard(now) ─▶ silent for the grace period? ─▶ conditions Unknown ─▶ taints
//!                                                                          └─▶ its pods not ready
//! ```
//! What counts is when *we* saw a renewal, so that clocks need not agree; after a restart every node gets the full
//! grace period. When no node at all is ready the fault is taken to be ours and nobody is evicted.
//! Absent: upstream's zones and eviction rates, which are for clusters of hundreds of nodes.
//! Upstream: `pkg/controller/nodelifecycle/node_lifecycle_controller.go`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, Pod, PodCondition};
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::shared::conditions::{self, Condition};
use crate::shared::{meta, pods, taints, watch, write};

const NAME: &str = "node-lifecycle-controller";
const LEASES: &str = "kube-node-lease";
/// The conditions a kubelet reports, which nobody knows once it is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
pub const BY_NODE: &str = "pods-by-node";

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    grace: Duration,
    heard: Mutex<HashMap<String, Heard>>,
}

/// The latest sign of life of a node.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    at: Timestamp,
    sign: Sign,
}

/// Renewal time of the lease, heartbeat of the Ready condition.
type Sign = (Option<Timestamp>, Option<Timestamp>);

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("node-controller"),
        nodes: context.informers.of(),
        leases: context.informers.of(),
        pods: context.informers.of(),
        grace: context.config.node_monitor_grace_period,
        heard: Mutex::default(),
    });
    index_pods(&this.pods);
    watch::itself(&this.nodes, &queue);
    let lease_queue = queue.clone();
    this.leases.on_change(move |change| {
        if change.key().namespace == LEASES {
            lease_queue.add_caused(Key::cluster(change.key().name), change.cause());
        }
    });
    this.nodes.synced().await;
    this.leases.synced().await;
    this.pods.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

pub fn index_pods(pods: &Informer<Pod>) {
    pods.index(BY_NODE, |pod| Some(pods::node(pod).to_owned()).filter(|node| !node.is_empty()).into_iter().collect());
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(node) = self.nodes.get(key) else {
            if self.heard.lock().remove(&key.name).is_some() {
                self.tell(&key.name, None, "RemovingNode", &format!("Removing Node {} from Controller", key.name));
            }
            return Ok(Next::Done);
        };
        let now = Timestamp::now();
        let heard = self.listen(&node, now);
        let deadline = heard.at.checked_add(self.grace)?;
        let mut updated = (*node).clone();
        if deadline <= now && mark_silent(&mut updated, now) {
            tracing::warn!(node = %key, "kubelet stopped posting node status");
            updated = write::update_status(&self.client, &updated).await?;
            let text = format!("Node {} status is now: NodeNotReady", key.name);
            self.recorder.normal(&meta::reference(&*node), "NodeNotReady", text);
        }
        self.taint(&updated, now).await?;
        if !is_ready(&updated) {
            self.mark_pods(&updated, now).await?;
        }
        Ok(if deadline > now { Next::After(watch::until(deadline, now)) } else { Next::Done })
    }

    /// Notes a new sign of life, and when it came.
    fn listen(&self, node: &Node, now: Timestamp) -> Heard {
        let name = meta::name(node);
        let lease = self.leases.get(&Key::new(LEASES, name));
        let renewed = lease.and_then(|lease| Some(lease.spec.as_ref()?.renew_time.as_ref()?.0));
        let sign = (renewed, ready(node).and_then(|ready| Some(ready.last_heartbeat_time.as_ref()?.0)));
        let mut all = self.heard.lock();
        let known = all.contains_key(name);
        let heard = all.entry(name.to_owned()).or_insert_with(|| Heard { at: now, sign });
        if heard.sign != sign {
            // A status that only we wrote (conditions Unknown) keeps the kubelet's heartbeat: no sign of life.
            *heard = Heard { at: now, sign };
        }
        let heard = heard.clone();
        drop(all);
        if !known {
            self.tell(name, Some(node), "RegisteredNode", &format!("Registered Node {name} in Controller"));
        }
        heard
    }

    async fn taint(&self, node: &Node, now: Timestamp) -> kube::Result<()> {
        let evict = self.nodes.list().iter().any(|node| is_ready(node));
        let wanted = taints::wanted(node, evict, now);
        if wanted == taints::taints(node) {
            return Ok(());
        }
        let mut tainted = node.clone();
        let spec: &mut NodeSpec = tainted.spec.get_or_insert_default();
        spec.taints = Some(wanted).filter(|taints| !taints.is_empty());
        write::unless_gone(write::update(&self.client, &tainted).await)
    }

    /// Pods of a node that is not ready are not ready either: services leave them out.
    async fn mark_pods(&self, node: &Node, now: Timestamp) -> kube::Result<()> {
        for pod in self.pods.by(BY_NODE, meta::name(node)).iter().filter(|pod| pods::is_ready(pod)) {
            let mut condition = PodCondition::new("Ready", "False", "", "", now);
            condition.reason = pods::condition(pod, "Ready").and_then(|ready| ready.reason.clone());
            let patch = json!({"metadata": {"uid": meta::uid(&**pod)}, "status": {"conditions": [condition]}});
            write::unless_gone(write::strategic_status::<Pod>(&self.client, &meta::key(&**pod), &patch).await)?;
            self.recorder.warning(&meta::reference(&**pod), "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    fn tell(&self, name: &str, node: Option<&Node>, reason: &str, text: &str) {
        let mut reference = node.map(meta::reference).unwrap_or_default();
        reference.kind = Some("Node".to_owned());
        reference.name = Some(name.to_owned());
        self.recorder.normal(&reference, reason, format!("Node {name} event: {text}"));
    }
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    conditions::find(&node.status.as_ref()?.conditions, "Ready")
}

fn is_ready(node: &Node) -> bool {
    ready(node).is_some_and(|ready| ready.status == "True")
}

/// Sets what a silent kubelet reported to Unknown. False if it is so already.
fn mark_silent(node: &mut Node, now: Timestamp) -> bool {
    let before = node.status.clone();
    let list = &mut node.status.get_or_insert_default().conditions;
    for type_ in REPORTED {
        let (reason, text, heartbeat) = match conditions::find(list, type_) {
            Some(old) if old.status == "Unknown" => continue,
            Some(old) => ("NodeStatusUnknown", "Kubelet stopped posting node status.", old.last_heartbeat_time.clone()),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status.", None),
        };
        let condition = NodeCondition { last_heartbeat_time: heartbeat, ..NodeCondition::new(type_, "Unknown", reason, text, now) };
        conditions::replace(list, condition);
    }
    node.status != before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::pods::fixtures::at;

    #[test]
    fn a_silent_node_is_unknown_once() {
        let mut node = Node::default();
        let list = &mut node.status.get_or_insert_default().conditions;
        conditions::set(list, NodeCondition::new("Ready", "True", "KubeletReady", "", at(1)));
        assert!(mark_silent(&mut node, at(60)));
        let ready = ready(&node).unwrap().clone();
        assert_eq!((ready.status.as_str(), ready.reason()), ("Unknown", "NodeStatusUnknown"));
        assert_eq!(ready.last_heartbeat_time, Some(meta::time(at(1))), "the last heartbeat stays the kubelet's");
        assert!(!mark_silent(&mut node, at(70)));
    }
}
