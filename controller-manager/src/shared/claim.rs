//! Adoption and release: which of the objects around an owner are its own.
//!
//! An owner adopts what matches its selector and has no controller, and releases what it controls and no longer
//! matches. `plan` decides; `claim` carries it out and gives what the owner holds afterwards.
//! Upstream: `pkg/controller/controller_ref_manager.go`.

use std::sync::Arc;

use api::selector::LabelSelector;
use kube::Client;
use serde_json::json;

use super::meta::{self, controller_of};
use super::write::{self, Object};

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

fn plan<O: Object, K: Object>(owner: &O, selector: &LabelSelector, object: &K) -> Claim {
    let matches = selector.matches_opt(object.metadata().labels.as_ref());
    match controller_of(object.metadata()) {
        Some(reference) if reference.uid != meta::uid(owner) => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if meta::is_deleting(owner) => Claim::Ignore,
        Some(_) => Claim::Release,
        None if meta::is_deleting(owner) || meta::is_deleting(object) || !matches => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// What of `objects` belongs to `owner` now. `adoptable` narrows what may be adopted (no finished pods).
pub async fn claim<O: Object, K: Object>(
    client: &Client,
    owner: &O,
    selector: &LabelSelector,
    objects: Vec<Arc<K>>,
    adoptable: impl Fn(&K) -> bool,
) -> anyhow::Result<Vec<Arc<K>>> {
    let mut claimed = Vec::new();
    let mut may_adopt = None;
    for object in objects {
        match plan(owner, selector, &*object) {
            Claim::Ignore => {}
            Claim::Keep => claimed.push(object),
            Claim::Release => release(client, owner, &*object).await?,
            Claim::Adopt if !adoptable(&object) => {}
            Claim::Adopt => {
                if may_adopt.is_none() {
                    may_adopt = Some(still_there(client, owner).await?);
                }
                if may_adopt == Some(true) && adopt(client, owner, &*object).await? {
                    claimed.push(object);
                }
            }
        }
    }
    Ok(claimed)
}

/// Adopting on a stale view of the owner would tie objects to one that is being deleted: ask the API server itself.
async fn still_there<O: Object>(client: &Client, owner: &O) -> kube::Result<bool> {
    let fresh = write::get::<O>(client, &meta::key(owner)).await?;
    Ok(fresh.is_some_and(|fresh| meta::uid(&fresh) == meta::uid(owner) && !meta::is_deleting(&fresh)))
}

async fn adopt<O: Object, K: Object>(client: &Client, owner: &O, object: &K) -> kube::Result<bool> {
    let patch = json!({"metadata": {
        "uid": meta::uid(object),
        "ownerReferences": [meta::controller_ref(owner)],
    }});
    match write::strategic::<K>(client, &meta::key(object), &patch).await {
        Ok(_) => Ok(true),
        Err(error) if write::is_not_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn release<O: Object, K: Object>(client: &Client, owner: &O, object: &K) -> kube::Result<()> {
    let patch = json!({"metadata": {
        "uid": meta::uid(object),
        "ownerReferences": [{"$patch": "delete", "uid": meta::uid(owner)}],
    }});
    match write::strategic::<K>(client, &meta::key(object), &patch).await {
        // Invalid: the object was deleted and made anew, or has no owners left; both leave nothing to release.
        Err(error) if !write::is_not_found(&error) && !write::is_invalid(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::meta::{Labels, controller_ref, time};
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;

    fn owner(uid: &str) -> ReplicaSet {
        let mut rs = ReplicaSet::default();
        rs.metadata.uid = Some(uid.into());
        rs.metadata.name = Some("web".into());
        rs
    }

    fn pod(app: &str, owner: Option<&ReplicaSet>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.labels = Some(Labels::from([("app".into(), app.into())]));
        pod.metadata.owner_references = owner.map(|owner| vec![controller_ref(owner)]);
        pod
    }

    #[test]
    fn plans() {
        let (mine, other) = (owner("1"), owner("2"));
        let selector = LabelSelector::parse("app=web").unwrap();
        let plan = |owner: &ReplicaSet, pod: &Pod| super::plan(owner, &selector, pod);
        assert_eq!(plan(&mine, &pod("web", Some(&mine))), Claim::Keep);
        assert_eq!(plan(&mine, &pod("web", Some(&other))), Claim::Ignore);
        assert_eq!(plan(&mine, &pod("web", None)), Claim::Adopt);
        assert_eq!(plan(&mine, &pod("db", None)), Claim::Ignore);
        assert_eq!(plan(&mine, &pod("db", Some(&mine))), Claim::Release);
        let mut dying = owner("1");
        dying.metadata.deletion_timestamp = Some(time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(plan(&dying, &pod("web", None)), Claim::Ignore);
        assert_eq!(plan(&dying, &pod("db", Some(&mine))), Claim::Ignore);
    }
}
