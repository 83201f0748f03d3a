//! A cluster under test, made and ended by the `coracle` binary that `make build` left.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kubectl::Kubectl;

/// Words for `up`: time-outs of node failure, shortened; a node's lease is renewed every ten seconds.
pub const SHORT_TIMEOUTS: [&str; 4] =
    ["--flag", "kube-controller-manager=--node-monitor-grace-period=16s", "--flag", "kube-controller-manager=--node-monitor-period=1s"];

pub struct Cluster {
    pub name: String,
}

/// The folder of our programs: `target/release`.
pub fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.ancestors().find(|dir| dir.join("coracle").is_file()).context("coracle is not built: run `make build`")?;
    Ok(folder.to_path_buf())
}

impl Cluster {
    /// Runs `coracle up` with these words and returns what it printed.
    pub fn up(name: &str, words: &[&str]) -> Result<(Cluster, String)> {
        let cluster = Cluster { name: name.into() };
        let mut all = vec!["up"];
        all.extend(words);
        let printed = cluster.coracle(&all)?;
        Ok((cluster, printed))
    }

    /// `coracle WORDS --name THIS`; standard output. Fails with what it said.
    pub fn coracle(&self, words: &[&str]) -> Result<String> {
        let (command, rest) = words.split_first().context("a command")?;
        let places_name_before = ["exec", "machine", "image"].contains(command);
        let mut all = vec![*command];
        let name = ["--name", &self.name];
        match places_name_before {
            // `exec MACHINE -- COMMAND`: what follows the dashes is not ours.
            true => {
                let dashes = rest.iter().position(|word| *word == "--").unwrap_or(rest.len());
                all.extend(&rest[..dashes]);
                all.extend(name);
                all.extend(&rest[dashes..]);
            }
            false => {
                all.extend(rest);
                all.extend(name);
            }
        }
        let output = Command::new(programs()?.join("coracle")).args(&all).output().context("run coracle")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("coracle {}: {}{text}", all.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    pub fn dir(&self) -> PathBuf {
        Path::new("/var/lib/coracle").join(&self.name)
    }

    pub fn kubectl(&self, namespace: &str) -> Kubectl {
        Kubectl::new(self.dir().join("admin.conf"), namespace)
    }

    /// A machine's address, from the cluster's record.
    pub fn address(&self, machine: &str) -> Result<String> {
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(self.dir().join("cluster.json"))?)?;
        let network = record["network"].as_u64().context("network")?;
        let machines = record["machines"].as_array().context("machines")?;
        let found = machines.iter().find(|one| one["name"] == machine).with_context(|| format!("no machine {machine}"))?;
        Ok(format!("10.88.{network}.{}", 2 + found["index"].as_u64().context("index")?))
    }

    /// Everything `down` must take away, as far as it is still there.
    pub fn remains(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        left.extend(mounts.lines().filter(|line| line.contains(&format!("/coracle/{}/", self.name))).map(|line| format!("mount {line}")));
        let tables = Command::new("nft").args(["list", "tables"]).output()?;
        let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
        left.extend(tables.lines().filter(|line| line.ends_with(&format!("coracle-{}", self.name))).map(|line| format!("nft {line}")));
        if self.dir().exists() {
            left.push(format!("folder {}", self.dir().display()));
        }
        for process in procfs::process::all_processes()?.flatten() {
            let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
            // A dead process that init has not yet collected holds nothing.
            let dead = process.stat().is_ok_and(|stat| stat.state == 'Z');
            if !dead && cgroups.contains(&format!("/coracle/{}/", self.name)) {
                left.push(format!("process {}", process.pid));
            }
        }
        for root in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
            if root.path().join("coracle").join(&self.name).exists() {
                left.push(format!("control group {}", root.path().display()));
            }
        }
        Ok(left)
    }
}
