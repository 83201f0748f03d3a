//! A cluster whose state is in etcd: what a learner sees there, etcd's absence, and moving the state. Run with `STORE=etcd`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::kubectl::Kubectl;
use tests::{ensure_contains, ensure_eq, traffic, until};

use crate::Spine;
use crate::verbs::{available, deployment};

/// How long etcd is away: `OUTAGE=120` for the full time.
fn outage() -> Duration {
    let seconds = std::env::var("OUTAGE").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    Duration::from_secs(seconds)
}

pub fn objects_are_seen_in_etcd(spine: &Spine) -> Result<()> {
    let keys = spine.cluster.coracle(&["exec", "master", "--", "etcdctl", "get", "--prefix", "/registry", "--keys-only"])?;
    ensure_contains(
        &keys,
        &["/registry/deployments/default/quickstart\n", "/registry/minions/worker1\n", "/registry/services/specs/default/kubernetes\n"],
    )?;
    let words = ["exec", "master", "--", "etcdctl", "get", "--print-value-only", "/registry/configmaps/default/quickstart"];
    let stored: Value = serde_json::from_str(&spine.cluster.coracle(&words)?)?;
    ensure_eq(&stored["metadata"]["name"], &Value::from("quickstart"), "the object's JSON")?;
    ensure_contains(&spine.cluster.coracle(&["status"])?, &["state in etcd", "  etcd  "])?;
    // The cluster's own certificates do not open it.
    let flags = "--cert=/etc/kubernetes/pki/kubelet.crt --key=/etc/kubernetes/pki/kubelet.key --command-timeout=3s";
    let mut stranger = vec!["exec", "master", "--", "etcdctl", "get", "/registry/namespaces/default"];
    stranger.extend(flags.split(' '));
    if spine.cluster.coracle(&stranger).is_ok() {
        bail!("a kubelet's certificate opened etcd");
    }
    Ok(())
}

/// ConfigMaps by name, with their revisions.
fn revisions(kubectl: &Kubectl) -> Result<BTreeMap<String, u64>> {
    let listed = kubectl.json("get configmaps")?;
    let items = listed["items"].as_array().context("items")?;
    let revision = |item: &Value| -> Result<u64> { Ok(item["metadata"]["resourceVersion"].as_str().context("resourceVersion")?.parse()?) };
    items.iter().map(|item| Ok((item["metadata"]["name"].as_str().context("name")?.to_owned(), revision(item)?))).collect()
}

fn uids(kubectl: &Kubectl) -> Result<String> {
    kubectl.ok_with(
        "get pods --sort-by=.metadata.name",
        &["-o", "jsonpath={range .items[*]}{.metadata.uid}/{.status.containerStatuses[0].restartCount} {end}"],
    )
}

pub fn etcd_away_and_back(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-outage")?;
    kubectl.apply(&deployment("web", 4))?;
    available(&kubectl, "web")?;
    let watcher = kubectl.spawn("get configmaps --watch-only -o name")?;
    // Long enough for the watch to begin.
    for n in 0..20 {
        kubectl.ok(&format!("create configmap before-{n}"))?;
    }
    let (objects, pods) = (revisions(&kubectl)?, uids(&kubectl)?);
    let page = Page::watch(spine)?;
    spine.cluster.coracle(&["stop", "etcd"])?;
    let began = Instant::now();
    let refused = kubectl.fails("create configmap meanwhile --request-timeout=20s")?;
    ensure_contains(&refused, &["error: failed to create configmap: etcd: "])?;
    ensure_contains(&kubectl.fails("get --raw /readyz?verbose")?, &["[-]etcd failed", "[+]ping ok"])?;
    if let Ok(fine) = spine.cluster.coracle(&["status"]) {
        bail!("status should show the outage:\n{fine}");
    }
    println!("    a create meanwhile: {}", refused.trim());
    std::thread::sleep(outage().saturating_sub(began.elapsed()));
    spine.cluster.coracle(&["start", "etcd"])?;
    let back = Instant::now();
    until(30, "a write after the outage", || kubectl.ok("create configmap after"))?;
    println!("    etcd started to first write: {:.1} s", back.elapsed().as_secs_f64());
    let mut now = revisions(&kubectl)?;
    now.retain(|name, _| name != "after" && name != "meanwhile");
    ensure_eq(now, objects, "objects and their revisions")?;
    ensure_eq(uids(&kubectl)?, pods, "pods and their restarts")?;
    kubectl.ok("scale deployment web --replicas=6")?;
    until(90, "the control plane works on", || {
        ensure_eq(kubectl.path("deployment/web", "{.status.readyReplicas}")?, "6".into(), "ready replicas")
    })?;
    println!("    etcd started to a scale carried out: {:.1} s", back.elapsed().as_secs_f64());
    ensure_contains(&watcher.end()?, &["configmap/after\n"])?;
    until(60, "status", || spine.cluster.coracle(&["status"]))?;
    page.served_throughout()
}

pub fn state_moves_there_and_back(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-move")?;
    kubectl.apply(&deployment("web", 2))?;
    available(&kubectl, "web")?;
    for n in 0..20 {
        kubectl.ok(&format!("create configmap kept-{n}"))?;
    }
    ensure_contains(&spine.cluster.coracle(&["migrate", "--to", "etcd"])?, &["already"])?;
    for to in ["embedded", "etcd"] {
        let (objects, pods) = (revisions(&kubectl)?, uids(&kubectl)?);
        let newest = objects.values().max().copied().unwrap_or_default();
        let page = Page::watch(spine)?;
        let said = spine.cluster.coracle(&["migrate", "--to", to])?;
        println!("    {}", said.trim().replace('\n', "\n    "));
        let moved = revisions(&kubectl)?;
        ensure_eq(moved.keys().collect::<Vec<_>>(), objects.keys().collect(), "names")?;
        if moved.values().any(|revision| *revision <= newest) {
            bail!("a revision went back: {newest} before, now {moved:?}");
        }
        ensure_eq(uids(&kubectl)?, pods, "pods and their restarts")?;
        // A watcher from before is told to list again.
        let old = kubectl.ok(&format!("get --raw /api/v1/configmaps?watch=1&timeoutSeconds=2&resourceVersion={newest}"))?;
        ensure_contains(&old, &["ERROR", "410"])?;
        // And all that watch have done so.
        let replicas = if to == "etcd" { 2 } else { 4 };
        kubectl.ok(&format!("scale deployment web --replicas={replicas}"))?;
        until(90, "the control plane works on", || {
            ensure_eq(kubectl.path("deployment/web", "{.status.readyReplicas}")?, replicas.to_string(), "ready replicas")?;
            ensure_eq(kubectl.ok("get pods -o name")?.lines().count(), replicas, "pods")
        })?;
        until(60, "status", || spine.cluster.coracle(&["status"]))?;
        page.served_throughout()?;
    }
    Ok(())
}

/// The quick start's page, asked for all the time.
struct Page {
    stop: Arc<AtomicBool>,
    asking: std::thread::JoinHandle<Result<traffic::Report>>,
}

impl Page {
    fn watch(spine: &Spine) -> Result<Page> {
        let target = format!("{}:30080", spine.cluster.address("worker1")?).parse()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let asking = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(traffic::run(vec![target], 20, stopped)))
        });
        Ok(Page { stop, asking })
    }

    fn served_throughout(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let report = self.asking.join().map_err(|_| anyhow::anyhow!("the traffic panicked"))??;
        println!("    the page was asked for {} times, slowest {:.3} s", report.sent, report.slowest.as_secs_f64());
        if report.sent == 0 || !report.failures.is_empty() {
            bail!("{} of {} requests failed: {}", report.failures.len(), report.sent, report.failures.join("; "));
        }
        Ok(())
    }
}
