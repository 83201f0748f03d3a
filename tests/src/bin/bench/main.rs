//! `bench --stock DIR`: Coracle beside stock Kubernetes 1.20.2 with etcd, on this machine, with one client and the same durability and TLS.
//!
//! Each side runs alone: start, 5,000 ConfigMaps, reads, lists, watches, an OpenAPI fetch, a minute's rest, memory; then 5,000 pods, a thousand
//! nodes, 5,000 Services. Then one pod on a cluster of ours, from apply to Running, beside the bare CRI calls on the same node.

mod load;
mod pods;
mod scale;
mod services;
mod sides;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// Folder whose bin/ (or itself) holds kube-apiserver, kube-controller-manager and kube-scheduler 1.20.2; etcd is Debian's
    #[arg(long)]
    stock: PathBuf,
    #[arg(long, default_value_t = 5000)]
    objects: usize,
    /// Seconds of rest before memory is read
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Leave parts out
    #[arg(long, value_delimiter = ',', value_enum)]
    without: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Part {
    /// Pods, nodes, the scheduler, a Deployment
    Scale,
    /// Services and kube-proxy
    Services,
    /// One pod from apply to Running
    Pod,
}

/// A row of the table. Smaller is better, unless it says otherwise; then the ratio is turned.
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub value: f64,
    pub more_is_better: bool,
}

impl Row {
    pub fn new(what: impl Into<String>, unit: &'static str, value: f64) -> Row {
        Row { what: what.into(), unit, value, more_is_better: false }
    }

    pub fn more(what: impl Into<String>, unit: &'static str, value: f64) -> Row {
        Row { more_is_better: true, ..Row::new(what, unit, value) }
    }

    fn ratio(&self, other: &Row) -> f64 {
        if self.more_is_better { self.value / other.value } else { other.value / self.value }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::Builder::new().prefix("coracle-bench").tempdir_in("/var/tmp")?;
    let mut columns = Vec::new();
    for name in ["ours", "stock"] {
        columns.push(side(&args, name, dir.path()).await?);
    }
    print_table(&columns[0], &columns[1]);
    if !args.without.contains(&Part::Pod) {
        pods::run().await?;
    }
    Ok(())
}

async fn side(args: &Args, name: &str, dir: &Path) -> Result<Vec<Row>> {
    println!("{name}: start");
    let mut side = sides::start(name, dir, &args.stock).await?;
    let mut rows = vec![Row::new("start to /readyz", "ms", milliseconds(side.started_in))];
    rows.extend(shown(load::run(&side, args.objects).await?));
    println!("  rest of {} s", args.rest);
    tokio::time::sleep(Duration::from_secs(args.rest)).await;
    let memory = side.memory()?;
    rows.push(Row::new("resident memory, control plane", "MiB", memory.iter().map(|(_, mib)| mib).sum()));
    rows.extend(shown(memory.into_iter().map(|(process, mib)| Row::new(format!("  {process}"), "MiB", mib)).collect()));
    if !args.without.contains(&Part::Scale) {
        rows.extend(shown(scale::run(&mut side).await?));
    }
    if !args.without.contains(&Part::Services) {
        rows.extend(shown(services::run(&side, name, &args.stock, &dir.join(name)).await?));
    }
    Ok(rows)
}

/// Says at once what the table says at the end.
fn shown(rows: Vec<Row>) -> Vec<Row> {
    for row in &rows {
        println!("    {} ({}): {:.2}", row.what, row.unit, row.value);
    }
    rows
}

/// Rows of both sides by name; a process that only one side has stands alone.
fn print_table(ours: &[Row], stock: &[Row]) {
    println!("\n{:<44} {:>12} {:>12} {:>9}", "", "Coracle", "stock 1.20", "ratio");
    for row in ours {
        let what = format!("{} ({})", row.what, row.unit);
        match stock.iter().find(|other| other.what == row.what) {
            Some(other) => println!("{what:<44} {:>12.2} {:>12.2} {:>8.1}x", row.value, other.value, row.ratio(other)),
            None => println!("{what:<44} {:>12.2} {:>12}", row.value, "-"),
        }
    }
    for row in stock.iter().filter(|row| !ours.iter().any(|mine| mine.what == row.what)) {
        println!("{:<44} {:>12} {:>12.2}", format!("{} ({})", row.what, row.unit), "-", row.value);
    }
}
