//! Permissions, limits, autoscaling, certificates and the API's own extension points.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{AGE, NAME, human, int_or_unset, integer, or_none, string, wide};
use crate::Column;
use crate::value::{int, is_set, list, scalar, text};

pub use super::PLAIN as CREATED_AT;
pub use super::core::PRIORITY_CLASS;

pub const ROLE_BINDING: &[Column] = &[
    NAME,
    string("Role", |o, _| format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name")).into()),
    AGE,
    wide(string("Users", |o, _| subjects(o, "User").into())),
    wide(string("Groups", |o, _| subjects(o, "Group").into())),
    wide(string("ServiceAccounts", |o, _| subjects(o, "ServiceAccount").into())),
];

fn subjects(binding: &Value, kind: &str) -> String {
    let name = |subject: &Value| match (kind, text(subject, "/namespace")) {
        ("ServiceAccount", namespace) if !namespace.is_empty() => format!("{namespace}/{}", text(subject, "/name")),
        _ => text(subject, "/name").to_owned(),
    };
    list(binding, "/subjects").iter().filter(|s| s["kind"] == json!(kind)).map(name).collect::<Vec<_>>().join(", ")
}

pub const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    string("Min Available", |o, _| amount(o, "/spec/minAvailable").into()),
    string("Max Unavailable", |o, _| amount(o, "/spec/maxUnavailable").into()),
    integer("Allowed Disruptions", |o, _| int(o, "/status/disruptionsAllowed").into()),
    AGE,
];

fn amount(object: &Value, pointer: &str) -> Cow<'static, str> {
    match scalar(object.pointer(pointer)) {
        text if text.is_empty() => "N/A".into(),
        text => text.into_owned().into(),
    }
}

pub const SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    string("SignerName", |o, _| or_none(text(o, "/spec/signerName").to_owned()).into()),
    string("Requestor", |o, _| text(o, "/spec/username").into()),
    string("RequestedDuration", |o, _| match o.pointer("/spec/expirationSeconds").and_then(Value::as_i64) {
        Some(seconds) => human(seconds).into(),
        None => "<none>".into(),
    }),
    string("Condition", |o, _| signing_status(o).into()),
];

fn signing_status(request: &Value) -> String {
    let has = |kind: &str| list(request, "/status/conditions").iter().any(|c| c["type"] == json!(kind));
    let decision = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    };
    let failed = if has("Failed") { ",Failed" } else { "" };
    let issued = if is_set(request, "/status/certificate") { ",Issued" } else { "" };
    format!("{decision}{failed}{issued}")
}

pub const AUTOSCALER: &[Column] = &[
    NAME,
    string("Reference", |o, _| format!("{}/{}", text(o, "/spec/scaleTargetRef/kind"), text(o, "/spec/scaleTargetRef/name")).into()),
    string("Targets", |o, _| metrics(o).into()),
    string("MinPods", |o, _| int_or_unset(o, "/spec/minReplicas").into()),
    string("MaxPods", |o, _| int(o, "/spec/maxReplicas").into()),
    string("Replicas", |o, _| int(o, "/status/currentReplicas").into()),
    AGE,
];

fn metrics(autoscaler: &Value) -> String {
    let specs = list(autoscaler, "/spec/metrics");
    let statuses = list(autoscaler, "/status/currentMetrics");
    let mut shown: Vec<String> = specs.iter().enumerate().map(|(i, spec)| metric(spec, statuses.get(i).unwrap_or(&Value::Null))).collect();
    let total = shown.len();
    shown.truncate(2);
    match total {
        0 => "<none>".to_owned(),
        1 | 2 => shown.join(", "),
        _ => format!("{} + {} more...", shown.join(", "), total - 2),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let (source, utilization) = match text(spec, "/type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let (spec, current) = (&spec[source], &status[source]["current"]);
    let known = |field: &str| match scalar(current.get(field)) {
        text if text.is_empty() => "<unknown>".to_owned(),
        text => text.into_owned(),
    };
    let target = |field: &str| scalar(spec["target"].get(field)).into_owned();
    let average = is_set(spec, "/target/averageValue");
    if utilization {
        let name = text(spec, "/name");
        if average {
            return format!("{name}: {}/{}", known("averageValue"), target("averageValue"));
        }
        let percent =
            |text: String, none: &str| if text.is_empty() || text.starts_with('<') { none.to_owned() } else { format!("{text}%") };
        return format!(
            "{name}: {}/{}",
            percent(known("averageUtilization"), "<unknown>"),
            percent(target("averageUtilization"), "<auto>")
        );
    }
    match (source, average) {
        ("pods", _) => format!("{}/{}", known("averageValue"), target("averageValue")),
        (_, true) => format!("{}/{} (avg)", known("averageValue"), target("averageValue")),
        (_, false) => format!("{}/{}", known("value"), target("value")),
    }
}

pub const WEBHOOKS: &[Column] = &[
    NAME,
    Column {
        description: "Webhooks indicates the number of webhooks registered in this configuration",
        ..integer("Webhooks", |o, _| list(o, "/webhooks").len().into())
    },
    AGE,
];

pub const ADMISSION_POLICY: &[Column] = &[
    NAME,
    integer("Validations", |o, _| list(o, "/spec/validations").len().into()),
    string("ParamKind", |o, _| {
        if !is_set(o, "/spec/paramKind") {
            return "<unset>".into();
        }
        format!("{}/{}", text(o, "/spec/paramKind/apiVersion"), text(o, "/spec/paramKind/kind")).into()
    }),
    AGE,
];

pub const ADMISSION_BINDING: &[Column] = &[
    NAME,
    string("PolicyName", |o, _| text(o, "/spec/policyName").into()),
    string("ParamRef", |o, _| {
        if !is_set(o, "/spec/paramRef") {
            return "<unset>".into();
        }
        match (text(o, "/spec/paramRef/namespace"), text(o, "/spec/paramRef/name")) {
            ("", name) if !name.is_empty() => name.into(),
            (namespace, name) if !name.is_empty() => format!("{namespace}/{name}").into(),
            _ => super::label_selector(o, "/spec/paramRef/selector").into(),
        }
    }),
    AGE,
];

pub const API_SERVICE: &[Column] = &[
    NAME,
    string("Service", |o, _| {
        if !is_set(o, "/spec/service") {
            return "Local".into();
        }
        format!("{}/{}", text(o, "/spec/service/namespace"), text(o, "/spec/service/name")).into()
    }),
    string("Available", |o, _| {
        let Some(condition) = list(o, "/status/conditions").iter().find(|c| c["type"] == json!("Available")) else {
            return "Unknown".into();
        };
        match (text(condition, "/status"), text(condition, "/reason")) {
            ("True", _) => "True".into(),
            (status, reason) => format!("{status} ({reason})").into(),
        }
    }),
    AGE,
];

pub const FLOW_SCHEMA: &[Column] = &[
    NAME,
    string("PriorityLevel", |o, _| text(o, "/spec/priorityLevelConfiguration/name").into()),
    string("MatchingPrecedence", |o, _| int(o, "/spec/matchingPrecedence").into()),
    string("DistinguisherMethod", |o, _| or_none(text(o, "/spec/distinguisherMethod/type").to_owned()).into()),
    AGE,
    Column {
        description: "references a broken or non-existent PriorityLevelConfiguration",
        ..string("MissingPL", |o, _| match list(o, "/status/conditions").iter().find(|c| c["type"] == json!("Dangling")) {
            Some(condition) => text(condition, "/status").into(),
            None => "?".into(),
        })
    },
];

const LIMITED: &str = "/spec/limited/limitResponse/queuing";

pub const PRIORITY_LEVEL: &[Column] = &[
    NAME,
    string("Type", |o, _| text(o, "/spec/type").into()),
    string("NominalConcurrencyShares", |o, _| limited(o, "/spec/limited/nominalConcurrencyShares")),
    string("Queues", |o, _| limited(o, &format!("{LIMITED}/queues"))),
    string("HandSize", |o, _| limited(o, &format!("{LIMITED}/handSize"))),
    string("QueueLengthLimit", |o, _| limited(o, &format!("{LIMITED}/queueLengthLimit"))),
    AGE,
];

fn limited(object: &Value, pointer: &str) -> Value {
    or_none(scalar(object.pointer(pointer)).into_owned()).into()
}
