//! What the client asks of a control plane, and what it costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use tests::client::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::sides::Side;
use crate::{Row, milliseconds};

const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";
const CONNECTIONS: usize = 8;
const LISTS: usize = 30;
const WATCHERS: usize = 300;
const EVENTS: usize = 100;

pub async fn run(side: &Side, objects: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    println!("  create {objects} ConfigMaps");
    rows.extend(many(side, "create", objects, CONNECTIONS, |n| (Method::POST, COLLECTION.into(), config_map(n)), 201).await?);
    println!("  get");
    rows.extend(
        many(side, "get", objects * 2, CONNECTIONS, move |n| (Method::GET, format!("{COLLECTION}/c{}", n % objects), Bytes::new()), 200)
            .await?,
    );
    println!("  list");
    rows.extend(many(side, "list all", LISTS, 1, |_| (Method::GET, COLLECTION.into(), Bytes::new()), 200).await?);
    println!("  watch");
    rows.extend(watches(side, objects).await?);
    println!("  OpenAPI");
    let began = Instant::now();
    let document = Client::new(&side.endpoint)?.get("/openapi/v2").await?;
    if document.status != 200 {
        bail!("/openapi/v2: {}", document.status);
    }
    rows.push(Row::new("OpenAPI v2 fetch", "ms", milliseconds(began.elapsed())));
    Ok(rows)
}

fn config_map(n: usize) -> Bytes {
    let text = "x".repeat(200);
    format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"c{n}","labels":{{"set":"bench"}}}},"data":{{"n":"{n}","text":"{text}"}}}}"#).into()
}

/// `count` requests over `connections`, each connection one at a time. Rows: median and 99th percentile latency, CPU per request.
pub async fn many(
    side: &Side,
    what: &str,
    count: usize,
    connections: usize,
    make: impl Fn(usize) -> (Method, String, Bytes) + Clone + Send + Sync + 'static,
    expected: u16,
) -> Result<Vec<Row>> {
    let cpu = side.cpu()?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let (next, make, mut client) = (next.clone(), make.clone(), Client::new(&side.endpoint)?);
        workers.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return Ok(latencies);
                }
                let (method, path, body) = make(n);
                let began = Instant::now();
                let answer = client.request(method, &path, body).await?;
                latencies.push(began.elapsed());
                if answer.status != expected {
                    bail!("{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
                }
            }
        });
    }
    let mut latencies: Vec<Duration> = Vec::new();
    while let Some(done) = workers.join_next().await {
        latencies.extend(done??);
    }
    let cpu = side.cpu()? - cpu;
    latencies.sort();
    Ok(vec![
        Row::new(format!("{what}: latency, median"), "ms", milliseconds(percentile(&latencies, 50))),
        Row::new(format!("{what}: latency, 99th percentile"), "ms", milliseconds(percentile(&latencies, 99))),
        Row::new(format!("{what}: CPU each"), "ms", milliseconds(cpu) / count as f64),
    ])
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(((sorted.len() * percent) / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Of the collection, to watch it from.
pub async fn revision(client: &mut Client, collection: &str) -> Result<String> {
    let list: serde_json::Value = serde_json::from_slice(&client.get(&format!("{collection}?limit=1")).await?.body)?;
    Ok(list["metadata"]["resourceVersion"].as_str().context("resourceVersion")?.to_string())
}

/// Watchers of one collection; each event's time from the create to the last watcher's receipt.
async fn watches(side: &Side, objects: usize) -> Result<Vec<Row>> {
    let revision = revision(&mut Client::new(&side.endpoint)?, COLLECTION).await?;
    let (sender, mut receipts) = mpsc::unbounded_channel();
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut client = Client::new(&side.endpoint)?;
        let path = format!("{COLLECTION}?watch=1&resourceVersion={revision}");
        let sender = sender.clone();
        let answer = client.open(Method::GET, &path, Bytes::new()).await?;
        watchers.spawn(async move {
            // The connection lives as long as its client.
            let _open = client;
            let mut body = answer.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                let lines = frame.data_ref().map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
                for _ in 0..lines {
                    if sender.send(()).is_err() {
                        return;
                    }
                }
            }
        });
    }
    let mut client = Client::new(&side.endpoint)?;
    let cpu = side.cpu()?;
    let mut latencies = Vec::new();
    for n in 0..EVENTS {
        let began = Instant::now();
        let answer = client.request(Method::POST, COLLECTION, config_map(objects + n)).await?;
        if answer.status != 201 {
            bail!("create: {}", answer.status);
        }
        let all = async {
            for _ in 0..WATCHERS {
                receipts.recv().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.context("an event did not reach every watcher")?;
        latencies.push(began.elapsed());
    }
    let cpu = side.cpu()? - cpu;
    latencies.sort();
    let name = format!("watch: create to the last of {WATCHERS}");
    Ok(vec![
        Row::new(format!("{name}, median"), "ms", milliseconds(percentile(&latencies, 50))),
        Row::new("watch: CPU for each event and watcher", "ms", milliseconds(cpu) / (EVENTS * WATCHERS) as f64),
    ])
}
