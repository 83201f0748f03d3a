//! Namespace: empties a namespace that is being deleted, then lets it go.
//!
//! ```text
//! deletionTimestamp ─▶ discover kinds ─▶ delete all of each ─▶ count what remains ─▶ conditions
//!                                                                └─ nothing ─▶ finalize
//! ```
//! Upstream: `pkg/controller/namespace/deletion/namespaced_resources_deleter.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use kube::Api;
use kube::core::DynamicObject;
use kube::core::params::{DeleteParams, ListParams};
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::conditions::{self, Condition};
use crate::shared::discovery::{self, Resource};
use crate::shared::{meta, watch, write};

const NAME: &str = "namespace-controller";
const FINALIZER: &str = "kubernetes";
/// Kinds emptied at once.
const PARALLEL: usize = 8;
/// How soon to look again at content that no watch of ours tells about; pods, the usual stragglers, wake us themselves.
const RECHECK: Duration = Duration::from_secs(2);

struct Controller {
    client: kube::Client,
    namespaces: Informer<Namespace>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller { client: context.client.clone(), namespaces: context.informers.of() });
    watch::itself(&this.namespaces, &queue);
    let (pods, namespaces, pod_queue) = (context.informers.of::<Pod>(), this.namespaces.clone(), queue.clone());
    pods.on_change(move |change| {
        let key = Key::cluster(change.key().namespace);
        if change.is_delete() && namespaces.get(&key).is_some_and(|namespace| meta::is_deleting(&*namespace)) {
            pod_queue.add_caused(key, change.cause());
        }
    });
    this.namespaces.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

/// What was found and could not be done.
#[derive(Debug, Default)]
struct Found {
    discovery_error: Option<String>,
    delete_errors: Vec<String>,
    /// `pods.`, `deployments.apps` with their numbers.
    remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(namespace) = self.namespaces.get(key).filter(|namespace| meta::is_deleting(&**namespace)) else {
            return Ok(Next::Done);
        };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Next::Done);
        }
        let found = self.empty(meta::name(&*namespace)).await;
        let mut updated = (*namespace).clone();
        updated.status = Some(status(namespace.status.clone().unwrap_or_default(), &found, Timestamp::now()));
        if updated.status != namespace.status {
            match write::update_status(&self.client, &updated).await {
                Err(error) if write::is_not_found(&error) => return Ok(Next::Done),
                result => updated = result?,
            }
        }
        if let Some(error) = found.discovery_error.or_else(|| found.delete_errors.into_iter().next()) {
            anyhow::bail!(error);
        }
        if !found.remaining.is_empty() {
            return Ok(Next::After(RECHECK));
        }
        let finalizers = updated.spec.get_or_insert_default().finalizers.get_or_insert_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        write::unless_gone(write::update_subresource(&self.client, "finalize", &updated).await)?;
        Ok(Next::Done)
    }

    async fn empty(&self, namespace: &str) -> Found {
        let mut found = Found::default();
        let resources = match discovery::resources(&self.client).await {
            Ok(resources) => resources,
            Err(error) => {
                found.discovery_error = Some(write::message(&error));
                return found;
            }
        };
        let namespaced = resources.into_iter().filter(|resource| resource.namespaced);
        let mut results = stream::iter(namespaced)
            .map(|resource| async move { (self.empty_of(namespace, &resource).await, resource) })
            .buffer_unordered(PARALLEL);
        while let Some((result, resource)) = results.next().await {
            match result {
                Err(error) => found.delete_errors.push(write::message(&error)),
                Ok(left) if left.is_empty() => {}
                Ok(left) => {
                    found.remaining.insert(format!("{}.{}", resource.api.plural, resource.api.group), left.len());
                    for finalizer in left.into_iter().flat_map(|object| object.metadata.finalizers.unwrap_or_default()) {
                        *found.finalizers.entry(finalizer).or_default() += 1;
                    }
                }
            }
        }
        found
    }

    /// Deletes all objects of one kind and gives those that are still there.
    async fn empty_of(&self, namespace: &str, resource: &Resource) -> kube::Result<Vec<kube::core::PartialObjectMeta<DynamicObject>>> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource.api);
        let list = ListParams::default();
        if api.list_metadata(&list).await?.items.is_empty() {
            return Ok(Vec::new());
        }
        match api.delete_collection(&DeleteParams::background(), &list).await {
            Err(error) if machinery::controller::has_code(&error, 405) => {
                for object in api.list_metadata(&list).await?.items {
                    let name = object.metadata.name.unwrap_or_default();
                    write::unless_gone(api.delete(&name, &DeleteParams::background()).await)?;
                }
            }
            result => drop(result?),
        }
        Ok(api.list_metadata(&list).await?.items)
    }
}

fn status(mut status: NamespaceStatus, found: &Found, now: Timestamp) -> NamespaceStatus {
    status.phase = Some("Terminating".to_owned());
    let mut set = |type_: &str, failed: Option<(&str, String)>, (reason, text): (&str, &str)| {
        let (state, reason, text) = match &failed {
            Some((reason, text)) => ("True", *reason, text.as_str()),
            None => ("False", reason, text),
        };
        let same = conditions::find(&status.conditions, type_).is_some_and(|c| c.status == state && c.message() == text);
        if !same {
            let mut condition = NamespaceCondition::new(type_, state, reason, text, now);
            if let Some(old) = conditions::find(&status.conditions, type_).filter(|old| old.status == state) {
                condition.last_transition_time = old.last_transition_time.clone();
            }
            conditions::replace(&mut status.conditions, condition);
        }
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        found.discovery_error.as_ref().map(|text| ("DiscoveryFailed", text.clone())),
        ("ResourcesDiscovered", "All resources successfully discovered"),
    );
    set("NamespaceDeletionGroupVersionParsingFailure", None, ("ParsedGroupVersions", "All legacy kube types successfully parsed"));
    let failed = (!found.delete_errors.is_empty()).then(|| {
        let text =
            format!("Failed to delete all resource types, {} remaining: {}", found.delete_errors.len(), found.delete_errors.join(", "));
        ("ContentDeletionFailed", text)
    });
    set("NamespaceDeletionContentFailure", failed, ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"));
    let remaining = list(&found.remaining, |kind, count| format!("{kind} has {count} resource instances"));
    set(
        "NamespaceContentRemaining",
        remaining.map(|text| ("SomeResourcesRemain", format!("Some resources are remaining: {text}"))),
        ("ContentRemoved", "All content successfully removed"),
    );
    let finalizers = list(&found.finalizers, |name, count| format!("{name} in {count} resource instances"));
    set(
        "NamespaceFinalizersRemaining",
        finalizers.map(|text| ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {text}"))),
        ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    );
    status
}

fn list(counts: &BTreeMap<String, usize>, line: impl Fn(&String, &usize) -> String) -> Option<String> {
    let lines: Vec<String> = counts.iter().map(|(name, count)| line(name, count)).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_is_left() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let found = Found { remaining: BTreeMap::from([("pods.".into(), 2)]), ..Found::default() };
        let first = status(NamespaceStatus::default(), &found, at(1));
        let remaining = conditions::find(&first.conditions, "NamespaceContentRemaining").unwrap();
        assert_eq!(remaining.message(), "Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(status(first.clone(), &found, at(2)), first, "the same findings write nothing");
        let done = status(first, &Found::default(), at(3));
        assert!(!conditions::is_true(&done.conditions, "NamespaceContentRemaining"));
    }
}
