//! apps, batch, autoscaling, and the ReplicationController.

use serde_json::{Map, Value, json};

use super::{at, each, flag, given, is_absent, is_empty, number, pod, set, storage, text, text_of};

pub fn deployment(deployment: &mut Value) {
    let spec = at(deployment, "spec");
    number(spec, "replicas", 1);
    number(spec, "revisionHistoryLimit", 10);
    number(spec, "progressDeadlineSeconds", 600);
    let strategy = at(spec, "strategy");
    text(strategy, "type", "RollingUpdate");
    if text_of(strategy, "type") == "RollingUpdate" {
        let rolling = at(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", "25%");
        set(rolling, "maxSurge", "25%");
    }
    pod::template(at(spec, "template"));
}

pub fn replica_set(set: &mut Value) {
    let spec = at(set, "spec");
    number(spec, "replicas", 1);
    pod::template(at(spec, "template"));
}

pub fn replication_controller(controller: &mut Value) {
    pod::labels_from_template(controller);
    let labels = controller.pointer("/spec/template/metadata/labels").filter(|l| l.is_object()).cloned();
    let spec = at(controller, "spec");
    if let Some(labels) = labels
        && is_empty(spec, "selector")
        && let Some(map) = spec.as_object_mut()
    {
        map.insert("selector".to_owned(), labels);
    }
    number(spec, "replicas", 1);
    if !is_absent(spec, "template") {
        pod::template(at(spec, "template"));
    }
}

pub fn stateful_set(set_: &mut Value) {
    let spec = at(set_, "spec");
    number(spec, "replicas", 1);
    number(spec, "revisionHistoryLimit", 10);
    text(spec, "podManagementPolicy", "OrderedReady");
    let strategy = at(spec, "updateStrategy");
    if is_empty(strategy, "type") {
        text(strategy, "type", "RollingUpdate");
        at(strategy, "rollingUpdate");
    }
    if text_of(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = given(strategy, "rollingUpdate")
    {
        number(rolling, "partition", 0);
    }
    let retention = at(spec, "persistentVolumeClaimRetentionPolicy");
    text(retention, "whenDeleted", "Retain");
    text(retention, "whenScaled", "Retain");
    pod::template(at(spec, "template"));
    each(spec, "volumeClaimTemplates").for_each(|claim| {
        text(claim, "apiVersion", "v1");
        text(claim, "kind", "PersistentVolumeClaim");
        storage::claim(claim);
    });
}

pub fn daemon_set(set_: &mut Value) {
    let spec = at(set_, "spec");
    number(spec, "revisionHistoryLimit", 10);
    let strategy = at(spec, "updateStrategy");
    text(strategy, "type", "RollingUpdate");
    if text_of(strategy, "type") == "RollingUpdate" {
        let rolling = at(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", 1);
        set(rolling, "maxSurge", 0);
    }
    pod::template(at(spec, "template"));
}

pub fn job(job: &mut Value) {
    pod::labels_from_template(job);
    let spec = at(job, "spec");
    if is_absent(spec, "completions") && is_absent(spec, "parallelism") {
        number(spec, "completions", 1);
    }
    number(spec, "parallelism", 1);
    // With a limit per index the overall one no longer matters.
    let limit = if is_absent(spec, "backoffLimitPerIndex") { 6 } else { i64::from(i32::MAX) };
    number(spec, "backoffLimit", limit);
    text(spec, "completionMode", "NonIndexed");
    flag(spec, "suspend", false);
    let replacement = if is_absent(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    text(spec, "podReplacementPolicy", replacement);
    flag(spec, "manualSelector", false);
    job_spec(spec);
}

/// What a CronJob's job template is defaulted with, too.
fn job_spec(spec: &mut Value) {
    if let Some(policy) = given(spec, "podFailurePolicy") {
        for rule in each(policy, "rules") {
            each(rule, "onPodConditions").for_each(|pattern| text(pattern, "status", "True"));
        }
    }
    pod::template(at(spec, "template"));
}

pub fn cron_job(cron_job: &mut Value) {
    let spec = at(cron_job, "spec");
    text(spec, "concurrencyPolicy", "Allow");
    flag(spec, "suspend", false);
    number(spec, "successfulJobsHistoryLimit", 3);
    number(spec, "failedJobsHistoryLimit", 1);
    job_spec(at(at(spec, "jobTemplate"), "spec"));
}

/// Scaling rules where a behavior leaves them out: direction, stabilization, policies.
fn scaling_rules(direction: &str) -> Value {
    match direction {
        "scaleUp" => json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
            "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]}),
        _ => json!({"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}),
    }
}

pub fn autoscaler(autoscaler: &mut Value) {
    let spec = at(autoscaler, "spec");
    number(spec, "minReplicas", 1);
    if is_empty(spec, "metrics")
        && let Some(map) = spec.as_object_mut()
    {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        map.insert("metrics".to_owned(), cpu);
    }
    let Some(behavior) = given(spec, "behavior") else { return };
    for direction in ["scaleUp", "scaleDown"] {
        let rules = at(behavior, direction);
        for (field, default) in scaling_rules(direction).as_object().unwrap_or(&Map::new()) {
            set(rules, field, default.clone());
        }
    }
}
