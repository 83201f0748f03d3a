//! The ConfigMaps and Secrets that this node's pods name: one watch per object, for as long as a pod needs it.
//!
//! The Node authorizer lets a kubelet see exactly these objects, one by one. A change wakes the pods that use the
//! object, which is how volumes stay current without polling.
//! Upstream: `pkg/kubelet/util/manager/watch_based_manager.go`, v1.33.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use kube::Client;
use machinery::CancellationToken;
use machinery::watch::{Event, Source};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use crate::pod::PodExt;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("failed to sync {kind} cache: timed out waiting for the condition")]
    NotSynced { kind: &'static str },
}

/// How long a reader waits for an object's first word from the API server.
const FIRST_WORD: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

type Wake = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Clone)]
pub struct Objects {
    config_maps: Arc<Watched<ConfigMap>>,
    secrets: Arc<Watched<Secret>>,
}

impl Objects {
    /// `wake` is told the uid of each pod that uses a changed object.
    pub fn new(client: Client, token: CancellationToken, wake: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let wake: Wake = Arc::new(wake);
        Objects {
            config_maps: Arc::new(Watched::new("configmap", client.clone(), token.clone(), wake.clone())),
            secrets: Arc::new(Watched::new("secret", client, token, wake)),
        }
    }

    /// Watches what the pod names, in place of what it named before; `None` lets go of all of it.
    pub fn hold(&self, uid: &str, pod: Option<&Pod>) {
        let references = pod.map(references).unwrap_or_default();
        let of = |kind| references.iter().filter(|(k, _)| *k == kind).map(|(_, key)| key.clone()).collect();
        self.config_maps.hold(uid, of(Kind::ConfigMap));
        self.secrets.hold(uid, of(Kind::Secret));
    }

    pub async fn config_map(&self, namespace: &str, name: &str, optional: bool) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.config_maps.get(&Key::new(namespace, name), optional).await
    }

    pub async fn secret(&self, namespace: &str, name: &str, optional: bool) -> Result<Option<Arc<Secret>>, Error> {
        self.secrets.get(&Key::new(namespace, name), optional).await
    }
}

/// What this module asks of an object.
trait Immutable {
    fn immutable(&self) -> bool;
}

impl Immutable for ConfigMap {
    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Immutable for Secret {
    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

struct Watched<K> {
    kind: &'static str,
    client: Client,
    token: CancellationToken,
    wake: Wake,
    entries: Mutex<HashMap<Key, Entry<K>>>,
}

struct Entry<K> {
    /// Outer `None`: nothing heard yet. Inner `None`: it does not exist.
    value: watch::Receiver<Option<Option<Arc<K>>>>,
    token: CancellationToken,
    users: HashSet<String>,
}

impl<K> Watched<K>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Immutable
        + Send
        + Sync
        + 'static,
{
    fn new(kind: &'static str, client: Client, token: CancellationToken, wake: Wake) -> Self {
        Watched { kind, client, token, wake, entries: Mutex::default() }
    }

    fn hold(self: &Arc<Self>, uid: &str, wanted: BTreeSet<Key>) {
        let mut entries = self.entries.lock();
        for (key, entry) in entries.iter_mut() {
            if !wanted.contains(key) {
                entry.users.remove(uid);
            }
        }
        for key in wanted {
            let entry = entries.entry(key.clone()).or_insert_with(|| self.start(key));
            entry.users.insert(uid.to_owned());
        }
        entries.retain(|_, entry| {
            if entry.users.is_empty() {
                entry.token.cancel();
            }
            !entry.users.is_empty()
        });
    }

    fn start(self: &Arc<Self>, key: Key) -> Entry<K> {
        let (sender, value) = watch::channel(None);
        let token = self.token.child_token();
        let (this, child) = (self.clone(), token.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = child.cancelled() => {}
                () = this.follow(key, sender) => {}
            }
        });
        Entry { value, token, users: HashSet::new() }
    }

    async fn follow(&self, key: Key, sender: watch::Sender<Option<Option<Arc<K>>>>) {
        let source = Source::of::<K>(self.client.clone(), Some(&key.namespace)).fields(&format!("metadata.name={}", key.name));
        let (mut listed, settled) = (None, Notify::new());
        let following = machinery::watch::follow(source, |event| {
            let news = match event {
                Event::Listing => return listed = None,
                Event::Item(object) => return listed = Some(Arc::new(object)),
                Event::Interrupted(error) => return tracing::debug!(%key, kind = self.kind, %error, "watch; retrying"),
                Event::Listed => listed.take(),
                Event::Applied(object) => Some(Arc::new(object)),
                Event::Deleted(_) => None,
            };
            let last = news.as_deref().is_some_and(K::immutable);
            sender.send_replace(Some(news));
            let users = self.entries.lock().get(&key).map(|e| e.users.clone()).unwrap_or_default();
            users.iter().for_each(|uid| (self.wake)(uid));
            if last {
                settled.notify_one();
            }
        });
        tokio::select! {
            () = following => {}
            // It can't change any more: its watch ends, and only its value is held.
            () = settled.notified() => sender.closed().await,
        }
    }

    async fn get(&self, key: &Key, optional: bool) -> Result<Option<Arc<K>>, Error> {
        let receiver = self.entries.lock().get(key).map(|e| e.value.clone());
        let mut receiver = receiver.ok_or(Error::NotSynced { kind: self.kind })?;
        let heard = tokio::time::timeout(FIRST_WORD, receiver.wait_for(Option::is_some)).await;
        let Ok(Ok(value)) = heard else { return Err(Error::NotSynced { kind: self.kind }) };
        match value.clone().flatten() {
            None if !optional => Err(Error::NotFound { kind: self.kind, name: key.name.clone() }),
            value => Ok(value),
        }
    }
}

/// Every ConfigMap and Secret that a pod's spec names.
fn references(pod: &Pod) -> BTreeSet<(Kind, Key)> {
    let mut found = Vec::new();
    pod.all_containers().into_iter().for_each(|c| container_references(c, &mut found));
    pod.ephemeral_containers().iter().for_each(|c| container_references(&api::container::of_ephemeral(c), &mut found));
    pod.spec().volumes.iter().flatten().for_each(|v| volume_references(v, &mut found));
    let pull = pod.spec().image_pull_secrets.iter().flatten();
    found.extend(pull.map(|s| (Kind::Secret, s.name.clone())));
    found.into_iter().filter(|(_, name)| !name.is_empty()).map(|(kind, name)| (kind, Key::new(pod.namespace(), name))).collect()
}

fn container_references(container: &Container, found: &mut Vec<(Kind, String)>) {
    for source in container.env_from.iter().flatten() {
        found.extend(source.config_map_ref.iter().map(|r| (Kind::ConfigMap, r.name.clone())));
        found.extend(source.secret_ref.iter().map(|r| (Kind::Secret, r.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        found.extend(source.config_map_key_ref.iter().map(|r| (Kind::ConfigMap, r.name.clone())));
        found.extend(source.secret_key_ref.iter().map(|r| (Kind::Secret, r.name.clone())));
    }
}

fn volume_references(volume: &Volume, found: &mut Vec<(Kind, String)>) {
    found.extend(volume.config_map.iter().map(|m| (Kind::ConfigMap, m.name.clone())));
    found.extend(volume.secret.iter().filter_map(|s| Some((Kind::Secret, s.secret_name.clone()?))));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        found.extend(source.config_map.iter().map(|m| (Kind::ConfigMap, m.name.clone())));
        found.extend(source.secret.iter().map(|s| (Kind::Secret, s.name.clone())));
    }
}
