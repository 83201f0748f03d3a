//! What admission is told of a connection to a pod, a service or a node.
//!
//! Upstream counterpart: `endpoints/handlers/rest.go` (`ConnectResource`, v1.33).

use api::Status;
use serde_json::{Value, json};

use super::{App, Call};
use crate::registry::Target;

/// Errors: the refusal of a plugin or webhook.
pub async fn admit(app: &App, call: &Call, target: &Target) -> Result<(), Status> {
    match options_kind(target) {
        Some(kind) => app.registry.admit_connect(&call.caller, target, kind, connect_options(call, kind)).await,
        None => Ok(()),
    }
}

/// What a connection's options are called; reading a log is no connection.
fn options_kind(target: &Target) -> Option<&'static str> {
    Some(match (target.kind.plural, target.subresource.as_str()) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return None,
    })
}

/// The query as admission sees it.
fn connect_options(call: &Call, kind: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    for flag in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|flag| call.query.flag(flag)) {
        options[flag] = json!(true);
    }
    let text = [("container", call.query.get("container").to_owned()), ("path", call.info.rest.join("/"))];
    for (field, value) in text.into_iter().filter(|(_, value)| !value.is_empty()) {
        options[field] = json!(value);
    }
    let ports: Vec<u16> = call.query.all("ports").filter_map(|port| port.parse().ok()).collect();
    let command: Vec<&str> = call.query.all("command").collect();
    if !ports.is_empty() {
        options["ports"] = json!(ports);
    }
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    options
}
