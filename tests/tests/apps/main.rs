//! The demo applications from their Dockerfiles to their data, on a cluster of one master and two workers.
//!
//! `cargo test --workspace --test apps -- WORD…` runs the stages whose names hold one of the words. `KEEP=1` leaves the cluster up and
//! takes one that is up. `STORE=etcd` keeps the cluster's state in etcd. Images are built from Debian's packages: the first run fetches them.

mod fibonacci;
mod voting;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::cluster::{Cluster, SHORT_TIMEOUTS, programs};
use tests::{ensure_contains, runner};

pub struct Apps {
    pub cluster: Cluster,
}

impl Apps {
    /// GET or POST at a port of a worker; the body of a success.
    pub fn ask(&self, method: &str, port: u16, path: &str, body: &str) -> Result<String> {
        let url = format!("http://{}:{port}{path}", self.cluster.address("worker1")?);
        let output = Command::new("curl").args(["-sS", "--fail-with-body", "-m", "10", "-X", method, "-d", body, &url]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{method} {url}: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    pub fn json(&self, port: u16, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask("GET", port, path, "")?)?)
    }
}

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// `kubectl apply -f` of an application's folder.
pub fn folder(app: &str) -> String {
    manifests().join(app).to_string_lossy().into_owned()
}

fn images_are_built(apps: &Apps) -> Result<()> {
    for app in ["fibonacci", "voting"] {
        let mut command = Command::new(manifests().join(app).join("images"));
        let output =
            command.args(["--name", &apps.cluster.name]).env("CORACLE", programs()?.join("coracle")).output().context("run images")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{app}/images: {said}{}", String::from_utf8_lossy(&output.stderr));
        }
        println!("    {}", said.trim().replace('\n', "\n    "));
    }
    ensure_contains(
        &apps.cluster.coracle(&["image", "ls"])?,
        &["debian:12", "coracle/redis:7", "coracle/postgres:15", "fibonacci/front:1", "voting/vote:1"],
    )
}

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let name = std::env::var("CLUSTER").unwrap_or_else(|_| "test-apps".into());
    let keep = std::env::var_os("KEEP").is_some();
    let mut words = vec!["--bare"];
    words.extend(SHORT_TIMEOUTS);
    if std::env::var("STORE").is_ok_and(|store| store == "etcd") {
        words.push("--etcd");
    }
    let apps = match (keep, Cluster { name: name.clone() }) {
        (false, leftover) => leftover.coracle(&["down"]).and_then(|_| Cluster::up(&name, &words)),
        (true, _) => Cluster::up(&name, &words),
    };
    let apps = match apps {
        Ok((cluster, _)) => Apps { cluster },
        Err(e) => {
            println!("test up ... FAILED\n    {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let stages = tests::stages![
        images_are_built,
        fibonacci::computes_and_stores,
        fibonacci::data_outlives_the_pod,
        fibonacci::data_waits_for_its_node,
        voting::members_start_in_order_and_votes_count,
        voting::identity_and_data_are_kept,
        voting::an_update_stops_at_the_partition,
        voting::the_job_runs_once,
        voting::claims_go_with_their_members_if_asked,
    ];
    let (passed, failed, skipped) = runner::run(&apps, &stages, &filters);
    if !keep && let Err(e) = apps.cluster.coracle(&["down"]) {
        println!("down: {e:#}");
    }
    println!("\n{passed} passed, {} failed, {skipped} skipped", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
