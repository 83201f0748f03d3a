//! Making and deleting pods for an owner, with the events that tell of it, and hearing what became of them.
//!
//! Upstream: `pkg/controller/controller_utils.go` RealPodControl, `pkg/controller/replicaset` slowStartBatch.

use std::future::Future;
use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::core::params::DeleteParams;
use machinery::events::Recorder;
use machinery::{Informer, WorkQueue};

use super::expectations::Expectations;
use super::meta::{self, controller_of};
use super::watch;
use super::write::{self, Object};

#[derive(Clone)]
pub struct PodControl {
    pub client: Client,
    pub recorder: Recorder,
}

/// The pod a template describes, named by its owner and controlled by it.
pub fn from_template<O: Object>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let described = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.metadata().namespace.clone(),
            generate_name: Some(format!("{}-", meta::name(owner))),
            labels: described.labels,
            annotations: described.annotations,
            finalizers: described.finalizers,
            owner_references: Some(vec![meta::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

impl PodControl {
    /// Events: SuccessfulCreate, FailedCreate (not in a namespace that is going away).
    pub async fn create<O: Object>(&self, owner: &O, pod: &Pod) -> kube::Result<Pod> {
        let result = write::create(&self.client, pod).await;
        match &result {
            Ok(pod) => self.tell(owner, "SuccessfulCreate", format!("Created pod: {}", meta::name(pod))),
            Err(error) if write::is_namespace_terminating(error) => {}
            Err(error) => {
                let text = format!("Error creating: {}", write::message(error));
                self.recorder.warning(&meta::reference(owner), "FailedCreate", text);
            }
        }
        result
    }

    /// Whether the pod was there. Events: SuccessfulDelete, FailedDelete; none for a pod that is gone already.
    pub async fn delete<O: Object>(&self, owner: &O, pod: &Pod) -> kube::Result<bool> {
        match write::delete::<Pod>(&self.client, &meta::key(pod), &DeleteParams::default()).await {
            Ok(()) => self.tell(owner, "SuccessfulDelete", format!("Deleted pod: {}", meta::name(pod))),
            Err(error) if write::is_not_found(&error) => return Ok(false),
            Err(error) => {
                let text = format!("Error deleting: {}", write::message(&error));
                self.recorder.warning(&meta::reference(owner), "FailedDelete", text);
                return Err(error);
            }
        }
        Ok(true)
    }

    fn tell<O: Object>(&self, owner: &O, reason: &str, message: String) {
        self.recorder.normal(&meta::reference(owner), reason, message);
    }

    /// Creates under expectations, slowly at first: what fails or is not tried is taken off the books at once.
    /// A namespace that is going away is no failure.
    pub async fn create_all<O: Object>(&self, owner: &O, books: &Expectations, pods: Vec<Pod>) -> kube::Result<()> {
        let key = &meta::key(owner);
        let (skipped, error) = slow_start(pods, |pod| async move {
            let result = self.create(owner, &pod).await;
            if result.is_err() {
                books.give_up_creations(key, 1);
            }
            match result {
                Err(error) if write::is_namespace_terminating(&error) => Ok(()),
                result => result.map(drop),
            }
        })
        .await;
        books.give_up_creations(key, skipped);
        error.map_or(Ok(()), Err)
    }

    /// Deletes under expectations: what fails is taken off the books at once, and so is what was gone, as the informer may have
    /// told of that before it was expected.
    pub async fn delete_all<O: Object>(&self, owner: &O, books: &Expectations, pods: &[Arc<Pod>]) -> kube::Result<()> {
        let key = meta::key(owner);
        let deletions = pods.iter().map(|pod| async {
            let result = self.delete(owner, pod).await;
            if !matches!(result, Ok(true)) {
                books.deleted(&key, meta::uid(&**pod));
            }
            result.map(drop)
        });
        futures::future::join_all(deletions).await.into_iter().collect()
    }
}

/// Runs `work` for each item in batches of 1, 2, 4, …: when all would fail alike (a quota), only the first batch
/// does. Gives how many were not even tried, and the first error.
async fn slow_start<T, F, R>(items: Vec<T>, work: impl Fn(T) -> F) -> (usize, Option<kube::Error>)
where
    F: Future<Output = kube::Result<R>>,
{
    let mut items = items.into_iter();
    let mut batch = 1;
    while items.len() > 0 {
        let results = futures::future::join_all(items.by_ref().take(batch).map(&work)).await;
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return (items.len(), Some(error));
        }
        batch *= 2;
    }
    (0, None)
}

/// Queues the owners of pods that change, and enters creations and deletions into the books. An orphan wakes every
/// owner that may adopt it.
pub fn watch_pods<O: Object>(
    pods: &Informer<Pod>,
    owners: &Informer<O>,
    queue: &WorkQueue<Key>,
    books: Arc<Expectations>,
    selector: fn(&O) -> Option<LabelSelector>,
) {
    watch::index_orphans(pods);
    let (queue, owners, kind) = (queue.clone(), owners.clone(), O::kind(&()));
    pods.on_change(move |change| {
        let pod = change.object();
        if let Some(key) = watch::controller_key(&**pod, &kind) {
            if change.is_delete() || meta::is_deleting(&**pod) {
                books.deleted(&key, meta::uid(&**pod));
            } else if change.old.is_none() {
                books.created(&key, controller_of(&pod.metadata).map_or("", |owner| &owner.uid));
            }
            queue.add_caused(key, change.cause());
        }
        if let Some(key) = change.old.as_ref().and_then(|old| watch::controller_key(&**old, &kind)) {
            queue.add_caused(key, change.cause());
        }
        if controller_of(&pod.metadata).is_none() && !change.is_delete() {
            for owner in owners.in_namespace(meta::namespace(&**pod)) {
                if selector(&owner).is_some_and(|selector| selector.matches_opt(pod.metadata.labels.as_ref())) {
                    queue.add_caused(meta::key(&*owner), change.cause());
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn slow_start_stops_at_the_first_bad_batch() {
        let tried = AtomicUsize::new(0);
        let work = |bad_from: usize| {
            let tried = &tried;
            move |item: usize| async move {
                tried.fetch_add(1, Ordering::Relaxed);
                if item < bad_from { Ok(()) } else { Err(kube::Error::TlsRequired) }
            }
        };
        let (skipped, error) = slow_start((0..10).collect(), work(2)).await;
        assert!(error.is_some());
        assert_eq!((skipped, tried.swap(0, Ordering::Relaxed)), (7, 3));
        let (skipped, error) = slow_start((0..10).collect(), work(10)).await;
        assert!(error.is_none());
        assert_eq!((skipped, tried.load(Ordering::Relaxed)), (0, 10));
    }
}
