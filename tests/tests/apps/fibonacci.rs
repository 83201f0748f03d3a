//! manifests/fibonacci: page, API, worker, Redis, Postgres on a claim.

use anyhow::Result;
use serde_json::json;
use tests::{ensure_contains, ensure_eq, until};

use crate::{Apps, folder};

const PORT: u16 = 30081;

pub fn computes_and_stores(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    kubectl.ok_with("apply -f", &[&folder("fibonacci")])?;
    for name in ["postgres", "redis", "worker", "api", "front"] {
        kubectl.ok(&format!("rollout status deployment/{name} --timeout=180s"))?;
    }
    ensure_contains(&apps.ask("GET", PORT, "/", "")?, &["<h1>Fibonacci</h1>"])?;
    for index in [12, 90] {
        apps.ask("POST", PORT, "/api/values", &format!("{{\"index\": {index}}}"))?;
    }
    let values = json!({"12": "144", "90": "2880067194370816120"});
    until(30, "the worker", || ensure_eq(apps.json(PORT, "/api/values")?, values.clone(), "values"))?;
    ensure_eq(apps.json(PORT, "/api/seen")?, json!([12, 90]), "indices in Postgres")?;
    let refused = apps.ask("POST", PORT, "/api/values", "{\"index\": 91}").unwrap_or_else(|e| e.to_string());
    ensure_contains(&refused, &["the index must be a number from 0 to 90"])?;
    ensure_eq(kubectl.path("pvc/postgres", "{.status.phase}")?, "Bound".into(), "claim")?;
    ensure_contains(&kubectl.ok("get ingress fibonacci")?, &["fibonacci"])
}

pub fn data_outlives_the_pod(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    let pod = "{.items[0].metadata.uid} {.items[0].status.conditions[?(@.type=='Ready')].status}";
    let before = kubectl.ok_with("get pods -l part=postgres", &["-o", &format!("jsonpath={pod}")])?;
    kubectl.ok("delete pod -l part=postgres")?;
    kubectl.ok("rollout status deployment/postgres --timeout=120s")?;
    let after = kubectl.ok_with("get pods -l part=postgres", &["-o", &format!("jsonpath={pod}")])?;
    ensure_eq(before != after && after.ends_with("True"), true, "another pod")?;
    until(60, "the data", || ensure_eq(apps.json(PORT, "/api/seen")?, json!([12, 90]), "indices"))
}

/// The volume is a directory of one node: while that is away the pod waits and says why.
pub fn data_waits_for_its_node(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    let soon = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3});
    let tolerations = [soon("node.kubernetes.io/unreachable"), soon("node.kubernetes.io/not-ready")];
    let patch = json!({"spec": {"template": {"spec": {"tolerations": tolerations}}}}).to_string();
    kubectl.ok_with("patch deployment postgres -p", &[&patch])?;
    kubectl.ok("rollout status deployment/postgres --timeout=120s")?;
    let node = kubectl.ok_with("get pods -l part=postgres", &["-o", "jsonpath={.items[0].spec.nodeName}"])?;
    apps.cluster.coracle(&["machine", "cut", &node])?;
    let waits = until(120, "the pod that waits", || {
        let why = "jsonpath={.items[*].status.conditions[?(@.type=='PodScheduled')].message}";
        let why = kubectl.ok_with("get pods -l part=postgres --field-selector status.phase=Pending", &["-o", why])?;
        ensure_contains(&why, &["1 node(s) didn't match PersistentVolume's node affinity", "taint {node.kubernetes.io/unreachable: }"])
    });
    apps.cluster.coracle(&["machine", "heal", &node])?;
    waits?;
    kubectl.ok("rollout status deployment/postgres --timeout=120s")?;
    until(60, "the data", || ensure_eq(apps.json(PORT, "/api/seen")?, json!([12, 90]), "indices"))
}
