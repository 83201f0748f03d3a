//! Faults of the control plane.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use tests::kubectl::Kubectl;
use tests::{ensure_eq, until};

use crate::Spine;
use crate::basics::get;
use crate::verbs::{available, deployment};

pub fn each_process_killed_in_turn(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("p-kill")?;
    kubectl.apply(&deployment("web", 2))?;
    available(&kubectl, "web")?;
    let page = format!("{}:30080", spine.cluster.address("worker2")?);
    let kills: [(&str, &str); 7] = [
        ("kube-apiserver", "master"),
        ("kube-controller-manager", "master"),
        ("kube-scheduler", "master"),
        ("image-server", "master"),
        ("kubelet", "worker1"),
        ("kube-proxy", "worker1"),
        ("containerd", "worker1"),
    ];
    for (round, (process, machine)) in kills.iter().enumerate() {
        spine.cluster.coracle(&["kill", process, "--on", machine])?;
        get(&page).with_context(|| format!("the page while {process} is down"))?;
        // The cluster converges: a change is carried through to running pods.
        let replicas = 3 + round % 2;
        until(60, process, || kubectl.ok(&format!("scale deployment web --replicas={replicas}")))?;
        until(90, &format!("pods after {process} was killed"), || {
            ensure_eq(kubectl.path("deployment/web", "{.status.readyReplicas}")?, replicas.to_string(), "ready")
        })?;
        until(60, &format!("status after {process} was killed"), || spine.cluster.coracle(&["status"]))?;
    }
    ensure_eq(restarts(&kubectl)?, 0, "container restarts")
}

fn restarts(kubectl: &Kubectl) -> Result<u32> {
    let counts = kubectl.ok_with("get pods -l app=web", &["-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"])?;
    Ok(counts.split_whitespace().filter_map(|count| count.parse::<u32>().ok()).sum())
}

/// Creates a thousand ConfigMaps while the API server is killed again and again. Whatever was acknowledged is there afterwards, at its
/// revision; a watcher that goes on from the last revision it saw misses nothing, or is told 410 and lists again.
pub fn killed_during_a_thousand_creates(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("p-creates")?;
    let creator = Command::new(tests::cluster::programs()?.join("creates"))
        .arg(spine.cluster.dir().join("pki"))
        .args([&format!("{}:6443", spine.cluster.address("master")?), "p-creates", "1000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("start the creates")?;
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn({
        let kubectl = kubectl.clone();
        move || follow(&kubectl, &ended)
    });
    for _ in 0..4 {
        let before = count(&kubectl).unwrap_or_default();
        until(60, "more objects", || match count(&kubectl)? {
            now if now >= before + 100 || now >= 1000 => Ok(()),
            now => bail!("{now}"),
        })?;
        spine.cluster.coracle(&["kill", "kube-apiserver"])?;
    }
    let output = creator.wait_with_output()?;
    let acknowledged: BTreeMap<String, String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_once(' ').map(|(name, revision)| (name.to_string(), revision.to_string())))
        .collect();
    if acknowledged.len() < 1000 {
        bail!("only {} creates were acknowledged", acknowledged.len());
    }
    let listed = until(30, "list", || kubectl.json("get configmaps"))?;
    let stored: BTreeMap<String, String> = listed["items"]
        .as_array()
        .context("items")?
        .iter()
        .map(|item| (text(&item["metadata"]["name"]), text(&item["metadata"]["resourceVersion"])))
        .collect();
    for (name, revision) in &acknowledged {
        ensure_eq(stored.get(name), Some(revision), &format!("acknowledged {name}"))?;
    }
    let newest = stored.values().filter_map(|revision| revision.parse::<u64>().ok()).max().unwrap_or_default();
    done.send(()).context("the watcher has ended before its time")?;
    let Ok(followed) = watcher.join() else { bail!("the watcher panicked") };
    let followed = followed?;
    ensure_eq(followed.revision >= newest, true, "the watcher came to the end")?;
    for (name, revision) in stored.iter().filter(|(_, revision)| revision.parse().is_ok_and(|r: u64| r <= followed.revision)) {
        ensure_eq(followed.seen.get(name), Some(revision), &format!("what the watcher saw of {name}"))?;
    }
    println!(
        "    {} acknowledged, all stored at their revisions; the watcher was cut off {} times and sent to list {} times",
        acknowledged.len(),
        followed.cuts,
        followed.lists
    );
    Ok(())
}

#[derive(Default)]
struct Followed {
    /// Name to revision.
    seen: BTreeMap<String, String>,
    revision: u64,
    cuts: usize,
    lists: usize,
}

/// Watches ConfigMaps until told to end and one more watch has come to nothing new.
fn follow(kubectl: &Kubectl, ended: &std::sync::mpsc::Receiver<()>) -> Result<Followed> {
    let path = format!("/api/v1/namespaces/{}/configmaps", kubectl.namespace);
    let mut followed = Followed::default();
    let (mut expired, mut last) = (true, false);
    loop {
        last |= ended.try_recv().is_ok();
        if expired {
            let list = until(60, "list for the watcher", || {
                Ok(serde_json::from_str::<serde_json::Value>(&kubectl.ok(&format!("get --raw {path}"))?)?)
            })?;
            followed.revision = text(&list["metadata"]["resourceVersion"]).parse()?;
            followed.lists += 1;
            list["items"].as_array().into_iter().flatten().for_each(|item| followed.see(item));
        }
        let output = kubectl.run(&format!("get --raw {path}?watch=1&timeoutSeconds=3&resourceVersion={}", followed.revision))?;
        followed.cuts += usize::from(output.code != 0);
        expired = false;
        for event in serde_json::Deserializer::from_str(&output.stdout).into_iter::<serde_json::Value>().map_while(Result::ok) {
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => followed.see(&event["object"]),
                Some("ERROR") if event["object"]["code"] == 410 => expired = true,
                other => bail!("event {other:?}: {event}"),
            }
        }
        if last && !expired && output.code == 0 {
            return Ok(followed);
        }
    }
}

impl Followed {
    fn see(&mut self, item: &serde_json::Value) {
        let revision = text(&item["metadata"]["resourceVersion"]);
        self.revision = self.revision.max(revision.parse().unwrap_or_default());
        self.seen.insert(text(&item["metadata"]["name"]), revision);
    }
}

fn count(kubectl: &Kubectl) -> Result<usize> {
    Ok(kubectl.ok("get configmaps --no-headers -o name")?.lines().count())
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}
