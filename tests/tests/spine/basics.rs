//! What a person sees first: nodes, quick start, status, trace.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result};
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;

/// GET / of an address; the whole answer.
pub fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    // A reset behind the whole answer takes nothing from it.
    if let Err(e) = stream.read_to_end(&mut answer)
        && answer.is_empty()
    {
        return Err(e.into());
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub fn nodes_are_ready(spine: &Spine) -> Result<()> {
    let kubectl = spine.kubectl("default");
    let nodes = kubectl.ok("get nodes --no-headers")?;
    let fields: Vec<Vec<&str>> = nodes.lines().map(|line| line.split_whitespace().collect()).collect();
    let seen: Vec<(&str, &str, &str)> = fields.iter().map(|row| (row[0], row[1], row[2])).collect();
    ensure_eq(seen, vec![("master", "Ready", "control-plane"), ("worker1", "Ready", "<none>"), ("worker2", "Ready", "<none>")], "nodes")?;
    let taints = kubectl.path("node/master", "{.spec.taints[*].key}")?;
    ensure_contains(&taints, &["node-role.kubernetes.io/control-plane"])?;
    let wide = kubectl.ok("get nodes -o wide")?;
    ensure_contains(&wide, &["INTERNAL-IP", "containerd://", &spine.cluster.address("worker1")?])?;
    ensure_contains(&kubectl.ok("describe node worker1")?, &["Conditions:", "Ready", "Allocatable:", "PodCIDR:"])
}

pub fn quick_start_answers(spine: &Spine) -> Result<()> {
    ensure_contains(&spine.printed, &["The quick start answers at http://"])?;
    for machine in ["master", "worker1", "worker2"] {
        let address = format!("{}:30080", spine.cluster.address(machine)?);
        let page = until(20, machine, || get(&address))?;
        ensure_contains(&page, &["200 OK", "Your cluster works."])?;
    }
    Ok(())
}

pub fn every_process_is_healthy(spine: &Spine) -> Result<()> {
    // `status` fails while something is not well.
    let text = until(20, "status", || spine.cluster.coracle(&["status"]))?;
    ensure_contains(&text, &["kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubelet", "kube-proxy", "containerd"])
}

pub fn trace_shows_the_chain(spine: &Spine) -> Result<()> {
    let text = spine.cluster.coracle(&["trace", "deployment/quickstart"])?;
    let chain = [
        "kubectl kubernetes-admin  create deployments quickstart",
        "kube-controller-manager  create replicasets quickstart-",
        "kube-controller-manager  create pods quickstart-",
        "kube-scheduler  create binding",
        "kubelet worker",
        "sandbox created",
        "endpointslices quickstart-",
        "kube-proxy  rules written",
        "MS",
    ];
    ensure_contains(&text, &chain)
}

pub fn up_again_changes_nothing(spine: &Spine) -> Result<()> {
    let pids = || -> Result<Vec<String>> {
        let text = spine.cluster.coracle(&["status"])?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().nth(2)).map(String::from).collect())
    };
    let before = pids()?;
    ensure_contains(&spine.cluster.coracle(&["up"])?, &["is running", "The quick start answers"])?;
    ensure_eq(pids()?, before, "process ids after a second up")
}
