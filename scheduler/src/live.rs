//! The scheduler in a running cluster: informers feed [`Core`], decisions become tasks.
//!
//! ```text
//! informers ──▶ channel ──▶ Core (one task) ──Decision──▶ Effects (a task each) ──▶ API server
//!                  ▲                                          │ failed bindings
//!                  └──────────────────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::Instant;

use api::Key;
use api::k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use api::k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service};
use api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use api::k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use machinery::informer::{Change, Informer, Informers, Object};
use machinery::{CancellationToken, events::Recorder};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};

use crate::core::{Core, Decision};
use crate::effects::Effects;
use crate::framework::BindContext;
use crate::hints::ClusterEvent;
use crate::metrics::Metrics;
use crate::queue::QueuedPod;
use crate::world::World;

/// Requests in flight at once; more would only queue in the API server.
const CONCURRENT_EFFECTS: usize = 100;

/// Everything the plugins read, kept current by watches.
pub struct Live {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    replication_controllers: Informer<ReplicationController>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    budgets: Informer<PodDisruptionBudget>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    storage_classes: Informer<StorageClass>,
    csi_nodes: Informer<CSINode>,
}

impl Live {
    pub fn new(informers: &Informers) -> Self {
        Live {
            pods: informers.of(),
            nodes: informers.of(),
            namespaces: informers.of(),
            services: informers.of(),
            replication_controllers: informers.of(),
            replica_sets: informers.of(),
            stateful_sets: informers.of(),
            budgets: informers.of(),
            claims: informers.of(),
            volumes: informers.of(),
            storage_classes: informers.of(),
            csi_nodes: informers.of(),
        }
    }

    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.nodes.synced(),
            self.namespaces.synced(),
            self.services.synced(),
            self.replication_controllers.synced(),
            self.replica_sets.synced(),
            self.stateful_sets.synced(),
            self.budgets.synced(),
            self.claims.synced(),
            self.volumes.synced(),
            self.storage_classes.synced(),
            self.csi_nodes.synced(),
        );
    }
}

impl World for Live {
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&Key::cluster(name))
    }
    fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.get(&Key::cluster(name))
    }
    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.services.in_namespace(namespace)
    }
    fn replication_controller(&self, key: &Key) -> Option<Arc<ReplicationController>> {
        self.replication_controllers.get(key)
    }
    fn replica_set(&self, key: &Key) -> Option<Arc<ReplicaSet>> {
        self.replica_sets.get(key)
    }
    fn stateful_set(&self, key: &Key) -> Option<Arc<StatefulSet>> {
        self.stateful_sets.get(key)
    }
    fn disruption_budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.in_namespace(namespace)
    }
    fn claim(&self, key: &Key) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(key)
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&Key::cluster(name))
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }
    fn storage_class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.storage_classes.get(&Key::cluster(name))
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.csi_nodes.get(&Key::cluster(name))
    }
}

enum Message {
    Node(Option<Arc<Node>>, Option<Arc<Node>>),
    Pod(Option<Arc<Pod>>, Option<Arc<Pod>>),
    World(ClusterEvent),
    BindFailed(QueuedPod, String),
}

/// Schedules until the token is cancelled.
pub async fn run(informers: &Informers, scheduler_name: &str, token: CancellationToken) {
    let live = Arc::new(Live::new(informers));
    live.synced().await;
    let (sender, receiver) = unbounded_channel();
    let storage_changed = Arc::new(Notify::new());
    subscribe(&live, &sender, &storage_changed);
    let effects = Arc::new(Effects {
        context: BindContext { client: informers.client().clone(), world: live.clone(), storage_changed },
        recorder: Recorder::new(informers.client().clone(), scheduler_name, None),
    });
    let core = Core::new(scheduler_name, live.clone(), rand::random());
    let driver = Driver {
        core,
        live,
        effects,
        sender,
        limit: Arc::new(Semaphore::new(CONCURRENT_EFFECTS)),
        metrics: Arc::new(Metrics::new(scheduler_name)),
    };
    driver.run(receiver, token).await;
}

fn subscribe(live: &Live, sender: &UnboundedSender<Message>, storage_changed: &Arc<Notify>) {
    let changed = storage_changed.clone();
    live.claims.on_change(move |_| changed.notify_waiters());
    // A send fails only when the driver is gone, and then nobody needs the message.
    let to = sender.clone();
    live.nodes.on_change(move |c| drop(to.send(Message::Node(c.old.clone(), c.new.clone()))));
    let to = sender.clone();
    live.pods.on_change(move |c| drop(to.send(Message::Pod(c.old.clone(), c.new.clone()))));
    notify(&live.namespaces, sender, ClusterEvent::Namespace);
    notify(&live.claims, sender, ClusterEvent::Storage);
    notify(&live.volumes, sender, ClusterEvent::Storage);
    notify(&live.storage_classes, sender, ClusterEvent::Storage);
    notify(&live.csi_nodes, sender, ClusterEvent::Storage);
}

fn notify<K: Object>(informer: &Informer<K>, sender: &UnboundedSender<Message>, event: ClusterEvent) {
    let to = sender.clone();
    informer.on_change(move |_: &Change<K>| drop(to.send(Message::World(event.clone()))));
}

struct Driver {
    core: Core,
    live: Arc<Live>,
    effects: Arc<Effects>,
    sender: UnboundedSender<Message>,
    limit: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Driver {
    async fn run(mut self, mut receiver: UnboundedReceiver<Message>, token: CancellationToken) {
        loop {
            while let Ok(message) = receiver.try_recv() {
                self.handle(message);
            }
            let began = Instant::now();
            if let Some(decision) = self.core.next(began) {
                self.carry_out(decision, began);
                // Informers and bindings share this runtime.
                tokio::task::yield_now().await;
                if token.is_cancelled() {
                    return;
                }
                continue;
            }
            self.metrics.pending(self.core.pending());
            let wakeup = self.core.next_wakeup();
            let timer = async {
                match wakeup {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = receiver.recv() => if let Some(message) = message { self.handle(message) },
                () = timer => {}
                () = token.cancelled() => return,
            }
        }
    }

    fn handle(&mut self, message: Message) {
        let now = Instant::now();
        match message {
            Message::Node(old, new) => self.core.node_changed(old.as_ref(), new.as_ref(), now),
            Message::Pod(old, new) => self.core.pod_changed(old.as_ref(), new.as_ref(), now),
            Message::World(event) => self.core.world_changed(&event, now),
            Message::BindFailed(pod, node) => {
                let latest = self.live.pods.get(&pod.info.key);
                let latest = latest.filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_none_or(str::is_empty));
                self.core.bind_failed(pod, &node, latest, now);
            }
        }
    }

    fn carry_out(&self, decision: Decision, began: Instant) {
        let (effects, sender, limit, metrics) = (self.effects.clone(), self.sender.clone(), self.limit.clone(), self.metrics.clone());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _permit = limit.acquire().await;
            match decision {
                Decision::Bind { pod, node } => match effects.bind(&pod.info, &node).await {
                    Ok(()) => {
                        metrics.attempt("scheduled", began.elapsed());
                        metrics.bound(pod.attempts, pod.added.elapsed());
                    }
                    Err(error) => {
                        metrics.attempt("error", began.elapsed());
                        effects.binding_failed(&pod.info, &error).await;
                        drop(sender.send(Message::BindFailed(pod, node)));
                    }
                },
                Decision::Unschedulable { pod, unfit } => {
                    metrics.attempt("unschedulable", began.elapsed());
                    if let Some(nomination) = unfit.post_filter.as_ref().and_then(|p| p.nomination.as_ref()) {
                        metrics.preempted(nomination.victims.len());
                    }
                    effects.unschedulable(&pod, &unfit).await;
                }
            }
        });
    }
}
