//! ControllerRevisions: the kept history of a pod template, for DaemonSet and StatefulSet.
//!
//! A revision's data is a patch that puts the template back (`kubectl rollout undo` applies it). Equal data is the
//! same revision; going back moves an old revision's number to the top.
//! Upstream: `pkg/controller/history/controller_history.go`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Client;
use serde_json::{Value, json};

use super::meta::{self, Labels};
use super::write::{self, Object};
use super::{hash, watch};

/// The label by which pods and revisions are matched.
pub const HASH_LABEL: &str = "controller-revision-hash";

pub fn data(template: &PodTemplateSpec) -> serde_json::Result<Value> {
    let mut template = serde_json::to_value(template)?;
    template["$patch"] = json!("replace");
    // Go writes this where no time is: clients compare these bytes with their own.
    template["metadata"]["creationTimestamp"] = Value::Null;
    Ok(json!({"spec": {"template": template}}))
}

/// Sorted by revision, oldest first.
pub fn sorted(mut history: Vec<Arc<ControllerRevision>>) -> Vec<Arc<ControllerRevision>> {
    history.sort_by_key(|revision| (revision.revision, meta::created(&**revision), meta::name(&**revision).to_owned()));
    history
}

#[derive(Debug, PartialEq)]
pub enum Plan {
    /// This one is the newest and has the template.
    Current(Arc<ControllerRevision>),
    /// This older one has the template: give it the number.
    Renumber(Arc<ControllerRevision>, i64),
    Create(i64),
}

pub fn plan(history: &[Arc<ControllerRevision>], data: &Value) -> Plan {
    let next = history.last().map_or(0, |last| last.revision) + 1;
    match history.iter().rfind(|revision| revision.data.as_ref().is_some_and(|known| known.0 == *data)) {
        None => Plan::Create(next),
        Some(found) if found.revision + 1 == next => Plan::Current(found.clone()),
        Some(found) => Plan::Renumber(found.clone(), next),
    }
}

/// Makes sure that the newest revision holds `template`. None when the name collided: `collisions` is to be raised.
pub async fn ensure<O: Object>(
    client: &Client,
    owner: &O,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
    history: &[Arc<ControllerRevision>],
) -> anyhow::Result<Option<Arc<ControllerRevision>>> {
    let data = data(template)?;
    match plan(history, &data) {
        Plan::Current(revision) => Ok(Some(revision)),
        Plan::Renumber(revision, number) => {
            let renumbered = ControllerRevision { revision: number, ..(*revision).clone() };
            Ok(Some(Arc::new(write::update(client, &renumbered).await?)))
        }
        Plan::Create(number) => {
            let revision = new(owner, template, data, collisions, number)?;
            match write::create(client, &revision).await {
                Ok(made) => Ok(Some(Arc::new(made))),
                Err(error) if write::is_already_exists(&error) => {
                    let existing = write::get::<ControllerRevision>(client, &meta::key(&revision)).await?;
                    // Ours, not yet in the cache, or a collision.
                    Ok(existing.filter(|existing| existing.data == revision.data).map(Arc::new))
                }
                Err(error) => Err(error.into()),
            }
        }
    }
}

fn new<O: Object>(
    owner: &O,
    template: &PodTemplateSpec,
    data: Value,
    collisions: Option<i32>,
    revision: i64,
) -> serde_json::Result<ControllerRevision> {
    let hash = hash::of(&data, collisions)?;
    let mut labels: Labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", meta::name(owner))),
            namespace: owner.metadata().namespace.clone(),
            labels: Some(labels),
            annotations: owner.metadata().annotations.clone(),
            owner_references: Some(vec![meta::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision,
    })
}

/// Old revisions beyond the limit that no pod uses, oldest first.
pub fn expired(
    history: &[Arc<ControllerRevision>],
    limit: Option<i32>,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let unused: Vec<&Arc<ControllerRevision>> = history.iter().filter(|revision| !in_use(revision)).collect();
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(usize::MAX);
    let excess = unused.len().saturating_sub(limit);
    unused.into_iter().take(excess).cloned().collect()
}

pub async fn delete(client: &Client, revisions: &[Arc<ControllerRevision>]) -> kube::Result<()> {
    for revision in revisions {
        let only = write::only(meta::uid(&**revision));
        write::unless_gone(write::delete::<ControllerRevision>(client, &meta::key(&**revision), &only).await)?;
    }
    Ok(())
}

pub fn hash_of(revision: &ControllerRevision) -> &str {
    meta::label(revision, HASH_LABEL).unwrap_or_default()
}

/// The owner's own revisions, oldest first.
pub fn of<O: Object>(informer: &machinery::Informer<ControllerRevision>, owner: &O) -> Vec<Arc<ControllerRevision>> {
    sorted(watch::candidates(informer, owner).into_iter().filter(|r| meta::is_controlled_by(&**r, meta::uid(owner))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: i64, image: &str) -> Arc<ControllerRevision> {
        let data = Some(RawExtension(json!(image)));
        Arc::new(ControllerRevision { revision: number, data, ..ControllerRevision::default() })
    }

    #[test]
    fn history_moves_forward() {
        let history = [revision(1, "v1"), revision(2, "v2")];
        assert_eq!(plan(&[], &json!("v1")), Plan::Create(1));
        assert_eq!(plan(&history, &json!("v3")), Plan::Create(3));
        assert_eq!(plan(&history, &json!("v2")), Plan::Current(history[1].clone()));
        assert_eq!(plan(&history, &json!("v1")), Plan::Renumber(history[0].clone(), 3));
        assert_eq!(expired(&history, Some(0), |r| r.revision == 2), [history[0].clone()]);
        assert!(expired(&history, Some(1), |r| r.revision == 2).is_empty());
    }
}
