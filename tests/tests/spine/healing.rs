//! A worker's machine cut off the network: its pods run elsewhere, and it comes back clean. What happens while a controller is away is made up for.

use anyhow::{Result, bail};
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;
use crate::verbs::{available, deployment};

pub fn cut_off_worker_is_evicted_and_rejoins(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("h-cut")?;
    let tolerations = "      tolerations:\n      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 3}\n      \
                       - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 3}\n";
    kubectl.apply(&(deployment("web", 4) + tolerations))?;
    available(&kubectl, "web")?;
    let on = |node: &str| kubectl.ok(&format!("get pods --field-selector spec.nodeName={node} -o name")).map(|text| text.lines().count());
    if on("worker2")? == 0 {
        bail!("no pod on worker2 to begin with");
    }
    let began = std::time::Instant::now();
    spine.cluster.coracle(&["machine", "cut", "worker2"])?;
    kubectl.ok("wait --for=condition=Ready=Unknown node/worker2 --timeout=60s")?;
    println!("    cut to NotReady: {:.1} s", began.elapsed().as_secs_f64());
    ensure_contains(&kubectl.path("node/worker2", "{.spec.taints[*].key}")?, &["node.kubernetes.io/unreachable"])?;
    until(60, "four pods run elsewhere", || {
        let ready = kubectl.ok_with(
            "get pods --field-selector spec.nodeName=worker1",
            &["-o", "jsonpath={.items[*].status.containerStatuses[0].ready}"],
        )?;
        ensure_eq(ready.split(' ').filter(|word| *word == "true").count(), 4, "ready pods on worker1")
    })?;
    println!("    cut to all running elsewhere: {:.1} s", began.elapsed().as_secs_f64());
    spine.cluster.coracle(&["machine", "heal", "worker2"])?;
    kubectl.ok("wait --for=condition=Ready node/worker2 --timeout=60s")?;
    until(60, "its old pods are gone", || {
        ensure_eq(on("worker2")?, 0, "pods on worker2")?;
        ensure_eq(kubectl.path("node/worker2", "{.spec.taints}")?, String::new(), "taints")
    })?;
    // Clean: no container of the namespace is left in its runtime.
    until(60, "its containers are gone", || {
        let listed = spine.cluster.coracle(&[
            "exec",
            "worker2",
            "--",
            "ctr",
            "-n",
            "k8s.io",
            "containers",
            "ls",
            "labels.\"io.kubernetes.pod.namespace\"==h-cut",
        ])?;
        ensure_eq(listed.lines().count(), 1, "lines of the list (its heading)")
    })?;
    // And it is used again.
    kubectl.ok("scale deployment web --replicas=8")?;
    available(&kubectl, "web")?;
    if on("worker2")? == 0 {
        bail!("no new pod on worker2");
    }
    Ok(())
}

/// The pods of the old Job are held by the finalizer of a controller that never saw it go.
pub fn a_job_made_anew_while_nobody_counted_lets_its_old_pods_go(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("h-anew")?;
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: again}\nspec:\n  completions: 2\n  parallelism: 2\n  template:\n    spec:\n      \
               restartPolicy: Never\n      terminationGracePeriodSeconds: 1\n      containers:\n      - {name: work, image: \"coracle/web:1\", command: [sleep, \"5\"]}\n";
    kubectl.apply(job)?;
    let pods = || kubectl.path("pods", "{.items[*].metadata.uid}");
    let old = until(30, "two pods", || pods().and_then(|uids| ensure_eq(uids.split(' ').count(), 2, "pods").map(|()| uids)))?;
    spine.cluster.coracle(&["stop", "kube-controller-manager"])?;
    kubectl.ok("delete job again --wait=false")?;
    kubectl.apply(job)?;
    spine.cluster.coracle(&["start", "kube-controller-manager"])?;
    kubectl.ok("wait --for=condition=Complete job/again --timeout=60s")?;
    until(30, "the old pods are gone", || {
        let left = pods()?;
        ensure_eq(old.split(' ').filter(|uid| left.contains(uid)).count(), 0, "old pods")
    })
}
