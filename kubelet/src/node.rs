//! The node's own object: registration, status, lease.
//!
//! The status is worked out every few seconds and sent when it says something new, or after five minutes; the lease is
//! renewed every ten seconds. Upstream: `pkg/kubelet/{kubelet_node_status,nodestatus/setters}.go`,
//! `component-helpers/apimachinery/lease/controller.go`, v1.33.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, ObjectReference, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use machinery::controller::{is_already_exists, is_not_found};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::kubelet::Kubelet;
use crate::machine;
use crate::status::whole_seconds;

/// Upstream's `nodeStatusReportFrequency`.
const REPORT: Duration = Duration::from_secs(300);
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// Upstream's `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;
const MIN_PID_PERCENT: u64 = 10;
/// Volumes are attached by a controller, if at all, never by the kubelet.
const CONTROLLER_ATTACHES: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

pub struct NodeReporter {
    kubelet: Arc<Kubelet>,
    /// Something about the node changed: look at once.
    pub changed: Arc<Notify>,
}

impl NodeReporter {
    pub fn new(kubelet: Arc<Kubelet>) -> Self {
        NodeReporter { kubelet, changed: Arc::default() }
    }

    pub async fn run(&self) {
        self.register_until_done().await;
        let (changed, own) = (self.changed.clone(), self.kubelet.config.node_name.clone());
        self.kubelet.nodes.on_change(move |change| {
            if change.object().metadata.name.as_ref() == Some(&own) {
                changed.notify_one();
            }
        });
        tokio::join!(self.report_forever(), self.renew_forever());
    }

    fn about(&self) -> ObjectReference {
        let name = self.kubelet.config.node_name.clone();
        // Upstream puts the node's name for its uid, too, so that `kubectl describe node` finds the event.
        ObjectReference { kind: Some("Node".into()), name: Some(name.clone()), uid: Some(name), ..ObjectReference::default() }
    }

    async fn register_until_done(&self) {
        let mut delay = Duration::from_millis(100);
        while let Err(error) = self.register().await {
            tracing::warn!(error = format!("{error:#}"), "node not registered; retrying");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(7));
        }
        self.kubelet.recorder.normal(&self.about(), "Starting", "Starting kubelet.");
    }

    async fn register(&self) -> Result<()> {
        let config = &self.kubelet.config;
        let api: Api<Node> = Api::all(self.kubelet.client.clone());
        let node = Node {
            metadata: ObjectMeta {
                name: Some(config.node_name.clone()),
                labels: Some(self.labels()),
                annotations: Some(BTreeMap::from([(CONTROLLER_ATTACHES.to_owned(), "true".to_owned())])),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec { taints: Some(config.taints.iter().filter_map(|t| taint(t)).collect()), ..NodeSpec::default() }),
            status: Some(self.status(None).await?),
        };
        match api.create(&PostParams::default(), &node).await {
            Ok(_) => tracing::info!(node = config.node_name, "registered"),
            Err(error) if is_already_exists(&error) => {
                let own = json!({"metadata": {"labels": self.labels(), "annotations": {CONTROLLER_ATTACHES: "true"}}});
                api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(own)).await?;
            }
            Err(error) => return Err(error).context("create the node"),
        }
        Ok(())
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let config = &self.kubelet.config;
        let (arch, os) = (machine::architecture(), "linux");
        let own = [
            ("kubernetes.io/hostname", config.node_name.as_str()),
            ("kubernetes.io/arch", arch),
            ("kubernetes.io/os", os),
            ("beta.kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", os),
        ];
        own.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).chain(config.labels.clone()).collect()
    }

    async fn report_forever(&self) {
        let mut sent: Option<(NodeStatus, Instant)> = None;
        let mut told = BTreeMap::new();
        loop {
            match self.report(&mut sent).await {
                Ok(()) => self.tell_changes(sent.as_ref().map(|(s, _)| s), &mut told),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "node status not written"),
            }
            // Until the network is up the next look is soon: pods wait for it.
            let ready = told.get("Ready").is_some_and(|status| status == "True");
            let period = if ready { self.kubelet.config.status_frequency } else { Duration::from_millis(500) };
            tokio::select! {
                () = self.kubelet.token.cancelled() => return,
                () = tokio::time::sleep(period) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    async fn report(&self, sent: &mut Option<(NodeStatus, Instant)>) -> Result<()> {
        let before = sent.as_ref().map(|(status, _)| status);
        let status = self.status(before).await?;
        let due = sent.as_ref().is_none_or(|(old, at)| at.elapsed() >= REPORT || news(old) != news(&status)) || self.contradicted(&status);
        if !due {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.kubelet.client.clone());
        let name = &self.kubelet.config.node_name;
        let mut patch = json!({"status": status});
        for gone in withdrawn(&self.known()) {
            patch["status"]["allocatable"][gone] = Value::Null;
        }
        let patch = Patch::Strategic(patch);
        match api.patch_status(name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => self.register().await?,
            Err(error) => return Err(error.into()),
        }
        *sent = Some((status, Instant::now()));
        Ok(())
    }

    /// Others have said something else of this node: the node lifecycle controller, while we were not heard.
    fn contradicted(&self, status: &NodeStatus) -> bool {
        let node = self.kubelet.node();
        let said = node.iter().flat_map(|n| n.status.iter().flat_map(|s| s.conditions.iter().flatten()));
        let ours = |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind).map(|c| &c.status);
        said.into_iter().any(|c| ours(&c.type_).is_some_and(|status| *status != c.status))
    }

    /// An event for each condition that is new or other than told.
    fn tell_changes(&self, status: Option<&NodeStatus>, told: &mut BTreeMap<String, String>) {
        for condition in status.iter().flat_map(|s| s.conditions.iter().flatten()) {
            let before = told.insert(condition.type_.clone(), condition.status.clone());
            let Some(reason) = news_of(condition, before.as_deref()) else { continue };
            let text = format!("Node {} status is now: {reason}", self.kubelet.config.node_name);
            self.kubelet.recorder.normal(&self.about(), reason, text);
        }
    }

    /// The node's status as the API has it.
    fn known(&self) -> NodeStatus {
        self.kubelet.node().and_then(|node| node.status.clone()).unwrap_or_default()
    }

    async fn status(&self, before: Option<&NodeStatus>) -> Result<NodeStatus> {
        let kubelet = &self.kubelet;
        let config = &kubelet.config;
        let version = kubelet.cri.version().await;
        let runtime = version.as_ref().map(|v| format!("{}://{}", v.runtime_name, numbers_of(&v.runtime_version))).unwrap_or_default();
        let old = kubelet.node().and_then(|n| n.status.clone()).or_else(|| before.cloned()).unwrap_or_default();
        let address = |kind: &str, address: String| NodeAddress { type_: kind.into(), address };
        let mut addresses: Vec<NodeAddress> = kubelet.host_ips.iter().map(|ip| address("InternalIP", ip.clone())).collect();
        addresses.push(address("Hostname", config.node_name.clone()));
        Ok(NodeStatus {
            addresses: Some(addresses),
            capacity: Some(kubelet.machine.capacity(config.max_pods)),
            allocatable: Some(kubelet.allocatable().into_iter().chain(advertised(&old)).collect()),
            conditions: Some(self.conditions(old.conditions.as_deref().unwrap_or_default()).await),
            daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.port) }) }),
            images: Some(self.images().await),
            node_info: Some(machine::system_info(runtime)),
            ..NodeStatus::default()
        })
    }

    async fn images(&self) -> Vec<ContainerImage> {
        let mut images = self.kubelet.cri.list_images().await.unwrap_or_default();
        images.sort_by_key(|image| std::cmp::Reverse(image.size));
        let names = |i: &k8s_cri::v1::Image| i.repo_digests.iter().chain(&i.repo_tags).take(5).cloned().collect();
        images.iter().take(MAX_IMAGES).map(|i| ContainerImage { names: Some(names(i)), size_bytes: i64::try_from(i.size).ok() }).collect()
    }

    async fn conditions(&self, old: &[NodeCondition]) -> Vec<NodeCondition> {
        let pressure = |yes: bool, good: (&'static str, &'static str), bad: (&'static str, &'static str)| match yes {
            true => ("True", bad.0, bad.1.to_owned()),
            false => ("False", good.0, good.1.to_owned()),
        };
        let thresholds = self.kubelet.config.eviction_hard;
        let memory = pressure(
            thresholds.short_of_memory(),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        );
        let disk = pressure(
            thresholds.short_of_disk(&self.kubelet.config.root_dir),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        );
        let pids = pressure(
            pids_full(),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        );
        let ready = match self.complaint().await {
            None => ("True", "KubeletReady", "kubelet is posting ready status".to_owned()),
            Some(complaint) => ("False", "KubeletNotReady", complaint),
        };
        let all = [("MemoryPressure", memory), ("DiskPressure", disk), ("PIDPressure", pids), ("Ready", ready)];
        let now = whole_seconds(Timestamp::now());
        all.into_iter()
            .map(|(kind, (status, reason, message))| {
                let since = old.iter().find(|c| c.type_ == kind && c.status == status).and_then(|c| c.last_transition_time.clone());
                NodeCondition {
                    type_: kind.to_owned(),
                    status: status.to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message),
                    last_heartbeat_time: Some(now.clone()),
                    last_transition_time: since.or_else(|| Some(now.clone())),
                }
            })
            .collect()
    }

    /// Why the node is not ready, in upstream's words.
    async fn complaint(&self) -> Option<String> {
        let conditions = match self.kubelet.cri.status().await {
            Ok(conditions) => conditions,
            Err(error) => return Some(format!("container runtime is down: {error}")),
        };
        let bad: Vec<String> = conditions
            .iter()
            .filter(|c| !c.status)
            .map(|c| {
                let text = format!("{}=false reason:{} message:{}", c.r#type, c.reason, c.message);
                if c.r#type == "NetworkReady" {
                    format!("container runtime network not ready: {text}")
                } else {
                    format!("container runtime not ready: {text}")
                }
            })
            .collect();
        (!bad.is_empty()).then(|| bad.join(", "))
    }

    async fn renew_forever(&self) {
        let api: Api<Lease> = Api::namespaced(self.kubelet.client.clone(), LEASE_NAMESPACE);
        let mut held: Option<Lease> = None;
        loop {
            let mut pause = LEASE_RENEWAL;
            match self.renew(&api, held.take()).await {
                Ok(lease) => held = Some(lease),
                Err(error) => {
                    tracing::warn!(%error, "lease not renewed");
                    pause = Duration::from_secs(1);
                }
            }
            tokio::select! {
                () = self.kubelet.token.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn renew(&self, api: &Api<Lease>, held: Option<Lease>) -> Result<Lease, kube::Error> {
        let name = &self.kubelet.config.node_name;
        let mut lease = match held {
            Some(lease) => lease,
            None => match api.get(name).await {
                Ok(lease) => lease,
                Err(error) if is_not_found(&error) => return api.create(&PostParams::default(), &self.lease()).await,
                Err(error) => return Err(error),
            },
        };
        lease.metadata.managed_fields = None;
        lease.spec = self.lease().spec;
        if lease.metadata.owner_references.is_none() {
            lease.metadata.owner_references = self.owner();
        }
        api.replace(name, &PostParams::default(), &lease).await
    }

    fn owner(&self) -> Option<Vec<OwnerReference>> {
        let node = self.kubelet.node()?;
        let reference = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.kubelet.config.node_name.clone(),
            uid: node.metadata.uid.clone()?,
            ..OwnerReference::default()
        };
        Some(vec![reference])
    }

    fn lease(&self) -> Lease {
        let name = self.kubelet.config.node_name.clone();
        let micros = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or_default();
        Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(LEASE_NAMESPACE.into()),
                owner_references: self.owner(),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(MicroTime(micros)),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// The status without its times: what is worth a write.
fn news(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
        condition.last_transition_time = None;
    }
    status
}

/// The event that a condition's change is worth. A node that is not ready yet has not become so.
fn news_of(condition: &NodeCondition, before: Option<&str>) -> Option<&'static str> {
    if before == Some(&condition.status) {
        return None;
    }
    match (condition.type_.as_str(), condition.status.as_str()) {
        ("Ready", "True") => Some("NodeReady"),
        ("Ready", _) => before.map(|_| "NodeNotReady"),
        ("MemoryPressure", "True") => Some("NodeHasInsufficientMemory"),
        ("MemoryPressure", _) => Some("NodeHasSufficientMemory"),
        ("DiskPressure", "True") => Some("NodeHasDiskPressure"),
        ("DiskPressure", _) => Some("NodeHasNoDiskPressure"),
        ("PIDPressure", "True") => Some("NodeHasInsufficientPID"),
        ("PIDPressure", _) => Some("NodeHasSufficientPID"),
        _ => None,
    }
}

/// `1.6.20` of Debian's `1.6.20~ds1`: what upstream parses as a version is its numbers.
fn numbers_of(version: &str) -> &str {
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    &version[..end]
}

/// `key=value:Effect` or `key:Effect`.
fn taint(text: &str) -> Option<Taint> {
    let (key, effect) = text.rsplit_once(':')?;
    let (key, value) = key.split_once('=').map_or((key, None), |(k, v)| (k, Some(v.to_owned())));
    Some(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

/// A resource that others have announced for this node, by its capacity: `example.com/dongle`. Pods may have all of it.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}

fn advertised(status: &NodeStatus) -> BTreeMap<String, Quantity> {
    let capacity = status.capacity.iter().flatten().filter(|(name, _)| is_extended(name));
    capacity.map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

/// Announced once, and no longer.
fn withdrawn(status: &NodeStatus) -> Vec<&str> {
    let allocatable = status.allocatable.iter().flatten().map(|(name, _)| name.as_str());
    allocatable.filter(|name| is_extended(name) && !status.capacity.iter().flatten().any(|(known, _)| known == name)).collect()
}

fn pids_full() -> bool {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let running = std::fs::read_to_string("/proc/loadavg").ok().and_then(|l| l.split(' ').nth(3)?.split('/').nth(1)?.parse::<u64>().ok());
    match (number("/proc/sys/kernel/pid_max"), running) {
        (Some(max), Some(running)) => max.saturating_sub(running) * 100 < max * MIN_PID_PERCENT,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_conditions_are_told_once() {
        let condition = |kind: &str, status: &str| NodeCondition { type_: kind.into(), status: status.into(), ..NodeCondition::default() };
        for (kind, status, before, expected) in [
            ("MemoryPressure", "False", None, Some("NodeHasSufficientMemory")),
            ("MemoryPressure", "False", Some("False"), None),
            ("DiskPressure", "True", Some("False"), Some("NodeHasDiskPressure")),
            ("Ready", "False", None, None),
            ("Ready", "True", Some("False"), Some("NodeReady")),
            ("Ready", "False", Some("True"), Some("NodeNotReady")),
        ] {
            assert_eq!(news_of(&condition(kind, status), before), expected, "{kind} {before:?} {status}");
        }
        assert_eq!([numbers_of("1.6.20~ds1"), numbers_of("2.1.0")], ["1.6.20", "2.1.0"]);
    }

    #[test]
    fn what_others_announce_is_allocatable_until_withdrawn() {
        let amounts = |names: &[&str]| Some(names.iter().map(|name| ((*name).to_owned(), Quantity("1".into()))).collect());
        let capacity = amounts(&["cpu", "example.com/dongle", "node.kubernetes.io/x"]);
        let status = NodeStatus { capacity, allocatable: amounts(&["cpu", "example.com/gone"]), ..NodeStatus::default() };
        assert_eq!(advertised(&status).into_keys().collect::<Vec<_>>(), ["example.com/dongle"]);
        assert_eq!(withdrawn(&status), ["example.com/gone"]);
    }
}
