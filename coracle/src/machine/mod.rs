//! A machine on this machine: a group of namespaces with its own address, files and processes (see DESIGN, decision 12).
//!
//! ```text
//! up ── files::write ── cgroup::create ── `coracle supervise` ── namespaces::enter ── supervisor::run ── containerd, kubelet …
//!    └─ host::plug(cable) ────────────────────────┘                     └─ supervisor.sock ◄── status, stop, start, kill
//! ```

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, Machine, write_file};
use crate::host;
use control::{Answer, Request};

pub mod cgroup;
pub mod control;
pub mod files;
pub mod namespaces;
pub mod processes;
pub mod supervisor;

/// Whether the machine's supervisor answers.
pub fn is_running(cluster: &Cluster, machine: &Machine) -> bool {
    state(cluster, machine).is_ok()
}

/// The supervisor's report.
pub fn state(cluster: &Cluster, machine: &Machine) -> Result<Answer> {
    control::ask(&cluster.socket(machine), &Request::Status)
}

/// Starts the machine if it does not run, and plugs its cable in if that is missing. Returns whether anything was done.
pub fn ensure(cluster: &Cluster, machine: &Machine) -> Result<bool> {
    files::write(cluster, machine)?;
    if let Ok(report) = state(cluster, machine) {
        let missing = !host::link_exists(&cluster.cable(machine));
        if missing {
            host::plug(cluster, machine, report.pid)?;
        }
        return Ok(missing);
    }
    // What a killed supervisor left must not meet its successor.
    cgroup::destroy(&cluster.cgroup(machine))?;
    cgroup::create(&cluster.cgroup(machine))?;
    let pid = spawn(cluster, machine)?;
    host::plug(cluster, machine, pid)?;
    Ok(true)
}

/// Starts `coracle supervise` and waits until it has its own network.
fn spawn(cluster: &Cluster, machine: &Machine) -> Result<u32> {
    let path = cluster.log(machine, "supervisor");
    let log = File::options().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["supervise", "--name", &cluster.name, "--machine", &machine.name])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the supervisor")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !namespaces::has_own_network(child.id()) {
        if let Some(status) = child.try_wait()? {
            bail!("machine {} did not start ({status}): {}", machine.name, fs::read_to_string(&path).unwrap_or_default().trim());
        }
        if Instant::now() > deadline {
            bail!("machine {} made no namespaces; see {}", machine.name, path.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.id())
}

/// Ends everything on the machine at once.
pub fn destroy(cluster: &Cluster, machine: &Machine) -> Result<()> {
    cgroup::destroy(&cluster.cgroup(machine))
}

/// Writes files below the machine's /etc: through the running machine's own view, else where it will find them when it starts.
pub fn install(cluster: &Cluster, machine: &Machine, files: &[files::File]) -> Result<()> {
    let etc = match state(cluster, machine) {
        Ok(report) => PathBuf::from(format!("/proc/{}/root/etc", report.pid)),
        Err(_) => cluster.machine_dir(machine).join("etc"),
    };
    files.iter().try_for_each(|file| write_file(&etc.join(&file.path), file.content.as_bytes(), file.mode))
}

/// Replaces this process by a command inside the machine's namespaces.
pub fn exec(cluster: &Cluster, machine: &Machine, command: &[String]) -> Result<()> {
    let pid = state(cluster, machine)?.pid.to_string();
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &pid, "--net", "--mount", "--uts", "--"]).args(command).envs(processes::environment(cluster, machine));
    Err(nsenter.exec()).context("run nsenter")
}

/// Runs a command inside the machine's namespaces to its end; its standard output.
pub fn run(cluster: &Cluster, machine: &Machine, command: &[String]) -> Result<String> {
    let pid = state(cluster, machine)?.pid.to_string();
    let mut words: Vec<&str> = vec!["--target", &pid, "--net", "--mount", "--uts", "--"];
    words.extend(command.iter().map(String::as_str));
    crate::run::tool("nsenter", &words)
}

/// Tells the machine's supervisor which processes there are now.
pub fn configure(cluster: &Cluster, machine: &Machine) -> Result<()> {
    let programs = processes::of(cluster, machine, &crate::up::programs()?).iter().map(processes::Process::program).collect();
    control::ask(&cluster.socket(machine), &Request::Configure(programs)).map(drop)
}
