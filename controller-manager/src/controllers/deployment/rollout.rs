//! The decision: which ReplicaSets to make, scale and forget.
//!
//! One sync makes one step of a rollout, first up, then down, as upstream; the ReplicaSets' changes start the next.
//! Upstream: `pkg/controller/deployment/{sync,rolling,recreate}.go`, `util/deployment_util.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::shared::percent::{self, Round};
use crate::shared::{hash, meta};

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const REVISION_HISTORY_CHARS: usize = 2000;

/// Annotations of the Deployment that its ReplicaSets don't get.
const NOT_COPIED: [&str; 6] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];

pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    pub replica_sets: &'a [Arc<ReplicaSet>],
    /// Has the ReplicaSet pods that may still run? Asked for Recreate only.
    pub running: &'a dyn Fn(&ReplicaSet) -> bool,
}

#[derive(Debug, PartialEq)]
pub enum Step {
    Create(Box<ReplicaSet>),
    /// `from`: its number of replicas before.
    Update {
        rs: Box<ReplicaSet>,
        from: i32,
    },
    Delete(Arc<ReplicaSet>),
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The revision annotation that the Deployment is to carry; none while its template has no ReplicaSet.
    pub revision: Option<String>,
    /// A plain change of size, or a pause: the progress condition is left alone.
    pub scaling_only: bool,
}

/// A ReplicaSet being planned with. `was` is none for one to be made.
struct Draft {
    was: Option<Arc<ReplicaSet>>,
    rs: ReplicaSet,
}

struct Drafts<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    new: Option<Draft>,
    /// Oldest first.
    old: Vec<Draft>,
}

pub fn plan(observed: &Observed) -> serde_json::Result<Plan> {
    let Some(spec) = &observed.deployment.spec else { return Ok(Plan::default()) };
    let mut drafts = Drafts::of(observed, spec);
    drafts.annotate_new();
    let mut cleanup = Vec::new();
    let deleting = meta::is_deleting(observed.deployment);
    let scaling_only = deleting || spec.paused == Some(true) || drafts.is_scaling_event();
    if deleting {
    } else if scaling_only {
        drafts.scale();
        if spec.paused == Some(true) {
            cleanup = drafts.expired();
        }
    } else {
        let steady = match is_recreate(observed.deployment) {
            true => drafts.recreate(observed.running)?,
            false => drafts.roll()?,
        };
        if steady && super::status::is_complete(observed.deployment) {
            cleanup = drafts.expired();
        }
    }
    let revision = drafts.new.as_ref().and_then(|new| meta::annotation(&new.rs, REVISION)).map(str::to_owned);
    let mut steps = drafts.into_steps();
    steps.extend(cleanup.into_iter().map(Step::Delete));
    Ok(Plan { steps, revision, scaling_only })
}

impl<'a> Drafts<'a> {
    fn of(observed: &Observed<'a>, spec: &'a DeploymentSpec) -> Self {
        let mut sets: Vec<&Arc<ReplicaSet>> = observed.replica_sets.iter().collect();
        sets.sort_by_key(|rs| (meta::created(&***rs), meta::name(&***rs).to_owned()));
        let draft = |rs: &Arc<ReplicaSet>| Draft { was: Some(rs.clone()), rs: (**rs).clone() };
        // The oldest one with the template wins, should there be several.
        let new = sets.iter().position(|rs| same_template(rs, observed.deployment)).map(|at| draft(sets.remove(at)));
        Drafts { deployment: observed.deployment, spec, new, old: sets.into_iter().map(draft).collect() }
    }

    fn desired(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn all(&self) -> impl Iterator<Item = &Draft> {
        self.old.iter().chain(&self.new)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Draft> {
        self.old.iter_mut().chain(&mut self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(|draft| replicas(&draft.rs)).sum()
    }

    /// Brings the current ReplicaSet's annotations and minReadySeconds up to the Deployment's.
    fn annotate_new(&mut self) {
        let revision = self.next_revision();
        let (deployment, spec) = (self.deployment, self.spec);
        if let Some(new) = &mut self.new {
            annotate(deployment, &mut new.rs, revision);
            new.rs.spec.get_or_insert_default().min_ready_seconds = spec.min_ready_seconds;
        }
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(|draft| revision_of(&draft.rs)).max().unwrap_or(0) + 1
    }

    /// The Deployment's size changed since its ReplicaSets were last scaled.
    fn is_scaling_event(&self) -> bool {
        let differs = |rs: &ReplicaSet| number(rs, DESIRED).is_some_and(|desired| desired != self.desired());
        self.all().any(|draft| replicas(&draft.rs) > 0 && differs(&draft.rs))
    }

    /// Scales without rolling: the one active ReplicaSet, or all in proportion in the middle of a rollout.
    fn scale(&mut self) {
        let (deployment, desired) = (self.deployment, self.desired());
        if let Some(only) = self.active_or_latest() {
            return resize(deployment, only, desired);
        }
        if self.new.as_ref().is_some_and(|new| is_saturated(&new.rs, desired)) {
            let active = self.old.iter_mut().filter(|draft| replicas(&draft.rs) > 0);
            return active.for_each(|draft| resize(deployment, draft, 0));
        }
        if !is_recreate(deployment) {
            self.scale_in_proportion();
        }
    }

    fn active_or_latest(&mut self) -> Option<&mut Draft> {
        match self.all().filter(|draft| replicas(&draft.rs) > 0).count() {
            0 => self.new.as_mut().or(self.old.last_mut()),
            1 => self.all_mut().find(|draft| replicas(&draft.rs) > 0),
            _ => None,
        }
    }

    fn scale_in_proportion(&mut self) {
        let (deployment, desired) = (self.deployment, self.desired());
        let allowed = if desired > 0 { desired + max_surge(deployment) } else { 0 };
        let to_add = allowed - self.total();
        let mut active: Vec<&mut Draft> = self.all_mut().filter(|draft| replicas(&draft.rs) > 0).collect();
        active.sort_by(|a, b| {
            let newer = meta::created(&b.rs).cmp(&meta::created(&a.rs));
            let age = if to_add > 0 { newer } else { newer.reverse() };
            replicas(&b.rs).cmp(&replicas(&a.rs)).then(age)
        });
        let mut added = 0;
        let mut sizes: Vec<i32> = Vec::new();
        for draft in &active {
            let share = proportion(&draft.rs, deployment, to_add, added);
            added += share;
            sizes.push(replicas(&draft.rs) + share);
        }
        // Rounding leaves some over: the biggest takes them.
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (draft, size) in active.into_iter().zip(sizes) {
            set_size(deployment, &mut draft.rs, size);
        }
    }

    /// One step of a rolling update. True when there was nothing to do.
    fn roll(&mut self) -> serde_json::Result<bool> {
        if self.new.is_none() {
            self.make_new()?;
            return Ok(false);
        }
        Ok(!self.grow_new() && !self.shrink_old())
    }

    /// One step of stop-then-start. True when there was nothing to do.
    fn recreate(&mut self, running: &dyn Fn(&ReplicaSet) -> bool) -> serde_json::Result<bool> {
        let deployment = self.deployment;
        let mut scaled = false;
        for draft in self.old.iter_mut().filter(|draft| replicas(&draft.rs) > 0) {
            resize(deployment, draft, 0);
            scaled = true;
        }
        if scaled || self.old.iter().any(|old| status_replicas(&old.rs) > 0 || running(&old.rs)) {
            return Ok(false);
        }
        if self.new.is_none() {
            self.make_new()?;
            return Ok(false);
        }
        Ok(!self.grow_new())
    }

    fn make_new(&mut self) -> serde_json::Result<()> {
        let mut rs = new_replica_set(self.deployment, self.spec)?;
        annotate(self.deployment, &mut rs, self.next_revision());
        let size = self.new_size(0);
        set_size(self.deployment, &mut rs, size);
        self.new = Some(Draft { was: None, rs });
        Ok(())
    }

    /// How far the current ReplicaSet, now at `have`, may grow.
    fn new_size(&self, have: i32) -> i32 {
        let desired = self.desired();
        if is_recreate(self.deployment) {
            return desired;
        }
        let room = desired + max_surge(self.deployment) - self.total();
        if room <= 0 { have } else { have + room.min(desired - have) }
    }

    fn grow_new(&mut self) -> bool {
        let (deployment, desired) = (self.deployment, self.desired());
        let Some(have) = self.new.as_ref().map(|new| replicas(&new.rs)) else { return false };
        let size = if have > desired { desired } else { self.new_size(have) };
        if let Some(new) = &mut self.new {
            resize(deployment, new, size);
        }
        size != have
    }

    /// Takes old replicas away, the unhealthy first, never below the wished availability.
    fn shrink_old(&mut self) -> bool {
        let deployment = self.deployment;
        let min_available = self.desired() - max_unavailable(deployment);
        let new_unavailable = self.new.as_ref().map_or(0, |new| replicas(&new.rs) - available(&new.rs));
        let room = self.total() - min_available - new_unavailable;
        if room <= 0 || self.old.iter().all(|old| replicas(&old.rs) == 0) {
            return false;
        }
        let mut cleaned = 0;
        for draft in &mut self.old {
            let size = replicas(&draft.rs);
            let unhealthy = (size - available(&draft.rs)).clamp(0, size);
            let cut = unhealthy.min(room - cleaned);
            resize(deployment, draft, size - cut);
            cleaned += cut;
        }
        let available: i32 = self.all().map(|draft| available(&draft.rs)).sum();
        let mut left = (available - min_available).max(0);
        let spare = left;
        for draft in &mut self.old {
            let cut = replicas(&draft.rs).min(left);
            resize(deployment, draft, replicas(&draft.rs) - cut);
            left -= cut;
        }
        cleaned + (spare - left) > 0
    }

    /// Old ReplicaSets beyond the history limit that hold no pods, oldest first.
    fn expired(&self) -> Vec<Arc<ReplicaSet>> {
        let limit = self.spec.revision_history_limit.unwrap_or(10);
        let alive: Vec<&Draft> = self.old.iter().filter(|draft| !meta::is_deleting(&draft.rs)).collect();
        let excess = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        let idle = |rs: &ReplicaSet| {
            let observed = rs.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
            status_replicas(rs) == 0 && replicas(rs) == 0 && meta::generation(rs) <= observed
        };
        let mut oldest = alive;
        oldest.sort_by_key(|draft| revision_of(&draft.rs));
        oldest.into_iter().take(excess).filter(|draft| idle(&draft.rs)).filter_map(|draft| draft.was.clone()).collect()
    }

    fn into_steps(self) -> Vec<Step> {
        // The new one first: room is made for it elsewhere only in a later sync.
        let drafts = self.new.into_iter().chain(self.old);
        drafts
            .filter_map(|draft| match draft.was {
                None => Some(Step::Create(Box::new(draft.rs))),
                Some(was) if *was == draft.rs => None,
                Some(was) => Some(Step::Update { rs: Box::new(draft.rs), from: replicas(&was) }),
            })
            .collect()
    }
}

pub fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn status_replicas(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map_or(0, |status| status.replicas)
}

fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn is_saturated(rs: &ReplicaSet, desired: i32) -> bool {
    replicas(rs) == desired && number(rs, DESIRED) == Some(desired) && available(rs) == desired
}

fn number(rs: &ReplicaSet, annotation: &str) -> Option<i32> {
    meta::annotation(rs, annotation)?.parse().ok()
}

fn revision_of(rs: &ReplicaSet) -> i64 {
    meta::annotation(rs, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Same pods, the hash label aside.
pub fn same_template(rs: &ReplicaSet, deployment: &Deployment) -> bool {
    let bare = |template: Option<&PodTemplateSpec>| {
        let mut template = template.cloned().unwrap_or_default();
        let meta = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels.take_if(|labels| labels.is_empty());
        meta.annotations.take_if(|annotations| annotations.is_empty());
        template
    };
    let ours = rs.spec.as_ref().and_then(|spec| spec.template.as_ref());
    bare(ours) == bare(deployment.spec.as_ref().map(|spec| &spec.template))
}

fn new_replica_set(deployment: &Deployment, spec: &DeploymentSpec) -> serde_json::Result<ReplicaSet> {
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash::of(&spec.template, collisions)?;
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", meta::name(deployment))),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![meta::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec { replicas: Some(0), min_ready_seconds: spec.min_ready_seconds, selector, template: Some(template) }),
        status: None,
    })
}

/// Copies the Deployment's annotations and moves the revision up, with the old ones kept as history.
fn annotate(deployment: &Deployment, rs: &mut ReplicaSet, revision: i64) {
    let current = revision_of(rs);
    let annotations = rs.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if current < revision
        && let Some(old) = annotations.insert(REVISION.to_owned(), revision.to_string())
    {
        remember(annotations, &old);
    }
}

fn remember(annotations: &mut BTreeMap<String, String>, revision: &str) {
    let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
    if !history.is_empty() {
        history.push(',');
    }
    history.push_str(revision);
    while history.len() > REVISION_HISTORY_CHARS {
        let Some((_, rest)) = history.split_once(',') else { break };
        *history = rest.to_owned();
    }
}

fn resize(deployment: &Deployment, draft: &mut Draft, size: i32) {
    if replicas(&draft.rs) != size {
        set_size(deployment, &mut draft.rs, size);
    }
}

fn set_size(deployment: &Deployment, rs: &mut ReplicaSet, size: i32) {
    let desired = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    rs.spec.get_or_insert_default().replicas = Some(size);
    let annotations = rs.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), (desired + max_surge(deployment)).to_string());
}

/// What of `to_add` falls to this ReplicaSet by its share in the whole.
fn proportion(rs: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if replicas(rs) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(rs, deployment);
    let allowed = to_add - added;
    if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

fn fraction(rs: &ReplicaSet, deployment: &Deployment) -> i32 {
    let desired = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    if desired == 0 {
        return -replicas(rs);
    }
    let observed = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let before = number(rs, MAX).filter(|max| *max != 0).unwrap_or(observed);
    if before == 0 {
        return 0;
    }
    let size = f64::from(replicas(rs)) * f64::from(desired + max_surge(deployment)) / f64::from(before);
    // Fits: a share of a number of replicas.
    size.round() as i32 - replicas(rs)
}

/// maxSurge and maxUnavailable as counts; never both zero, or nothing could move.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let Some(spec) = &deployment.spec else { return (0, 0) };
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let default = IntOrString::String("25%".to_owned());
    let count = |value: Option<&IntOrString>, round| percent::of(value.unwrap_or(&default), spec.replicas.unwrap_or(1), round).unwrap_or(0);
    let surge = count(rolling.and_then(|rolling| rolling.max_surge.as_ref()), Round::Up);
    let unavailable = count(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), Round::Down);
    (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable })
}

fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { fenceposts(deployment).0 }
}

pub fn max_unavailable(deployment: &Deployment) -> i32 {
    let desired = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    if is_recreate(deployment) || desired == 0 { 0 } else { fenceposts(deployment).1.min(desired) }
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
