//! Controllers of pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, boolean, human, integer, join, label_selector, labels, or_none, seconds, since, string, wide};
use crate::Column;
use crate::value::{flag, int, is_set, list, text};

const CONTAINERS: Column = Column {
    description: "Names of each container in the template.",
    ..wide(string("Containers", |o, _| join(o, "/spec/template/spec/containers", "/name").into()))
};
const IMAGES: Column = Column {
    description: "Images referenced by each container in the template.",
    ..wide(string("Images", |o, _| join(o, "/spec/template/spec/containers", "/image").into()))
};
const SELECTOR: Column = wide(string("Selector", |o, _| label_selector(o, "/spec/selector").into()));

pub const POD_TEMPLATE: &[Column] = &[
    NAME,
    string("Containers", |o, _| join(o, "/template/spec/containers", "/name").into()),
    string("Images", |o, _| join(o, "/template/spec/containers", "/image").into()),
    Column {
        description: "The labels for the pod template.",
        ..string("Pod Labels", |o, _| labels(o, "/template/metadata/labels").into())
    },
];

const DESIRED: Column = integer("Desired", |o, _| int(o, "/spec/replicas").into());
const CURRENT: Column = integer("Current", |o, _| int(o, "/status/replicas").into());
const READY: Column = integer("Ready", |o, _| int(o, "/status/readyReplicas").into());

pub const REPLICA_SET: &[Column] = &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR];

pub const REPLICATION_CONTROLLER: &[Column] =
    &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, wide(string("Selector", |o, _| labels(o, "/spec/selector").into()))];

pub const CONTROLLER_REVISION: &[Column] = &[
    NAME,
    Column { description: "Controller of the object", ..string("Controller", |o, _| controller(o).into()) },
    string("Revision", |o, _| int(o, "/revision").into()),
    AGE,
];

/// `statefulset.apps/web`.
fn controller(object: &Value) -> String {
    let Some(owner) = list(object, "/metadata/ownerReferences").iter().find(|owner| flag(owner, "/controller")) else {
        return "<none>".to_owned();
    };
    let (group, _) = api::key::parse_api_version(text(owner, "/apiVersion"));
    let kind = text(owner, "/kind").to_lowercase();
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group}/{}", text(owner, "/name"))
}

pub const DAEMON_SET: &[Column] = &[
    NAME,
    integer("Desired", |o, _| int(o, "/status/desiredNumberScheduled").into()),
    integer("Current", |o, _| int(o, "/status/currentNumberScheduled").into()),
    integer("Ready", |o, _| int(o, "/status/numberReady").into()),
    integer("Up-to-date", |o, _| int(o, "/status/updatedNumberScheduled").into()),
    integer("Available", |o, _| int(o, "/status/numberAvailable").into()),
    string("Node Selector", |o, _| labels(o, "/spec/template/spec/nodeSelector").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const READY_OF_WANTED: Column = Column {
    description: "Number of the pod with ready state",
    ..string("Ready", |o, _| format!("{}/{}", int(o, "/status/readyReplicas"), int(o, "/spec/replicas")).into())
};

pub const DEPLOYMENT: &[Column] = &[
    NAME,
    READY_OF_WANTED,
    string("Up-to-date", |o, _| int(o, "/status/updatedReplicas").into()),
    string("Available", |o, _| int(o, "/status/availableReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const STATEFUL_SET: &[Column] = &[NAME, READY_OF_WANTED, AGE, CONTAINERS, IMAGES];

pub const CRON_JOB: &[Column] = &[
    NAME,
    string("Schedule", |o, _| text(o, "/spec/schedule").into()),
    string("Timezone", |o, _| or_none(text(o, "/spec/timeZone").to_owned()).into()),
    boolean("Suspend", |o, _| match o.pointer("/spec/suspend").and_then(Value::as_bool) {
        Some(true) => "True".into(),
        Some(false) => "False".into(),
        None => "<unset>".into(),
    }),
    integer("Active", |o, _| list(o, "/status/active").len().into()),
    string("Last Schedule", |o, now| {
        if is_set(o, "/status/lastScheduleTime") { since(o, "/status/lastScheduleTime", now).into() } else { "<none>".into() }
    }),
    AGE,
    wide(string("Containers", |o, _| join(o, "/spec/jobTemplate/spec/template/spec/containers", "/name").into())),
    wide(string("Images", |o, _| join(o, "/spec/jobTemplate/spec/template/spec/containers", "/image").into())),
    wide(string("Selector", |o, _| label_selector(o, "/spec/jobTemplate/spec/selector").into())),
];

pub const JOB: &[Column] = &[
    NAME,
    Column { description: "Status of the job.", ..string("Status", |o, _| job_status(o).into()) },
    string("Completions", |o, _| completions(o).into()),
    Column { description: "Time required to complete the job.", ..string("Duration", |o, now| job_duration(o, now).into()) },
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| list(job, "/status/conditions").iter().any(|c| c["type"] == json!(kind) && c["status"] == json!("True"));
    if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if is_set(job, "/metadata/deletionTimestamp") {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let succeeded = int(job, "/status/succeeded");
    match (job.pointer("/spec/completions").and_then(Value::as_i64), int(job, "/spec/parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let Ok(start) = text(job, "/status/startTime").parse::<Timestamp>() else { return String::new() };
    let end = text(job, "/status/completionTime").parse().unwrap_or(now);
    human(seconds(start, end))
}
