//! PodDisruptionBudgets: how many of a set of pods may be evicted just now.
//!
//! The eviction endpoint of the API server takes one off `disruptionsAllowed` and enters the pod into
//! `disruptedPods`; here both are put right again.
//! Upstream: `pkg/controller/disruption/disruption.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery::events::Recorder;
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::percent::{self, Round};
use crate::shared::{meta, pods, watch, write};

const NAME: &str = "disruption-controller";
/// An evicted pod that is still there after this long was not evicted after all.
const DELETION_TIMEOUT: Duration = Duration::from_secs(2 * 60);

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("controllermanager"),
        budgets: context.informers.of(),
        pods: context.informers.of(),
        deployments: context.informers.of(),
        replica_sets: context.informers.of(),
        stateful_sets: context.informers.of(),
        replication_controllers: context.informers.of(),
    });
    watch::itself(&this.budgets, &queue);
    let (pod_queue, budgets) = (queue.clone(), this.budgets.clone());
    this.pods.on_change(move |change| {
        for budget in budgets.in_namespace(meta::namespace(&**change.object())) {
            let matches = |pod: &Arc<Pod>| selector(&budget).matches_opt(pod.metadata.labels.as_ref());
            if change.old.iter().chain(&change.new).any(matches) {
                pod_queue.add_caused(meta::key(&*budget), change.cause());
            }
        }
    });
    this.budgets.synced().await;
    this.pods.synced().await;
    this.deployments.synced().await;
    this.replica_sets.synced().await;
    this.stateful_sets.synced().await;
    this.replication_controllers.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

fn selector(budget: &PodDisruptionBudget) -> LabelSelector {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    LabelSelector::from_k8s(selector).unwrap_or_else(|_| LabelSelector::nothing())
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Next::Done) };
        let selector = selector(&budget);
        let mut members = self.pods.in_namespace(&key.namespace);
        members.retain(|pod| selector.matches_opt(pod.metadata.labels.as_ref()) && !pods::is_finished(pod));
        let reference = meta::reference(&*budget);
        if members.is_empty() {
            self.recorder.normal(&reference, "NoPods", "No matching pods found");
        }
        let now = Timestamp::now();
        let (status, again) = plan(&budget, &members, self.scale(&members), now);
        if let Some(failed) = status.conditions.iter().flatten().find(|condition| condition.reason == "SyncFailed") {
            self.recorder.warning(&reference, "CalculateExpectedPodCountFailed", failed.message.as_str());
        }
        if budget.status.as_ref() != Some(&status) {
            let updated = PodDisruptionBudget { status: Some(status), ..(*budget).clone() };
            write::unless_gone(write::update_status(&self.client, &updated).await)?;
        }
        Ok(again.map_or(Next::Done, |at| Next::After(watch::until(at, now))))
    }

    /// How many pods their controllers want in all.
    fn scale(&self, members: &[Arc<Pod>]) -> Result<i32, String> {
        let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
        for pod in members {
            let owner =
                meta::controller_of(&pod.metadata).ok_or_else(|| format!("found no controller ref for pod {:?}", meta::name(&**pod)))?;
            let key = Key::new(meta::namespace(&**pod), owner.name.as_str());
            let found = match owner.kind.as_str() {
                "ReplicaSet" => self.replica_sets.get(&key).map(|rs| self.scale_of(&rs)),
                "StatefulSet" => self
                    .stateful_sets
                    .get(&key)
                    .map(|set| (meta::uid(&*set).to_owned(), set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1))),
                "ReplicationController" => self
                    .replication_controllers
                    .get(&key)
                    .map(|rc| (meta::uid(&*rc).to_owned(), rc.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1))),
                _ => None,
            };
            let (uid, replicas) = found.ok_or_else(|| format!("found no controllers for pod {:?}", meta::name(&**pod)))?;
            wanted.insert(uid, replicas);
        }
        Ok(wanted.values().sum())
    }

    /// A Deployment's number, not that of one of its ReplicaSets.
    fn scale_of(&self, rs: &ReplicaSet) -> (String, i32) {
        let deployment = watch::controller_key(rs, "Deployment").and_then(|key| self.deployments.get(&key));
        match deployment {
            Some(it) => (meta::uid(&*it).to_owned(), it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)),
            None => (meta::uid(rs).to_owned(), rs.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)),
        }
    }
}

/// The status, and when to look again at pods that were to be evicted.
fn plan(
    budget: &PodDisruptionBudget,
    members: &[Arc<Pod>],
    scale: Result<i32, String>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Timestamp>) {
    let before = budget.status.clone().unwrap_or_default();
    let (disrupted, again) = disrupted(before.disrupted_pods.unwrap_or_default(), members, now);
    let healthy = |pod: &&Arc<Pod>| pods::is_ready(pod) && !meta::is_deleting(&***pod) && !disrupted.contains_key(meta::name(&***pod));
    let current = i32::try_from(members.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let count = i32::try_from(members.len()).unwrap_or(i32::MAX);
    let outcome = expected(budget, count, scale);
    let (expected, desired) = *outcome.as_ref().unwrap_or(&(before.expected_pods, before.desired_healthy));
    let allowed = if expected > 0 && outcome.is_ok() { (current - desired).max(0) } else { 0 };
    let (state, reason, text) = match &outcome {
        Err(error) => ("False", "SyncFailed", error.clone()),
        Ok(_) if allowed > 0 => ("True", "SufficientPods", String::new()),
        Ok(_) => ("False", "InsufficientPods", String::new()),
    };
    let mut conditions = before.conditions.unwrap_or_default();
    let since = conditions.iter().find(|c| c.type_ == "DisruptionAllowed" && c.status == state);
    let condition = Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: state.to_owned(),
        reason: reason.to_owned(),
        message: text,
        observed_generation: budget.metadata.generation,
        last_transition_time: since.map_or_else(|| meta::time(now), |since| since.last_transition_time.clone()),
    };
    conditions.retain(|other| other.type_ != condition.type_);
    conditions.push(condition);
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: current,
        desired_healthy: desired,
        expected_pods: expected,
        disruptions_allowed: allowed,
        disrupted_pods: Some(disrupted).filter(|disrupted| !disrupted.is_empty()),
        observed_generation: budget.metadata.generation,
    };
    (status, again)
}

type Disrupted = BTreeMap<String, k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>;

/// Evictions still under way, and when the first of them runs out.
fn disrupted(mut known: Disrupted, members: &[Arc<Pod>], now: Timestamp) -> (Disrupted, Option<Timestamp>) {
    let ends = |since: Timestamp| since.checked_add(DELETION_TIMEOUT).unwrap_or(now);
    known.retain(|name, since| {
        let pod = members.iter().find(|pod| meta::name(&***pod) == name);
        pod.is_some_and(|pod| !meta::is_deleting(&**pod)) && ends(since.0) > now
    });
    let again = known.values().map(|since| ends(since.0)).min();
    (known, again)
}

/// How many pods there should be, and how many of them healthy.
fn expected(budget: &PodDisruptionBudget, count: i32, scale: Result<i32, String>) -> Result<(i32, i32), String> {
    let Some(spec) = &budget.spec else { return Ok((count, 0)) };
    if let Some(max_unavailable) = &spec.max_unavailable {
        let expected = scale?;
        let unavailable = percent::of(max_unavailable, expected, Round::Up).ok_or("invalid maxUnavailable")?;
        return Ok((expected, (expected - unavailable).max(0)));
    }
    match &spec.min_available {
        None => Ok((count, 0)),
        Some(IntOrString::Int(available)) => Ok((count, *available)),
        Some(share) => {
            let expected = scale?;
            Ok((expected, percent::of(share, expected, Round::Up).ok_or("invalid minAvailable")?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::pods::fixtures::{at, pod};
    use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;

    fn budget(min_available: Option<IntOrString>, max_unavailable: Option<IntOrString>) -> PodDisruptionBudget {
        let spec = PodDisruptionBudgetSpec { min_available, max_unavailable, ..PodDisruptionBudgetSpec::default() };
        PodDisruptionBudget { spec: Some(spec), ..PodDisruptionBudget::default() }
    }

    #[test]
    fn what_may_be_evicted() {
        let pods = [pod("a").ready(1).arc(), pod("b").ready(1).arc(), pod("c").arc()];
        let allowed = |budget: &PodDisruptionBudget, scale| plan(budget, &pods, scale, at(9)).0.disruptions_allowed;
        let (one, half) = (Some(IntOrString::Int(1)), Some(IntOrString::String("50%".into())));
        assert_eq!(allowed(&budget(one.clone(), None), Err("unused".into())), 1);
        assert_eq!(allowed(&budget(None, one), Ok(3)), 0);
        assert_eq!(allowed(&budget(half.clone(), None), Ok(4)), 0);
        assert_eq!(allowed(&budget(None, half), Err("no controller".into())), 0);
        let failed = plan(&budget(None, Some(IntOrString::Int(1))), &pods, Err("x".into()), at(9)).0;
        assert_eq!(failed.conditions.unwrap()[0].reason, "SyncFailed");
    }

    #[test]
    fn an_evicted_pod_counts_as_gone_until_its_time_is_up() {
        let pods = [pod("a").ready(1).arc(), pod("b").ready(1).arc()];
        let mut budget = budget(Some(IntOrString::Int(1)), None);
        let disrupted_pods = Some(Disrupted::from([("a".into(), meta::time(at(10)))]));
        budget.status = Some(PodDisruptionBudgetStatus { disrupted_pods, ..PodDisruptionBudgetStatus::default() });
        let (status, again) = plan(&budget, &pods, Ok(2), at(20));
        assert_eq!((status.current_healthy, status.disruptions_allowed, again), (1, 0, Some(at(130))));
        let (status, again) = plan(&budget, &pods, Ok(2), at(131));
        assert_eq!((status.current_healthy, status.disrupted_pods, again), (2, None, None));
    }
}
