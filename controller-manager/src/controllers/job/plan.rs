//! The decision: what a Job's pods mean for its status, and which pods to make or delete.
//!
//! Finished pods are counted exactly once: a pod carries a finalizer; its UID is first written into
//! `uncountedTerminatedPods`, then the finalizer is taken off, and when that is seen the UID becomes a number.
//! Upstream: `pkg/controller/job/job_controller.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::failure::{self, Failures, Verdict};
use super::indexes::{self, Indexes};
use super::success;
use crate::shared::conditions::{self, Condition};
use crate::shared::meta::{self, has_finalizer, time};
use crate::shared::pods;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Most pods created or deleted in one sync.
const BURST: usize = 500;

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub status: JobStatus,
    /// Pods whose end is recorded in the stored status: their finalizer may go.
    pub strip: Vec<Arc<Pod>>,
    /// Pods to make; the index for an Indexed Job.
    pub create: Vec<Option<i32>>,
    /// Of the indexes to make pods for, where each has a back-off limit of its own.
    pub failures: BTreeMap<i32, Failures>,
    pub delete: Vec<Arc<Pod>>,
    /// (is it a warning, reason, text)
    pub events: Vec<(bool, String, String)>,
    pub again: Option<Timestamp>,
}

struct Counted {
    active: Vec<Arc<Pod>>,
    succeeded: i32,
    failed: i32,
    terminating: i32,
    completed: Indexes,
    failed_indexes: Indexes,
    fail_job: Option<String>,
}

pub fn is_finished(job: &Job) -> bool {
    let conditions = job.status.as_ref().map(|status| &status.conditions);
    conditions.is_some_and(|list| conditions::is_true(list, "Complete") || conditions::is_true(list, "Failed"))
}

/// `settled`: the informer has shown what we did before; only then pods are made or deleted.
pub fn plan(job: &Job, pods: &[Arc<Pod>], settled: bool, now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else { return Plan::default() };
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    if is_finished(job) {
        plan.strip = pods.iter().filter(|pod| tracked(pod)).cloned().collect();
        return plan;
    }
    let counted = count(job, spec, pods, &mut plan);
    suspend_or_resume(spec, &mut plan, now);
    let suspended = spec.suspend == Some(true);
    if plan.status.start_time.is_none() && !suspended {
        plan.status.start_time = Some(time(now));
    }
    let verdict = judge(spec, &plan.status, &counted, now);
    match &verdict {
        Some(verdict) => {
            plan.delete.clone_from(&counted.active);
            finish(&mut plan, verdict, &counted, pods, now);
        }
        None if meta::is_deleting(job) => {}
        None if suspended => plan.delete.clone_from(&counted.active),
        None => manage(job, spec, &counted, pods, &mut plan, now),
    }
    if !settled {
        plan.create.clear();
        plan.delete.clear();
    }
    let count = |n: usize| i32::try_from(n).ok().filter(|n| *n > 0);
    plan.status.active = count(counted.active.len().saturating_sub(plan.delete.len()));
    plan.status.ready = Some(count(counted.active.iter().filter(|pod| pods::is_ready(pod)).count()).unwrap_or(0));
    plan.status.terminating = Some(counted.terminating);
    if let (None, Some(deadline)) = (verdict, deadline(spec, &plan.status)) {
        plan.again = plan.again.into_iter().chain([deadline]).min();
    }
    plan
}

fn tracked(pod: &Pod) -> bool {
    has_finalizer(&pod.metadata, FINALIZER)
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn only_replaces_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Takes the pods into account: new ends into `uncounted`, recorded and stripped ones into the totals.
fn count(job: &Job, spec: &JobSpec, pods: &[Arc<Pod>], plan: &mut Plan) -> Counted {
    let by_uid: BTreeMap<&str, &Arc<Pod>> = pods.iter().map(|pod| (meta::uid(&**pod), pod)).collect();
    let is_open = |uid: &String| by_uid.get(uid.as_str()).is_some_and(|pod| tracked(pod));
    let uncounted = plan.status.uncounted_terminated_pods.take().unwrap_or_default();
    let (mut succeeded, mut failed) = (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
    plan.strip = succeeded.iter().chain(&failed).filter(|uid| is_open(uid)).map(|uid| by_uid[uid.as_str()].clone()).collect();
    let settle = |list: &mut Vec<String>, total: &mut Option<i32>| {
        let before = list.len();
        list.retain(is_open);
        let settled = i32::try_from(before - list.len()).unwrap_or(0);
        *total = Some(total.unwrap_or(0) + settled).filter(|n| *n > 0);
    };
    settle(&mut succeeded, &mut plan.status.succeeded);
    settle(&mut failed, &mut plan.status.failed);
    let completions = spec.completions.unwrap_or(0);
    let mut completed = indexes::parse(plan.status.completed_indexes.as_deref().unwrap_or_default(), completions);
    let mut fail_job = None;
    for pod in pods.iter().filter(|pod| tracked(pod)) {
        let uid = meta::uid(&**pod).to_owned();
        if succeeded.contains(&uid) || failed.contains(&uid) {
            continue;
        }
        if pods::phase(pod) == "Succeeded" {
            completed.extend(indexes::of(pod).filter(|index| *index < completions));
            succeeded.push(uid);
        } else if has_failed(spec, pod) {
            match failure::verdict(job, pod) {
                // Not counted, so its finalizer need not wait for the status.
                Verdict::Ignore => plan.strip.push(pod.clone()),
                verdict => {
                    failed.push(uid);
                    if let Verdict::FailJob(text) = verdict {
                        fail_job.get_or_insert(text);
                    }
                }
            }
        }
    }
    let total = |settled: Option<i32>, open: &Vec<String>| settled.unwrap_or(0) + i32::try_from(open.len()).unwrap_or(0);
    let sum = (total(plan.status.succeeded, &succeeded), total(plan.status.failed, &failed));
    if is_indexed(spec) {
        plan.status.completed_indexes = Some(indexes::format(&completed)).filter(|text| !text.is_empty());
    }
    let mut failed_indexes = indexes::parse(plan.status.failed_indexes.as_deref().unwrap_or_default(), completions);
    if let Some(limit) = spec.backoff_limit_per_index {
        let failing = pods.iter().filter(|pod| has_failed(spec, pod) && failure::fails_index(job, pod, limit));
        failed_indexes.extend(failing.filter_map(|pod| indexes::of(pod)).filter(|index| *index < completions));
        plan.status.failed_indexes = Some(indexes::format(&failed_indexes));
    }
    let open = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
    plan.status.uncounted_terminated_pods = Some(UncountedTerminatedPods { succeeded: open(succeeded), failed: open(failed) });
    let terminating = pods.iter().filter(|pod| meta::is_deleting(&***pod) && !pods::is_finished(pod)).count();
    Counted {
        active: pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect(),
        succeeded: if is_indexed(spec) { i32::try_from(completed.len()).unwrap_or(0) } else { sum.0 },
        failed: sum.1,
        terminating: i32::try_from(terminating).unwrap_or(i32::MAX),
        completed,
        failed_indexes,
        fail_job,
    }
}

fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    pods::phase(pod) == "Failed" || (meta::is_deleting(pod) && !only_replaces_failed(spec) && pods::phase(pod) != "Succeeded")
}

fn suspend_or_resume(spec: &JobSpec, plan: &mut Plan, now: Timestamp) {
    let suspended = spec.suspend == Some(true);
    let was = conditions::is_true(&plan.status.conditions, "Suspended");
    if suspended == was {
        return;
    }
    let (state, reason, text, event) = match suspended {
        true => ("True", "JobSuspended", "Job suspended", "Suspended"),
        false => ("False", "JobResumed", "Job resumed", "Resumed"),
    };
    conditions::set(&mut plan.status.conditions, JobCondition::new("Suspended", state, reason, text, now));
    plan.status.start_time = if suspended { None } else { Some(time(now)) };
    plan.events.push((false, event.to_owned(), text.to_owned()));
}

/// How the Job ends: the final condition, its reason and message.
#[derive(Debug, PartialEq)]
struct Ending {
    complete: bool,
    reason: String,
    text: String,
}

fn judge(spec: &JobSpec, status: &JobStatus, counted: &Counted, now: Timestamp) -> Option<Ending> {
    let ending = |complete, reason: &str, text: &str| Some(Ending { complete, reason: reason.to_owned(), text: text.to_owned() });
    for (interim, complete) in [("FailureTarget", false), ("SuccessCriteriaMet", true)] {
        if let Some(found) = conditions::find(&status.conditions, interim).filter(|found| found.status == "True") {
            return ending(complete, found.reason(), found.message());
        }
    }
    if let Some(text) = &counted.fail_job {
        return ending(false, "PodFailurePolicy", text);
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    if counted.failed > limit || restarts_exceed(spec, counted, limit) {
        return ending(false, "BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if deadline(spec, status).is_some_and(|deadline| deadline <= now) {
        return ending(false, "DeadlineExceeded", "Job was active longer than specified deadline");
    }
    if let Some((complete, reason, text)) = judge_indexes(spec, counted) {
        return ending(complete, reason, &text);
    }
    let done = match spec.completions {
        Some(completions) => counted.succeeded >= completions,
        None => counted.succeeded > 0 && counted.active.is_empty(),
    };
    if done {
        return ending(true, "CompletionsReached", "Reached expected number of succeeded pods");
    }
    None
}

/// What the indexes of an Indexed Job say: (does it succeed, reason, text).
fn judge_indexes(spec: &JobSpec, counted: &Counted) -> Option<(bool, &'static str, String)> {
    let completions = usize::try_from(spec.completions.filter(|_| is_indexed(spec))?).unwrap_or(0);
    let failed = counted.failed_indexes.len();
    if spec.max_failed_indexes.is_some_and(|most| failed > usize::try_from(most).unwrap_or(0)) {
        return Some((false, "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes".to_owned()));
    }
    if failed > 0 && failed + counted.completed.len() >= completions {
        return Some((false, "FailedIndexes", "Job has failed indexes".to_owned()));
    }
    success::met(spec, &counted.completed).map(|text| (true, "SuccessPolicy", text))
}

/// With restartPolicy OnFailure containers restart in place, and that counts as failing too.
fn restarts_exceed(spec: &JobSpec, counted: &Counted, limit: i32) -> bool {
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let statuses = counted.active.iter().filter_map(|pod| pod.status.as_ref());
    let containers = statuses.flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten());
    let restarts: i32 = containers.map(|container| container.restart_count).sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn deadline(spec: &JobSpec, status: &JobStatus) -> Option<Timestamp> {
    let seconds = u64::try_from(spec.active_deadline_seconds?).ok()?;
    status.start_time.as_ref()?.0.checked_add(Duration::from_secs(seconds)).ok()
}

/// The interim condition at once; the final one when every pod has ended and is counted.
fn finish(plan: &mut Plan, ending: &Ending, counted: &Counted, pods: &[Arc<Pod>], now: Timestamp) {
    let (interim, last) = if ending.complete { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
    let condition = |type_: &str| JobCondition::new(type_, "True", &ending.reason, &ending.text, now);
    conditions::set(&mut plan.status.conditions, condition(interim));
    let counted_all = plan.status.uncounted_terminated_pods.as_ref().is_none_or(|u| u.succeeded.is_none() && u.failed.is_none());
    if !counted.active.is_empty() || counted.terminating > 0 || !counted_all || pods.iter().any(|pod| tracked(pod)) {
        return;
    }
    conditions::set(&mut plan.status.conditions, condition(last));
    if ending.complete {
        plan.status.completion_time = Some(time(now));
        plan.events.push((false, "Completed".to_owned(), "Job completed".to_owned()));
    } else {
        plan.events.push((true, ending.reason.clone(), ending.text.clone()));
    }
}

/// Makes or deletes pods to have the wished number running.
fn manage(job: &Job, spec: &JobSpec, counted: &Counted, pods: &[Arc<Pod>], plan: &mut Plan, now: Timestamp) {
    let active = i32::try_from(counted.active.len()).unwrap_or(i32::MAX);
    let parallelism = spec.parallelism.unwrap_or(1);
    let failed_indexes = i32::try_from(counted.failed_indexes.len()).unwrap_or(i32::MAX);
    let wanted = match spec.completions {
        None if counted.succeeded > 0 => active.min(parallelism),
        None => parallelism,
        Some(completions) => parallelism.min((completions - counted.succeeded - failed_indexes).max(0)),
    };
    let (mut keep, extra) = split_by_index(spec, counted);
    plan.delete = extra;
    let surplus = i32::try_from(keep.len()).unwrap_or(0) - wanted;
    if surplus > 0 {
        keep.sort_by_key(|pod| (pods::is_ready(pod), std::cmp::Reverse(meta::created(&**pod))));
        plan.delete.extend(keep.drain(..usize::try_from(surplus).unwrap_or(0)));
    }
    let waiting = if only_replaces_failed(spec) { counted.terminating } else { 0 };
    let missing = usize::try_from(wanted - waiting - i32::try_from(keep.len()).unwrap_or(0)).unwrap_or(0).min(BURST);
    if missing == 0 {
        return;
    }
    let owned: Vec<&Arc<Pod>> = pods.iter().filter(|pod| meta::is_controlled_by(&***pod, meta::uid(job))).collect();
    let each_alone = spec.backoff_limit_per_index.is_some();
    if !each_alone {
        plan.again = failure::next_try(owned.iter().copied(), now);
        if plan.again.is_some() {
            return;
        }
    }
    if !is_indexed(spec) {
        plan.create = vec![None; missing];
        return;
    }
    let running: Indexes = keep.iter().filter_map(|pod| indexes::of(pod)).collect();
    let needs_pod = |index: &i32| ![&running, &counted.completed, &counted.failed_indexes].iter().any(|set| set.contains(index));
    for index in (0..spec.completions.unwrap_or(0)).filter(needs_pod) {
        if plan.create.len() == missing {
            return;
        }
        if each_alone {
            let of_index = || owned.iter().copied().filter(|pod| indexes::of(pod) == Some(index));
            if let Some(at) = failure::next_try(of_index(), now) {
                plan.again = plan.again.into_iter().chain([at]).min();
                continue;
            }
            plan.failures.insert(index, Failures::of_index(job, of_index()));
        }
        plan.create.push(Some(index));
    }
}

/// Of an Indexed Job only one pod per index that is still needed is kept.
fn split_by_index(spec: &JobSpec, counted: &Counted) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
    if !is_indexed(spec) {
        return (counted.active.clone(), Vec::new());
    }
    let mut seen = counted.completed.clone();
    let completions = spec.completions.unwrap_or(0);
    counted.active.iter().cloned().partition(|pod| indexes::of(pod).is_some_and(|i| i < completions && seen.insert(i)))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
