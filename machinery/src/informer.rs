//! Informers: a local, always current copy of every object of a kind, and word of each change.
//!
//! One watch per kind per process, shared by all who ask. The watch's task is the only writer; readers share
//! `Arc`s. Handlers hear every change once, in order, and a handler added late first hears of all that exists.
//! Objects are kept without `managedFields`. Absent on purpose: resync periods (level-triggered code needs none).
//! Upstream: `client-go/tools/cache/{shared_informer,thread_safe_store}.go`; the protocol is in [`crate::watch`].

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use api::{Cause, GroupResource, Key};
use kube::Client;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;

use crate::CancellationToken;
use crate::watch::{self, Event, Source};

/// Any built-in kind of the API.
pub trait Object: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Object for K {}

/// `old` is none for a new object, `new` is none for one that is gone.
#[derive(Debug)]
pub struct Change<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K: Object> Change<K> {
    /// The object in its newest known form.
    pub fn object(&self) -> &Arc<K> {
        #[allow(clippy::expect_used)] // every Change is made with at least one of them
        self.new.as_ref().or(self.old.as_ref()).expect("a change has an object")
    }

    pub fn key(&self) -> Key {
        key_of(&**self.object())
    }

    pub fn cause(&self) -> Cause {
        cause_of(&**self.object())
    }

    pub fn is_delete(&self) -> bool {
        self.new.is_none()
    }
}

pub fn key_of<K: kube::Resource>(object: &K) -> Key {
    Key::of_meta(object.meta())
}

/// This object at this revision, as the cause of what follows from it.
pub fn cause_of<K: Object>(object: &K) -> Cause {
    let resource = GroupResource::new(K::group(&()), K::plural(&()));
    let revision = object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    Cause::new(resource, key_of(object), revision)
}

/// All informers of a process.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    token: CancellationToken,
    started: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>>,
}

impl Informers {
    pub fn new(client: Client, token: CancellationToken) -> Self {
        Informers { client, token, started: Arc::default() }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The shared informer of a kind, over all namespaces; its watch starts with the first call.
    pub fn of<K: Object>(&self) -> Informer<K> {
        let mut started = self.started.lock();
        let informer = started
            .entry(TypeId::of::<K>())
            .or_insert_with(|| Box::new(Informer::<K>::start(Source::of::<K>(self.client.clone(), None), self.token.clone())));
        #[allow(clippy::expect_used)] // stored above under the very same type
        informer.downcast_ref::<Informer<K>>().expect("keyed by type").clone()
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

/// Cheap to clone; all clones share one cache.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { inner: self.inner.clone() }
    }
}

struct Inner<K> {
    store: RwLock<Store<K>>,
    /// Held while a change is applied and told, so that a late handler misses and repeats nothing. Taken before `store`.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: signal::Sender<bool>,
}

struct Store<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, HashSet<Key>>,
}

const OWNER: &str = "controller-owner-uid";

impl<K: Object> Informer<K> {
    /// An informer of its own over what matches a field selector (a node's own pods).
    pub fn with_fields(client: Client, token: CancellationToken, fields: &str) -> Self {
        Informer::start(Source::of::<K>(client, None).fields(fields), token)
    }

    /// An informer of its own over what matches a label selector.
    pub fn with_labels(client: Client, token: CancellationToken, labels: &str) -> Self {
        Informer::start(Source::of::<K>(client, None).labels(labels), token)
    }

    fn start(source: Source, token: CancellationToken) -> Self {
        let informer = Informer::empty();
        let writer = informer.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = writer.follow(source) => {}
                () = token.cancelled() => {}
            }
        });
        informer
    }

    fn empty() -> Self {
        let store = Store { objects: BTreeMap::new(), indexes: HashMap::new() };
        let inner = Inner { store: RwLock::new(store), handlers: Mutex::new(Vec::new()), synced: signal::channel(false).0 };
        let informer = Informer { inner: Arc::new(inner) };
        informer.index(OWNER, |object: &K| {
            let owners = object.meta().owner_references.iter().flatten();
            owners.filter(|o| o.controller == Some(true)).map(|o| o.uid.clone()).collect()
        });
        informer
    }

    /// The one writer.
    async fn follow(&self, source: Source) {
        let mut listed = HashSet::new();
        watch::follow(source, |event| match event {
            Event::Listing => listed.clear(),
            Event::Item(object) => {
                listed.insert(key_of(&object));
                self.put(object);
            }
            Event::Listed => {
                let gone: Vec<Key> = self.inner.store.read().objects.keys().filter(|k| !listed.contains(*k)).cloned().collect();
                gone.iter().for_each(|key| self.remove(key, None));
                listed = HashSet::new();
                self.inner.synced.send_replace(true);
            }
            Event::Applied(object) => self.put(object),
            Event::Deleted(object) => self.remove(&key_of(&object), Some(object)),
            Event::Interrupted(error) => tracing::debug!(kind = %K::kind(&()), "watch interrupted, will resume: {error}"),
        })
        .await;
    }

    fn put(&self, mut object: K) {
        // Nobody here asks who set which field, and it is a third of a pod.
        object.meta_mut().managed_fields = None;
        let (key, new) = (key_of(&object), Arc::new(object));
        let handlers = self.inner.handlers.lock();
        let old = self.inner.store.write().put(key, new.clone());
        if old.as_ref().is_some_and(|old| old.meta().resource_version == new.meta().resource_version) {
            return;
        }
        let change = Change { old, new: Some(new) };
        handlers.iter().for_each(|handler| handler(&change));
    }

    /// `last` is the object's final form where the watch told it: it has the revision of the deletion.
    fn remove(&self, key: &Key, last: Option<K>) {
        let handlers = self.inner.handlers.lock();
        let Some(known) = self.inner.store.write().remove(key) else { return };
        let change = Change { old: Some(last.map_or(known, Arc::new)), new: None };
        handlers.iter().for_each(|handler| handler(&change));
    }

    /// Waits until everything that existed at the start is here.
    pub async fn synced(&self) {
        // The sender lives in `inner`, so the channel cannot close under us.
        let mut receiver = self.inner.synced.subscribe();
        let _synced = receiver.wait_for(|synced| *synced).await;
    }

    pub fn has_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Calls `handler` for everything that exists and then for every change. It must not block, nor add handlers.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers.lock();
        for object in self.list() {
            handler(&Change { old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner.store.read().objects.get(key).cloned()
    }

    /// Ordered by key.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.store.read().objects.values().cloned().collect()
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let store = self.inner.store.read();
        let range = store.objects.range(Key::new(namespace, "")..);
        range.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    /// What the object with this uid controls.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.by(OWNER, uid)
    }

    /// Adds an index: `values` gives the values under which an object is found with [`by`](Self::by). Repeating it is harmless.
    pub fn index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        let mut store = self.inner.store.write();
        if store.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { values: Box::new(values), keys: HashMap::new() };
        store.objects.iter().for_each(|(key, object)| index.add(key, object));
        store.indexes.insert(name, index);
    }

    /// The objects that the index holds under `value`; none if there is no such index.
    pub fn by(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let store = self.inner.store.read();
        let keys = store.indexes.get(index).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| store.objects.get(key).cloned()).collect()
    }
}

impl<K: Object> Store<K> {
    fn put(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.remove(&key);
        self.indexes.values_mut().for_each(|index| index.add(&key, &object));
        self.objects.insert(key, object);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        self.indexes.values_mut().for_each(|index| index.remove(key, &old));
        Some(old)
    }
}

impl<K> Index<K> {
    fn add(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use api::k8s_openapi::api::core::v1::{Pod, PodSpec};

    use super::*;

    fn pod(name: &str, node: &str, version: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.resource_version = Some(version.into());
        pod.spec = Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() });
        pod
    }

    #[test]
    fn indexes_follow_changes_and_late_handlers_hear_everything_once() {
        let pods = Informer::<Pod>::empty();
        pods.index("node", |pod| pod.spec.iter().filter_map(|s| s.node_name.clone()).collect());
        pods.put(pod("a", "n1", "1"));
        let heard = Arc::new(AtomicUsize::new(0));
        let count = heard.clone();
        pods.on_change(move |_| _ = count.fetch_add(1, Ordering::Relaxed));
        assert_eq!(heard.load(Ordering::Relaxed), 1);
        pods.put(pod("a", "n2", "2"));
        pods.put(pod("a", "n2", "2"));
        assert_eq!(heard.load(Ordering::Relaxed), 2, "the same revision is no change");
        assert_eq!((pods.by("node", "n1").len(), pods.by("node", "n2").len()), (0, 1));
        pods.remove(&Key::new("ns", "a"), None);
        assert_eq!((heard.load(Ordering::Relaxed), pods.by("node", "n2").len(), pods.list().len()), (3, 0, 0));
    }
}
