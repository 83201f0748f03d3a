//! What a big cluster asks of a control plane: lists of pods, a scheduler with a thousand nodes, a Deployment of a thousand.
//!
//! The nodes are objects only. Pods bound to them never run, which is the same for both sides.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tests::client::Client;

use crate::load::{self, many};
use crate::sides::Side;
use crate::{Row, milliseconds};

const NODES: usize = 1_000;
const LISTED: usize = 5_000;
const BOUND: usize = 3_000;
const REPLICAS: usize = 1_000;
const CONNECTIONS: usize = 8;
const LISTS: usize = 10;
const PODS: &str = "/api/v1/namespaces/default/pods";

pub async fn run(side: &mut Side) -> Result<Vec<Row>> {
    println!("  {LISTED} pods");
    many(side, "", LISTED, CONNECTIONS, |n| (Method::POST, PODS.into(), pod(&format!("l{n}"), "list", "nobody")), 201).await?;
    let selected = format!("{PODS}?labelSelector=set%3Dlist");
    let mut rows =
        many(side, &format!("list {LISTED} pods"), LISTS, 1, move |_| (Method::GET, selected.clone(), Bytes::new()), 200).await?;
    rows.retain(|row| !row.what.contains("99th"));
    println!("  {NODES} nodes");
    many(side, "", NODES, CONNECTIONS, |n| (Method::POST, "/api/v1/nodes".into(), node(n)), 201).await?;
    await_untainted(side).await?;
    println!("  bind {BOUND} pods");
    rows.push(bind(side).await?);
    println!("  a Deployment of {REPLICAS}");
    rows.push(deployment(side).await?);
    Ok(rows)
}

fn pod(name: &str, set: &str, scheduler: &str) -> Bytes {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"set": set}}, "spec": pod_spec(scheduler)})
        .to_string()
        .into()
}

fn pod_spec(scheduler: &str) -> Value {
    json!({"schedulerName": scheduler, "containers": [{"name": "web", "image": "web:1", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]})
}

/// A Ready node as a kubelet registers it.
fn node(n: usize) -> Bytes {
    let size = json!({"cpu": "16", "memory": "64Gi", "pods": "110"});
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("n{n}"), "labels": {"kubernetes.io/hostname": format!("n{n}"), "topology.kubernetes.io/zone": format!("z{}", n % 3)}},
        "status": {
            "capacity": size, "allocatable": size,
            "addresses": [{"type": "InternalIP", "address": format!("10.250.{}.{}", n / 250, n % 250 + 2)}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}],
        },
    })
    .to_string()
    .into()
}

/// New nodes carry the taint not-ready until the controller manager has seen them.
async fn await_untainted(side: &Side) -> Result<()> {
    let mut client = Client::new(&side.endpoint)?;
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let nodes: Value = serde_json::from_slice(&client.get("/api/v1/nodes").await?.body)?;
        let items = nodes["items"].as_array().context("items")?;
        let tainted = items.iter().filter(|node| node["spec"]["taints"].as_array().is_some_and(|taints| !taints.is_empty())).count();
        if tainted == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{tainted} of {} nodes are still tainted", items.len());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Pods that wait for a scheduler that is not there; then it starts. From the first binding to the last.
async fn bind(side: &mut Side) -> Result<Row> {
    side.end("kube-scheduler")?;
    many(side, "", BOUND, CONNECTIONS, |n| (Method::POST, PODS.into(), pod(&format!("b{n}"), "bind", "default-scheduler")), 201).await?;
    let watch = Bindings::open(side, "bind").await?;
    side.start("kube-scheduler")?;
    let (first, last) = watch.count(BOUND).await?;
    let per_second = (BOUND - 1) as f64 / (last - first).as_secs_f64();
    Ok(Row::more(format!("pods bound, {NODES} nodes"), "/s", per_second))
}

/// From the create of the Deployment to the binding of its last pod.
async fn deployment(side: &Side) -> Result<Row> {
    let watch = Bindings::open(side, "deployment").await?;
    let labels = json!({"set": "deployment"});
    let body = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "big"},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod_spec("default-scheduler")}},
    });
    let began = Instant::now();
    let answer =
        Client::new(&side.endpoint)?.request(Method::POST, "/apis/apps/v1/namespaces/default/deployments", body.to_string()).await?;
    if answer.status != 201 {
        bail!("create the Deployment: {}", String::from_utf8_lossy(&answer.body));
    }
    let (_, last) = watch.count(REPLICAS).await?;
    Ok(Row::new(format!("Deployment of {REPLICAS}: all pods bound"), "ms", milliseconds(last - began)))
}

/// A watch on the pods of a set that sees them get their nodes.
struct Bindings {
    // The connection lives as long as its client.
    _open: Client,
    body: hyper::body::Incoming,
}

impl Bindings {
    async fn open(side: &Side, set: &str) -> Result<Bindings> {
        let mut client = Client::new(&side.endpoint)?;
        let revision = load::revision(&mut client, PODS).await?;
        let path = format!("{PODS}?watch=1&resourceVersion={revision}&labelSelector=set%3D{set}&timeoutSeconds=600");
        let body = client.open(Method::GET, &path, Bytes::new()).await?.into_body();
        Ok(Bindings { _open: client, body })
    }

    /// When the first and when the last of `expected` pods was seen bound.
    async fn count(mut self, expected: usize) -> Result<(Instant, Instant)> {
        let (mut bound, mut rest, mut first) = (HashSet::new(), Vec::new(), None);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
        while bound.len() < expected {
            let frame = tokio::time::timeout_at(deadline, self.body.frame()).await;
            let frame =
                frame.with_context(|| format!("{} of {expected} pods were bound in time", bound.len()))?.context("the watch ended")??;
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            for line in rest[..end].split(|byte| *byte == b'\n') {
                let event: Value = serde_json::from_slice(line)?;
                let object = &event["object"];
                if let (Some(name), Some(_)) = (object["metadata"]["name"].as_str(), object["spec"]["nodeName"].as_str()) {
                    bound.insert(name.to_string());
                    first.get_or_insert_with(Instant::now);
                }
            }
            rest.drain(..=end);
        }
        Ok((first.context("no pod was bound")?, Instant::now()))
    }
}
