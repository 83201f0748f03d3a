//! ResourceQuota: counts what is there, so that what was deleted may be used again.
//!
//! ```text
//! quota changed | something it counts went or ended ─▶ wait until it is quiet ─▶ count at the API server ─▶ status
//! ```
//! The API server charges a write before it makes it, so between the two an object is paid for and not yet to be seen. Invariant: a
//! count is taken when no charge was made for [`QUIET`], and written only if none was made since (compare-and-swap). A count that
//! came out lower by such an object would let another in, and the quota would be exceeded.
//! Upstream: `pkg/controller/resourcequota`, which counts from its caches, at once, and every five minutes again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::amounts::{Amounts, add, amounts};
use api::key::{GroupResource, Key};
use api::quota::{Evaluator, scopes};
use api::{Cause, Quantity};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use kube::Api;
use kube::core::DynamicObject;
use kube::core::params::ListParams;
use machinery::{Informer, Next, WorkQueue};
use parking_lot::Mutex;
use serde_json::Value;

use crate::context::Context;
use crate::shared::discovery::{self, Resource};
use crate::shared::write::{self, Object};
use crate::shared::{meta, pods, watch};

const NAME: &str = "resourcequota-controller";
/// Longer than any write takes from its charge to its commit.
const QUIET: Duration = Duration::from_millis(500);
const PAGE: u32 = 500;

struct Controller {
    client: kube::Client,
    quotas: Informer<ResourceQuota>,
    /// Since when each quota is at its revision, as far as we saw.
    seen: Mutex<HashMap<Key, (String, Instant)>>,
    /// What the API serves, as last asked.
    resources: Mutex<Vec<Resource>>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let quotas = context.informers.of::<ResourceQuota>();
    watch::itself(&quotas, &queue);
    let wake = waker(&quotas, &queue);
    let on_departure = wake.clone();
    context.departures.listen(move |gone| on_departure(gone));
    // What frees room without going away: a pod that has ended, a Service of another type, a claim that was resized.
    let pods = context.informers.of::<Pod>();
    let told = wake.clone();
    pods.on_change(move |change| {
        if change.old.as_ref().is_some_and(|old| !pods::is_finished(old)) && change.new.as_ref().is_some_and(|new| pods::is_finished(new)) {
            told(&change.cause());
        }
    });
    on_new_spec(&context.informers.of::<Service>(), wake.clone(), |old, new| old.spec == new.spec);
    on_new_spec(&context.informers.of::<PersistentVolumeClaim>(), wake, |old, new| old.spec == new.spec && old.status == new.status);
    quotas.synced().await;
    let this = Arc::new(Controller { client: context.client.clone(), quotas, seen: Mutex::default(), resources: Mutex::default() });
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

/// Queues the quotas of a namespace that count the resource of the cause.
fn waker(quotas: &Informer<ResourceQuota>, queue: &WorkQueue<Key>) -> impl Fn(&Cause) + Clone + Send + Sync + 'static {
    let (quotas, queue) = (quotas.clone(), queue.clone());
    move |cause| {
        let evaluator = Evaluator { resource: &cause.resource };
        for quota in quotas.in_namespace(&cause.key.namespace) {
            let mut hard = quota.spec.iter().flat_map(|spec| spec.hard.iter().flatten());
            if hard.any(|(name, _)| evaluator.counts(name)) {
                queue.add_caused(meta::key(&*quota), cause.clone());
            }
        }
    }
}

fn on_new_spec<K: Object>(informer: &Informer<K>, wake: impl Fn(&Cause) + Send + Sync + 'static, same: fn(&K, &K) -> bool) {
    informer.on_change(move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && !same(old, new)
        {
            wake(&change.cause());
        }
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(quota) = self.quotas.get(key) else {
            self.seen.lock().remove(key);
            return Ok(Next::Done);
        };
        let tree = serde_json::to_value(&*quota)?;
        let (hard, used) = (amounts(&tree, "/spec/hard"), amounts(&tree, "/status/used"));
        // Before a quota has its first numbers nothing is charged to it, and nothing it counts can be made.
        let first = hard.keys().any(|name| !used.contains_key(name));
        if let Some(wait) = self.unquiet(key, &quota).filter(|_| !first) {
            return Ok(Next::After(wait));
        }
        let mut counted = Amounts::new();
        for resource in self.countable(&hard).await? {
            add(&mut counted, &self.count(&resource, &tree, &hard, &key.namespace).await?);
        }
        if let Some(updated) = plan(&quota, &hard, counted) {
            write::unless_gone(write::update_status(&self.client, &updated).await)?;
        }
        Ok(Next::Done)
    }

    /// The resources that the names of a quota count; the API server is asked again when a name is of none of those known.
    async fn countable(&self, hard: &Amounts) -> kube::Result<Vec<Resource>> {
        let counts =
            |resource: &Resource, name: &str| resource.namespaced && Evaluator { resource: &group_resource(resource) }.counts(name);
        let all_known = hard.keys().all(|name| self.resources.lock().iter().any(|resource| counts(resource, name)));
        if !all_known {
            let found = discovery::resources(&self.client).await?;
            *self.resources.lock() = found;
        }
        let known = self.resources.lock();
        Ok(known.iter().filter(|resource| hard.keys().any(|name| counts(resource, name))).cloned().collect())
    }

    /// How long to wait yet for the quota to have been left alone.
    fn unquiet(&self, key: &Key, quota: &ResourceQuota) -> Option<Duration> {
        let revision = quota.metadata.resource_version.as_deref().unwrap_or_default();
        let mut seen = self.seen.lock();
        let (known, since) = seen.entry(key.clone()).or_insert_with(|| (revision.to_owned(), Instant::now()));
        if known != revision {
            (*known, *since) = (revision.to_owned(), Instant::now());
        }
        QUIET.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
    }

    /// What one kind's objects use of what the quota limits; zero where there are none.
    async fn count(&self, resource: &Resource, quota: &Value, hard: &Amounts, namespace: &str) -> anyhow::Result<Amounts> {
        let name = group_resource(resource);
        let evaluator = Evaluator { resource: &name };
        let mut used: Amounts = hard.keys().filter(|name| evaluator.counts(name)).map(|name| (name.clone(), Quantity::ZERO)).collect();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource.api);
        let scopes = scopes(quota);
        let mut charge = |object: &Value, times: i64| {
            if evaluator.in_scopes(&scopes, object) {
                let usage = evaluator.usage(object);
                used.iter_mut().for_each(|(name, sum)| (0..times).for_each(|_| *sum += usage.get(name).copied().unwrap_or_default()));
            }
        };
        if !evaluator.needs_objects() {
            let page = api.list_metadata(&ListParams::default().limit(1)).await?;
            let total = i64::try_from(page.items.len())? + page.metadata.remaining_item_count.unwrap_or(0);
            charge(&Value::Null, total);
            return Ok(used);
        }
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = api.list(&params).await?;
            page.items.iter().try_for_each(|object| serde_json::to_value(object).map(|object| charge(&object, 1)))?;
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(used),
            }
        }
    }
}

fn group_resource(resource: &Resource) -> GroupResource {
    GroupResource::new(resource.api.group.as_str(), resource.api.plural.as_str())
}

/// The quota with new numbers, if they are new.
fn plan(quota: &ResourceQuota, hard: &Amounts, counted: Amounts) -> Option<ResourceQuota> {
    let status = quota.status.clone().unwrap_or_default();
    let words = |amounts: Amounts| -> BTreeMap<_, _> { amounts.into_iter().map(|(name, amount)| (name, amount.to_k8s())).collect() };
    // What nobody here can count keeps the number it has.
    let mut used: BTreeMap<_, _> =
        status.used.clone().unwrap_or_default().into_iter().filter(|(name, _)| hard.contains_key(name)).collect();
    used.extend(words(counted));
    let limits = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    if status.used.as_ref() == Some(&used) && status.hard.as_ref() == Some(&limits) {
        return None;
    }
    let mut updated = quota.clone();
    let status = updated.status.get_or_insert_default();
    (status.hard, status.used) = (Some(limits), Some(used));
    Some(updated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_follows_the_count() {
        let quota: ResourceQuota = serde_json::from_value(json!({
            "metadata": {"name": "q"}, "spec": {"hard": {"pods": "4", "count/foos.example.com": "1"}},
            "status": {"hard": {"pods": "4", "secrets": "2"}, "used": {"pods": "3", "secrets": "1", "count/foos.example.com": "1"}},
        }))
        .unwrap();
        let hard = amounts(&serde_json::to_value(&quota).unwrap(), "/spec/hard");
        let counted = Amounts::from([("pods".to_owned(), Quantity::from_value(2))]);
        let updated = plan(&quota, &hard, counted.clone()).unwrap();
        let status = serde_json::to_value(&updated.status).unwrap();
        assert_eq!(
            status,
            json!({"hard": {"pods": "4", "count/foos.example.com": "1"}, "used": {"pods": "2", "count/foos.example.com": "1"}})
        );
        assert!(plan(&updated, &hard, counted).is_none());
    }
}
