//! What a cluster is: its name, its networks, its machines, and where its files lie. Written once by `up` as `cluster.json`;
//! every other command reads it. Addresses, paths and names of devices are derived, never stored twice.
//!
//! ```text
//! /var/lib/coracle/NAME/           one cluster
//!   cluster.json                   this record
//!   pki/                           the cluster's authority and every certificate it issued
//!   pki/etcd/                      etcd's own authority: who it issued a certificate to may read and write all objects
//!   admin.conf                     kubeconfig of the administrator
//!   images/                        the image store: an OCI layout
//!   machines/MACHINE/              one machine: etc (upper layer over the host's /etc), lib (/var/lib), log (/var/log), supervisor.sock
//! ```

use std::fmt;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Where all clusters of this host live.
pub const ROOT: &str = "/var/lib/coracle";
/// The name of the cluster when none is given.
pub const DEFAULT_NAME: &str = "coracle";
/// The version of Kubernetes whose API we serve.
pub const KUBERNETES_VERSION: &str = "v1.33";

pub const POD_CIDR: &str = "10.244.0.0/16";
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
pub const SERVICE_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub const CLUSTER_DNS: &str = "10.96.0.10";
pub const CLUSTER_DOMAIN: &str = "cluster.local";
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";
pub const API_PORT: u16 = 6443;
pub const ETCD_PORT: u16 = 2379;
pub const IMAGE_PORT: u16 = 5000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Master,
    Worker,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub name: String,
    pub role: Role,
    /// Place in the cluster, from 0 (the master); gives the address and the device name.
    pub index: u8,
}

/// Where the API server keeps the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Store {
    /// In a file of its own; nothing else runs.
    #[default]
    Embedded,
    /// In an etcd on the master.
    Etcd,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Store::Embedded => "the embedded store",
            Store::Etcd => "etcd",
        })
    }
}

/// What `up` was asked for beside the defaults; tests shorten time-outs with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// More flags by program: `("kube-controller-manager", "--node-monitor-grace-period=8s")`.
    #[serde(default)]
    pub flags: Vec<(String, String)>,
    #[serde(default)]
    pub store: Store,
    /// Where the state is being copied to, while `coracle migrate` is at work (or was interrupted).
    #[serde(default)]
    pub moving_to: Option<Store>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    /// Third byte of the machines' network 10.88.K.0/24, unique on this host.
    pub network: u8,
    pub machines: Vec<Machine>,
    #[serde(default)]
    pub options: Options,
    /// What the host looked like before: `current-context` of ~/.kube/config, restored by `down`.
    #[serde(default)]
    pub previous_context: Option<String>,
}

impl Cluster {
    pub fn new(name: &str, network: u8, workers: u8, options: Options) -> Cluster {
        let mut cluster = Cluster { name: name.into(), network, machines: Vec::new(), options, previous_context: None };
        cluster.machines.push(Machine { name: "master".into(), role: Role::Master, index: 0 });
        cluster.set_workers(workers);
        cluster
    }

    /// Adds workers until there are `workers`. Never removes one: that is `kubectl drain` and a decision of its own.
    pub fn set_workers(&mut self, workers: u8) {
        for index in self.machines.len() as u8..=workers {
            self.machines.push(Machine { name: format!("worker{index}"), role: Role::Worker, index });
        }
    }

    pub fn load(name: &str) -> Result<Option<Cluster>> {
        let path = Path::new(ROOT).join(name).join("cluster.json");
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        }
    }

    /// The cluster, or an error that says how to make one.
    pub fn existing(name: &str) -> Result<Cluster> {
        let hint = if name == DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
        Cluster::load(name)?.with_context(|| format!("there is no cluster {name:?}: start one with `coracle up{hint}`"))
    }

    pub fn save(&self) -> Result<()> {
        write_file(&self.dir().join("cluster.json"), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// Names of all clusters on this host.
    pub fn names() -> Vec<String> {
        let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().join("cluster.json").exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    pub fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }
    pub fn pki_dir(&self) -> PathBuf {
        self.dir().join("pki")
    }
    pub fn image_dir(&self) -> PathBuf {
        self.dir().join("images")
    }
    pub fn admin_conf(&self) -> PathBuf {
        self.dir().join("admin.conf")
    }
    pub fn machine_dir(&self, machine: &Machine) -> PathBuf {
        self.dir().join("machines").join(&machine.name)
    }
    pub fn socket(&self, machine: &Machine) -> PathBuf {
        self.machine_dir(machine).join("supervisor.sock")
    }
    pub fn log(&self, machine: &Machine, process: &str) -> PathBuf {
        self.machine_dir(machine).join("log/coracle").join(format!("{process}.log"))
    }

    /// Address of the host on the machines' network: their gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, self.network, 1)
    }
    pub fn address(&self, machine: &Machine) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, self.network, 2 + machine.index)
    }
    pub fn subnet(&self) -> String {
        format!("10.88.{}.0/24", self.network)
    }
    /// The host's bridge. Unique by network, so that it fits a device name's 15 characters whatever the cluster is called.
    pub fn bridge(&self) -> String {
        format!("coracle{}", self.network)
    }
    /// The host's end of a machine's cable.
    pub fn cable(&self, machine: &Machine) -> String {
        format!("crc{}m{}", self.network, machine.index)
    }
    /// The host's nftables table (family ip).
    pub fn table(&self) -> String {
        format!("coracle-{}", self.name)
    }
    /// Path of a machine's control group below each hierarchy's root.
    pub fn cgroup(&self, machine: &Machine) -> String {
        format!("coracle/{}/{}", self.name, machine.name)
    }

    /// Whether an etcd is among the master's processes.
    pub fn runs_etcd(&self) -> bool {
        self.options.store == Store::Etcd || self.options.moving_to == Some(Store::Etcd)
    }

    pub fn master(&self) -> &Machine {
        &self.machines[0]
    }
    pub fn server(&self) -> String {
        format!("https://{}:{API_PORT}", self.address(self.master()))
    }
    /// Context, cluster and user name in ~/.kube/config.
    pub fn context(&self) -> String {
        if self.name == DEFAULT_NAME { "coracle".into() } else { format!("coracle-{}", self.name) }
    }
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|m| m.name == name).with_context(|| {
            let names: Vec<&str> = self.machines.iter().map(|m| m.name.as_str()).collect();
            format!("no machine {name:?} in cluster {:?}; there are {}", self.name, names.join(", "))
        })
    }
}

/// A cluster's name becomes part of paths, table and context names.
pub fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && name.len() <= 40
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !fine {
        bail!("a cluster's name is lower case letters, digits and '-', begins with a letter and has at most 40 characters: {name:?}");
    }
    Ok(())
}

/// Picks the network of a new cluster: the first 10.88.K.0/24 that nothing on the host uses. `routes` is the text of `ip route`.
pub fn free_network(routes: &str, taken: &[u8]) -> Result<u8> {
    (0..=255u8)
        .find(|k| !taken.contains(k) && !routes.contains(&format!("10.88.{k}.")))
        .context("all networks 10.88.0.0/24 to 10.88.255.0/24 are in use on this host")
}

/// Writes a file whole or not at all, so that an interrupted `up` never leaves half of one.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = path.parent().context("a file has a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(|| format!("write in {}", dir.display()))?;
    file.write_all(content)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.persist(path).with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_follow_from_the_index() {
        let cluster = Cluster::new("coracle", 3, 2, Options::default());
        let names: Vec<_> = cluster.machines.iter().map(|m| (m.name.as_str(), cluster.address(m).to_string(), cluster.cable(m))).collect();
        assert_eq!(
            names,
            [
                ("master", "10.88.3.2".to_string(), "crc3m0".to_string()),
                ("worker1", "10.88.3.3".to_string(), "crc3m1".to_string()),
                ("worker2", "10.88.3.4".to_string(), "crc3m2".to_string()),
            ]
        );
        assert_eq!(cluster.context(), "coracle");
        assert_eq!(Cluster::new("lab", 3, 0, Options::default()).context(), "coracle-lab");
    }

    #[test]
    fn workers_are_added_and_never_taken_away() {
        let mut cluster = Cluster::new("c", 0, 1, Options::default());
        cluster.set_workers(3);
        assert_eq!(cluster.machines.len(), 4);
        cluster.set_workers(1);
        assert_eq!(cluster.machines.len(), 4);
    }

    #[test]
    fn a_network_in_use_is_passed_over() {
        let routes = "default via 192.0.2.1 dev eth0\n10.88.0.0/24 dev coracle0 scope link\n";
        assert_eq!(free_network(routes, &[]).unwrap(), 1);
        assert_eq!(free_network(routes, &[1, 2]).unwrap(), 3);
    }

    #[test]
    fn names_of_clusters() {
        for (name, fine) in [("coracle", true), ("test-1", true), ("", false), ("1a", false), ("A", false), ("a/b", false), ("..", false)] {
            assert_eq!(check_name(name).is_ok(), fine, "{name:?}");
        }
    }
}
