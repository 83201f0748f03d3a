//! Entering a machine: the calling process joins the machine's control group and makes its namespaces around itself.
//!
//! Must run before any thread exists (a thread keeps the namespaces it was born with), so `main` calls it before the runtime starts.
//!
//! | path on the machine | what is there |
//! |---|---|
//! | `/etc` | the host's, overlaid by the machine's own `etc` (hosts, resolv.conf, kubernetes, cni, containerd) |
//! | `/var/lib`, `/var/log` | the machine's own |
//! | `/var/lib/coracle/images` | the cluster's image store |
//! | `/run` | an empty tmpfs |
//! | all else | the host's |

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::cluster::{Cluster, Machine};
use crate::machine::cgroup;

/// A mount to make, in order.
struct Mount {
    source: String,
    target: String,
    kind: Option<&'static str>,
    flags: MsFlags,
    data: Option<String>,
}

/// Turns the calling process into the first of `machine`. `before_mounts` opens what must be opened by its path on the host.
pub fn enter_with<T>(cluster: &Cluster, machine: &Machine, before_mounts: impl FnOnce() -> Result<T>) -> Result<T> {
    let opened = before_mounts()?;
    cgroup::join(&cluster.cgroup(machine))?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("make namespaces")?;
    nix::unistd::sethostname(&machine.name).context("set the hostname")?;
    propagation("/", MsFlags::MS_PRIVATE)?;
    for step in mounts(cluster, machine) {
        mount(Some(step.source.as_str()), step.target.as_str(), step.kind, step.flags, step.data.as_deref())
            .with_context(|| format!("mount {} at {}", step.source, step.target))?;
    }
    // Pods' volumes mounted later must be seen in containers: as on a VM, where systemd makes / shared.
    propagation("/", MsFlags::MS_SHARED)?;
    std::env::set_current_dir("/")?;
    crate::run::ip("link set lo up")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets")?;
    Ok(opened)
}

fn propagation(path: &str, kind: MsFlags) -> Result<()> {
    mount(None::<&str>, path, None::<&str>, kind | MsFlags::MS_REC, None::<&str>).with_context(|| format!("set propagation of {path}"))
}

fn mounts(cluster: &Cluster, machine: &Machine) -> Vec<Mount> {
    let dir = cluster.machine_dir(machine);
    let at = |path: &str| dir.join(path).to_string_lossy().into_owned();
    let bind = |source: String, target: &str| Mount {
        source,
        target: target.into(),
        kind: None,
        flags: MsFlags::MS_BIND | MsFlags::MS_REC,
        data: None,
    };
    let layers = format!("lowerdir=/etc,upperdir={},workdir={}", at("etc"), at("overlay"));
    vec![
        Mount { source: "overlay".into(), target: "/etc".into(), kind: Some("overlay"), flags: MsFlags::empty(), data: Some(layers) },
        Mount {
            source: "tmpfs".into(),
            target: "/run".into(),
            kind: Some("tmpfs"),
            flags: MsFlags::empty(),
            data: Some("mode=755".into()),
        },
        // The image store goes below the machine's /var/lib first: once that is in place, the host's is out of sight.
        bind(cluster.image_dir().to_string_lossy().into_owned(), &at("lib/coracle/images")),
        bind(at("log"), "/var/log"),
        bind(at("lib"), "/var/lib"),
    ]
}

/// Waits until `up` has plugged the cable in: an interface with the machine's address.
pub fn await_network(cluster: &Cluster, machine: &Machine) -> Result<()> {
    let wanted = cluster.address(machine);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::time::Instant::now() < deadline {
        let plugged = nix::ifaddrs::getifaddrs()?
            .filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip()))
            .any(|address| address == wanted);
        if plugged {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    anyhow::bail!("no interface got the address {wanted}")
}

/// Whether a process lives in its own network namespace by now, so that a cable can be plugged into it.
pub fn has_own_network(pid: u32) -> bool {
    let of = |who: &str| std::fs::read_link(Path::new("/proc").join(who).join("ns/net")).ok();
    of(&pid.to_string()).is_some_and(|theirs| Some(theirs) != of("self"))
}
