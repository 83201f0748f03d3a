//! Keeping a number of like pods: the mechanism of ReplicaSet and ReplicationController.
//!
//! ```text
//! pods of the selector ─▶ claim ─▶ plan: create n | delete these ─▶ slow-start create / ranked delete ─▶ status
//! ```
//! Invariant: pods change only while the expectations of the key are met.
//! Upstream: `pkg/controller/replicaset/{replica_set,replica_set_utils}.go`, whose ReplicationController is an adapter too.

use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use machinery::{Informer, Next, WorkQueue};

use super::conditions::{self, Condition};
use super::expectations::Expectations;
use super::meta::{self, Labels};
use super::pod_control::{PodControl, from_template, watch_pods};
use super::write::{self, Object};
use super::{claim, pods, watch};
use crate::context::Context;

/// Most pods created or deleted in one sync.
const BURST: usize = 500;

/// What differs between the two kinds.
pub trait Replicated: Object {
    type Condition: Condition + PartialEq;
    /// None when the selector is invalid or empty, which must never match everything.
    fn selector(&self) -> Option<LabelSelector>;
    fn desired(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> PodTemplateSpec;
    fn status(&self) -> Status<Self::Condition>;
    fn set_status(&mut self, status: Status<Self::Condition>);
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status<C> {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub observed_generation: i64,
    pub conditions: Option<Vec<C>>,
}

/// The two kinds have the same fields under different types.
macro_rules! replicated {
    ($kind:ident, $condition:ident, $status:ident, $selector:expr) => {
        impl Replicated for $kind {
            type Condition = $condition;

            fn selector(&self) -> Option<LabelSelector> {
                let selector: fn(&Self) -> Option<LabelSelector> = $selector;
                selector(self).filter(|selector| !selector.is_everything())
            }

            fn desired(&self) -> i32 {
                self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
            }

            fn min_ready_seconds(&self) -> i32 {
                self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
            }

            fn template(&self) -> PodTemplateSpec {
                self.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
            }

            fn status(&self) -> Status<$condition> {
                let status = self.status.clone().unwrap_or_default();
                Status {
                    replicas: status.replicas,
                    fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
                    ready: status.ready_replicas.unwrap_or(0),
                    available: status.available_replicas.unwrap_or(0),
                    observed_generation: status.observed_generation.unwrap_or(0),
                    conditions: status.conditions,
                }
            }

            #[allow(clippy::needless_update)] // one of the two has a field more
            fn set_status(&mut self, status: Status<$condition>) {
                self.status = Some($status {
                    replicas: status.replicas,
                    fully_labeled_replicas: Some(status.fully_labeled),
                    ready_replicas: Some(status.ready),
                    available_replicas: Some(status.available),
                    observed_generation: Some(status.observed_generation),
                    conditions: status.conditions,
                    ..$status::default()
                });
            }
        }
    };
}

replicated!(ReplicaSet, ReplicaSetCondition, ReplicaSetStatus, |set| LabelSelector::from_k8s(Some(&set.spec.as_ref()?.selector)).ok());
replicated!(ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus, |controller| {
    Some(LabelSelector::from_map(controller.spec.as_ref()?.selector.as_ref()?))
});

pub struct Replicas<O: Replicated> {
    control: PodControl,
    owners: Informer<O>,
    pods: Informer<Pod>,
    books: Arc<Expectations>,
}

/// Runs the controller of kind `O`.
pub async fn run<O: Replicated>(context: Arc<Context>, name: &'static str) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Replicas::<O> {
        control: PodControl { client: context.client.clone(), recorder: context.recorder(name) },
        owners: context.informers.of(),
        pods: context.informers.of(),
        books: Arc::default(),
    };
    watch::itself(&this.owners, &queue);
    watch_pods(&this.pods, &this.owners, &queue, this.books.clone(), O::selector);
    this.owners.synced().await;
    this.pods.synced().await;
    let this = Arc::new(this);
    context
        .run(name, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

/// What to do about the number of pods.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

fn plan(desired: i32, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let desired = usize::try_from(desired).unwrap_or_default();
    let have = active.len();
    if have < desired {
        Plan::Create((desired - have).min(BURST))
    } else if have > desired {
        Plan::Delete(pods::to_delete(active.to_vec(), related, (have - desired).min(BURST), now))
    } else {
        Plan::Nothing
    }
}

impl<O: Replicated> Replicas<O> {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(owner) = self.owners.get(key) else {
            self.books.forget(key);
            return Ok(Next::Done);
        };
        let Some(selector) = owner.selector() else { return Ok(Next::Done) };
        let satisfied = self.books.satisfied(&*owner);
        let candidates = watch::candidates(&self.pods, &*owner);
        let claimed = claim::claim(&self.control.client, &*owner, &selector, candidates, pods::is_active).await?;
        let active: Vec<Arc<Pod>> = claimed.into_iter().filter(|pod| pods::is_active(pod)).collect();
        let now = Timestamp::now();
        let managed = match satisfied && !meta::is_deleting(&*owner) {
            true => self.manage(&owner, &active, now).await,
            false => Ok(()),
        };
        let status = status_of(&*owner, &active, managed.as_ref().err(), now);
        self.update_status(&owner, status).await?;
        managed?;
        Ok(match pods::next_available(&active, owner.min_ready_seconds(), now) {
            Some(at) => Next::After(watch::until(at, now)),
            None => Next::Done,
        })
    }

    async fn manage(&self, owner: &O, active: &[Arc<Pod>], now: Timestamp) -> kube::Result<()> {
        match plan(owner.desired(), active, &self.related(owner), now) {
            Plan::Nothing => Ok(()),
            Plan::Create(count) => {
                self.books.expect(owner, count, []);
                let pod = from_template(owner, &owner.template());
                self.control.create_all(owner, &self.books, vec![pod; count]).await
            }
            Plan::Delete(victims) => {
                self.books.expect(owner, 0, victims.iter().map(|pod| meta::uid(&**pod).to_owned()));
                self.control.delete_all(owner, &self.books, &victims).await
            }
        }
    }

    /// The pods of all owners that have the same controller: during a rollout the old and new ReplicaSets share nodes.
    fn related(&self, owner: &O) -> Vec<Arc<Pod>> {
        let Some(controller) = meta::controller_of(owner.metadata()) else {
            return self.pods.owned_by(meta::uid(owner));
        };
        let siblings = self.owners.owned_by(&controller.uid);
        siblings.iter().flat_map(|sibling| self.pods.owned_by(meta::uid(&**sibling))).collect()
    }

    async fn update_status(&self, owner: &O, status: Status<O::Condition>) -> kube::Result<()> {
        if owner.status() == status {
            return Ok(());
        }
        let mut updated = owner.clone();
        updated.set_status(status);
        write::unless_gone(write::update_status(&self.control.client, &updated).await)
    }
}

fn status_of<O: Replicated>(owner: &O, active: &[Arc<Pod>], failure: Option<&kube::Error>, now: Timestamp) -> Status<O::Condition> {
    let template_labels = owner.template().metadata.and_then(|meta| meta.labels).unwrap_or_default();
    let fully_labeled = |pod: &&Arc<Pod>| has_all(pod.metadata.labels.as_ref(), &template_labels);
    let count = |test: &dyn Fn(&&Arc<Pod>) -> bool| i32::try_from(active.iter().filter(test).count()).unwrap_or(i32::MAX);
    let mut conditions = owner.status().conditions;
    match (failure, conditions::find(&conditions, "ReplicaFailure")) {
        (Some(error), None) => {
            let reason = if count(&|_| true) < owner.desired() { "FailedCreate" } else { "FailedDelete" };
            let text = write::message(error);
            conditions::set(&mut conditions, O::Condition::new("ReplicaFailure", "True", reason, &text, now));
        }
        (None, Some(_)) => conditions::remove(&mut conditions, "ReplicaFailure"),
        _ => {}
    }
    Status {
        replicas: count(&|_| true),
        fully_labeled: count(&fully_labeled),
        ready: count(&|pod| pods::is_ready(pod)),
        available: count(&|pod| pods::is_available(pod, owner.min_ready_seconds(), now)),
        observed_generation: meta::generation(owner),
        conditions,
    }
}

fn has_all(labels: Option<&Labels>, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::pods::fixtures::{at, pod};
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;

    fn replica_set(replicas: i32) -> ReplicaSet {
        let template = PodTemplateSpec { metadata: Some(pod("t").label("app", "web").0.metadata), spec: None };
        let spec = ReplicaSetSpec { replicas: Some(replicas), template: Some(template), ..ReplicaSetSpec::default() };
        ReplicaSet { spec: Some(spec), ..ReplicaSet::default() }
    }

    #[test]
    fn plans() {
        let two = [pod("a").ready(1).arc(), pod("b").arc()];
        assert_eq!(plan(2, &two, &two, at(9)), Plan::Nothing);
        assert_eq!(plan(5, &two, &two, at(9)), Plan::Create(3));
        assert_eq!(plan(9999, &two, &two, at(9)), Plan::Create(BURST));
        assert_eq!(plan(1, &two, &two, at(9)), Plan::Delete(vec![two[1].clone()]));
    }

    #[test]
    fn status_counts_and_keeps_the_failure_while_it_lasts() {
        let active = [pod("a").label("app", "web").ready(1).arc(), pod("b").arc()];
        let mut owner = replica_set(3);
        let failure = kube::Error::TlsRequired;
        let status = status_of(&owner, &active, Some(&failure), at(9));
        assert_eq!((status.replicas, status.fully_labeled, status.ready, status.available), (2, 1, 1, 1));
        assert_eq!(conditions::find(&status.conditions, "ReplicaFailure").unwrap().reason(), "FailedCreate");
        owner.set_status(status.clone());
        assert_eq!(status_of(&owner, &active, Some(&failure), at(10)), status);
        assert_eq!(status_of(&owner, &active, None, at(11)).conditions, None);
    }
}
