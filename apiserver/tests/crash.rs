//! `kill -9` in the middle of creates, repeatedly: every acknowledged object is there afterwards, with its revision, and a watcher
//! resumes where it was or is told 410.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use support::Server;

const PATH: &str = "/api/v1/namespaces/default/configmaps";
const ROUNDS: usize = 4;
const WRITERS: usize = 8;

/// Create until the server dies; what was acknowledged, as (name, resourceVersion).
async fn create_until_the_end(server: &Server, round: usize, writer: usize) -> Vec<(String, String)> {
    let mut client = server.client("admin").await;
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let name = format!("r{round}-w{writer}-{n}");
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": n.to_string()}});
        let Ok((status, bytes)) = client.send(Method::POST, PATH, Some(&body)).await else { break };
        assert_eq!(status, 201);
        let created: Value = serde_json::from_slice(&bytes).unwrap();
        acknowledged.push((name, created["metadata"]["resourceVersion"].as_str().unwrap().to_owned()));
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_objects_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let mut acknowledged: Vec<(String, String)> = Vec::new();
    for round in 0..ROUNDS {
        let last_revision = {
            let writers = (0..WRITERS).map(|writer| create_until_the_end(&server, round, writer));
            let pid = server.pid();
            let killer = async {
                tokio::time::sleep(Duration::from_millis(400)).await;
                kill_9(pid);
            };
            let (writes, ()) = tokio::join!(futures::future::join_all(writers), killer);
            acknowledged.extend(writes.into_iter().flatten());
            acknowledged.iter().map(|(_, revision)| revision.parse::<u64>().unwrap()).max().unwrap()
        };
        server.crash_and_restart().await;
        check_all_there(&server, &acknowledged).await;
        check_resumable(&server, last_revision).await;
    }
    assert!(acknowledged.len() > ROUNDS * WRITERS, "the test wrote {} objects only", acknowledged.len());
}

async fn check_all_there(server: &Server, acknowledged: &[(String, String)]) {
    let mut client = server.client("admin").await;
    let (code, list) = client.json(Method::GET, PATH, None).await;
    assert_eq!(code, 200);
    let stored: std::collections::HashMap<&str, &str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["metadata"]["name"].as_str().unwrap(), item["metadata"]["resourceVersion"].as_str().unwrap()))
        .collect();
    for (name, revision) in acknowledged {
        assert_eq!(stored.get(name.as_str()), Some(&revision.as_str()), "{name} was acknowledged at {revision}");
    }
}

/// A watch from the last revision a client saw either goes on or says 410.
async fn check_resumable(server: &Server, revision: u64) {
    let mut client = server.client("admin").await;
    let path = format!("{PATH}?watch=1&resourceVersion={revision}&timeoutSeconds=1");
    let (status, bytes) = client.send(Method::GET, &path, None).await.unwrap();
    assert_eq!(status, 200);
    for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let event: Value = serde_json::from_slice(line).unwrap();
        match event["type"].as_str().unwrap() {
            "ERROR" => assert_eq!(event["object"]["code"], 410),
            _ => {
                let at: u64 = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                assert!(at > revision, "an event already seen came again");
            }
        }
    }
}

fn kill_9(pid: u32) {
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}
