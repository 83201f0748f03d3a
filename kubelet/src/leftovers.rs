//! What a runtime that died while it made a sandbox leaves: a network namespace, an address and rules that belong to none.
//!
//! containerd makes a sandbox's network before it writes the sandbox down. If it is killed between the two, nobody knows of that network any more.
//! Leftovers are unknown to the runtime, and older than it (its socket is made anew at each start) or than any call that could still be making
//! them; so nothing that is just being made is ever taken. What the network's plugins made they are asked to take back.
//! Upstream leaves this to the runtime; it is the `GC` of CNI 1.1, which containerd calls from version 2 on.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, umount2};

use crate::cri::{Error, SANDBOX_TIMEOUT};
use crate::kubelet::Kubelet;
use crate::network::{self, ADDRESSES};

const NAMESPACES: &str = "/run/netns";
/// Where the runtime's CNI library keeps what it has done: `<network>-<sandbox>-<interface>`.
const RESULTS: &str = "/var/lib/cni/results";
/// Nothing that is being made is older.
const LONGEST: Duration = SANDBOX_TIMEOUT.saturating_add(Duration::from_secs(60));

/// Removes the leftovers of the runtime, which knows these sandboxes.
pub async fn sweep(kubelet: &Kubelet, sandboxes: &HashSet<String>) -> Result<(), Error> {
    let Ok(started) = modified(&crate::cri::socket_path(&kubelet.config.runtime_endpoint)) else { return Ok(()) };
    let since = SystemTime::now().checked_sub(LONGEST).map_or(started, |past| past.max(started));
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
    result.split('-').find(|part| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
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
    fn results_name_their_sandbox() {
        let id = "0123456789abcdef".repeat(4);
        for (file, sandbox) in [
            (format!("coracle-{id}-eth0"), Some(&*id)),
            (format!("cni-loopback-{id}-lo"), Some(&*id)),
            ("coracle-short-eth0".into(), None),
        ] {
            assert_eq!(sandbox_of(&file), sandbox, "{file}");
        }
    }
}
