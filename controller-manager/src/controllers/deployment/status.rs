//! The Deployment's status after a step: counts, conditions, revision.
//!
//! Upstream: `pkg/controller/deployment/{sync,progress}.go`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::rollout::{self, Plan};
use crate::shared::conditions::{self, Condition};
use crate::shared::meta;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// What happened to the ReplicaSet of a new template in this sync.
#[derive(Default)]
pub struct Progress {
    pub created: Option<String>,
    pub create_error: Option<String>,
    pub collided: bool,
}

/// The Deployment as it is to be stored, status and revision annotation.
pub fn next(deployment: &Deployment, replica_sets: &[Arc<ReplicaSet>], plan: &Plan, progress: &Progress, now: Timestamp) -> Deployment {
    let mut next = deployment.clone();
    if let Some(revision) = &plan.revision
        && progress.create_error.is_none()
        && !progress.collided
    {
        next.metadata.annotations.get_or_insert_default().insert(rollout::REVISION.to_owned(), revision.clone());
    }
    let new = replica_sets.iter().find(|rs| rollout::same_template(rs, deployment));
    let mut status = counts(deployment, replica_sets, new);
    if progress.collided {
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    }
    note_availability(deployment, &mut status, now);
    if has_deadline(deployment) {
        note_events(deployment, &mut status, new, progress, now);
    }
    if !plan.scaling_only {
        note_progress(deployment, &mut status, new, now);
        note_failures(&mut status, replica_sets, new);
    }
    next.status = Some(status);
    next
}

fn counts(deployment: &Deployment, replica_sets: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) -> DeploymentStatus {
    let statuses = || replica_sets.iter().filter_map(|rs| rs.status.as_ref());
    let available: i32 = statuses().filter_map(|status| status.available_replicas).sum();
    let wished: i32 = replica_sets.iter().map(|rs| rollout::replicas(rs)).sum();
    let some = |count: i32| Some(count).filter(|count| *count != 0);
    let before = deployment.status.clone().unwrap_or_default();
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(statuses().map(|status| status.replicas).sum()),
        updated_replicas: some(new.and_then(|rs| rs.status.as_ref()).map_or(0, |status| status.replicas)),
        ready_replicas: some(statuses().filter_map(|status| status.ready_replicas).sum()),
        available_replicas: some(available),
        unavailable_replicas: some((wished - available).max(0)),
        collision_count: before.collision_count,
        conditions: before.conditions,
        terminating_replicas: None,
    }
}

fn note_availability(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    let enough = desired(deployment) - rollout::max_unavailable(deployment);
    let condition = if status.available_replicas.unwrap_or(0) >= enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let condition = DeploymentCondition::new("Available", condition.0, condition.1, condition.2, now);
    conditions::set(&mut status.conditions, condition);
}

/// Paused, resumed, a ReplicaSet made, found, or not made.
fn note_events(deployment: &Deployment, status: &mut DeploymentStatus, new: Option<&Arc<ReplicaSet>>, progress: &Progress, now: Timestamp) {
    let current = conditions::find(&status.conditions, PROGRESSING);
    let reason = current.map_or("", |condition| condition.reason()).to_owned();
    let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
    let absent = current.is_none();
    let mut set = |state: &str, reason: &str, message: &str| {
        conditions::set(&mut status.conditions, DeploymentCondition::new(PROGRESSING, state, reason, message, now));
    };
    if let Some(text) = &progress.create_error {
        set("False", "ReplicaSetCreateError", text);
    } else if let Some(name) = &progress.created {
        set("True", "NewReplicaSetCreated", &format!("Created new replica set {name:?}"));
    } else if paused && reason != "DeploymentPaused" && reason != TIMED_OUT {
        set("Unknown", "DeploymentPaused", "Deployment is paused");
    } else if !paused && reason == "DeploymentPaused" {
        set("Unknown", "DeploymentResumed", "Deployment is resumed");
    } else if let Some(new) = new.filter(|_| absent) {
        set("True", "FoundNewReplicaSet", &format!("Found new replica set {:?}", meta::name(&**new)));
    }
}

fn note_progress(deployment: &Deployment, status: &mut DeploymentStatus, new: Option<&Arc<ReplicaSet>>, now: Timestamp) {
    if !has_deadline(deployment) {
        return conditions::remove(&mut status.conditions, PROGRESSING);
    }
    let current = conditions::find(&status.conditions, PROGRESSING).cloned();
    let settled = current.as_ref().is_some_and(|condition| condition.reason() == AVAILABLE);
    if settled && status.replicas == status.updated_replicas {
        return;
    }
    let who = match new {
        Some(rs) => format!("ReplicaSet {:?}", meta::name(&**rs)),
        None => format!("Deployment {:?}", meta::name(deployment)),
    };
    if complete(deployment, status) {
        let text = format!("{who} has successfully progressed.");
        conditions::set(&mut status.conditions, DeploymentCondition::new(PROGRESSING, "True", AVAILABLE, &text, now));
    } else if has_progressed(deployment, status) {
        let text = format!("{who} is progressing.");
        let mut condition = DeploymentCondition::new(PROGRESSING, "True", "ReplicaSetUpdated", &text, now);
        if let Some(current) = current.filter(|current| current.status == "True") {
            condition.last_transition_time = current.last_transition_time;
        }
        // Replaced even if alike: its update time is the start of the deadline.
        conditions::replace(&mut status.conditions, condition);
    } else if timed_out(deployment, current.as_ref(), now) {
        let text = format!("{who} has timed out progressing.");
        conditions::set(&mut status.conditions, DeploymentCondition::new(PROGRESSING, "False", TIMED_OUT, &text, now));
    }
}

/// ReplicaFailure of the newest ReplicaSet that has it.
fn note_failures(status: &mut DeploymentStatus, replica_sets: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) {
    let failure =
        new.into_iter().chain(replica_sets).find_map(|rs| conditions::find(&rs.status.as_ref()?.conditions, "ReplicaFailure").cloned());
    match failure {
        None => conditions::remove(&mut status.conditions, "ReplicaFailure"),
        Some(found) => conditions::set(
            &mut status.conditions,
            DeploymentCondition {
                type_: found.type_,
                status: found.status,
                reason: found.reason,
                message: found.message,
                last_transition_time: found.last_transition_time.clone(),
                last_update_time: found.last_transition_time,
            },
        ),
    }
}

fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn progress_deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)
}

fn has_deadline(deployment: &Deployment) -> bool {
    progress_deadline(deployment).is_some()
}

fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = desired(deployment);
    [status.updated_replicas, status.replicas, status.available_replicas].iter().all(|n| n.unwrap_or(0) == desired)
        && status.observed_generation.unwrap_or(0) >= meta::generation(deployment)
}

/// Its stored status says that the rollout is over.
pub fn is_complete(deployment: &Deployment) -> bool {
    deployment.status.as_ref().is_some_and(|status| complete(deployment, status))
}

fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let before = deployment.status.clone().unwrap_or_default();
    let count = |value: Option<i32>| value.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(status.updated_replicas) > count(before.updated_replicas)
        || old(status) < old(&before)
        || count(status.ready_replicas) > count(before.ready_replicas)
        || count(status.available_replicas) > count(before.available_replicas)
}

fn timed_out(deployment: &Deployment, current: Option<&DeploymentCondition>, now: Timestamp) -> bool {
    match current {
        None => false,
        Some(condition) if condition.reason() == AVAILABLE => false,
        Some(condition) if condition.reason() == TIMED_OUT => true,
        Some(condition) => deadline_of(deployment, condition).is_some_and(|at| at < now),
    }
}

fn deadline_of(deployment: &Deployment, condition: &DeploymentCondition) -> Option<Timestamp> {
    let seconds = u64::try_from(progress_deadline(deployment)?).ok()?;
    condition.last_update_time.as_ref()?.0.checked_add(Duration::from_secs(seconds)).ok()
}

/// When to look whether the rollout is stuck; none if it is over, timed out, or has no deadline.
pub fn deadline(deployment: &Deployment) -> Option<Timestamp> {
    let condition = conditions::find(&deployment.status.as_ref()?.conditions, PROGRESSING)?;
    if is_complete(deployment) || condition.reason() == TIMED_OUT || condition.reason() == AVAILABLE {
        return None;
    }
    // A second later than the deadline, as API times have whole seconds.
    deadline_of(deployment, condition)?.checked_add(Duration::from_secs(1)).ok()
}
