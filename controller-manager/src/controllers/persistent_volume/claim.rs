//! What is to be done for one claim: pure.
//!
//! Upstream: `pv_controller.go` (syncUnboundClaim, syncBoundClaim), `index.go` (findBestMatchForClaim), v1.33.

use std::sync::Arc;

use api::volume::{self, BOUND_BY_CONTROLLER, Fit, SELECTED_NODE, annotation, claim_ref, is_bound_to};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::Tell;
use crate::shared::meta;

pub struct View<'a> {
    pub volumes: &'a [Arc<PersistentVolume>],
    /// The claim's, if it exists.
    pub class: Option<&'a StorageClass>,
    /// The name of the cluster's default class.
    pub default_class: Option<&'a str>,
    /// Names of pods that use the claim and have no node yet.
    pub waiting_pods: &'a [String],
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Pending, until something changes.
    Wait,
    /// It was bound, and its volume is gone or another's.
    Lost,
    Bind(Arc<PersistentVolume>),
    /// It says nothing of a class, and there is a default now.
    AssignClass(String),
    Provision,
}

#[derive(Debug, PartialEq)]
pub struct Plan {
    pub step: Step,
    pub tell: Option<Tell>,
}

impl From<Step> for Plan {
    fn from(step: Step) -> Self {
        Plan { step, tell: None }
    }
}

fn telling(step: Step, tell: Tell) -> Plan {
    Plan { step, tell: Some(tell) }
}

pub fn plan(claim: &PersistentVolumeClaim, view: &View) -> Plan {
    let name = volume::volume_name(claim);
    let named = view.volumes.iter().find(|volume| meta::name(&***volume) == name && !name.is_empty());
    match annotation(&claim.metadata, volume::BIND_COMPLETED) {
        Some(_) => once_bound(claim, named),
        None if name.is_empty() => anything(claim, view),
        None => by_name(claim, named),
    }
}

fn once_bound(claim: &PersistentVolumeClaim, volume: Option<&Arc<PersistentVolume>>) -> Plan {
    let lost = |reason, message: &str| telling(Step::Lost, Tell::warning(reason, message));
    if volume::volume_name(claim).is_empty() {
        return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    let Some(volume) = volume else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    match claim_ref(volume) {
        None => Step::Bind(volume.clone()).into(),
        Some(reference) if reference.uid.as_deref() == Some(meta::uid(claim)) => Step::Bind(volume.clone()).into(),
        Some(_) => lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
    }
}

fn by_name(claim: &PersistentVolumeClaim, volume: Option<&Arc<PersistentVolume>>) -> Plan {
    let Some(volume) = volume else { return Step::Wait.into() };
    let name = meta::name(&**volume);
    if claim_ref(volume).is_none() {
        return match volume::mismatch(volume, claim) {
            None => Step::Bind(volume.clone()).into(),
            Some(why) => telling(Step::Wait, Tell::warning("VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}"))),
        };
    }
    if is_bound_to(volume, claim) {
        return Step::Bind(volume.clone()).into();
    }
    match annotation(&claim.metadata, BOUND_BY_CONTROLLER) {
        // Half of a bond that lost its other half.
        Some(_) => Step::Wait.into(),
        None => telling(Step::Wait, Tell::warning("FailedBinding", format!("volume {name:?} already bound to a different claim."))),
    }
}

fn anything(claim: &PersistentVolumeClaim, view: &View) -> Plan {
    let delayed = view.class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if let Some(volume) = best_match(claim, view.volumes, delayed) {
        return Step::Bind(volume).into();
    }
    if !volume::names_class(claim)
        && let Some(class) = view.default_class
    {
        return Step::AssignClass(class.to_owned()).into();
    }
    if delayed && annotation(&claim.metadata, SELECTED_NODE).is_none() {
        return telling(Step::Wait, first_consumer(view.waiting_pods));
    }
    if !volume::claim_class(claim).is_empty() {
        return Step::Provision.into();
    }
    telling(Step::Wait, Tell::normal("FailedBinding", "no persistent volumes available for this claim and no storage class is set"))
}

fn first_consumer(pods: &[String]) -> Tell {
    match pods {
        [] => Tell::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => Tell::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => Tell::normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
    }
}

/// A volume reserved for the claim; else, of those that suit it, the one with the fewest access modes, and of these the
/// smallest. A claim that waits for its first consumer gets only what is reserved: the scheduler chooses for it.
fn best_match(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], delayed: bool) -> Option<Arc<PersistentVolume>> {
    let selector = volume::selector(claim);
    let fits = |wanted: Fit| volumes.iter().filter(|v| volume::fit(v, claim, &selector) == wanted).collect::<Vec<_>>();
    if let Some(reserved) = fits(Fit::Reserved).first() {
        return Some(Arc::clone(reserved));
    }
    if delayed {
        return None;
    }
    let modes = |volume: &PersistentVolume| volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()).map_or(0, Vec::len);
    fits(Fit::Free).into_iter().min_by_key(|volume| (modes(volume), volume::capacity(volume))).cloned()
}
