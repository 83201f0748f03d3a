//! Rolling updates.

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tests::cluster::programs;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;
use crate::verbs::{available, deployment};

pub fn history_and_undo(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("r-history")?;
    kubectl.apply(&deployment("web", 2))?;
    available(&kubectl, "web")?;
    kubectl.ok("set env deployment/web STEP=2")?;
    ensure_contains(&kubectl.ok("rollout status deployment/web --timeout=60s")?, &["deployment \"web\" successfully rolled out"])?;
    let history = kubectl.ok("rollout history deployment/web")?;
    ensure_contains(&history, &["deployment.apps/web", "REVISION  CHANGE-CAUSE", "1         <none>", "2         <none>"])?;
    ensure_contains(&kubectl.ok("rollout undo deployment/web")?, &["deployment.apps/web rolled back"])?;
    available(&kubectl, "web")?;
    ensure_eq(kubectl.path("deployment/web", "{.spec.template.spec.containers[0].env}")?, String::new(), "environment after undo")?;
    ensure_contains(&kubectl.ok("rollout history deployment/web")?, &["3         <none>"])?;
    ensure_contains(&kubectl.ok("rollout pause deployment/web")?, &["deployment.apps/web paused"])?;
    kubectl.ok("set env deployment/web STEP=3")?;
    until(20, "observed", || {
        ensure_eq(
            kubectl.path("deployment/web", "{.status.observedGeneration}")?,
            kubectl.path("deployment/web", "{.metadata.generation}")?,
            "generation",
        )
    })?;
    ensure_eq(kubectl.path("deployment/web", "{.status.updatedReplicas}")?, String::new(), "updated while paused")?;
    ensure_contains(&kubectl.ok("rollout resume deployment/web")?, &["deployment.apps/web resumed"])?;
    available(&kubectl, "web")?;
    ensure_contains(&kubectl.ok("rollout restart deployment/web")?, &["deployment.apps/web restarted"])?;
    available(&kubectl, "web")?;
    kubectl.apply(&deployment("web", 2).replace("  selector:", "  strategy: {type: Recreate}\n  selector:"))?;
    kubectl.ok("set env deployment/web STEP=4")?;
    available(&kubectl, "web")
}

/// Six replicas, 200 new connections a second through NodePort (from the host) and ClusterIP (from a node), rolled forward and back.
pub fn no_request_is_lost(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("r-traffic")?;
    let ready = "        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}\n        \
                 lifecycle: {preStop: {exec: {command: [sleep, \"4\"]}}}\n";
    let manifest = deployment("web", 6).replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20") + ready;
    kubectl.apply(&manifest)?;
    kubectl.ok("expose deployment web --port=80 --target-port=8080 --type=NodePort")?;
    available(&kubectl, "web")?;
    let port = kubectl.path("service/web", "{.spec.ports[0].nodePort}")?;
    let node_port = format!("{}:{port}", spine.cluster.address("worker1")?);
    let cluster_address = format!("{}:80", kubectl.path("service/web", "{.spec.clusterIP}")?);
    until(20, "traffic passes", || crate::basics::get(&node_port))?;
    let traffic = programs()?.join("traffic");
    let outside = Traffic::start(Command::new(&traffic).args(["100", &node_port]))?;
    let mut inside = Command::new(programs()?.join("coracle"));
    inside.args(["exec", "worker2", "--name", &spine.cluster.name, "--"]).arg(&traffic).args(["100", &cluster_address]);
    let inside = Traffic::start(&mut inside)?;
    kubectl.ok("set env deployment/web VERSION=2")?;
    kubectl.ok("rollout status deployment/web --timeout=180s")?;
    kubectl.ok("rollout undo deployment/web")?;
    kubectl.ok("rollout status deployment/web --timeout=180s")?;
    until(60, "old pods gone", || ensure_eq(kubectl.ok("get pods --no-headers")?.lines().count(), 6, "pods"))?;
    for (way, traffic) in [("NodePort", outside), ("ClusterIP", inside)] {
        let said = traffic.end()?;
        println!("    {way}: {}", said.lines().last().unwrap_or_default());
        if !said.contains(" failed 0 ") || said.starts_with("sent 0 ") {
            bail!("{way}: {said}");
        }
    }
    Ok(())
}

struct Traffic(std::process::Child);

impl Traffic {
    fn start(command: &mut Command) -> Result<Traffic> {
        Ok(Traffic(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start the traffic")?))
    }

    /// Closing its input ends it.
    fn end(mut self) -> Result<String> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().context("pipe")?.read_to_string(&mut text)?;
        self.0.wait()?;
        Ok(text)
    }
}
