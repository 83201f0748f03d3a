//! What a runtime that died while it made a sandbox or a container leaves: a network namespace, an address and rules that belong to none, and a
//! shim that holds nothing.
//!
//! containerd makes a sandbox's network before it writes the sandbox down. If it is killed between the two, nobody knows of that network any more.
//! So it is with a shim that was started and not yet told to make its container: the container goes, and the shim waits for ever.
//! Leftovers are unknown to the runtime, and older than it (its socket is made anew at each start) or than any call that may still be making
//! them; so nothing that is just being made is ever taken. What the network's plugins made they are asked to take back; what a shim leaves when it
//! is killed, the runtime clears away, if it still knows of it.
//! Upstream leaves this to the runtime; it is the `GC` of CNI 1.1, which containerd calls from version 2 on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

use crate::cri::Error;
use crate::kubelet::Kubelet;
use crate::network::{self, ADDRESSES};
use crate::volumes;

const NAMESPACES: &str = "/run/netns";
/// Where the runtime's CNI library keeps what it has done: `<network>-<sandbox>-<interface>`.
const RESULTS: &str = "/var/lib/cni/results";
/// Below the runtime's folder of states: the shims' and runc's.
const SHIM_FOLDERS: [&str; 2] = ["io.containerd.runtime.v2.task/k8s.io", "runc/k8s.io"];
/// The length of a sandbox's or container's id.
const ID: usize = 64;
/// How far the kernel's word of when a process began may be off: it counts from a boot that it knows in whole seconds.
const CLOCK: Duration = Duration::from_secs(2);
/// How long the runtime may still be busy with a call that was given up.
const AFTERMATH: Duration = Duration::from_secs(60);

/// Removes the leftovers of the runtime, which knows these sandboxes, and with its containers all that is in `known`. It was asked for them
/// after `making`, since when something may be in the making.
pub async fn sweep(kubelet: &Kubelet, sandboxes: &HashSet<String>, known: &HashMap<String, i32>, making: SystemTime) -> Result<(), Error> {
    let socket = crate::cri::socket_path(&kubelet.config.runtime_endpoint);
    let Ok(started) = modified(&socket) else { return Ok(()) };
    let since = making.checked_sub(AFTERMATH).map_or(started, |past| past.max(started));
    sweep_network(kubelet, sandboxes, since).await?;
    sweep_shims(kubelet, socket.parent().unwrap_or(Path::new("/")), known, since).await
}

/// Ends shims that hold nothing, and removes the folders that have no shim: each is named after its container or sandbox. What others run in
/// containerd's namespace of pods is on containerd's own record.
async fn sweep_shims(kubelet: &Kubelet, state: &Path, known: &HashMap<String, i32>, since: SystemTime) -> Result<(), Error> {
    let shims = shims().unwrap_or_else(|error| {
        tracing::warn!(%error, "the machine's shims");
        Vec::new()
    });
    let held: HashSet<&str> = shims.iter().map(|shim| shim.id.as_str()).collect();
    let folders: Vec<PathBuf> = SHIM_FOLDERS.iter().flat_map(|folder| older(&state.join(folder), since)).collect();
    let unknown = |id: &str| id.len() == ID && !known.contains_key(id);
    let shims: Vec<&Shim> = shims.iter().filter(|shim| unknown(&shim.id) && shim.started + CLOCK < since).collect();
    let folders: Vec<&PathBuf> = folders.iter().filter(|folder| unknown(name(folder)) && !held.contains(name(folder))).collect();
    if shims.is_empty() && folders.is_empty() {
        return Ok(());
    }
    let recorded = kubelet.cri.recorded().await?;
    for shim in shims.into_iter().filter(|shim| !recorded.contains(&shim.id)) {
        tracing::info!(id = shim.id, pid = shim.process.pid, "ending a shim that a killed runtime left");
        if let Err(error) = kill(Pid::from_raw(shim.process.pid), Signal::SIGKILL) {
            tracing::debug!(%error, "it has ended");
        }
    }
    for folder in folders.into_iter().filter(|folder| !recorded.contains(name(folder))) {
        remove(folder, volumes::unmount_below(folder).and_then(|()| std::fs::remove_dir_all(folder)));
    }
    Ok(())
}

struct Shim {
    process: Process,
    /// Of the sandbox whose containers it holds.
    id: String,
    started: SystemTime,
}

/// The shims of this machine: those that see the files that we see.
fn shims() -> Result<Vec<Shim>, procfs::ProcError> {
    let mounts = |process: &Process| std::fs::read_link(format!("/proc/{}/ns/mnt", process.pid)).ok();
    let (own, boot, ticks) = (mounts(&Process::myself()?), procfs::boot_time_secs()?, procfs::ticks_per_second());
    let shim = |process: Process| {
        let id = shim_id(&process.cmdline().ok()?)?;
        let started = process.stat().ok()?.starttime as f64 / ticks as f64;
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(boot) + Duration::from_secs_f64(started);
        (mounts(&process) == own).then_some(Shim { process, id, started })
    };
    Ok(procfs::process::all_processes()?.flatten().filter_map(shim).collect())
}

/// `containerd-shim-runc-v2 -namespace k8s.io -id ID -address …`; with a word at the end it is only the helper that starts or deletes one.
fn shim_id(words: &[String]) -> Option<String> {
    let program = words.first()?.rsplit('/').next()?;
    let value = |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
    let helper = words.last().is_some_and(|word| ["start", "delete"].contains(&word.as_str()));
    (program.starts_with("containerd-shim") && value("-namespace")? == "k8s.io" && !helper).then(|| value("-id").cloned())?
}

async fn sweep_network(kubelet: &Kubelet, sandboxes: &HashSet<String>, since: SystemTime) -> Result<(), Error> {
    let addresses = Path::new(ADDRESSES).join(network::NAME);
    let owner = |file: &PathBuf| owner_of(file, &std::fs::read_to_string(file).unwrap_or_default()).map(str::to_owned);
    let mut orphans: BTreeSet<String> = older(&addresses, since).iter().filter_map(owner).collect();
    orphans.extend(older(Path::new(RESULTS), since).iter().filter_map(|file| sandbox_of(name(file))).map(str::to_owned));
    for sandbox in orphans.iter().filter(|sandbox| !sandboxes.contains(*sandbox)) {
        match network::release(&kubelet.config, sandbox).await {
            Ok(()) => {
                tracing::info!(sandbox, "the network of a sandbox that a killed runtime left is taken back");
                let results = older(Path::new(RESULTS), since).into_iter().filter(|file| sandbox_of(name(file)) == Some(sandbox));
                results.for_each(|file| remove(&file, std::fs::remove_file(&file)));
            }
            Err(error) => tracing::warn!(sandbox, error = format!("{error:#}"), "the network of a sandbox that a killed runtime left"),
        }
    }
    let namespaces: Vec<PathBuf> = older(Path::new(NAMESPACES), since).into_iter().filter(|path| name(path).starts_with("cni-")).collect();
    if namespaces.len() <= older(&addresses, SystemTime::now()).iter().filter(|file| owner(file).is_some()).count() {
        // Each has its address, and so its sandbox.
        return Ok(());
    }
    let mut used = HashSet::new();
    for sandbox in sandboxes {
        used.extend(kubelet.cri.sandbox_network(sandbox).await?.map(|path| name(&path).to_owned()));
    }
    for path in namespaces.iter().filter(|path| !used.contains(name(path))) {
        // Its devices go with it. It may be a bare file: the runtime died before it was mounted.
        if let Err(error) = umount2(path, MntFlags::MNT_DETACH) {
            tracing::debug!(?path, %error, "not a mount");
        }
        remove(path, std::fs::remove_file(path));
    }
    Ok(())
}

/// The longest part of a result's name: a network's and an interface's are short.
fn sandbox_of(result: &str) -> Option<&str> {
    result.split('-').find(|part| part.len() == ID && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// An address is a file named after it that says who has it; the others are the plugin's own.
fn owner_of<'a>(file: &Path, content: &'a str) -> Option<&'a str> {
    name(file).parse::<std::net::IpAddr>().ok()?;
    content.lines().next().map(str::trim).filter(|owner| !owner.is_empty())
}

fn older(directory: &Path, than: SystemTime) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| modified(path).is_ok_and(|at| at < than)).collect()
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    std::fs::symlink_metadata(path)?.modified()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn remove(path: &Path, outcome: io::Result<()>) {
    match outcome {
        Ok(()) => tracing::info!(?path, "removed what a killed runtime left"),
        Err(error) => tracing::warn!(?path, %error, "what a killed runtime left is not removed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_named_after_an_address_are_addresses() {
        for (file, content, owner) in [
            ("10.244.1.2", "abc\r\neth0", Some("abc")),
            ("10.244.1.3", "", None),
            ("last_reserved_ip.0", "10.244.1.2", None),
            ("lock", "", None),
        ] {
            assert_eq!(owner_of(Path::new(file), content), owner, "{file}");
        }
    }

    #[test]
    fn shims_say_whose_they_are() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (command, id) in [
            ("/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id abc -address /run/c.sock", Some("abc")),
            ("containerd-shim-runc-v2 -namespace moby -id abc", None),
            ("containerd-shim-runc-v2 -namespace k8s.io -address /run/c.sock -id abc -bundle /b delete", None),
            ("sleep 5", None),
        ] {
            assert_eq!(shim_id(&words(command)).as_deref(), id, "{command}");
        }
    }

    #[test]
    fn results_name_their_sandbox() {
        let id = "0123456789abcdef".repeat(4);
        for (file, sandbox) in
            [(format!("coracle-{id}-eth0"), Some(&*id)), (format!("cni-loopback-{id}-lo"), Some(&*id)), ("coracle-short-eth0".into(), None)]
        {
            assert_eq!(sandbox_of(&file), sandbox, "{file}");
        }
    }
}
