//! From the API's pods to workers, and from the runtime's news to the right worker.
//!
//! ```text
//! pods of this node ──informer──▶ Pods ──Desired──▶ Worker ──▶ runtime
//! containerd's task events ──▶ the worker whose container ended     (at once)
//! relist every minute      ──▶ workers whose containers changed; orphans get a worker that ends them
//! ```
//! Upstream: `pkg/kubelet/{kubelet,kubelet_pods}.go`, `pkg/kubelet/pleg/generic.go`, v1.33.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::Change;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::cri::Cri;
use crate::kubelet::Kubelet;
use crate::pod::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID, PodExt};
use crate::sandbox::LOG_ROOT;
use crate::worker::{Desired, Worker};

/// The safety net's period where events come, and where they don't.
const RELIST: Duration = Duration::from_secs(60);
const RELIST_WITHOUT_EVENTS: Duration = Duration::from_secs(1);

/// The last pause in which an exit that was announced may still become visible.
const NOTED_AT_LAST: Duration = Duration::from_secs(20);

/// Whether a container or sandbox no longer runs, by the runtime's own record.
async fn has_ended(cri: &Cri, id: &str) -> bool {
    let running = k8s_cri::v1::ContainerState::ContainerRunning as i32;
    let ready = k8s_cri::v1::PodSandboxState::SandboxReady as i32;
    match cri.container_status(id).await {
        Ok(status) => status.state != running,
        Err(error) if error.is_not_found() => !cri.sandbox_status(id).await.is_ok_and(|s| s.is_some_and(|s| s.state == ready)),
        Err(_) => false,
    }
}

pub struct Pods {
    kubelet: Arc<Kubelet>,
    workers: Mutex<HashMap<String, watch::Sender<Desired>>>,
    /// Word of whether the runtime's events are heard.
    events: watch::Sender<bool>,
}

impl Pods {
    pub fn new(kubelet: Arc<Kubelet>) -> Arc<Self> {
        Arc::new(Pods { kubelet, workers: Mutex::default(), events: watch::Sender::new(false) })
    }

    /// Follows API and runtime until the kubelet stops.
    pub async fn run(self: &Arc<Self>) {
        let this = self.clone();
        self.kubelet.pods.on_change(move |change| this.changed(change));
        self.kubelet.pods.synced().await;
        tokio::join!(self.follow_events(), self.relist_forever());
    }

    fn changed(self: &Arc<Self>, change: &Change<Pod>) {
        let old = change.old.as_ref().map(|p| p.uid().to_owned());
        let new = change.new.as_ref().map(|p| p.uid().to_owned());
        if let Some(pod) = change.old.as_ref().filter(|_| old != new) {
            self.set(Desired { pod: pod.clone(), gone: true });
        }
        if let Some(pod) = &change.new {
            self.set(Desired { pod: pod.clone(), gone: false });
        }
    }

    fn set(self: &Arc<Self>, desired: Desired) {
        let uid = desired.pod.uid().to_owned();
        let mut workers = self.workers.lock();
        if let Some(sender) = workers.get(&uid) {
            sender.send_replace(desired);
            return;
        }
        let (sender, receiver) = watch::channel(desired);
        workers.insert(uid.clone(), sender);
        let wake = Arc::new(Notify::new());
        self.kubelet.wakes.add(&uid, wake.clone());
        let worker = Worker::new(self.kubelet.clone(), receiver, wake);
        let this = self.clone();
        tokio::spawn(async move {
            worker.run().await;
            this.workers.lock().remove(&uid);
            this.kubelet.wakes.remove(&uid);
        });
    }

    async fn follow_events(&self) {
        loop {
            if let Err(error) = self.events_once().await {
                tracing::debug!(%error, "the runtime's events");
            }
            self.events.send_replace(false);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn events_once(&self) -> Result<(), tonic::Status> {
        let mut client = EventsClient::new(self.kubelet.cri.channel());
        let filters = ["/tasks/exit", "/tasks/oom"].map(|topic| format!("namespace==k8s.io,topic=={topic:?}"));
        let mut stream = client.subscribe(SubscribeRequest { filters: filters.to_vec() }).await?.into_inner();
        self.events.send_replace(true);
        // What ended while nobody listened.
        self.wake_all();
        while let Some(envelope) = stream.message().await? {
            let Some(event) = envelope.event else { continue };
            let id = match envelope.topic.as_str() {
                "/tasks/exit" => TaskExit::decode(&*event.value).ok().filter(|e| e.id == e.container_id).map(|e| e.container_id),
                _ => TaskOom::decode(&*event.value).ok().map(|e| e.container_id),
            };
            let Some(id) = id else { continue };
            let uid = self.kubelet.owners.lock().get(&id).cloned();
            if let Some(uid) = uid {
                self.wake_when_noted(id, uid);
            }
        }
        Ok(())
    }

    /// The CRI plugin hears of an exit by the same event, and takes its time to write it down: wakes the pod when it has.
    fn wake_when_noted(&self, id: String, uid: String) {
        let kubelet = self.kubelet.clone();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(10);
            while pause < NOTED_AT_LAST {
                tokio::time::sleep(pause).await;
                if has_ended(&kubelet.cri, &id).await {
                    break;
                }
                pause *= 2;
            }
            kubelet.wakes.wake(&uid);
        });
    }

    fn wake_all(&self) {
        for uid in self.workers.lock().keys() {
            self.kubelet.wakes.wake(uid);
        }
    }

    async fn relist_forever(self: &Arc<Self>) {
        let mut events = self.events.subscribe();
        let mut known = HashMap::new();
        loop {
            match self.relist(&known).await {
                Ok(now) => known = now,
                Err(error) => tracing::warn!(%error, "relist"),
            }
            let period = if *events.borrow_and_update() { RELIST } else { RELIST_WITHOUT_EVENTS };
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                _ = events.changed() => {}
            }
        }
    }

    /// Wakes the pods of which a sandbox or container is new, gone or changed; returns what is there now.
    async fn relist(self: &Arc<Self>, before: &HashMap<String, i32>) -> Result<HashMap<String, i32>, crate::cri::Error> {
        let making = self.kubelet.cri.making_since();
        let (sandboxes, containers) =
            tokio::try_join!(self.kubelet.cri.list_sandboxes(HashMap::new()), self.kubelet.cri.list_containers(HashMap::new()))?;
        let known: HashSet<String> = sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
        let sandboxes = sandboxes.into_iter().map(|s| (s.id, s.state, s.labels));
        let all: Vec<_> = sandboxes.chain(containers.into_iter().map(|c| (c.id, 10 + c.state, c.labels))).collect();
        let now: HashMap<String, i32> = all.iter().map(|(id, state, _)| (id.clone(), *state)).collect();
        let mut seen = HashSet::new();
        for (id, state, labels) in &all {
            let Some(uid) = labels.get(LABEL_POD_UID) else { continue };
            self.kubelet.remember([id], uid);
            if !self.workers.lock().contains_key(uid) {
                self.end_orphan(uid, labels);
            }
            if before.get(id) != Some(state) && seen.insert(uid.clone()) {
                self.kubelet.wakes.wake(uid);
            }
        }
        let gone: Vec<&String> = before.keys().filter(|id| !now.contains_key(*id)).collect();
        for id in gone {
            let uid = self.kubelet.owners.lock().remove(id);
            uid.iter().for_each(|uid| self.kubelet.wakes.wake(uid));
        }
        self.sweep().await;
        crate::leftovers::sweep(&self.kubelet, &known, &now, making).await?;
        Ok(now)
    }

    /// What runs here for a pod that the API does not know is ended like a pod that was deleted.
    fn end_orphan(self: &Arc<Self>, uid: &str, labels: &HashMap<String, String>) {
        let label = |name: &str| labels.get(name).cloned();
        tracing::info!(uid, pod = ?label(LABEL_POD_NAME), "ending what is left of a pod that no longer exists");
        let metadata = ObjectMeta {
            name: label(LABEL_POD_NAME),
            namespace: label(LABEL_POD_NAMESPACE),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        };
        self.set(Desired { pod: Arc::new(Pod { metadata, ..Pod::default() }), gone: true });
    }

    /// Removes directories, logs and cgroups that belong to no pod. They are looked for first, and who lives is asked then: a pod that
    /// comes meanwhile has its worker before it has any of them.
    async fn sweep(self: &Arc<Self>) {
        let this = self.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let kubelet = &this.kubelet;
            let root = &kubelet.config.root_dir;
            let directories = entries(&root.join("pods"));
            let logs = entries(Path::new(LOG_ROOT));
            let cgroups = kubelet.cgroups.pods();
            let alive: HashSet<String> = this.workers.lock().keys().cloned().collect();
            for uid in directories.iter().filter(|uid| !alive.contains(*uid)) {
                if let Err(error) = crate::volumes::remove_pod_directory(root, uid) {
                    tracing::warn!(uid, %error, "orphaned pod directory not removed");
                }
            }
            for name in logs.iter().filter(|name| name.rsplit_once('_').is_some_and(|(_, uid)| !alive.contains(uid))) {
                if let Err(error) = std::fs::remove_dir_all(Path::new(LOG_ROOT).join(name)) {
                    tracing::warn!(name, %error, "orphaned logs not removed");
                }
            }
            for uid in cgroups.difference(&alive) {
                kubelet.cgroups.remove_pod(uid);
            }
        });
        if let Err(error) = swept.await {
            tracing::warn!(%error, "sweep");
        }
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
