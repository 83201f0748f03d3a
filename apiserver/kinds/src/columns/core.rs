//! The core group's small kinds, leases and runtime classes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, PLAIN, integer, or, or_none, since, string, wide};
use crate::Column;
use crate::value::{flag, int, is_set, list, map, text};

pub const COMPONENT_STATUS: &[Column] = &[
    NAME,
    string("Status", |object, _| match text(healthy(object), "/status") {
        "True" => "Healthy".into(),
        "" => "Unknown".into(),
        _ => "Unhealthy".into(),
    }),
    string("Message", |object, _| text(healthy(object), "/message").into()),
    string("Error", |object, _| text(healthy(object), "/error").into()),
];

fn healthy(object: &Value) -> &Value {
    list(object, "/conditions").iter().find(|c| c["type"] == json!("Healthy")).unwrap_or(&Value::Null)
}

pub const CONFIG_MAP: &[Column] = &[NAME, string("Data", |object, _| (size(object, "/data") + size(object, "/binaryData")).into()), AGE];

pub const SECRET: &[Column] =
    &[NAME, string("Type", |object, _| text(object, "/type").into()), string("Data", |object, _| size(object, "/data").into()), AGE];

fn size(object: &Value, pointer: &str) -> usize {
    map(object, pointer).map_or(0, |entries| entries.len())
}

pub const SERVICE_ACCOUNT: &[Column] = &[NAME, string("Secrets", |object, _| list(object, "/secrets").len().into()), AGE];

pub const NAMESPACE: &[Column] = &[NAME, string("Status", |object, _| text(object, "/status/phase").into()), AGE];

pub const LIMIT_RANGE: &[Column] = PLAIN;

pub const LEASE: &[Column] = &[NAME, string("Holder", |object, _| text(object, "/spec/holderIdentity").into()), AGE];

pub const RUNTIME_CLASS: &[Column] = &[NAME, string("Handler", |object, _| text(object, "/handler").into()), AGE];

pub const RESOURCE_QUOTA: &[Column] =
    &[NAME, AGE, string("Request", |object, _| quota(object, false).into()), string("Limit", |object, _| quota(object, true).into())];

/// `cpu: 1/2, memory: 1Gi/4Gi` of the limits, or of everything else.
fn quota(object: &Value, limits: bool) -> String {
    map(object, "/status/hard")
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let used = object["status"]["used"][name].as_str().unwrap_or("0");
            format!("{name}: {used}/{}", hard.as_str().unwrap_or("0"))
        })
        .collect::<Vec<_>>()
        .join(", ")
}

pub const NODE: &[Column] = &[
    NAME,
    Column { description: "The status of the node", ..string("Status", |node, _| node_status(node).into()) },
    Column { description: "The roles of the node", ..string("Roles", |node, _| node_roles(node).into()) },
    AGE,
    string("Version", |node, _| text(node, "/status/nodeInfo/kubeletVersion").into()),
    wide(string("Internal-IP", |node, _| or_none(address(node, "InternalIP").to_owned()).into())),
    wide(string("External-IP", |node, _| or_none(address(node, "ExternalIP").to_owned()).into())),
    wide(string("OS-Image", |node, _| node_info(node, "osImage"))),
    wide(string("Kernel-Version", |node, _| node_info(node, "kernelVersion"))),
    wide(string("Container-Runtime", |node, _| node_info(node, "containerRuntimeVersion"))),
];

fn node_status(node: &Value) -> String {
    let ready = list(node, "/status/conditions").iter().find(|c| c["type"] == json!("Ready"));
    let mut status = match ready.map(|condition| text(condition, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(node, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(node: &Value) -> String {
    let mut roles: Vec<&str> = map(node, "/metadata/labels")
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| match name.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if name == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or_none(roles.join(","))
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    list(node, "/status/addresses").iter().find(|a| a["type"] == json!(kind)).map_or("", |a| text(a, "/address"))
}

fn node_info(node: &Value, field: &str) -> Value {
    or(text(&node["status"]["nodeInfo"], &format!("/{field}")).to_owned(), "<unknown>").into()
}

pub const EVENT: &[Column] = &[
    string("Last Seen", |event, now| last_seen(event, now).into()),
    string("Type", |event, _| text(event, "/type").into()),
    string("Reason", |event, _| text(event, "/reason").into()),
    string("Object", |event, _| {
        let kind = text(event, "/involvedObject/kind").to_lowercase();
        let name = text(event, "/involvedObject/name");
        if name.is_empty() { kind.into() } else { format!("{kind}/{name}").into() }
    }),
    wide(string("Subobject", |event, _| text(event, "/involvedObject/fieldPath").into())),
    wide(string("Source", |event, _| source(event).into())),
    string("Message", |event, _| text(event, "/message").trim().into()),
    wide(string("First Seen", |event, now| first_seen(event, now).into())),
    wide(string("Count", |event, _| count(event).into())),
    wide(NAME),
];

fn first_seen(event: &Value, now: Timestamp) -> String {
    let pointer = if is_set(event, "/firstTimestamp") { "/firstTimestamp" } else { "/eventTime" };
    since(event, pointer, now)
}

fn last_seen(event: &Value, now: Timestamp) -> String {
    if is_set(event, "/series") {
        since(event, "/series/lastObservedTime", now)
    } else if is_set(event, "/lastTimestamp") {
        since(event, "/lastTimestamp", now)
    } else {
        first_seen(event, now)
    }
}

/// A series counts its first event, too; a lone new-style event has no count.
fn count(event: &Value) -> i64 {
    if is_set(event, "/series") { int(event, "/series/count") } else { int(event, "/count").max(1) }
}

fn source(event: &Value) -> String {
    let first = |a: &'static str, b: &'static str| match text(event, a) {
        "" => text(event, b),
        value => value,
    };
    match (first("/source/component", "/reportingComponent"), first("/source/host", "/reportingInstance")) {
        (component, "") => component.to_owned(),
        (component, host) => format!("{component}, {host}"),
    }
}

pub const PRIORITY_CLASS: &[Column] = &[
    NAME,
    integer("Value", |object, _| int(object, "/value").into()),
    super::boolean("Global-Default", |object, _| flag(object, "/globalDefault").into()),
    AGE,
    string("PreemptionPolicy", |object, _| text(object, "/preemptionPolicy").into()),
];
