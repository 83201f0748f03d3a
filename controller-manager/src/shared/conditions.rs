//! Status conditions, the same rules for every kind that has them.
//!
//! Invariant: `lastTransitionTime` moves only when `status` changes.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DeploymentCondition, ReplicaSetCondition, StatefulSetCondition};
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition;
use k8s_openapi::api::core::v1::{NamespaceCondition, NodeCondition, PodCondition, ReplicationControllerCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::meta::time;

/// The part that every condition type shares.
pub trait Condition: Clone + Send + Sync + 'static {
    fn new(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Self;
    fn type_(&self) -> &str;
    fn status(&self) -> &str;
    fn reason(&self) -> &str;
    fn message(&self) -> &str;
    fn transition(&mut self) -> &mut Option<Time>;
}

macro_rules! condition {
    ($($kind:ident { $($stamp:ident),* });* $(;)?) => { $(
        impl Condition for $kind {
            #[allow(clippy::needless_update)] // kinds differ in their further stamps
            fn new(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Self {
                $kind {
                    type_: type_.to_owned(),
                    status: status.to_owned(),
                    reason: Some(reason.to_owned()).filter(|text| !text.is_empty()),
                    message: Some(message.to_owned()).filter(|text| !text.is_empty()),
                    last_transition_time: Some(time(now)),
                    $($stamp: Some(time(now)),)*
                    ..$kind::default()
                }
            }
            fn type_(&self) -> &str { &self.type_ }
            fn status(&self) -> &str { &self.status }
            fn reason(&self) -> &str { self.reason.as_deref().unwrap_or_default() }
            fn message(&self) -> &str { self.message.as_deref().unwrap_or_default() }
            fn transition(&mut self) -> &mut Option<Time> { &mut self.last_transition_time }
        }
    )* };
}

condition! {
    DeploymentCondition { last_update_time };
    ReplicaSetCondition {};
    ReplicationControllerCondition {};
    StatefulSetCondition {};
    JobCondition { last_probe_time };
    NamespaceCondition {};
    NodeCondition { last_heartbeat_time };
    PodCondition {};
    CertificateSigningRequestCondition { last_update_time };
}

pub fn find<'a, C: Condition>(conditions: &'a Option<Vec<C>>, type_: &str) -> Option<&'a C> {
    conditions.as_deref()?.iter().find(|condition| condition.type_() == type_)
}

pub fn is_true<C: Condition>(conditions: &Option<Vec<C>>, type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status() == "True")
}

/// Puts the condition in; one with the same status and reason stays as it is (upstream's SetDeploymentCondition).
pub fn set<C: Condition>(conditions: &mut Option<Vec<C>>, mut condition: C) {
    if let Some(current) = find(conditions, condition.type_()) {
        if current.status() == condition.status() && current.reason() == condition.reason() {
            return;
        }
        if current.status() == condition.status() {
            *condition.transition() = current.clone().transition().take();
        }
    }
    replace(conditions, condition);
}

/// Puts the condition in as given, whatever stood there.
pub fn replace<C: Condition>(conditions: &mut Option<Vec<C>>, condition: C) {
    let list = conditions.get_or_insert_default();
    list.retain(|other| other.type_() != condition.type_());
    list.push(condition);
}

pub fn remove<C: Condition>(conditions: &mut Option<Vec<C>>, type_: &str) {
    if let Some(list) = conditions {
        list.retain(|condition| condition.type_() != type_);
        if list.is_empty() {
            *conditions = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_with_status_only() {
        let mut list = None;
        set(&mut list, PodCondition::new("Ready", "True", "A", "", at(1)));
        set(&mut list, PodCondition::new("Ready", "True", "B", "", at(2)));
        let ready = find(&list, "Ready").unwrap();
        assert_eq!((ready.reason(), ready.last_transition_time.clone()), ("B", Some(time(at(1)))));
        set(&mut list, PodCondition::new("Ready", "False", "B", "", at(3)));
        assert_eq!(find(&list, "Ready").unwrap().last_transition_time, Some(time(at(3))));
        remove(&mut list, "Ready");
        assert!(list.is_none());
    }
}
