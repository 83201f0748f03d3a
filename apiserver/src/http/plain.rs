//! Paths that are not resources: health, version, discovery, OpenAPI, metrics, token keys, the journal.

use std::sync::atomic::Ordering;

use api::{GroupResource, JournalEntry, Key, Status};
use http::Method;
use serde::Serialize;
use serde_json::json;

use super::info::Query;
use super::respond::{self, Answer};
use super::{App, Call};

/// Answered to everyone, as upstream's always-allowed paths.
pub fn is_open(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/healthz" | "/livez/ping" | "/readyz/ping" | "/healthz/ping")
}

pub async fn health(app: &App, path: &str, query: &Query) -> Answer {
    let ready = app.ready.load(Ordering::Acquire);
    let name = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let stopping = app.shutdown.is_cancelled();
    let (store, answers) = app.registry.store_health().await;
    let mut checks = vec![("ping", true), ("log", true), (store, answers)];
    if name != "livez" {
        checks.push(("poststarthook/rbac/bootstrap-roles", ready));
    }
    if name == "readyz" {
        checks.extend([("informer-sync", true), ("shutdown", !stopping)]);
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let ok = checks.iter().all(|(check, ok)| *ok || excluded.contains(check));
    if ok && !query.has("verbose") {
        return respond::text(200, "ok");
    }
    let mut text = String::new();
    for (check, ok) in &checks {
        text += &if *ok { format!("[+]{check} ok\n") } else { format!("[-]{check} failed: reason withheld\n") };
    }
    text += &format!("{name} check {}\n", if ok { "passed" } else { "failed" });
    respond::text(if ok { 200 } else { 500 }, text)
}

pub fn serve(app: &App, call: &Call) -> Result<Answer, Status> {
    let path = call.info.path.trim_end_matches('/');
    match (path, &call.method) {
        ("/debug/journal", &Method::GET) => return Ok(journal(app, call)),
        ("/debug/journal", &Method::POST) => return note(app, call),
        (_, &Method::GET | &Method::HEAD) => {}
        _ => return Err(Status::method_not_allowed()),
    }
    match path {
        "/version" => Ok(respond::pretty(200, &version(app.git_commit))),
        "/metrics" => metrics(app),
        "" | "/" => Ok(respond::pretty(200, &json!({"paths": app.discovery.paths()}))),
        auth::token::Discovery::CONFIGURATION_PATH => Ok(token_document("application/json", &app.token_discovery.configuration)),
        auth::token::Discovery::KEY_SET_PATH => Ok(token_document("application/jwk-set+json", &app.token_discovery.key_set)),
        "/openapi/v2" | "/openapi/v3" => crate::openapi::serve(call),
        path if path.starts_with("/openapi/v3/") => crate::openapi::serve(call),
        path => app.discovery.serve(path, call),
    }
}

/// What `kubectl version` prints, in upstream's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version<'a> {
    major: &'a str,
    minor: &'a str,
    emulation_major: &'a str,
    emulation_minor: &'a str,
    min_compatibility_major: &'a str,
    min_compatibility_minor: &'a str,
    git_version: &'a str,
    git_commit: &'a str,
    git_tree_state: &'a str,
    build_date: &'a str,
    go_version: &'a str,
    compiler: &'a str,
    platform: &'a str,
}

/// We serve the API of this release.
fn version(git_commit: &str) -> Version<'_> {
    Version {
        major: "1",
        minor: "33",
        emulation_major: "1",
        emulation_minor: "33",
        min_compatibility_major: "1",
        min_compatibility_minor: "32",
        git_version: "v1.33.0",
        git_commit,
        git_tree_state: "clean",
        build_date: "1970-01-01T00:00:00Z",
        go_version: "",
        compiler: "rustc",
        platform: if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" },
    }
}

fn metrics(app: &App) -> Result<Answer, Status> {
    for records in app.registry.cache.kinds() {
        app.metrics.set_objects(records.kind.group_resource().to_string(), records.len());
    }
    let text = app.metrics.text().map_err(Status::internal)?;
    Ok(respond::bytes(200, machinery::metrics::CONTENT_TYPE, text))
}

fn token_document(content_type: &'static str, body: &str) -> Answer {
    let mut answer = respond::bytes(200, content_type, body.to_owned());
    respond::header(&mut answer, "cache-control", "public, max-age=3600");
    answer
}

fn journal(app: &App, call: &Call) -> Answer {
    let Ok(resource): Result<GroupResource, _> = call.query.get("resource").parse();
    let key = Key::new(call.query.get("namespace"), call.query.get("name"));
    respond::json(200, &app.registry.journal.chain(&resource, &key))
}

/// A client's word on work that wrote no object. Who it was is the server's to say.
fn note(app: &App, call: &Call) -> Result<Answer, Status> {
    let mut entry: JournalEntry = serde_json::from_slice(&call.body).map_err(|e| Status::bad_request(e.to_string()))?;
    entry.revision = app.registry.cache.applied();
    entry.user = call.caller.user.name.clone();
    entry.agent = call.caller.agent.clone();
    entry.verb = "note".into();
    entry.cause = entry.cause.or_else(|| call.caller.cause.clone());
    app.registry.journal.record(entry);
    Ok(respond::json(201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})))
}
