//! Who is killed, and how often each was. Beside processes: machines are turned off and on again, and their cables pulled.

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle::cluster::{Cluster, Machine};
use coracle::{host, machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::census;

/// How long a cable stays out, in seconds: too short for anyone to notice, or long enough for the node to count as lost.
const CUT: std::ops::Range<u64> = 2..60;

pub struct Kills {
    cluster: Cluster,
    tally: BTreeMap<String, usize>,
    /// `coracle up`, at work on a machine that was turned off.
    repair: Option<Child>,
    cut: Option<(Machine, Instant)>,
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, times) in &self.tally {
            writeln!(f, "  {times:>4}  {name}")?;
        }
        Ok(())
    }
}

impl Kills {
    pub fn new(cluster: &Cluster) -> Kills {
        Kills { cluster: cluster.clone(), tally: BTreeMap::new(), repair: None, cut: None }
    }

    pub fn count(&self) -> usize {
        self.tally.values().sum()
    }

    /// Mostly one process; sometimes several at once, a whole machine, or a cable.
    pub fn strike(&mut self, random: &mut StdRng) -> Result<()> {
        if self.cut.as_ref().is_some_and(|(_, until)| Instant::now() >= *until) {
            self.heal()?;
        }
        if let Some(repair) = &mut self.repair
            && repair.try_wait()?.is_some()
        {
            self.repair = None;
        }
        let all = &self.cluster.machines;
        let machine = all[random.random_range(0..all.len())].clone();
        match random.random_range(0..24) {
            0 if self.repair.is_none() => self.turn_off(&machine),
            1 if self.cut.is_none() => {
                host::set_cable(&self.cluster, &machine, false)?;
                self.note(format!("cable ({})", role(&machine)));
                self.cut = Some((machine, Instant::now() + Duration::from_secs(random.random_range(CUT))));
                Ok(())
            }
            2..6 => {
                (0..3).for_each(|_| self.kill_one(&machine, random));
                Ok(())
            }
            _ => {
                self.kill_one(&machine, random);
                Ok(())
            }
        }
    }

    fn note(&mut self, what: String) {
        println!("{} killed {what}", jiff::Timestamp::now().strftime("%T%.3f"));
        *self.tally.entry(what).or_default() += 1;
    }

    /// Kinds of victims get equal chances, then each process of the kind: else the many containers would take all.
    fn kill_one(&mut self, machine: &Machine, random: &mut StdRng) {
        let mut kinds: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for process in census::processes(&self.cluster, machine) {
            if let Some(kind) = kind(&process) {
                kinds.entry(kind).or_default().push(process.pid);
            }
        }
        let names: Vec<&String> = kinds.keys().collect();
        let Some((name, pid)) = names.choose(random).and_then(|name| Some(((*name).clone(), *kinds[*name].choose(random)?))) else {
            return;
        };
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            self.note(format!("{name} ({})", role(machine)));
        }
    }

    /// Kills the machine's first process, and with `up` pushes its button again.
    fn turn_off(&mut self, machine: &Machine) -> Result<()> {
        let Ok(state) = machine::state(&self.cluster, machine) else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(state.pid)?), Signal::SIGKILL)?;
        self.note(format!("machine ({})", role(machine)));
        let coracle = tests::cluster::programs()?.join("coracle");
        let mut up = Command::new(coracle);
        up.args(["up", "--name", &self.cluster.name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.repair = Some(up.spawn().context("start coracle up")?);
        Ok(())
    }

    fn heal(&mut self) -> Result<()> {
        match self.cut.take() {
            // A machine that was turned off has lost its cable; `up` plugs in a new one.
            Some((machine, _)) if host::link_exists(&self.cluster.cable(&machine)) => host::set_cable(&self.cluster, &machine, true),
            _ => Ok(()),
        }
    }

    /// Nobody is killed any more: cables are in, machines are on.
    pub fn end(&mut self) -> Result<()> {
        self.heal()?;
        if let Some(mut repair) = self.repair.take() {
            repair.wait()?;
        }
        let up = Command::new(tests::cluster::programs()?.join("coracle")).args(["up", "--name", &self.cluster.name]).output()?;
        if !up.status.success() {
            bail!("coracle up: {}", String::from_utf8_lossy(&up.stderr));
        }
        Ok(())
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
