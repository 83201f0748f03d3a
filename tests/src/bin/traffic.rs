//! Traffic as a program, to be run inside a machine: `traffic RATE ADDRESS...`, until its standard input ends. Prints the failures, then a count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tests::traffic;
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let rate = words.next().context("traffic RATE ADDRESS...")?.parse()?;
    let targets = words.map(|word| word.parse().with_context(|| word.clone())).collect::<Result<Vec<_>>>()?;
    let stop = Arc::new(AtomicBool::new(false));
    let watched = stop.clone();
    tokio::spawn(async move {
        let mut ignored = Vec::new();
        if let Err(e) = tokio::io::stdin().read_to_end(&mut ignored).await {
            eprintln!("standard input: {e}");
        }
        watched.store(true, Ordering::Relaxed);
    });
    let report = traffic::run(targets, rate, stop).await;
    for failure in &report.failures {
        println!("failed: {failure}");
    }
    println!("sent {} failed {} slowest {:.3}s", report.sent, report.failures.len(), report.slowest.as_secs_f64());
    Ok(())
}
