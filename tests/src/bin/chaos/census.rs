//! What is on the machines: processes, mounts, network namespaces, devices, addresses, routes, rules, control groups, folders, containers.

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
use serde_json::Value;
use tonic::transport::{Channel, Uri};

/// Where the network plugin notes addresses.
const ADDRESSES: &str = "run/cni-ipam-state";
const POD_GROUP: &str = "control group of a pod";
/// Folders with an entry for each of what they are counted as.
const FOLDERS: &[(&str, &str)] = &[
    ("folder of a pod", "var/lib/kubelet/pods"),
    ("folder of a pod's logs", "var/log/pods"),
    ("folder of a claim", "var/lib/coracle/volumes"),
    ("folder of a task", "run/containerd/io.containerd.runtime.v2.task/k8s.io"),
];
const POD_NAME: &str = "io.kubernetes.pod.name";
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

/// A container or, where `container` is empty, a sandbox, as a machine's runtime tells of it.
#[derive(Debug, Clone)]
pub struct Found {
    pub machine: String,
    pub id: String,
    /// The pod's name and uid.
    pub name: String,
    pub pod: String,
    pub container: String,
    pub state: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Made, never started.
    New,
    Running,
    Over,
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
        let wrong: Vec<String> = ["process containerd-shim", "network namespace", "address", "device veth", "folder of a pod", POD_GROUP]
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
    for (what, folder) in FOLDERS {
        add((*what).into(), names(&root.join(folder)).len());
    }
    for (what, number) in rules(cluster, machine)? {
        add(what, number);
    }
    for root in cgroup::roots() {
        // On a hybrid host a kubelet of v1 has no use for the v2 hierarchy, but a runtime may.
        let hierarchy = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pods = pod_groups(&root.join(cluster.cgroup(machine)).join("kubepods"));
        add(if hierarchy == "memory" || hierarchy == "cgroup" { POD_GROUP.into() } else { format!("{POD_GROUP} in {hierarchy}") }, pods);
    }
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
        // The host's first process takes its time with what others left to it.
        return (stat.ppid != 1).then(|| "(dead, not collected)".into());
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
    let of_a_pod = |part: &str| part.len() > 30 || part.starts_with("cni-") || part.starts_with("kube-api-access-");
    let general: Vec<&str> = place.split('/').map(|part| if of_a_pod(part) { "*" } else { part }).collect();
    format!("{kind} at {}", general.join("/"))
}

/// What of the machine's network rules comes and goes with Services and pods.
fn rules(cluster: &Cluster, machine: &Machine) -> Result<Vec<(String, usize)>> {
    let run = |words: &str| machine::run(cluster, machine, &words.split(' ').map(String::from).collect::<Vec<_>>());
    let routes = run("ip -4 route")?.lines().count();
    let ruleset: Value = serde_json::from_str(&run("nft -j list ruleset")?)?;
    let mut counts = BTreeMap::from([("route".to_owned(), routes), ("rule of a host port".to_owned(), 0)]);
    for item in ruleset["nftables"].as_array().into_iter().flatten() {
        let Some((kind, fields)) = item.as_object().and_then(|item| item.iter().next()) else { continue };
        if fields.to_string().contains("CNI-DN-") {
            *counts.entry("rule of a host port".to_owned()).or_default() += 1;
        }
        if fields["table"] == "kube-proxy" {
            let number = if ["set", "map"].contains(&kind.as_str()) { fields["elem"].as_array().map_or(0, Vec::len) } else { 1 };
            *counts.entry(format!("kube-proxy's {kind}")).or_default() += number;
        }
    }
    Ok(counts.into_iter().collect())
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

/// The namespace's sandboxes and containers on a machine.
pub fn found(cluster: &Cluster, machine: &Machine, namespace: &str) -> Result<Vec<Found>> {
    let (sandboxes, containers) = block_on(async {
        let mut runtime = runtime(cluster, machine).await?;
        let sandboxes = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
        let containers = runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
        Ok((sandboxes, containers))
    })?;
    let found = |id: String, labels: &HashMap<String, String>, state: Life| {
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let (name, pod, container) = (label(POD_NAME), label(POD_UID), label(CONTAINER_NAME));
        (label(POD_NAMESPACE) == namespace).then(|| Found { machine: machine.name.clone(), id, name, pod, container, state })
    };
    let life = |state: i32| match ContainerState::try_from(state) {
        Ok(ContainerState::ContainerCreated) => Life::New,
        Ok(ContainerState::ContainerRunning) => Life::Running,
        _ => Life::Over,
    };
    let sandboxes = sandboxes.into_iter().filter_map(|s| found(s.id, &s.labels, if s.state == 0 { Life::Running } else { Life::Over }));
    let containers = containers.into_iter().filter_map(|c| found(c.id, &c.labels, life(c.state)));
    Ok(sandboxes.chain(containers).collect())
}

/// The ids of all containers and sandboxes of which a process lives, whatever their runtimes know of it. One that is only made has but
/// runc in it, which waits to become the container's first process.
pub fn alive(cluster: &Cluster) -> BTreeSet<String> {
    let group = format!("/coracle/{}/", cluster.name);
    let Ok(all) = procfs::process::all_processes() else { return BTreeSet::new() };
    let living =
        all.flatten().filter(|process| process.stat().is_ok_and(|stat| !"ZX".contains(stat.state) && !stat.comm.starts_with("runc")));
    let groups = living.filter_map(|process| fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok());
    let of_pod =
        |line: &str| Some(line.split_once(&group)?.1.split_once("/kubepods/")?.1.split_once("pod")?.1.split('/').nth(1)?.to_owned());
    groups.filter_map(|groups| groups.lines().find_map(of_pod)).collect()
}

/// The namespace's running containers on all machines.
pub fn running(cluster: &Cluster, namespace: &str) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for machine in &cluster.machines {
        all.extend(found(cluster, machine, namespace)?.into_iter().filter(|one| one.state == Life::Running && !one.container.is_empty()));
    }
    Ok(all)
}
