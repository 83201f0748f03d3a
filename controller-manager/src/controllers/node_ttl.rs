//! Node TTL: tells kubelets, by an annotation of their node, for how many seconds they may trust what they read of Secrets and
//! ConfigMaps: the longer, the larger the cluster.
//!
//! Upstream: `pkg/controller/ttl/ttl_controller.go` (v1.33).

use std::sync::Arc;

use api::key::Key;
use k8s_openapi::api::core::v1::Node;
use machinery::{Informer, Next, WorkQueue};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::shared::{watch, write};

const NAME: &str = "ttl-controller";
const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// Nodes from, nodes to, seconds. The steps overlap, so that a cluster at a boundary does not swing.
const STEPS: [(usize, usize, u32); 5] = [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

struct Controller {
    client: kube::Client,
    nodes: Informer<Node>,
    step: Mutex<usize>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller { client: context.client.clone(), nodes: context.informers.of(), step: Mutex::default() });
    watch::itself(&this.nodes, &queue);
    this.nodes.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let seconds = {
            let mut step = self.step.lock();
            *step = next(*step, self.nodes.list().len());
            STEPS[*step].2.to_string()
        };
        let Some(node) = self.nodes.get(key) else { return Ok(Next::Done) };
        if node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION)) != Some(&seconds) {
            let patch = json!({"metadata": {"annotations": {ANNOTATION: seconds}}});
            write::unless_gone(write::strategic::<Node>(&self.client, key, &patch).await)?;
        }
        Ok(Next::Done)
    }
}

fn next(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        let through = [(1, 0), (100, 0), (101, 1), (95, 1), (89, 0), (5000, 4), (1900, 4), (1000, 3), (3, 0)];
        let mut step = 0;
        for (nodes, expected) in through {
            step = next(step, nodes);
            assert_eq!(step, expected, "{nodes} nodes");
        }
    }
}
