//! Who is killed, and how often each was.

use std::collections::BTreeMap;
use std::fmt;

use coracle::cluster::{Cluster, Machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::census;

#[derive(Debug, Default)]
pub struct Tally(BTreeMap<String, usize>);

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, times) in &self.0 {
            writeln!(f, "  {times:>4}  {name}")?;
        }
        Ok(())
    }
}

/// Kinds of victims get equal chances, then each process of the kind: else the many containers would take all.
pub fn kill_one(cluster: &Cluster, random: &mut StdRng, tally: &mut Tally) {
    let machine = &cluster.machines[random.random_range(0..cluster.machines.len())];
    let mut kinds: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for process in census::processes(cluster, machine) {
        if let Some(kind) = kind(&process) {
            kinds.entry(kind).or_default().push(process.pid);
        }
    }
    let names: Vec<&String> = kinds.keys().collect();
    let Some((name, pid)) = names.choose(random).and_then(|name| Some(((*name).clone(), *kinds[*name].choose(random)?))) else { return };
    if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
        *tally.0.entry(format!("{name} ({})", role(machine))).or_default() += 1;
    }
}

fn role(machine: &Machine) -> &'static str {
    if machine.index == 0 { "master" } else { "worker" }
}

/// All but the machine's first process: killing that is turning the machine off.
fn kind(process: &Process) -> Option<String> {
    let words = process.cmdline().ok()?;
    let program = words.first()?.rsplit('/').next()?.to_owned();
    match (program.as_str(), words.get(1).map(String::as_str)) {
        ("coracle", Some("supervise")) => None,
        ("coracle", Some("image-server")) => Some("image-server".into()),
        (
            "containerd"
            | "etcd"
            | "kubelet"
            | "kube-proxy"
            | "kube-apiserver"
            | "kube-controller-manager"
            | "kube-scheduler"
            | "pause"
            | "dns",
            _,
        ) => Some(program),
        (shim, _) if shim.starts_with("containerd-shim") => Some("containerd-shim".into()),
        _ if in_pod(process) => Some("container".into()),
        _ => Some("helper".into()),
    }
}

fn in_pod(process: &Process) -> bool {
    std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).is_ok_and(|groups| groups.contains("/kubepods/"))
}
