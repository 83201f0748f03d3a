//! A machine's control group, in every hierarchy the host has: v1, v2, or both (hybrid).
//!
//! ```text
//! coracle/NAME/MACHINE/          the machine: what `down` kills
//!   system/                      supervisor, containerd, kubelet … (v2 allows processes only in leaves)
//!   kubepods/                    pods, made by the kubelet
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MOUNT: &str = "/sys/fs/cgroup";

/// Roots of the hierarchies: one on a v2 host, one per controller on v1, plus `unified` on a hybrid host.
pub fn roots() -> Vec<PathBuf> {
    if Path::new(MOUNT).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(MOUNT)];
    }
    let mut roots: Vec<PathBuf> = fs::read_dir(MOUNT)
        .map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect())
        .unwrap_or_default();
    roots.sort();
    roots
}

/// Makes `group` and its `system` leaf in every hierarchy, ready to hold processes and pods.
pub fn create(group: &str) -> Result<()> {
    let roots = roots();
    if roots.is_empty() {
        bail!("no control groups are mounted at {MOUNT}");
    }
    for root in roots {
        let mut dir = root.clone();
        for part in Path::new(group).join("system").iter() {
            pass_controllers_down(&dir)?;
            dir.push(part);
            fs::create_dir_all(&dir).with_context(|| format!("make the control group {}", dir.display()))?;
            inherit_cpuset(&dir)?;
        }
    }
    Ok(())
}

/// v2: children get the parent's controllers only if it says so. Some refuse (threaded, real-time); the rest still work.
fn pass_controllers_down(dir: &Path) -> Result<()> {
    let Ok(available) = fs::read_to_string(dir.join("cgroup.controllers")) else { return Ok(()) };
    for controller in available.split_whitespace() {
        if let Err(e) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::debug!("{}: +{controller}: {e}", dir.display());
        }
    }
    Ok(())
}

/// v1: a new cpuset is empty and refuses processes until it has CPUs and memory nodes.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (Some(parent), path) = (dir.parent(), dir.join(file)) else { continue };
        if dir.join("cgroup.controllers").exists() || !path.exists() {
            continue;
        }
        if fs::read_to_string(&path)?.trim().is_empty() {
            fs::write(&path, fs::read_to_string(parent.join(file))?.trim()).with_context(|| format!("set {}", path.display()))?;
        }
    }
    Ok(())
}

/// Moves the calling process into the group's `system` leaf everywhere.
pub fn join(group: &str) -> Result<()> {
    for root in roots() {
        let file = root.join(group).join("system/cgroup.procs");
        fs::write(&file, std::process::id().to_string()).with_context(|| format!("join {}", file.display()))?;
    }
    Ok(())
}

/// Kills everything in the group and removes it. Returns once nothing is left.
pub fn destroy(group: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut alive = 0;
        for dir in roots().iter().map(|root| root.join(group)).filter(|dir| dir.exists()) {
            thaw_and_kill(&dir, &mut alive);
            remove_tree(&dir);
        }
        let left: Vec<PathBuf> = roots().iter().map(|root| root.join(group)).filter(|dir| dir.exists()).collect();
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("{alive} processes of {group} do not end; left: {}", left[0].display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for parent in Path::new(group).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
        for root in roots() {
            // Fails, as it should, while another machine or cluster is there.
            let _still_used = fs::remove_dir(root.join(parent));
        }
    }
    Ok(())
}

fn thaw_and_kill(dir: &Path, alive: &mut usize) {
    for child in subgroups(dir) {
        thaw_and_kill(&child, alive);
    }
    // A frozen v1 group (a paused container) cannot die before it is thawed.
    if dir.join("freezer.state").exists() {
        let _not_frozen = fs::write(dir.join("freezer.state"), "THAWED");
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()) {
        *alive += 1;
        let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn remove_tree(dir: &Path) {
    for child in subgroups(dir) {
        remove_tree(&child);
    }
    let _not_empty_yet = fs::remove_dir(dir);
}

fn subgroups(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|entries| entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect())
        .unwrap_or_default()
}
