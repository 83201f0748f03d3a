//! What is on the machines: processes, mounts, network namespaces, devices, addresses, control groups, folders, containers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coracle::cluster::{Cluster, Machine};
use coracle::machine::{self, cgroup};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ContainerState, ListContainersRequest, ListPodSandboxRequest};
use procfs::process::Process;
use tonic::transport::{Channel, Uri};

/// Where the network plugin notes addresses.
const ADDRESSES: &str = "run/cni-ipam-state";
const POD_UID: &str = "io.kubernetes.pod.uid";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Counts over all machines, by what is counted. Pods may have changed machines, so machines are not told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census(BTreeMap<String, usize>);

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.0 {
            writeln!(f, "  {count:>4}  {what}")?;
        }
        Ok(())
    }
}

/// A running container.
pub struct Running {
    pub machine: String,
    /// The pod's uid.
    pub pod: String,
    pub container: String,
}

impl Census {
    pub fn take(cluster: &Cluster) -> Result<Census> {
        let mut counts = BTreeMap::new();
        for machine in &cluster.machines {
            count(cluster, machine, &mut counts).with_context(|| machine.name.clone())?;
        }
        Ok(Census(counts))
    }

    /// What a pod has, each has once.
    pub fn pods_are_whole(&self) -> Result<()> {
        let of = |what: &str| self.0.get(what).copied().unwrap_or_default();
        let pods = of("sandbox, ready");
        let wrong: Vec<String> =
            ["process containerd-shim", "network namespace", "address", "device veth", "folder of a pod", "control group of a pod"]
                .iter()
                .filter(|what| of(what) != pods)
                .map(|what| format!("{} × {what}", of(what)))
                .collect();
        if !wrong.is_empty() || of("sandbox, dead") > 0 || of("container, dead") > 0 {
            bail!(
                "{pods} pods, but {}, {} dead sandboxes, {} dead containers",
                wrong.join(", "),
                of("sandbox, dead"),
                of("container, dead")
            );
        }
        Ok(())
    }

    pub fn compare(&self, before: &Census) -> Result<()> {
        let keys: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        let get = |census: &Census, what: &String| census.0.get(what).copied().unwrap_or_default();
        let differ: Vec<String> = keys
            .into_iter()
            .filter(|what| get(self, what) != get(before, what))
            .map(|what| format!("{what}: {} before, {} after", get(before, what), get(self, what)))
            .collect();
        if !differ.is_empty() {
            bail!("{}", differ.join("\n"));
        }
        Ok(())
    }
}

fn count(cluster: &Cluster, machine: &Machine, counts: &mut BTreeMap<String, usize>) -> Result<()> {
    let first = machine::state(cluster, machine)?.pid;
    let mut add = |what: String, number: usize| *counts.entry(what).or_default() += number;
    for process in processes(cluster, machine) {
        // What has ended by now, or is only passing through, is not counted.
        let Some(name) = lasting(&process) else { continue };
        add(format!("process {name}"), 1);
    }
    for mount in fs::read_to_string(format!("/proc/{first}/mountinfo"))?.lines() {
        add(format!("mount {}", mount_kind(mount)), 1);
    }
    let root = PathBuf::from(format!("/proc/{first}/root"));
    add("network namespace".into(), names(&root.join("run/netns")).len());
    let links = fs::read_to_string(format!("/proc/{first}/net/dev"))?;
    add("device veth".into(), links.lines().filter(|line| line.trim_start().starts_with("veth")).count());
    for network in names(&root.join(ADDRESSES)) {
        let addresses = names(&root.join(ADDRESSES).join(network));
        add("address".into(), addresses.iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok()).count());
    }
    add("folder of a pod".into(), names(&root.join("var/lib/kubelet/pods")).len());
    add("folder of a pod's logs".into(), names(&root.join("var/log/pods")).len());
    let memory = cgroup::roots().into_iter().find(|root| root.ends_with("memory") || root.join("cgroup.controllers").exists());
    let groups = memory.context("control groups")?.join(cluster.cgroup(machine)).join("kubepods");
    add("control group of a pod".into(), pod_groups(&groups));
    for (what, number) in in_runtime(cluster, machine)? {
        add(what, number);
    }
    Ok(())
}

/// The machine's processes, those of its pods included.
pub fn processes(cluster: &Cluster, machine: &Machine) -> Vec<Process> {
    let group = format!("/{}/", cluster.cgroup(machine));
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    all.flatten()
        .filter(|process| fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).is_ok_and(|groups| groups.contains(&group)))
        .collect()
}

fn lasting(process: &Process) -> Option<String> {
    let stat = process.stat().ok()?;
    let words = process.cmdline().ok()?;
    let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or(&stat.comm).to_owned();
    if stat.state == 'Z' {
        return Some("(dead, not collected)".into());
    }
    let passing = ["runc", "ip", "nft", "conntrack", "iptables", "ptp", "portmap", "host-local", "loopback"];
    if program.starts_with("containerd-shim") {
        // A shim that is asked to delete lives for a moment.
        return (!words.iter().any(|word| word == "delete" || word == "start")).then(|| "containerd-shim".into());
    }
    (!passing.contains(&program.as_str())).then_some(program)
}

/// File system, and the place without the parts that name a pod.
fn mount_kind(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let place = words.get(4).copied().unwrap_or_default();
    let kind = words.iter().position(|word| *word == "-").and_then(|at| words.get(at + 1)).copied().unwrap_or_default();
    let general: Vec<&str> = place.split('/').map(|part| if part.len() > 30 || part.starts_with("cni-") { "*" } else { part }).collect();
    format!("{kind} at {}", general.join("/"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Groups named after a pod, at whatever depth below `dir`.
fn pod_groups(dir: &Path) -> usize {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| if entry.file_name().to_string_lossy().starts_with("pod") { 1 } else { pod_groups(&entry.path()) }).sum()
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The machine's containerd, seen from the host through the machine's first process.
async fn runtime(cluster: &Cluster, machine: &Machine) -> Result<RuntimeServiceClient<Channel>> {
    let pid = machine::state(cluster, machine)?.pid;
    let socket = PathBuf::from(format!("/proc/{pid}/root/run/containerd/containerd.sock"));
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    Ok(RuntimeServiceClient::new(tonic::transport::Endpoint::from_static("http://[::]").connect_with_connector(connector).await?))
}

fn in_runtime(cluster: &Cluster, machine: &Machine) -> Result<Vec<(String, usize)>> {
    block_on(async {
        let mut runtime = runtime(cluster, machine).await?;
        let sandboxes = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
        let containers = runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == 0).count();
        let running = containers.iter().filter(|container| container.state == ContainerState::ContainerRunning as i32).count();
        Ok(vec![
            ("sandbox, ready".into(), ready),
            ("sandbox, dead".into(), sandboxes.len() - ready),
            ("container, running".into(), running),
            ("container, dead".into(), containers.len() - running),
        ])
    })
}

/// The namespace's running containers on all machines. Errors: one of them runs twice.
pub fn running(cluster: &Cluster, namespace: &str) -> Result<Vec<Running>> {
    let mut all: Vec<Running> = Vec::new();
    for machine in &cluster.machines {
        let listed = block_on(async {
            let mut runtime = runtime(cluster, machine).await?;
            Ok(runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers)
        })?;
        let label = |labels: &HashMap<String, String>, name: &str| labels.get(name).cloned().unwrap_or_default();
        let running =
            listed.iter().filter(|c| c.state == ContainerState::ContainerRunning as i32 && label(&c.labels, POD_NAMESPACE) == namespace);
        all.extend(running.map(|c| Running {
            machine: machine.name.clone(),
            pod: label(&c.labels, POD_UID),
            container: label(&c.labels, CONTAINER_NAME),
        }));
    }
    let mut seen = BTreeSet::new();
    for one in &all {
        if !seen.insert((&one.pod, &one.container)) {
            bail!("container {} of pod {} runs twice, once on {}", one.container, one.pod, one.machine);
        }
    }
    Ok(all)
}
