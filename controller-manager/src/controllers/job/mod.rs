//! Job: pods that run to their end.
//!
//! ```text
//! Job + its pods ─▶ plan ─▶ status first ─▶ finalizers off ─▶ pods made or deleted
//! ```
//! Upstream: `pkg/controller/job/job_controller.go`.

mod failure;
mod indexes;
mod plan;
mod success;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use machinery::{Informer, Next, WorkQueue};
use serde_json::json;

use crate::context::Context;
use crate::shared::expectations::Expectations;
use crate::shared::meta::{self, has_finalizer};
use crate::shared::pod_control::{PodControl, from_template, watch_pods};
use crate::shared::{claim, watch, write};
use failure::Failures;
use plan::{FINALIZER, Plan};

const NAME: &str = "job-controller";
/// What `spec.managedBy` says where it means us.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Index of the pods that have our finalizer, by the Job that controls them.
const TRACKED: &str = "tracked-by-job";

struct Controller {
    control: PodControl,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    books: Arc<Expectations>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        control: PodControl { client: context.client.clone(), recorder: context.recorder(NAME) },
        jobs: context.informers.of(),
        pods: context.informers.of(),
        books: Arc::default(),
    });
    this.pods.index(TRACKED, |pod| {
        let job = watch::controller_key(pod, "Job").filter(|_| has_finalizer(&pod.metadata, FINALIZER));
        job.map(|key| key.to_string()).into_iter().collect()
    });
    watch::itself(&this.jobs, &queue);
    watch_pods(&this.pods, &this.jobs, &queue, this.books.clone(), selector);
    this.jobs.synced().await;
    this.pods.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

fn selector(job: &Job) -> Option<LabelSelector> {
    let selector = LabelSelector::from_k8s(job.spec.as_ref()?.selector.as_ref()).ok()?;
    Some(selector).filter(|selector| !selector.is_everything())
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let job = self.jobs.get(key);
        self.release_orphans(key, job.as_deref().map(meta::uid)).await?;
        let Some(job) = job else {
            self.books.forget(key);
            return Ok(Next::Done);
        };
        let managed_by = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
        let Some(selector) = selector(&job).filter(|_| managed_by.is_none_or(|manager| manager == MANAGER)) else { return Ok(Next::Done) };
        let settled = self.books.satisfied(&*job);
        let candidates = watch::candidates(&self.pods, &*job);
        let pods = claim::claim(&self.control.client, &*job, &selector, candidates, |_| true).await?;
        let now = Timestamp::now();
        let plan = plan::plan(&job, &pods, settled, now);
        if !self.record(&job, &plan).await? {
            return Ok(Next::Done);
        }
        for (warning, reason, text) in &plan.events {
            let kind = if *warning { machinery::events::EventType::Warning } else { machinery::events::EventType::Normal };
            self.control.recorder.event(&meta::reference(&*job), kind, reason, text.as_str());
        }
        self.strip(&plan.strip).await?;
        self.apply(&job, &plan).await?;
        Ok(match plan.again {
            Some(at) => Next::After(watch::until(at, now)),
            None => Next::Done,
        })
    }

    /// Writes the status. False if the Job is gone.
    async fn record(&self, job: &Job, plan: &Plan) -> kube::Result<bool> {
        if job.status.as_ref() == Some(&plan.status) {
            return Ok(true);
        }
        let updated = Job { status: Some(plan.status.clone()), ..job.clone() };
        match write::update_status(&self.control.client, &updated).await {
            Err(error) if write::is_not_found(&error) => Ok(false),
            result => result.map(|_| true),
        }
    }

    async fn apply(&self, job: &Job, plan: &Plan) -> kube::Result<()> {
        if !plan.delete.is_empty() || !plan.create.is_empty() {
            let deleted = plan.delete.iter().map(|pod| meta::uid(&**pod).to_owned());
            self.books.expect(job, plan.create.len(), deleted);
        }
        // Both are on the books, so both are tried.
        let deleted = self.control.delete_all(job, &self.books, &plan.delete).await;
        let pods = plan.create.iter().map(|index| pod_for(job, *index, &plan.failures)).collect();
        self.control.create_all(job, &self.books, pods).await?;
        deleted
    }

    /// Pods keep our finalizer until they are counted; nobody counts for a Job that is gone, though another may have its name by now.
    async fn release_orphans(&self, key: &Key, alive: Option<&str>) -> kube::Result<()> {
        let mut orphans = self.pods.by(TRACKED, &key.to_string());
        orphans.retain(|pod| alive.is_none_or(|uid| !meta::is_controlled_by(&**pod, uid)));
        self.strip(&orphans).await
    }

    async fn strip(&self, pods: &[Arc<Pod>]) -> kube::Result<()> {
        let strips = pods.iter().filter(|pod| has_finalizer(&pod.metadata, FINALIZER)).map(|pod| async {
            let patch = json!({"metadata": {"uid": meta::uid(&**pod), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
            write::unless_gone(write::strategic::<Pod>(&self.control.client, &meta::key(&**pod), &patch).await)
        });
        futures::future::try_join_all(strips).await.map(drop)
    }
}

fn pod_for(job: &Job, index: Option<i32>, failures: &BTreeMap<i32, Failures>) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = from_template(job, &template);
    meta::add_finalizer(&mut pod.metadata, FINALIZER);
    let Some(index) = index else { return pod };
    if let Some(failures) = failures.get(&index) {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(failure::COUNTED.to_owned(), failures.counted.to_string());
        if failures.ignored > 0 {
            annotations.insert(failure::IGNORED.to_owned(), failures.ignored.to_string());
        }
    }
    let name = meta::name(job);
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    let index = index.to_string();
    pod.metadata.annotations.get_or_insert_default().insert(indexes::INDEX.to_owned(), index.clone());
    pod.metadata.labels.get_or_insert_default().insert(indexes::INDEX.to_owned(), index.clone());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname.get_or_insert_with(|| format!("{name}-{index}"));
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|env| env.name == "JOB_COMPLETION_INDEX") {
            let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{}']", indexes::INDEX) };
            let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
            env.push(EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value: None, value_from: Some(source) });
        }
    }
    pod
}
