//! The cgroups above the containers': one per QoS class and one per pod, on cgroup v1 and v2, by the cgroupfs driver.
//!
//! ```text
//! <cgroup root>/kubepods/pod<uid>                 Guaranteed
//!                        /burstable/pod<uid>
//!                        /besteffort/pod<uid>     (containers below it are the runtime's)
//! ```
//! Upstream: `pkg/kubelet/cm/{cgroup_manager,pod_container_manager,qos_container_manager}_linux.go`, v1.33.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::pod::{PodExt, Qos};
use crate::resources::{self, PodResources, QUOTA_PERIOD, weight};

const MOUNT: &str = "/sys/fs/cgroup";
/// The v1 controllers that hold pods; those that the machine lacks are left out.
const V1_CONTROLLERS: [&str; 9] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "systemd"];
const V2_CONTROLLERS: &str = "+cpu +memory +pids +cpuset +io";

#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    v2: bool,
}

impl Cgroups {
    /// `root`: the kubelet's `--cgroup-root`, `/` for the whole machine.
    pub fn new(root: &str) -> Self {
        Cgroups { root: Path::new("/").join(root.trim_start_matches('/')), v2: Path::new(MOUNT).join("cgroup.controllers").exists() }
    }

    fn class(&self, qos: Qos) -> PathBuf {
        let kubepods = self.root.join("kubepods");
        match qos {
            Qos::Guaranteed => kubepods,
            Qos::Burstable => kubepods.join("burstable"),
            Qos::BestEffort => kubepods.join("besteffort"),
        }
    }

    /// The pod's cgroup as the runtime is told it: CRI's `cgroup_parent`.
    pub fn pod_path(&self, pod: &Pod) -> PathBuf {
        self.class(Qos::of(pod)).join(format!("pod{}", pod.uid()))
    }

    /// Makes the classes' cgroups, at the kubelet's start.
    pub fn ensure_classes(&self) -> io::Result<()> {
        self.create(&self.class(Qos::Guaranteed), PodResources { cpu_shares: 1024, ..PodResources::default() })?;
        for qos in [Qos::Burstable, Qos::BestEffort] {
            self.create(&self.class(qos), PodResources { cpu_shares: 2, ..PodResources::default() })?;
        }
        Ok(())
    }

    pub fn ensure_pod(&self, pod: &Pod) -> io::Result<()> {
        self.create(&self.pod_path(pod), resources::pod(pod))
    }

    fn create(&self, path: &Path, limits: PodResources) -> io::Result<()> {
        if self.v2 { self.create_v2(path, limits) } else { self.create_v1(path, limits) }
    }

    fn create_v2(&self, path: &Path, limits: PodResources) -> io::Result<()> {
        let mut directory = PathBuf::from(MOUNT);
        for part in path.components().skip(1) {
            // A controller must be enabled in every ancestor; one that is missing here is no error.
            if let Err(error) = std::fs::write(directory.join("cgroup.subtree_control"), V2_CONTROLLERS) {
                for controller in V2_CONTROLLERS.split(' ') {
                    if std::fs::write(directory.join("cgroup.subtree_control"), controller).is_err() {
                        tracing::debug!(%error, ?directory, controller, "controller not enabled");
                    }
                }
            }
            directory.push(part);
            std::fs::create_dir_all(&directory)?;
        }
        write(&directory, "cpu.weight", &weight(limits.cpu_shares).to_string())?;
        let quota = limits.cpu_quota.map_or("max".to_owned(), |q| q.to_string());
        write(&directory, "cpu.max", &format!("{quota} {QUOTA_PERIOD}"))?;
        write(&directory, "memory.max", &limits.memory.map_or("max".to_owned(), |m| m.to_string()))
    }

    fn create_v1(&self, path: &Path, limits: PodResources) -> io::Result<()> {
        for controller in V1_CONTROLLERS.iter().filter(|c| Path::new(MOUNT).join(c).is_dir()) {
            let mut directory = Path::new(MOUNT).join(controller);
            for part in path.components().skip(1) {
                let parent = directory.clone();
                directory.push(part);
                std::fs::create_dir_all(&directory)?;
                if *controller == "cpuset" {
                    inherit_cpuset(&parent, &directory)?;
                }
            }
        }
        let at = |controller: &str| Path::new(MOUNT).join(controller).join(path.strip_prefix("/").unwrap_or(path));
        write(&at("cpu"), "cpu.shares", &limits.cpu_shares.to_string())?;
        write(&at("cpu"), "cpu.cfs_period_us", &QUOTA_PERIOD.to_string())?;
        write(&at("cpu"), "cpu.cfs_quota_us", &limits.cpu_quota.unwrap_or(-1).to_string())?;
        write(&at("memory"), "memory.limit_in_bytes", &limits.memory.unwrap_or(-1).to_string())
    }

    /// Every directory that is this cgroup, one per controller on v1.
    fn directories(&self, path: &Path) -> Vec<PathBuf> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if self.v2 {
            return vec![Path::new(MOUNT).join(relative)];
        }
        let all = std::fs::read_dir(MOUNT).into_iter().flatten().flatten();
        all.map(|entry| entry.path().join(relative)).filter(|d| d.is_dir()).collect()
    }

    /// Kills what is left in a pod's cgroup and removes it. A busy directory is left for the next round.
    pub fn remove_pod(&self, uid: &str) {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for directory in self.directories(&self.class(qos).join(format!("pod{uid}"))) {
                remove_tree(&directory);
            }
        }
    }

    /// The uids that have a cgroup.
    pub fn pods(&self) -> HashSet<String> {
        let mut uids = HashSet::new();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for directory in self.directories(&self.class(qos)) {
                let names = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.file_name());
                uids.extend(names.filter_map(|n| n.to_str().and_then(|n| n.strip_prefix("pod")).map(str::to_owned)));
            }
        }
        uids
    }

    /// Memory in use and CPU time (nanoseconds) of a cgroup, for the summary; zero where the kernel tells nothing.
    pub fn usage(&self, path: &Path) -> Usage {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let read = |controller: &str, file: &str| {
            let base = if self.v2 { PathBuf::from(MOUNT) } else { Path::new(MOUNT).join(controller) };
            std::fs::read_to_string(base.join(relative).join(file)).unwrap_or_default()
        };
        let field = |text: &str, name: &str| {
            text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok()).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or_default();
        let stat = read("memory", "memory.stat");
        let (memory, inactive, cpu) = if self.v2 {
            let cpu = field(&read("", "cpu.stat"), "usage_usec") * 1000;
            (number(read("", "memory.current")), field(&stat, "inactive_file"), cpu)
        } else {
            (number(read("memory", "memory.usage_in_bytes")), field(&stat, "total_inactive_file"), number(read("cpuacct", "cpuacct.usage")))
        };
        Usage { working_set: memory.saturating_sub(inactive), cpu_nanos: cpu }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub working_set: u64,
    pub cpu_nanos: u64,
}

/// A knob that this kernel does not have is no error.
fn write(directory: &Path, file: &str, text: &str) -> io::Result<()> {
    let path = directory.join(file);
    if !path.exists() {
        return Ok(());
    }
    std::fs::write(&path, text).map_err(|e| io::Error::new(e.kind(), format!("write {text:?} to {}: {e}", path.display())))
}

/// A cpuset without cpus and memory nodes takes no process.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if std::fs::read_to_string(child.join(file)).is_ok_and(|text| text.trim().is_empty()) {
            std::fs::write(child.join(file), std::fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

fn remove_tree(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
        if let Err(error) = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL) {
            tracing::debug!(%error, pid, "kill of a leftover process");
        }
    }
    if let Err(error) = std::fs::remove_dir(directory) {
        tracing::debug!(%error, ?directory, "cgroup not removed yet");
    }
}
