//! Open-loop traffic: a new connection for every request, at a fixed rate, whatever the answers do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug, Default)]
pub struct Report {
    pub sent: usize,
    /// What went wrong, one line per failed request.
    pub failures: Vec<String>,
    pub slowest: Duration,
}

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);

/// Sends `rate` requests a second to each target until `stop`.
pub async fn run(targets: Vec<SocketAddr>, rate: u32, stop: Arc<AtomicBool>) -> Report {
    let mut clock = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut running = tokio::task::JoinSet::new();
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        clock.tick().await;
        for target in &targets {
            running.spawn(request(*target));
        }
        while let Some(done) = running.try_join_next() {
            report.add(done);
        }
    }
    while let Some(done) = running.join_next().await {
        report.add(done);
    }
    report
}

impl Report {
    fn add(&mut self, done: Result<Result<Duration>, tokio::task::JoinError>) {
        self.sent += 1;
        match done {
            Ok(Ok(took)) => self.slowest = self.slowest.max(took),
            Ok(Err(e)) => self.failures.push(format!("{e:#}")),
            Err(e) => self.failures.push(e.to_string()),
        }
    }
}

/// One request over a new connection; its duration.
async fn request(target: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect(target).await.context("connect")?;
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n").as_bytes()).await.context("send")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.context("read")?;
        if !answer.starts_with(b"HTTP/1.1 200") && !answer.starts_with(b"HTTP/1.0 200") {
            bail!("answer {:?}", String::from_utf8_lossy(&answer[..answer.len().min(40)]));
        }
        Ok(())
    };
    match tokio::time::timeout(LIMIT, exchange).await {
        Ok(Ok(())) => Ok(began.elapsed()),
        Ok(Err(e)) => Err(e.context(format!("{target} after {:.1?}", began.elapsed()))),
        Err(_) => bail!("{target}: no answer in {LIMIT:?}"),
    }
}
