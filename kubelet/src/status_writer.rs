//! Writes one pod's status to the API server: the newest only, and only what changed.
//!
//! Conditions that others own (readiness gates) are never sent, so theirs cannot be lost.
//! Upstream: `pkg/kubelet/status/status_manager.go`, v1.33.

use std::sync::Arc;
use std::time::Duration;

use api::cause::Cause;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use machinery::CancellationToken;
use machinery::controller::{is_conflict, is_not_found};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::pod::PodExt;
use crate::status::OWN_CONDITIONS;

#[derive(Clone)]
struct Wanted {
    number: u64,
    cause: Cause,
    pod: Arc<Pod>,
    status: Arc<PodStatus>,
}

/// The writing end; its task ends with it.
pub struct StatusWriter {
    wanted: watch::Sender<Option<Wanted>>,
    written: watch::Receiver<u64>,
    number: u64,
    last: Option<Arc<PodStatus>>,
    token: CancellationToken,
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl StatusWriter {
    pub fn new(client: Client) -> Self {
        let (wanted, receiver) = watch::channel(None);
        let (sender, written) = watch::channel(0);
        let token = CancellationToken::new();
        let child = token.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = child.cancelled() => {}
                () = write_all(client, receiver, sender) => {}
            }
        });
        StatusWriter { wanted, written, number: 0, last: None, token }
    }

    /// The status last asked to be written.
    pub fn last(&self) -> Option<&Arc<PodStatus>> {
        self.last.as_ref()
    }

    pub fn set(&mut self, pod: &Arc<Pod>, cause: Cause, status: PodStatus) {
        if self.last.as_deref() == Some(&status) {
            return;
        }
        let status = Arc::new(status);
        self.last = Some(status.clone());
        self.number += 1;
        self.wanted.send_replace(Some(Wanted { number: self.number, cause, pod: pod.clone(), status }));
    }

    /// Waits until what was set is written (or there is nothing left to write it to).
    pub async fn flush(&mut self) {
        let number = self.number;
        // The task outlives this call, so the channel stays open.
        let _closed_with_the_task = self.written.wait_for(|n| *n >= number).await;
    }
}

async fn write_all(client: Client, mut wanted: watch::Receiver<Option<Wanted>>, written: watch::Sender<u64>) {
    // What the API server is known to hold, once we have written.
    let mut held: Option<PodStatus> = None;
    let mut delay = Duration::from_millis(100);
    loop {
        let Some(next) = wanted.borrow_and_update().clone() else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        if *written.borrow() < next.number {
            let work = write(&client, &next, held.as_ref());
            match machinery::cause::scope(Some(next.cause.clone()), work).await {
                Ok(status) => {
                    held = status;
                    delay = Duration::from_millis(100);
                    written.send_replace(next.number);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(pod = %next.pod.key(), error = short(&error), "status not written; retrying");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_secs(10));
                    continue;
                }
            }
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// The API server's words, without the whole answer around them.
fn short(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

/// The status now held. A pod that is gone, or another of its name, takes no status and is no error.
async fn write(client: &Client, wanted: &Wanted, held: Option<&PodStatus>) -> Result<Option<PodStatus>, kube::Error> {
    let pod = &wanted.pod;
    let Some(patch) = patch(held.unwrap_or(pod.status()), &wanted.status) else {
        return Ok(held.cloned());
    };
    let body = json!({"metadata": {"uid": pod.uid()}, "status": patch});
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
    match api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(body)).await {
        Ok(now) => Ok(now.status),
        Err(error) if is_not_found(&error) || is_conflict(&error) || is_another(&error) => {
            tracing::debug!(pod = %pod.key(), error = short(&error), "status has no pod to go to");
            Ok(held.cloned())
        }
        Err(error) => Err(error),
    }
}

/// The name belongs to a newer pod: servers before 1.21 say that the uid cannot be changed.
fn is_another(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422 && status.message.contains("metadata.uid"))
}

/// The strategic merge patch from `old` to `new`; none if nothing differs.
fn patch(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (mut old, mut new) = (object(old), object(new));
    let mut patch = Map::new();
    if let Some(conditions) = changed_conditions(old.remove("conditions"), new.remove("conditions")) {
        patch.insert("conditions".into(), conditions);
    }
    for (key, value) in &new {
        if old.get(key) == Some(value) {
            continue;
        }
        patch.insert(
            key.clone(),
            match key.as_str() {
                "podIPs" | "hostIPs" => addresses(old.get(key), value),
                _ => value.clone(),
            },
        );
    }
    for key in ["reason", "message", "podIP", "podIPs", "initContainerStatuses"] {
        if old.contains_key(key) && !new.contains_key(key) {
            patch.insert(key.to_owned(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// These lists merge by address, so what is no longer in them must be named.
fn addresses(old: Option<&Value>, new: &Value) -> Value {
    let items = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let new = items(Some(new));
    let gone = items(old).into_iter().filter(|item| !new.contains(item));
    let gone: Vec<Value> = gone.filter_map(|item| Some(json!({"$patch": "delete", "ip": item.get("ip")?}))).collect();
    new.into_iter().chain(gone).collect()
}

fn changed_conditions(old: Option<Value>, new: Option<Value>) -> Option<Value> {
    let list = |value: Option<Value>| match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let (old, new) = (list(old), list(new));
    let kind = |c: &Value| c.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ours = |c: &&Value| OWN_CONDITIONS.contains(&kind(c).as_str());
    let changed: Vec<Value> = new
        .iter()
        .filter(ours)
        .filter_map(|condition| {
            let before = old.iter().find(|o| kind(o) == kind(condition));
            if before == Some(condition) {
                return None;
            }
            let mut condition = condition.as_object()?.clone();
            for key in ["reason", "message"] {
                if before.is_some_and(|b| b.get(key).is_some()) && !condition.contains_key(key) {
                    condition.insert(key.to_owned(), Value::Null);
                }
            }
            Some(Value::Object(condition))
        })
        .collect();
    (!changed.is_empty()).then_some(Value::Array(changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed() {
        let status = |v| serde_json::from_value::<PodStatus>(v).unwrap();
        let old = status(json!({"phase": "Pending", "podIPs": [{"ip": "1.1.1.1"}], "reason": "x",
            "conditions": [{"type": "Ready", "status": "False", "reason": "r"}, {"type": "gate", "status": "True"}]}));
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "1.1.1.2"}], "conditions": [{"type": "Ready", "status": "True"}]}));
        assert_eq!(patch(&old, &old), None);
        assert_eq!(
            patch(&old, &new).unwrap(),
            json!({"phase": "Running", "reason": null, "podIPs": [{"ip": "1.1.1.2"}, {"$patch": "delete", "ip": "1.1.1.1"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}]})
        );
    }
}
