//! TTL after finished: deletes Jobs some time after they are done, with their pods.
//!
//! Upstream: `pkg/controller/ttlafterfinished`.

use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::core::params::{DeleteParams, PropagationPolicy};
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::{meta, watch, write};

const NAME: &str = "ttl-after-finished-controller";

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let jobs = context.informers.of::<Job>();
    watch::itself(&jobs, &queue);
    jobs.synced().await;
    let client = context.client.clone();
    context
        .run(NAME, queue, move |key| {
            let (client, jobs) = (client.clone(), jobs.clone());
            async move { sync(&client, &jobs, &key).await }
        })
        .await
}

async fn sync(client: &kube::Client, jobs: &Informer<Job>, key: &Key) -> anyhow::Result<Next> {
    let Some(job) = jobs.get(key).filter(|job| !meta::is_deleting(&**job)) else { return Ok(Next::Done) };
    let now = Timestamp::now();
    match expires(&job) {
        None => return Ok(Next::Done),
        Some(at) if at > now => return Ok(Next::After(watch::until(at, now))),
        Some(_) => {}
    }
    // The TTL may just have been raised: decide on the newest Job.
    let fresh = write::get::<Job>(client, key).await?.filter(|fresh| meta::uid(fresh) == meta::uid(&*job));
    if fresh.as_ref().and_then(expires).is_some_and(|at| at <= now) {
        let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..write::only(meta::uid(&*job)) };
        write::unless_gone(write::delete::<Job>(client, key, &params).await)?;
    }
    Ok(Next::Done)
}

/// When the Job's time is over; none if it is not finished or has no TTL.
fn expires(job: &Job) -> Option<Timestamp> {
    let ttl = u64::try_from(job.spec.as_ref()?.ttl_seconds_after_finished?).ok()?;
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let mut done = conditions.iter().filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    done.next()?.last_transition_time.as_ref()?.0.checked_add(Duration::from_secs(ttl)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::conditions::Condition;
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};

    #[test]
    fn expires_after_its_end() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let spec = JobSpec { ttl_seconds_after_finished: Some(10), ..JobSpec::default() };
        let mut job = Job { spec: Some(spec), ..Job::default() };
        assert_eq!(expires(&job), None);
        let conditions = Some(vec![JobCondition::new("Complete", "True", "", "", at(5))]);
        job.status = Some(JobStatus { conditions, ..JobStatus::default() });
        assert_eq!(expires(&job), Some(at(15)));
    }
}
