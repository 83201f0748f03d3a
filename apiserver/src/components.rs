//! `componentstatuses`: whether controller manager, scheduler and store are well, asked when somebody looks.
//!
//! Deprecated and no object of the store, yet the first thing that courses show.
//! Upstream counterpart: `pkg/registry/core/componentstatus/{rest,validator}.go` (v1.33).

use std::sync::Arc;
use std::time::Duration;

use api::{Key, Status};
use http::Request;
use http::header::HOST;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::backend::{self, Place, Security};
use crate::http::respond::{self, Answer};
use crate::http::{App, Call, read};
use crate::registry::Target;
use crate::registry::cache::Listing;
use crate::registry::record::Record;

const PATIENCE: Duration = Duration::from_secs(20);
const DEPRECATED: &str = "v1 ComponentStatus is deprecated in v1.19+";
/// On the machine of the API server; they listen on its address.
const PROGRAMS: [(&str, u16); 2] = [("scheduler", 10259), ("controller-manager", 10257)];

/// One of them by name, or all.
pub async fn serve(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let mut records = Vec::new();
    for (name, health) in checks(app).await {
        let tree = object(&name, health);
        let bytes = tree.to_string();
        let record = Record::of_tree(target.kind, Key::cluster(&name), 0, bytes.as_bytes(), &tree).map_err(Status::internal)?;
        records.push(Arc::new(record));
    }
    let mut answer = if target.key.name.is_empty() {
        read::write_list(call, target, Listing { records, revision: 0, remaining: None }, false)
    } else {
        let found = records.iter().find(|record| record.key.name == target.key.name).ok_or_else(|| target.not_found())?;
        read::show(target, found, call.want, &call.query, 200)
    };
    respond::add_warnings(&mut answer, vec![DEPRECATED.to_owned()]);
    Ok(answer)
}

async fn checks(app: &App) -> Vec<(String, Result<String, String>)> {
    let [scheduler, controllers] = PROGRAMS.map(|(name, port)| async move { (name.to_owned(), ask(app, port).await) });
    let (scheduler, controllers, (store, well)) = tokio::join!(scheduler, controllers, app.registry.store_health());
    let name = if store == "etcd" { "etcd-0" } else { store };
    let store = (name.to_owned(), if well { Ok("ok".to_owned()) } else { Err(format!("{store} does not answer")) });
    vec![scheduler, controllers, store]
}

/// What the program's `/healthz` says, or why it says nothing.
async fn ask(app: &App, port: u16) -> Result<String, String> {
    let place = Place { host: app.advertised.ip().to_string(), port, security: Security::Anyone, path: "/healthz".into() };
    let failed = |why: String| format!("Get \"https://{}{}\": {why}", place.authority(), place.path);
    let request = Request::get(&place.path).header(HOST, place.authority()).body(respond::full("")).map_err(|e| failed(e.to_string()))?;
    let asking = async {
        let response = backend::send(app, &place, request).await?;
        let code = response.status();
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if code.is_success() { Ok(text) } else { Err(format!("HTTP probe failed with statuscode: {}", code.as_u16())) }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err("context deadline exceeded".to_owned())).map_err(failed)
}

fn object(name: &str, health: Result<String, String>) -> Value {
    let condition = match health {
        Ok(message) => json!({"type": "Healthy", "status": "True", "message": message}),
        Err(message) => json!({"type": "Healthy", "status": "False", "message": message}),
    };
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name, "creationTimestamp": null}, "conditions": [condition]})
}
