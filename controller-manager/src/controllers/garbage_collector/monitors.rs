//! One metadata-only watch per resource, feeding the graph.
//!
//! Which resources there are is asked again when a definition or an aggregated API changes: those are resources too,
//! so their own watches tell. Events are left out: many, short-lived, owned by nobody.
//! Upstream: `pkg/controller/garbagecollector/graph_builder.go`, which rediscovers every 30 seconds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::cause::Cause;
use api::key::{GroupResource, Key};
use kube::Client;
use kube::core::{DynamicObject, PartialObjectMeta};
use machinery::watch::{Event, Source};
use machinery::{CancellationToken, WorkQueue};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::graph::{Graph, Uid, Work};
use crate::context::Context;
use crate::shared::discovery::{self, Resource};

/// Let a burst of changes (a chart full of definitions) settle before asking.
const SETTLE: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_secs(5);

pub struct Monitors {
    pub client: Client,
    pub graph: Mutex<Graph>,
    pub queue: WorkQueue<Work>,
    /// By group and kind, as owner references name them.
    pub known: RwLock<HashMap<(String, String), Arc<Resource>>>,
    changed: Notify,
    context: Arc<Context>,
}

struct Running {
    token: CancellationToken,
    synced: watch::Receiver<bool>,
}

impl Monitors {
    pub fn new(context: Arc<Context>, queue: WorkQueue<Work>) -> Self {
        let (graph, known, changed) = (Mutex::default(), RwLock::default(), Notify::new());
        Monitors { client: context.client.clone(), graph, queue, known, changed, context }
    }

    /// Keeps one watch per resource; `ready` is told once all of the first are filled.
    pub async fn run(self: Arc<Self>, token: CancellationToken, ready: watch::Sender<bool>) {
        let mut running: HashMap<Arc<Resource>, Running> = HashMap::new();
        loop {
            match discovery::resources(&self.client).await {
                Ok(found) => {
                    self.adjust(&mut running, found, &token);
                    for monitor in running.values_mut() {
                        let _stopped = monitor.synced.wait_for(|synced| *synced).await.is_err();
                    }
                    ready.send_replace(true);
                    self.changed.notified().await;
                    tokio::time::sleep(SETTLE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot discover what to watch, will retry");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn adjust(self: &Arc<Self>, running: &mut HashMap<Arc<Resource>, Running>, found: Vec<Resource>, token: &CancellationToken) {
        let is_event = |resource: &Resource| resource.api.kind == "Event" && matches!(resource.api.group.as_str(), "" | "events.k8s.io");
        let found: HashSet<Arc<Resource>> = found.into_iter().filter(|r| !is_event(r)).map(Arc::new).collect();
        let by_kind = |resource: &Arc<Resource>| ((resource.api.group.clone(), resource.api.kind.clone()), resource.clone());
        *self.known.write() = found.iter().map(by_kind).collect();
        running.retain(|resource, monitor| {
            let stays = found.contains(resource);
            if !stays {
                monitor.token.cancel();
                let gone = self.graph.lock().of(resource);
                gone.iter().for_each(|uid| self.forget(uid, None));
            }
            stays
        });
        for resource in found {
            running.entry(resource.clone()).or_insert_with(|| self.start(resource, token.child_token()));
        }
    }

    fn start(self: &Arc<Self>, resource: Arc<Resource>, token: CancellationToken) -> Running {
        let (sender, synced) = watch::channel(false);
        let (this, stop) = (self.clone(), token.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = this.follow(resource, sender) => {}
                () = stop.cancelled() => {}
            }
        });
        Running { token, synced }
    }

    async fn follow(&self, resource: Arc<Resource>, synced: watch::Sender<bool>) {
        type Meta = PartialObjectMeta<DynamicObject>;
        let source = Source::dynamic::<Meta>(self.client.clone(), None, &resource.api).metadata_only();
        let defines_resources = matches!(resource.api.plural.as_str(), "customresourcedefinitions" | "apiservices");
        let mut listed: HashSet<Uid> = HashSet::new();
        machinery::watch::follow(source, |event: Event<Meta>| {
            if defines_resources && *synced.borrow() && matches!(event, Event::Applied(_) | Event::Deleted(_)) {
                self.changed.notify_one();
            }
            match event {
                Event::Listing => listed.clear(),
                Event::Item(object) => {
                    listed.extend(object.metadata.uid.clone());
                    self.observe(&resource, object);
                }
                Event::Listed => {
                    let known = self.graph.lock().of(&resource);
                    known.iter().filter(|uid| !listed.contains(*uid)).for_each(|uid| self.forget(uid, None));
                    listed = HashSet::new();
                    synced.send_replace(true);
                }
                Event::Applied(object) => self.observe(&resource, object),
                Event::Deleted(object) => {
                    let cause = cause(&resource, &object);
                    self.context.departures.tell(&cause);
                    if let Some(uid) = &object.metadata.uid {
                        self.forget(uid, Some(cause));
                    }
                }
                Event::Interrupted(error) => {
                    tracing::debug!(resource = resource.api.plural, "watch interrupted, will resume: {error}");
                    // A resource that cannot be watched must not keep all others from being collected.
                    synced.send_replace(true);
                }
            }
        })
        .await;
    }

    fn observe(&self, resource: &Arc<Resource>, object: PartialObjectMeta<DynamicObject>) {
        let cause = cause(resource, &object);
        let work = self.graph.lock().observe(resource, object.metadata);
        work.into_iter().for_each(|work| self.queue.add_caused(work, cause.clone()));
    }

    /// The object is gone: those that depended on it are looked at.
    pub fn forget(&self, uid: &str, cause: Option<Cause>) {
        for work in self.graph.lock().forget(uid) {
            match &cause {
                Some(cause) => self.queue.add_caused(work, cause.clone()),
                None => self.queue.add(work),
            }
        }
    }
}

fn cause(resource: &Resource, object: &PartialObjectMeta<DynamicObject>) -> Cause {
    let group_resource = GroupResource::new(resource.api.group.as_str(), resource.api.plural.as_str());
    let revision = object.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0);
    Cause::new(group_resource, Key::of_meta(&object.metadata), revision)
}
