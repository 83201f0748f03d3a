use super::*;
use crate::shared::pods::fixtures::{Fixture, at, pod};

fn job(parallelism: i32, completions: Option<i32>) -> Job {
    let mut job = Job::default();
    job.metadata.name = Some("work".into());
    job.metadata.uid = Some("j".into());
    job.spec = Some(JobSpec { parallelism: Some(parallelism), completions, backoff_limit: Some(2), ..JobSpec::default() });
    job
}

trait OfJob {
    fn tracked(self) -> Self;
    fn index(self, index: i32) -> Self;
}

impl OfJob for Fixture {
    fn tracked(mut self) -> Self {
        meta::add_finalizer(&mut self.0.metadata, FINALIZER);
        self
    }
    fn index(self, index: i32) -> Self {
        self.annotation(indexes::INDEX, &index.to_string())
    }
}

fn states(status: &JobStatus) -> Vec<&str> {
    status.conditions.iter().flatten().filter(|c| c.status == "True").map(|c| c.type_.as_str()).collect()
}

#[test]
fn pods_are_made_up_to_the_parallelism() {
    let plan = |job: &Job, pods: &[Arc<Pod>]| plan(job, pods, true, at(10)).create.len();
    assert_eq!(plan(&job(2, Some(5)), &[]), 2);
    assert_eq!(plan(&job(2, Some(1)), &[]), 1);
    assert_eq!(plan(&job(2, Some(5)), &[pod("a").tracked().phase("Running").arc()]), 1);
    assert_eq!(plan(&job(3, None), &[]), 3);
    assert_eq!(plan(&job(3, None), &[pod("a").tracked().phase("Succeeded").arc(), pod("b").tracked().arc()]), 0);
    assert_eq!(super::plan(&job(2, Some(5)), &[], false, at(10)).create.len(), 0, "not while the cache lags");
}

#[test]
fn a_finished_pod_is_counted_once_and_in_three_steps() {
    let mut job = job(1, Some(1));
    let done = pod("a").tracked().phase("Succeeded").arc();
    let first = plan(&job, std::slice::from_ref(&done), true, at(10));
    assert_eq!(first.status.uncounted_terminated_pods.as_ref().unwrap().succeeded, Some(vec!["uid-a".into()]));
    assert_eq!((first.status.succeeded, first.strip.len(), states(&first.status)), (None, 0, vec!["SuccessCriteriaMet"]));
    job.status = Some(first.status);
    let second = plan(&job, std::slice::from_ref(&done), true, at(11));
    assert_eq!((second.status.succeeded, second.strip.len()), (None, 1));
    job.status = Some(second.status);
    let third = plan(&job, &[pod("a").phase("Succeeded").arc()], true, at(12));
    assert_eq!(third.status.succeeded, Some(1));
    assert_eq!(states(&third.status), ["SuccessCriteriaMet", "Complete"]);
    assert_eq!(third.status.completion_time, Some(time(at(12))));
    job.status = Some(third.status.clone());
    assert_eq!(plan(&job, &[], true, at(13)).status, third.status);
}

#[test]
fn failing_too_often_fails_the_job_once_its_pods_are_gone() {
    let mut job = job(2, Some(5));
    job.status = Some(JobStatus { failed: Some(2), ..JobStatus::default() });
    let running = pod("b").tracked().phase("Running").arc();
    let planned = plan(&job, &[pod("a").tracked().phase("Failed").arc(), running.clone()], true, at(10));
    assert_eq!(states(&planned.status), ["FailureTarget"]);
    assert_eq!(planned.delete, [running]);
    job.status = Some(planned.status);
    let done = plan(&job, &[pod("a").phase("Failed").arc()], true, at(20));
    assert_eq!(states(&done.status), ["FailureTarget", "Failed"]);
    assert_eq!(done.status.failed, Some(3));
    assert_eq!(done.events[0].1, "BackoffLimitExceeded");
}

#[test]
fn deadlines_suspension_and_back_off() {
    let mut late = job(1, Some(1));
    late.spec.as_mut().unwrap().active_deadline_seconds = Some(5);
    late.status = Some(JobStatus { start_time: Some(time(at(1))), ..JobStatus::default() });
    assert_eq!(plan(&late, &[], true, at(3)).again, Some(at(6)));
    assert_eq!(states(&plan(&late, &[], true, at(6)).status), ["FailureTarget", "Failed"]);

    let mut paused = job(1, Some(1));
    paused.spec.as_mut().unwrap().suspend = Some(true);
    let suspended = plan(&paused, &[pod("a").tracked().arc()], true, at(10));
    assert_eq!((states(&suspended.status), suspended.delete.len(), suspended.create.len()), (vec!["Suspended"], 1, 0));
    assert_eq!(suspended.status.start_time, None);

    let mut failed = pod("a").tracked().phase("Failed");
    failed.0.metadata.creation_timestamp = Some(time(at(10)));
    failed.0.metadata.owner_references = Some(vec![meta::controller_ref(&job(1, Some(1)))]);
    let retry = plan(&job(1, Some(1)), &[failed.arc()], true, at(12));
    assert_eq!((retry.create.len(), retry.again), (0, Some(at(20))));
}

#[test]
fn indexes_are_filled_once_each() {
    let mut indexed = job(3, Some(4));
    indexed.spec.as_mut().unwrap().completion_mode = Some("Indexed".into());
    indexed.status = Some(JobStatus { completed_indexes: Some("0".into()), ..JobStatus::default() });
    let pods = [pod("a").tracked().index(2).arc(), pod("b").tracked().index(2).arc()];
    let planned = plan(&indexed, &pods, true, at(10));
    assert_eq!(planned.create, [Some(1), Some(3)]);
    assert_eq!(planned.delete.len(), 1, "the second of index 2");
}

#[test]
fn each_index_may_fail_alone() {
    let mut indexed = job(3, Some(3));
    let spec = indexed.spec.as_mut().unwrap();
    (spec.completion_mode, spec.backoff_limit_per_index, spec.backoff_limit) = (Some("Indexed".into()), Some(1), Some(i32::MAX));
    let failed = |name: &str, index, before: u32| {
        let mut pod = pod(name).tracked().index(index).annotation(failure::COUNTED, &before.to_string()).phase("Failed");
        pod.0.metadata.creation_timestamp = Some(time(at(10)));
        pod.0.metadata.owner_references = Some(vec![meta::controller_ref(&job(1, Some(1)))]);
        pod.arc()
    };
    let pods = [failed("a", 0, 1), failed("b", 1, 0)];
    let soon = plan(&indexed, &pods, true, at(12));
    assert_eq!((soon.status.failed_indexes.as_deref(), soon.create, soon.again), (Some("0"), vec![Some(2)], Some(at(20))));
    let later = plan(&indexed, &pods, true, at(20));
    assert_eq!(later.create, [Some(1), Some(2)]);
    assert_eq!(later.failures[&1], Failures { counted: 1, ignored: 0 });
    indexed.status = Some(JobStatus { completed_indexes: Some("1,2".into()), ..later.status });
    let done = plan(&indexed, &pods[..1], true, at(30));
    let reason = done.status.conditions.as_ref().and_then(|list| list[0].reason.as_deref());
    assert_eq!((states(&done.status), reason), (vec!["FailureTarget"], Some("FailedIndexes")));
}
