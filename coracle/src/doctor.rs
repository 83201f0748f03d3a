//! `coracle doctor`: what this host lacks for a cluster, in words that say what to do. [`require`] is the part without which `up` cannot work.

use std::path::Path;

use anyhow::{Result, bail};

use crate::cluster::{Cluster, ROOT};
use crate::machine::{cgroup, files};
use crate::run::{succeeds, tool};
use crate::{host, up};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Fine,
    /// Works, with a limit worth knowing.
    Note,
    /// `up` would fail.
    Wrong,
}

pub struct Finding {
    pub level: Level,
    pub text: String,
}

/// Program, Debian package.
const TOOLS: [(&str, &str); 9] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("busybox", "busybox-static"),
    ("kubectl", "kubernetes-client"),
];
const OUR_PROGRAMS: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];
const CNI_PLUGINS: [&str; 4] = ["ptp", "host-local", "portmap", "loopback"];
/// Bytes of free disk below which images and logs will soon not fit.
const LITTLE_DISK: u64 = 2 << 30;

pub fn findings() -> Vec<Finding> {
    let mut all = needs();
    all.extend([etcd(), control_groups(), capability(), firewall(), resolver(), disk()]);
    all.extend(versions());
    all
}

/// Refuses with everything that is missing at once.
pub fn require() -> Result<()> {
    let wrong: Vec<String> = needs().into_iter().filter(|finding| finding.level == Level::Wrong).map(|finding| finding.text).collect();
    if !wrong.is_empty() {
        bail!("this host is not ready (`scripts/setup` installs what Debian has):\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// What a cluster on etcd needs besides.
pub fn require_etcd() -> Result<()> {
    if !in_path("etcd") {
        bail!("etcd is missing (Debian package etcd-server; `scripts/setup` installs it)");
    }
    Ok(())
}

pub fn doctor() -> bool {
    let findings = findings();
    for finding in &findings {
        let mark = match finding.level {
            Level::Fine => "ok   ",
            Level::Note => "note ",
            Level::Wrong => "WRONG",
        };
        println!("{mark}  {}", finding.text);
    }
    findings.iter().all(|finding| finding.level != Level::Wrong)
}

fn check(good: bool, fine: impl Into<String>, wrong: impl Into<String>) -> Finding {
    if good { Finding { level: Level::Fine, text: fine.into() } } else { Finding { level: Level::Wrong, text: wrong.into() } }
}

fn needs() -> Vec<Finding> {
    let mut all = vec![check(nix::unistd::geteuid().is_root(), "runs as root", "machines need root: run it with sudo")];
    for (name, package) in TOOLS {
        all.push(check(in_path(name), name, format!("{name} is missing (Debian package {package})")));
    }
    for plugin in CNI_PLUGINS {
        let path = Path::new("/usr/lib/cni").join(plugin);
        all.push(check(
            path.exists(),
            format!("CNI plugin {plugin}"),
            format!("{} is missing (Debian package containernetworking-plugins)", path.display()),
        ));
    }
    if let Ok(bin) = up::programs() {
        for program in OUR_PROGRAMS {
            let path = bin.join(program);
            all.push(check(path.exists(), program, format!("{} is missing: build it with `make build`", path.display())));
        }
    }
    let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    all.push(check(systems.contains("overlay"), "the kernel has overlayfs", "the kernel lacks overlayfs"));
    all
}

fn in_path(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(program).exists())
}

fn etcd() -> Finding {
    if in_path("etcd") && in_path("etcdctl") {
        return Finding { level: Level::Fine, text: "etcd and etcdctl".into() };
    }
    let text = "no etcd (Debian packages etcd-server, etcd-client): `up --etcd` will not work, the embedded store will".into();
    Finding { level: Level::Note, text }
}

fn control_groups() -> Finding {
    let roots = cgroup::roots();
    let kind = match roots.len() {
        0 => "none",
        1 => "v2",
        _ => "v1",
    };
    check(kind != "none", format!("control groups: {kind}"), "no control groups are mounted at /sys/fs/cgroup")
}

fn capability() -> Finding {
    if files::has_resource_capability() {
        return Finding { level: Level::Fine, text: "capability SYS_RESOURCE".into() };
    }
    Finding {
        level: Level::Note,
        text: "capability SYS_RESOURCE is missing: containerd will not lower OOM scores (restrict_oom_score_adj)".into(),
    }
}

fn firewall() -> Finding {
    match host::firewall_drops() {
        None => Finding { level: Level::Fine, text: "forwarded packets pass the host's firewall".into() },
        Some(why) => {
            Finding { level: Level::Note, text: format!("{why}; `up` opens the way for the cluster's bridge and `down` closes it") }
        }
    }
}

fn resolver() -> Finding {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if text.contains("nameserver 127.") {
        return Finding { level: Level::Note, text: "the host's resolver is on its loopback: machines use the servers behind it".into() };
    }
    check(
        text.contains("nameserver"),
        "the host has a resolver machines can reach",
        "/etc/resolv.conf names no server: pods will not resolve outside names",
    )
}

fn disk() -> Finding {
    let place = if Path::new(ROOT).exists() { ROOT } else { "/var/lib" };
    let said = tool("df", &["--output=avail", "-B1", place]).unwrap_or_default();
    let free: u64 = said.lines().nth(1).and_then(|line| line.trim().parse().ok()).unwrap_or_default();
    let level = if free < LITTLE_DISK { Level::Note } else { Level::Fine };
    Finding { level, text: format!("{} GiB free at {place}", free >> 30) }
}

fn versions() -> Vec<Finding> {
    let first_line = |program: &str, args: &[&str]| tool(program, args).ok().and_then(|text| text.lines().next().map(String::from));
    let mut all: Vec<Finding> = [
        ("containerd", vec!["--version"]),
        ("runc", vec!["--version"]),
        ("nft", vec!["--version"]),
        ("kubectl", vec!["version", "--client"]),
        ("uname", vec!["-r"]),
    ]
    .iter()
    .filter_map(|(program, args)| first_line(program, args).map(|line| Finding { level: Level::Fine, text: format!("{program}: {line}") }))
    .collect();
    for name in Cluster::names() {
        all.push(Finding { level: Level::Fine, text: format!("cluster {name} exists") });
    }
    if !succeeds("nft", &["list", "tables"]) {
        all.push(Finding {
            level: Level::Wrong,
            text: "nft cannot list tables: the kernel lacks nf_tables, or a capability is missing".into(),
        });
    }
    all
}
