//! Jobs and CronJobs.
//!
//! Upstream: `pkg/apis/batch/validation/validation.go`, `pkg/registry/batch/job/strategy.go` (v1.33).

use std::collections::BTreeMap;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::batch::v1::{CronJob as BatchCronJob, Job as BatchJob, JobSpec};
use serde_json::{Map, Value, json};

use crate::meta::validate_object_meta_update;
use crate::strategy::prepare_for_create;
use crate::validation::field::{immutable, json as to_json, label_selector, non_negative_opt, one_of, parsed_selector, with, with_both};
use crate::validation::pod;
use crate::value::{child, flag, set, text};
use crate::{Kind, Strategy};

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

pub struct Job;

impl Strategy for Job {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        if !flag(object, "/spec/manualSelector") {
            generate_selector(object);
        }
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |job: &BatchJob| {
            let Some(spec) = &job.spec else { return Vec::new() };
            let path = Path::new("spec");
            let mut errors = generated_selector(object, spec);
            errors.extend(selected_job(&path, spec));
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(with_both(new, old, |new: &BatchJob, old: &BatchJob| {
            let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return Vec::new() };
            let mut errors = selected_job(&Path::new("spec"), new);
            errors.extend(job_update(&Path::new("spec"), new, old));
            errors
        }));
        errors
    }
}

/// Jobs find their pods by the job's own uid, so that no two can quarrel. The uid is set before.
fn generate_selector(object: &mut Value) {
    let uid = text(object, "/metadata/uid").to_owned();
    let name = text(object, "/metadata/name").to_owned();
    // The job's own labels, where they are the template's, stay so.
    let own = object["metadata"]["labels"].clone();
    let shared = own.as_object().is_none_or(Map::is_empty) || own == object["spec"]["template"]["metadata"]["labels"];
    let template = child(child(object, "spec"), "template");
    let labels = child(child(template, "metadata"), "labels");
    for (label, value) in generated_labels(&uid, &name) {
        if labels.get(label).is_none() {
            set(labels, label, json!(value));
        }
    }
    if shared {
        let labels = labels.clone();
        set(child(object, "metadata"), "labels", labels);
    }
    let selector = child(child(child(object, "spec"), "selector"), "matchLabels");
    if selector.get(CONTROLLER_UID).is_none() {
        set(selector, CONTROLLER_UID, json!(uid));
    }
}

/// A selector we made finds the pods by the labels we gave them.
fn generated_selector(object: &Value, spec: &JobSpec) -> ErrorList {
    let Some(selector) = spec.selector.as_ref().filter(|_| spec.manual_selector != Some(true)) else { return Vec::new() };
    let (uid, name) = (text(object, "/metadata/uid"), text(object, "/metadata/name"));
    let expected: BTreeMap<String, String> = generated_labels(uid, name).into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let given = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    let mut errors = Vec::new();
    for (label, value) in &expected {
        match given.get(label) {
            None => errors.push(Error::required(&path.key(label), format!("must be '{value}'"))),
            Some(found) if found != value => {
                errors.push(Error::invalid(&path.key(label), to_json(&given), format!("must be '{value}'")));
            }
            Some(_) => {}
        }
    }
    if parsed_selector(Some(selector)).is_some_and(|selector| !selector.matches(&expected)) {
        errors.push(Error::invalid(&Path::new("spec").child("selector"), to_json(selector), "`selector` not auto-generated"));
    }
    errors
}

fn generated_labels<'a>(uid: &'a str, name: &'a str) -> [(&'static str, &'a str); 4] {
    [("batch.kubernetes.io/controller-uid", uid), ("batch.kubernetes.io/job-name", name), ("controller-uid", uid), ("job-name", name)]
}

/// The spec, and that the selector selects the template's pods.
fn selected_job(path: &Path, spec: &JobSpec) -> ErrorList {
    let mut errors = job_spec(path, spec);
    match &spec.selector {
        None => errors.push(Error::required(&path.child("selector"), "")),
        Some(selector) => errors.extend(label_selector(&path.child("selector"), Some(selector))),
    }
    let given = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    if parsed_selector(spec.selector.as_ref()).is_some_and(|s| !s.matches(given.as_ref().unwrap_or(&BTreeMap::new()))) {
        let path = path.child("template").child("metadata").child("labels");
        errors.push(Error::invalid(&path, to_json(&given), "`selector` does not match template `labels`"));
    }
    errors
}

fn job_spec(path: &Path, spec: &JobSpec) -> ErrorList {
    let mut errors = non_negative_opt(&path.child("parallelism"), spec.parallelism);
    errors.extend(non_negative_opt(&path.child("completions"), spec.completions));
    errors.extend(non_negative_opt(&path.child("activeDeadlineSeconds"), spec.active_deadline_seconds));
    errors.extend(non_negative_opt(&path.child("backoffLimit"), spec.backoff_limit));
    errors.extend(non_negative_opt(&path.child("ttlSecondsAfterFinished"), spec.ttl_seconds_after_finished));
    errors.extend(non_negative_opt(&path.child("backoffLimitPerIndex"), spec.backoff_limit_per_index));
    errors.extend(non_negative_opt(&path.child("maxFailedIndexes"), spec.max_failed_indexes));
    match spec.completion_mode.as_deref() {
        Some("Indexed") if spec.completions.is_none() => {
            errors.push(Error::required(&path.child("completions"), "when completion mode is Indexed"));
        }
        Some("Indexed" | "NonIndexed") | None => {}
        Some(other) => errors.push(Error::not_supported(&path.child("completionMode"), other, &["Indexed", "NonIndexed"])),
    }
    errors.extend(pod::template(&path.child("template"), &spec.template));
    let policy_path = path.child("template").child("spec").child("restartPolicy");
    match spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("OnFailure" | "Never") => {}
        Some("Always" | "") | None => {
            errors.push(Error::required(&policy_path, r#"valid values: "OnFailure", "Never""#));
        }
        Some(other) => errors.push(Error::not_supported(&policy_path, other, &["OnFailure", "Never"])),
    }
    errors
}

/// A suspended job that never started may still change where its pods run.
fn job_update(path: &Path, new: &JobSpec, old: &JobSpec) -> ErrorList {
    let mut errors = Vec::new();
    let indexed = old.completion_mode.as_deref() == Some("Indexed");
    if new.completions != old.completions {
        if !indexed {
            errors.extend(immutable(&path.child("completions"), &new.completions, &old.completions));
        } else if new.completions != new.parallelism {
            let detail = "can only be modified in tandem with spec.parallelism";
            errors.push(Error::invalid(&path.child("completions"), to_json(&new.completions), detail));
        }
    }
    errors.extend(immutable(&path.child("selector"), &new.selector, &old.selector));
    let mut template = new.template.clone();
    if old.suspend == Some(true)
        && let (Some(now), Some(was)) = (&mut template.spec, &old.template.spec)
    {
        now.node_selector.clone_from(&was.node_selector);
        now.affinity.clone_from(&was.affinity);
        now.tolerations.clone_from(&was.tolerations);
        now.scheduling_gates.clone_from(&was.scheduling_gates);
        template.metadata.clone_from(&old.template.metadata);
    }
    if template != old.template {
        errors.push(Error::invalid(&path.child("template"), to_json(&new.template), crate::meta::IMMUTABLE));
    }
    errors.extend(immutable(&path.child("completionMode"), &new.completion_mode, &old.completion_mode));
    errors.extend(immutable(&path.child("podFailurePolicy"), &new.pod_failure_policy, &old.pod_failure_policy));
    errors.extend(immutable(&path.child("backoffLimitPerIndex"), &new.backoff_limit_per_index, &old.backoff_limit_per_index));
    errors
}

pub struct CronJob;

impl Strategy for CronJob {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = cron_job_spec(object);
        let name = text(object, "/metadata/name");
        if name.len() > 52 {
            let path = Path::new("metadata").child("name");
            errors.push(Error::invalid(&path, name, "must be no more than 52 characters"));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(cron_job_spec(new));
        errors
    }
}

fn cron_job_spec(object: &Value) -> ErrorList {
    with(object, |job: &BatchCronJob| {
        let path = Path::new("spec");
        let Some(spec) = &job.spec else { return Vec::new() };
        let mut errors = Vec::new();
        if spec.schedule.is_empty() {
            errors.push(Error::required(&path.child("schedule"), ""));
        } else if let Err(message) = schedule(&spec.schedule) {
            errors.push(Error::invalid(&path.child("schedule"), spec.schedule.as_str(), message));
        } else if spec.schedule.contains("TZ") {
            let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(Error::invalid(&path.child("schedule"), spec.schedule.as_str(), detail));
        }
        errors.extend(non_negative_opt(&path.child("startingDeadlineSeconds"), spec.starting_deadline_seconds));
        let policy = spec.concurrency_policy.as_deref();
        errors.extend(one_of(&path.child("concurrencyPolicy"), policy, &["Allow", "Forbid", "Replace"]));
        if spec.time_zone.as_deref() == Some("") {
            errors.push(Error::invalid(&path.child("timeZone"), "", "timeZone must be nil or non-empty string"));
        }
        if let Some(template) = &spec.job_template.spec {
            let path = path.child("jobTemplate").child("spec");
            errors.extend(job_spec(&path, template));
            if let Some(selector) = &template.selector {
                errors.push(Error::invalid(&path.child("selector"), to_json(selector), "`selector` will be auto-generated"));
            }
            if template.manual_selector == Some(true) {
                errors.push(Error::not_supported(&path.child("manualSelector"), true, &["nil", "false"]));
            }
        }
        errors.extend(non_negative_opt(&path.child("successfulJobsHistoryLimit"), spec.successful_jobs_history_limit));
        errors.extend(non_negative_opt(&path.child("failedJobsHistoryLimit"), spec.failed_jobs_history_limit));
        errors
    })
}

const FIELDS: [(i64, i64, &[&str]); 5] = [
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// A standard five-field schedule or a descriptor, with robfig/cron's words for what is wrong.
fn schedule(text: &str) -> Result<(), String> {
    let text = match text.split_once(' ') {
        Some((zone, rest)) if zone.starts_with("TZ=") || zone.starts_with("CRON_TZ=") => rest.trim(),
        _ => text,
    };
    if let Some(descriptor) = text.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let every = descriptor.strip_prefix("every ").is_some_and(|period| !period.is_empty());
        return if known.contains(&descriptor) || every { Ok(()) } else { Err(format!("unrecognized descriptor: {text}")) };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    fields
        .iter()
        .zip(FIELDS)
        .try_for_each(|(field, (low, high, names))| field.split(',').try_for_each(|part| schedule_range(part, low, high, names)))
}

fn schedule_range(part: &str, low: i64, high: i64, names: &[&str]) -> Result<(), String> {
    let number = |text: &str| -> Result<i64, String> {
        if let Some(index) = names.iter().position(|name| text.eq_ignore_ascii_case(name)) {
            return Ok(low + index as i64);
        }
        text.parse().map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
    };
    let (range, step) = part.split_once('/').map_or((part, "1"), |(range, step)| (range, step));
    let (start, end) = match range.split_once('-') {
        _ if range == "*" || range == "?" => (low, high),
        Some((start, end)) => (number(start)?, number(end)?),
        None => (number(range)?, if step == "1" { number(range)? } else { high }),
    };
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {part}"));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if number(step)? == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["*/5 * * * *", "0 0 1 jan mon-fri", "@daily", "@every 1h", "1,2-5 * * * ?"] {
            assert_eq!(schedule(good), Ok(()), "{good}");
        }
        assert_eq!(schedule("* *"), Err("expected exactly 5 fields, found 2: [* *]".to_owned()));
        assert_eq!(schedule("61 * * * *"), Err("end of range (61) above maximum (59): 61".to_owned()));
    }

    #[test]
    fn a_job_selects_by_its_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {}}});
        generate_selector(&mut job);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {CONTROLLER_UID: "u"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], json!("j"));
    }
}
