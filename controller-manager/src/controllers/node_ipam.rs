//! Node IPAM: gives each node its part of the cluster's pod addresses.
//!
//! Which parts are taken is read off the nodes each time; only assignments the cache has not shown yet are remembered.
//! Upstream: `pkg/controller/nodeipam/ipam/{range_allocator,cidrset/cidr_set}.go`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::key::Key;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue};
use serde_json::json;
use tokio::sync::Mutex;

use crate::context::Context;
use crate::shared::{meta, watch, write};

const NAME: &str = "node-ipam-controller";
const NODE_PREFIX_V6: u8 = 64;

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    ranges: Vec<IpNet>,
    reserved: Vec<IpNet>,
    prefix_v4: u8,
    /// Held over an assignment, so that no two nodes get one part.
    assigned: Mutex<HashMap<Key, Vec<IpNet>>>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let config = &context.config;
    if config.cluster_cidr.is_empty() {
        tracing::info!("no --cluster-cidr: nodes get no pod addresses from here");
        return Ok(());
    }
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("cidrAllocator"),
        nodes: context.informers.of(),
        ranges: config.cluster_cidr.clone(),
        reserved: config.service_cluster_ip_range.clone(),
        prefix_v4: config.node_cidr_mask_size,
        assigned: Mutex::default(),
    });
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
        let mut assigned = self.assigned.lock().await;
        let Some(node) = self.nodes.get(key) else {
            assigned.remove(key);
            return Ok(Next::Done);
        };
        if !cidrs(&node).is_empty() {
            assigned.remove(key);
            return Ok(Next::Done);
        }
        let parts = match assigned.get(key) {
            Some(parts) => parts.clone(),
            None => {
                let seen = self.nodes.list();
                let mut taken: HashSet<IpNet> = seen.iter().flat_map(|node| cidrs(node)).collect();
                taken.extend(assigned.values().flatten());
                let Some(parts) = self.ranges.iter().map(|range| self.free(*range, &taken)).collect::<Option<Vec<_>>>() else {
                    let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
                    self.recorder.normal(&meta::reference(&*node), "CIDRNotAvailable", text);
                    anyhow::bail!("no pod addresses left for node {key}");
                };
                parts
            }
        };
        assigned.insert(key.clone(), parts.clone());
        let patch = json!({"spec": {"podCIDR": parts[0], "podCIDRs": parts}});
        write::unless_gone(write::strategic::<Node>(&self.client, key, &patch).await)?;
        Ok(Next::Done)
    }

    fn free(&self, range: IpNet, taken: &HashSet<IpNet>) -> Option<IpNet> {
        let prefix = if range.addr().is_ipv4() { self.prefix_v4 } else { NODE_PREFIX_V6 };
        free(range, prefix, taken, &self.reserved)
    }
}

fn cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed: Vec<IpNet> = spec.pod_cidrs.iter().flatten().filter_map(|cidr| cidr.parse().ok()).collect();
    match listed.is_empty() {
        true => spec.pod_cidr.as_deref().and_then(|cidr| cidr.parse().ok()).into_iter().collect(),
        false => listed,
    }
}

/// The first part of `range` that overlaps nothing taken or reserved.
fn free(range: IpNet, prefix: u8, taken: &HashSet<IpNet>, reserved: &[IpNet]) -> Option<IpNet> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    range.subnets(prefix).ok()?.find(|part| !taken.contains(part) && !taken.iter().chain(reserved).any(|other| overlaps(part, other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_given_in_order_and_once() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let range = net("10.244.0.0/22");
        assert_eq!(free(range, 24, &HashSet::new(), &[]), Some(net("10.244.0.0/24")));
        let taken = HashSet::from([net("10.244.0.0/24"), net("10.244.2.0/25")]);
        assert_eq!(free(range, 24, &taken, &[net("10.244.1.0/28")]), Some(net("10.244.3.0/24")));
        assert_eq!(free(net("10.244.0.0/24"), 24, &taken, &[]), None);
        assert_eq!(free(range, 20, &HashSet::new(), &[]), None);
    }
}
