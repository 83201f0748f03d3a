//! What a runtime that died while it made a sandbox leaves: a network namespace and an address that belong to none.
//!
//! containerd makes a sandbox's network before it writes the sandbox down. If it is killed between the two, nobody knows of that network any more.
//! Leftovers are what is older than the runtime (its socket is made anew at each start) and unknown to it; so nothing that is just being
//! made is ever taken. Upstream leaves this to the runtime; it is the `GC` of CNI 1.1, which containerd calls from version 2 on.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::mount::{MntFlags, umount2};

use crate::cri::{Cri, Error};
use crate::network::ADDRESSES;

const NAMESPACES: &str = "/run/netns";

/// Removes the leftovers of the runtime behind `socket`, which knows these sandboxes.
pub async fn sweep(cri: &Cri, socket: &Path, sandboxes: &HashSet<String>) -> Result<(), Error> {
    let Ok(since) = modified(socket) else { return Ok(()) };
    for address in older(&Path::new(ADDRESSES).join(crate::network::NAME), since) {
        let owner = std::fs::read_to_string(&address).unwrap_or_default();
        let Some(sandbox) = owner_of(&address, &owner) else { continue };
        if !sandboxes.contains(sandbox) {
            remove(&address, std::fs::remove_file(&address));
        }
    }
    let namespaces: Vec<PathBuf> = older(Path::new(NAMESPACES), since).into_iter().filter(|path| name(path).starts_with("cni-")).collect();
    if namespaces.len() <= sandboxes.len() {
        // Each may have its sandbox. If one has not, a sandbox without a namespace is about to go, and then it shows.
        return Ok(());
    }
    let mut used = HashSet::new();
    for sandbox in sandboxes {
        used.extend(cri.sandbox_network(sandbox).await?.map(|path| name(&path).to_owned()));
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
}
