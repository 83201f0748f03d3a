//! `coracle status`: machines, their processes, and how each says it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use futures::future::join_all;

use crate::cluster::{Cluster, ETCD_PORT, KUBERNETES_VERSION, Machine, Role};
use crate::machine::control::{Answer, ProcessReport, State};
use crate::machine::processes::{self, Health, Process};
use crate::{machine, tls, up};

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub machine: String,
    pub process: String,
    pub state: String,
    pub pid: String,
    pub restarts: String,
    pub uptime: String,
    pub version: String,
    pub health: String,
}

/// Prints the table. Returns whether everything runs and is well.
pub async fn status(cluster: &Cluster) -> Result<bool> {
    println!("cluster {}, Kubernetes API {KUBERNETES_VERSION}, {}, state in {}", cluster.name, cluster.server(), cluster.options.store);
    if let Some(store) = cluster.options.moving_to {
        println!("a move of the state to {store} was interrupted: nothing is lost, `coracle migrate` or `coracle up` goes on");
    }
    let config = tls::admin(cluster)?;
    let bin = up::programs()?;
    let mut rows = Vec::new();
    for machine in &cluster.machines {
        rows.extend(of_machine(cluster, machine, &bin, &config).await);
    }
    print!("{}", render(&rows));
    Ok(rows.iter().all(|row| row.health == "ok"))
}

async fn of_machine(cluster: &Cluster, machine: &Machine, bin: &Path, config: &Arc<rustls::ClientConfig>) -> Vec<Row> {
    let label =
        format!("{} {} ({})", machine.name, cluster.address(machine), if machine.role == Role::Master { "master" } else { "worker" });
    let Ok(answer) = machine::state(cluster, machine) else {
        let none = || "-".to_string();
        return vec![Row {
            machine: label,
            process: none(),
            state: "down".into(),
            pid: none(),
            restarts: none(),
            uptime: none(),
            version: none(),
            health: "no answer".into(),
        }];
    };
    let table = processes::of(cluster, machine, bin);
    join_all(table.iter().map(|process| of_process(cluster, machine, &label, process, &answer, config))).await
}

async fn of_process(
    cluster: &Cluster,
    machine: &Machine,
    label: &str,
    process: &Process,
    answer: &Answer,
    config: &Arc<rustls::ClientConfig>,
) -> Row {
    let report = answer.processes.iter().find(|report| report.name == process.name);
    let health = match report {
        Some(report) if report.state == State::Running => health(cluster, machine, answer.pid, &process.health, config).await,
        _ => "not running".into(),
    };
    row(label, process, report, health)
}

fn row(label: &str, process: &Process, report: Option<&ProcessReport>, health: String) -> Row {
    Row {
        machine: label.into(),
        process: process.name.into(),
        state: report.map_or("missing".into(), |report| format!("{:?}", report.state).to_lowercase()),
        pid: report.and_then(|report| report.pid).map_or("-".into(), |pid| pid.to_string()),
        restarts: report.map_or("-".into(), |report| report.restarts.to_string()),
        uptime: report.filter(|report| report.state == State::Running).map_or("-".into(), |report| duration(report.uptime_seconds)),
        version: version(process),
        health,
    }
}

async fn health(cluster: &Cluster, machine: &Machine, supervisor: u32, health: &Health, config: &Arc<rustls::ClientConfig>) -> String {
    let address = cluster.address(machine);
    let answer = match health {
        Health::Https { port, path } => tls::get(Some(config.clone()), address, *port, path).await,
        Health::Etcd => match tls::etcd(cluster) {
            Ok(config) => tls::get(Some(config), address, ETCD_PORT, "/health").await,
            Err(e) => Err(e),
        },
        // The machine's files seen from outside, through its first process.
        Health::Socket(path) => {
            let outside = PathBuf::from(format!("/proc/{supervisor}/root{path}"));
            tokio::net::UnixStream::connect(outside).await.map(|_| (200, String::new())).map_err(anyhow::Error::from)
        }
    };
    match answer {
        Ok((200, _)) => "ok".into(),
        // Of a list of checks, what is wrong.
        Ok((code, text)) => {
            let line = text.lines().find(|line| line.starts_with("[-]")).or(text.lines().next());
            format!("{code} {}", line.unwrap_or_default().trim_start_matches("[-]")).trim().into()
        }
        Err(e) => format!("{e:#}"),
    }
}

/// Ours carry the workspace's version; the host's programs say their own.
fn version(process: &Process) -> String {
    if !processes::FROM_HOST.contains(&process.name) {
        return format!("v{}", env!("CARGO_PKG_VERSION"));
    }
    let said = crate::run::tool(process.name, &["--version"]).unwrap_or_default();
    said.split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit() || c == 'v'))
        .unwrap_or("?")
        .trim_end_matches("~ds1")
        .into()
}

/// As kubectl prints ages.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

const HEADINGS: [&str; 7] = ["PROCESS", "STATE", "PID", "RESTARTS", "UPTIME", "VERSION", "HEALTH"];

/// A block per machine, columns aligned over all of them.
pub fn render(rows: &[Row]) -> String {
    let cells = |row: &Row| [&row.process, &row.state, &row.pid, &row.restarts, &row.uptime, &row.version, &row.health].map(String::clone);
    let mut widths = HEADINGS.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(cells(row)) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: &[String; 7]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}\n", padded.join("  ").trim_end())
    };
    let mut text = String::new();
    let mut machine = None;
    for row in rows {
        if machine != Some(&row.machine) {
            text += &format!("\n{}\n{}", row.machine, line(&HEADINGS.map(String::from)));
            machine = Some(&row.machine);
        }
        text += &line(&cells(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_block_for_each_machine() {
        let row = |machine: &str, process: &str, health: &str| Row {
            machine: machine.into(),
            process: process.into(),
            state: "running".into(),
            pid: "42".into(),
            restarts: "0".into(),
            uptime: duration(61),
            version: "v0.1.0".into(),
            health: health.into(),
        };
        let text = render(&[
            row("master 10.88.0.2 (master)", "kube-apiserver", "ok"),
            row("worker1 10.88.0.3 (worker)", "kubelet", "no answer in 2 s"),
        ]);
        insta::assert_snapshot!(text, @r"

        master 10.88.0.2 (master)
          PROCESS         STATE    PID  RESTARTS  UPTIME  VERSION  HEALTH
          kube-apiserver  running  42   0         61s     v0.1.0   ok

        worker1 10.88.0.3 (worker)
          PROCESS         STATE    PID  RESTARTS  UPTIME  VERSION  HEALTH
          kubelet         running  42   0         61s     v0.1.0   no answer in 2 s
        ");
    }
}
