//! CronJob: makes Jobs by the clock.
//!
//! A Job's name has its scheduled minute in it, so that one time can never make two.
//! Upstream: `pkg/controller/cronjob/cronjob_controllerv2.go`.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::params::{DeleteParams, PropagationPolicy};
use machinery::events::{EventType, Recorder};
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::{conditions, meta, watch, write};
use schedule::Schedule;

const NAME: &str = "cronjob-controller";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder(NAME),
        cron_jobs: context.informers.of(),
        jobs: context.informers.of(),
    });
    watch::itself(&this.cron_jobs, &queue);
    watch::controller(&this.jobs, &queue, "CronJob");
    this.cron_jobs.synced().await;
    this.jobs.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// The scheduled time of a Job to make.
    start: Option<Timestamp>,
    /// Running Jobs that the new one replaces.
    replace: Vec<Arc<Job>>,
    /// Finished Jobs beyond the history limits.
    forget: Vec<Arc<Job>>,
    status: CronJobStatus,
    events: Vec<(EventType, &'static str, String)>,
    again: Option<Timestamp>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(cron_job) = self.cron_jobs.get(key) else { return Ok(Next::Done) };
        let Some(spec) = &cron_job.spec else { return Ok(Next::Done) };
        let reference = meta::reference(&*cron_job);
        let schedule = Schedule::parse(&spec.schedule, spec.time_zone.as_deref());
        if let Err(error) = &schedule {
            let text = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            self.recorder.warning(&reference, "UnparseableSchedule", text);
        }
        let now = Timestamp::now();
        let mut plan = plan(&cron_job, spec, &self.jobs.owned_by(meta::uid(&*cron_job)), schedule.as_ref().ok(), now);
        for (kind, reason, text) in std::mem::take(&mut plan.events) {
            self.recorder.event(&reference, kind, reason, text);
        }
        for job in plan.forget.iter().chain(&plan.replace) {
            self.delete(job).await?;
            self.recorder.normal(&reference, "SuccessfulDelete", format!("Deleted job {}", meta::name(&**job)));
        }
        if let (Some(at), Ok(schedule)) = (plan.start, &schedule) {
            let made = self.start(&cron_job, spec, at, schedule).await?;
            plan.status.active.get_or_insert_default().extend(made);
            plan.status.last_schedule_time = Some(meta::time(at));
        }
        if cron_job.status.as_ref() != Some(&plan.status) {
            let updated = CronJob { status: Some(plan.status), ..(*cron_job).clone() };
            write::unless_gone(write::update_status(&self.client, &updated).await)?;
        }
        Ok(plan.again.map_or(Next::Done, |at| Next::After(watch::until(at, now))))
    }

    async fn start(
        &self,
        cron_job: &CronJob,
        spec: &CronJobSpec,
        at: Timestamp,
        schedule: &Schedule,
    ) -> kube::Result<Option<ObjectReference>> {
        let job = job_for(cron_job, spec, at, schedule);
        let reference = meta::reference(cron_job);
        match write::create(&self.client, &job).await {
            Ok(made) => {
                self.recorder.normal(&reference, "SuccessfulCreate", format!("Created job {}", meta::name(&made)));
                Ok(Some(reference_to(&made)))
            }
            Err(error) if write::is_namespace_terminating(&error) => Ok(None),
            // Made by us before we could note it; the next sync takes it up.
            Err(error) if write::is_already_exists(&error) => Ok(None),
            Err(error) => {
                self.recorder.warning(&reference, "FailedCreate", format!("Error creating job: {}", write::message(&error)));
                Err(error)
            }
        }
    }

    async fn delete(&self, job: &Job) -> kube::Result<()> {
        let background = Some(PropagationPolicy::Background);
        let params = DeleteParams { propagation_policy: background, ..write::only(meta::uid(job)) };
        write::unless_gone(write::delete::<Job>(&self.client, &meta::key(job), &params).await)
    }
}

fn plan(cron_job: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>], schedule: Option<&Schedule>, now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron_job.status.clone().unwrap_or_default(), ..Plan::default() };
    take_stock(&mut plan, jobs);
    plan.forget = history(jobs, "Complete", spec.successful_jobs_history_limit.unwrap_or(3));
    plan.forget.extend(history(jobs, "Failed", spec.failed_jobs_history_limit.unwrap_or(1)));
    let Some(schedule) = schedule.filter(|_| spec.suspend != Some(true) && !meta::is_deleting(cron_job)) else { return plan };
    let deadline = spec.starting_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let mut earliest = plan.status.last_schedule_time.as_ref().map_or(meta::created(cron_job), |time| time.0);
    if let Some(bound) = deadline.and_then(|deadline| now.checked_sub(deadline).ok()) {
        earliest = earliest.max(bound);
    }
    let due = schedule.due(earliest, now);
    plan.again = due.next;
    if due.too_many_missed {
        let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((EventType::Warning, "TooManyMissedTimes", text.to_owned()));
    }
    let Some(at) = due.at else { return plan };
    if deadline.and_then(|deadline| at.checked_add(deadline).ok()).is_some_and(|last| last < now) {
        plan.events.push((EventType::Warning, "MissSchedule", format!("Missed scheduled time to start a job: {at}")));
        return plan;
    }
    let active = plan.status.active.clone().unwrap_or_default();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((EventType::Normal, "JobAlreadyActive", text.to_owned()));
        }
        Some("Replace") => {
            let runs = |job: &&Arc<Job>| active.iter().any(|reference| reference.uid == job.metadata.uid);
            plan.replace = jobs.iter().filter(runs).cloned().collect();
            plan.status.active = None;
            plan.start = Some(at);
        }
        _ => plan.start = Some(at),
    }
    plan
}

/// Brings the list of running Jobs up to date.
fn take_stock(plan: &mut Plan, jobs: &[Arc<Job>]) {
    let mut active = Vec::new();
    for reference in plan.status.active.take().unwrap_or_default() {
        let name = reference.name.clone().unwrap_or_default();
        match jobs.iter().find(|job| job.metadata.uid == reference.uid) {
            None => plan.events.push((EventType::Normal, "MissingJob", format!("Active job went missing: {name}"))),
            Some(job) => match finished(job) {
                None => active.push(reference),
                Some((how, _)) => {
                    let text = format!("Saw completed job: {name}, condition: {how}");
                    plan.events.push((EventType::Normal, "SawCompletedJob", text));
                }
            },
        }
    }
    for job in jobs {
        let listed = active.iter().any(|reference| reference.uid == job.metadata.uid);
        if finished(job).is_none() && !listed && !meta::is_deleting(&**job) {
            active.push(reference_to(job));
        }
        if let Some(("Complete", Some(at))) = finished(job) {
            let known = plan.status.last_successful_time.as_ref().map(|time| time.0);
            plan.status.last_successful_time = known.into_iter().chain([at]).max().map(meta::time);
        }
    }
    plan.status.active = Some(active).filter(|active| !active.is_empty());
}

/// Complete or Failed, and when.
fn finished(job: &Job) -> Option<(&'static str, Option<Timestamp>)> {
    let status = job.status.as_ref()?;
    let is = |type_: &str| conditions::is_true(&status.conditions, type_);
    if is("Complete") {
        return Some(("Complete", status.completion_time.as_ref().map(|time| time.0)));
    }
    is("Failed").then_some(("Failed", None))
}

/// The oldest Jobs that ended in this way, beyond the limit.
fn history(jobs: &[Arc<Job>], how: &str, limit: i32) -> Vec<Arc<Job>> {
    let mut ended: Vec<Arc<Job>> = jobs.iter().filter(|job| finished(job).is_some_and(|(end, _)| end == how)).cloned().collect();
    ended.retain(|job| !meta::is_deleting(&**job));
    ended.sort_by_key(|job| (meta::created(&**job), meta::name(&**job).to_owned()));
    ended.truncate(ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0)));
    ended
}

fn reference_to(job: &Job) -> ObjectReference {
    ObjectReference { field_path: None, ..meta::reference(job) }
}

fn job_for(cron_job: &CronJob, spec: &CronJobSpec, at: Timestamp, schedule: &Schedule) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let local = at.to_zoned(schedule.zone().clone());
    annotations.insert(SCHEDULED.to_owned(), local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"));
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", meta::name(cron_job), at.as_second() / 60)),
            namespace: cron_job.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![meta::controller_ref(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::conditions::Condition;
    use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    fn cron_job(policy: &str, active: &[&Arc<Job>]) -> CronJob {
        let mut cron_job = CronJob::default();
        cron_job.metadata.creation_timestamp = Some(meta::time(at(0)));
        let concurrency_policy = Some(policy.into());
        cron_job.spec = Some(CronJobSpec { schedule: "* * * * *".into(), concurrency_policy, ..CronJobSpec::default() });
        let references = active.iter().map(|job| reference_to(job)).collect();
        let last_schedule_time = Some(meta::time(at(4)));
        cron_job.status = Some(CronJobStatus { active: Some(references), last_schedule_time, ..CronJobStatus::default() });
        cron_job
    }

    fn job(name: &str, end: Option<&str>) -> Arc<Job> {
        let mut job = Job::default();
        job.metadata.name = Some(name.into());
        job.metadata.uid = Some(name.into());
        let conditions = end.map(|end| vec![JobCondition::new(end, "True", "", "", at(1))]);
        job.status = Some(JobStatus { conditions, ..JobStatus::default() });
        Arc::new(job)
    }

    fn planned(cron_job: &CronJob, jobs: &[Arc<Job>]) -> Plan {
        let schedule = Schedule::parse("* * * * *", None).unwrap();
        plan(cron_job, cron_job.spec.as_ref().unwrap(), jobs, Some(&schedule), at(5))
    }

    #[test]
    fn concurrency_policies() {
        let running = job("running", None);
        let jobs = [running.clone()];
        assert_eq!(planned(&cron_job("Allow", &[&running]), &jobs).start, Some(at(5)));
        assert_eq!(planned(&cron_job("Forbid", &[&running]), &jobs).start, None);
        let replaced = planned(&cron_job("Replace", &[&running]), &jobs);
        assert_eq!((replaced.start, replaced.replace), (Some(at(5)), vec![running]));
    }

    #[test]
    fn finished_jobs_leave_the_active_list_and_then_the_history() {
        let jobs = ["a", "b", "c", "d"].map(|name| job(name, Some("Complete")));
        let plan = planned(&cron_job("Allow", &[&jobs[3]]), &jobs);
        assert_eq!(plan.status.active, None);
        assert_eq!(plan.events[0].2, "Saw completed job: d, condition: Complete");
        assert_eq!(plan.forget, [jobs[0].clone()]);
    }
}
