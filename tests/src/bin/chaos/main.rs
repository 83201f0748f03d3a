//! `chaos`: random `kill -9` of any process of a cluster while fifty pods churn. Afterwards what is wanted must be what is there, nothing may be
//! left over, and no container may run twice.
//!
//! ```text
//! up ── settle, count ([`census`]) ── churn ([`churn`]) and kill ([`kills`]) for some minutes ── wanted = actual? ── clear ── settle, count: equal?
//!                                     └ look all the time whether anything runs twice ([`witness`])
//! ```
//! A seed, printed, gives the same order of deeds again (not the same races).

mod census;
mod churn;
mod kills;
mod objects;
mod witness;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::cluster::Cluster;
use tests::{ensure_eq, until};

use census::Census;
use churn::Churn;
use kills::Kills;
use witness::Witness;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Repeats a run's deeds [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the state in etcd
    #[arg(long)]
    etcd: bool,
    #[arg(long, default_value = "chaos")]
    name: String,
    /// Leave the cluster up when something is wrong, to look at it
    #[arg(long)]
    keep: bool,
}

/// The pause between two kills, in milliseconds.
const BETWEEN_KILLS: std::ops::Range<u64> = 1_000..5_000;
/// The pause between two changes of what is wanted.
const BETWEEN_CHANGES: Duration = Duration::from_millis(700);
/// Seconds the cluster gets to become what is wanted.
const SETTLE: u64 = 240;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => {
            println!("\nchaos: nothing lost, nothing left, nothing twice");
            ExitCode::SUCCESS
        }
        Err(e) => {
            println!("\nchaos: FAILED: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("chaos: seed {seed}, {} minutes, state in {}", args.minutes, if args.etcd { "etcd" } else { "the embedded store" });
    let leftover = Cluster { name: args.name.clone() };
    leftover.coracle(&["down"])?;
    let (cluster, printed) = Cluster::up(&args.name, if args.etcd { &["--etcd"] } else { &[] })?;
    println!("{printed}");
    let outcome = under_chaos(&cluster, seed, Duration::from_secs_f64(args.minutes * 60.0));
    if outcome.is_err() && args.keep {
        println!("the cluster {} is left as it is", args.name);
        return outcome;
    }
    cluster.coracle(&["down"])?;
    let left = cluster.remains()?;
    outcome?;
    if !left.is_empty() {
        bail!("left behind by down:\n{}", left.join("\n"));
    }
    Ok(())
}

fn under_chaos(cluster: &Cluster, seed: u64, length: Duration) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let record = coracle::cluster::Cluster::existing(&cluster.name)?;
    let before = settled(cluster, &record, None)?;
    println!("before:\n{before}");
    let mut churn = Churn::start(cluster)?;
    let witness = Witness::start(&record, churn::NAMESPACE);
    let mut kills = Kills::new(&record);
    let (end, mut next_kill) = (Instant::now() + length, Instant::now());
    while Instant::now() < end {
        churn.change(&mut random);
        if Instant::now() >= next_kill {
            kills.strike(&mut random)?;
            next_kill = Instant::now() + Duration::from_millis(random.random_range(BETWEEN_KILLS));
        }
        std::thread::sleep(BETWEEN_CHANGES);
    }
    println!("\n{} changes of what is wanted ({} refused for the moment); {} kills:\n{kills}", churn.changes, churn.refused, kills.count());
    let began = Instant::now();
    until(SETTLE, "every machine is up", || kills.end())?;
    until(SETTLE, "every process is healthy", || cluster.coracle(&["status"]))?;
    churn.settle()?;
    let settled_in = until(SETTLE, "what is wanted is what is there", || churn.check(&record).map(|()| began.elapsed()));
    // What runs twice explains the rest.
    println!("{}", witness.end()?);
    println!("wanted = actual {:.1} s after the last kill", settled_in?.as_secs_f64());
    churn.clear()?;
    settled(cluster, &record, Some(&before)).map(drop)
}

/// Starts the pods that are always there anew (killed ones leave a dead container for `kubectl logs --previous`), waits for quiet, and counts.
fn settled(cluster: &Cluster, record: &coracle::cluster::Cluster, expected: Option<&Census>) -> Result<Census> {
    for (namespace, deployment) in [("default", "quickstart"), ("kube-system", "dns")] {
        let kubectl = cluster.kubectl(namespace);
        until(SETTLE, "restart", || kubectl.ok(&format!("rollout restart deployment/{deployment}")))?;
        until(SETTLE, "rollout", || kubectl.ok(&format!("rollout status deployment/{deployment} --timeout=20s")))?;
        until(SETTLE, "old pods gone", || ensure_eq(kubectl.ok("get pods -o name")?.lines().count(), 2, "pods"))?;
    }
    until(SETTLE, "nothing left over", || {
        let census = Census::take(record)?;
        census.pods_are_whole()?;
        if let Some(expected) = expected {
            census.compare(expected)?;
        }
        Ok(census)
    })
    .context("the machines do not come to rest")
}
