//! The proxy at work: informers fill the index, a change wakes the writer, the writer sends one transaction.
//!
//! Invariants: nothing is written before everything that exists is known; one transaction at a time; after a failure
//! the whole table is written anew, with back-off.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::k8s_openapi::api::core::v1::{Node, Service};
use api::k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use machinery::informer::cause_of;
use machinery::shell::Health;
use machinery::{CancellationToken, Informer, Informers, cause};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::health_check::HealthChecks;
use crate::index::{Changes, Index};
use crate::model::Place;
use crate::ruleset::{Family, Table};
use crate::{conntrack, nft};

/// How long a change waits for company. A rolling update's changes come one by one and must count within milliseconds.
const DEBOUNCE: Duration = Duration::from_millis(3);
const RETRY: Duration = Duration::from_secs(1);
/// Notes to the journal in flight; more are dropped, because the journal is a lesson and not a ledger.
const CONCURRENT_NOTES: usize = 16;

struct Shared {
    index: Mutex<Index>,
    place: Mutex<Place>,
    wake: Notify,
}

pub struct Proxy {
    client: Client,
    shared: Arc<Shared>,
    v4: Table,
    /// None where the kernel has no IPv6.
    v6: Option<Table>,
    checks: HealthChecks,
    synced: Arc<AtomicBool>,
    notes: Arc<Semaphore>,
}

impl Proxy {
    pub fn new(client: Client, place: Place, health: &Health) -> Self {
        let synced = Arc::new(AtomicBool::new(false));
        let check = synced.clone();
        health.add("rules", move || if check.load(Ordering::Relaxed) { Ok(()) } else { Err("rules are not written".to_owned()) });
        Proxy {
            client,
            shared: Arc::new(Shared { index: Mutex::default(), place: Mutex::new(place), wake: Notify::new() }),
            v4: Table::new(Family::V4),
            v6: Path::new("/proc/net/if_inet6").exists().then(|| Table::new(Family::V6)),
            checks: HealthChecks::new(synced.clone()),
            synced,
            notes: Arc::new(Semaphore::new(CONCURRENT_NOTES)),
        }
    }

    /// Works until the token is cancelled. The rules stay: a restart must not interrupt traffic.
    pub async fn run(mut self, informers: &Informers, token: CancellationToken) {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        let fields = format!("metadata.name={}", self.shared.place.lock().node);
        let nodes = Informer::with_fields(self.client.clone(), token.clone(), &fields);
        subscribe(&self.shared, &services, &slices, &nodes);
        tokio::select! {
            _ = async { tokio::join!(services.synced(), slices.synced(), nodes.synced()) } => {}
            () = token.cancelled() => return,
        }
        self.write_all().await;
        loop {
            let wait = if self.synced.load(Ordering::Relaxed) { Duration::MAX } else { RETRY };
            tokio::select! {
                () = self.shared.wake.notified() => tokio::time::sleep(DEBOUNCE).await,
                () = tokio::time::sleep(wait) => {}
                () = token.cancelled() => return,
            }
            if self.synced.load(Ordering::Relaxed) { self.write_changes().await } else { self.write_all().await }
        }
    }

    fn compile(&self) -> Changes {
        let place = self.shared.place.lock().clone();
        self.shared.index.lock().compile(&place)
    }

    /// The whole table: at the start, and after a failure.
    async fn write_all(&mut self) {
        let changes = self.compile();
        self.v4.update(changes.v4.clone());
        let mut text = self.v4.full();
        if let Some(v6) = &mut self.v6 {
            v6.update(changes.v6.clone());
            text.push_str(&v6.full());
        }
        self.send(&text).await;
        self.after(changes, false).await;
    }

    async fn write_changes(&mut self) {
        let mut changes = self.compile();
        let mut text = self.v4.update(std::mem::take(&mut changes.v4));
        if let Some(v6) = &mut self.v6 {
            text.push_str(&v6.update(std::mem::take(&mut changes.v6)));
        }
        if !text.is_empty() {
            self.send(&text).await;
        }
        self.after(changes, true).await;
    }

    async fn send(&self, transaction: &str) {
        let start = Instant::now();
        let outcome = nft::apply(transaction).await;
        let took = start.elapsed();
        if let Err(error) = &outcome {
            tracing::error!("{error:#}; writing the whole table next");
        } else {
            tracing::debug!(bytes = transaction.len(), ?took, "rules written");
        }
        self.synced.store(outcome.is_ok(), Ordering::Relaxed);
    }

    async fn after(&mut self, changes: Changes, tell: bool) {
        if !changes.stale.is_empty() {
            conntrack::delete(changes.stale).await;
        }
        for (service, wanted) in changes.health {
            self.checks.ensure(&service, wanted).await;
        }
        if !tell || !self.synced.load(Ordering::Relaxed) {
            return;
        }
        for (service, why) in changes.causes {
            let Ok(permit) = self.notes.clone().try_acquire_owned() else { return };
            let client = self.client.clone();
            tokio::spawn(async move {
                let object = cause_of(&*service);
                cause::scope(why, cause::note(&client, &object, "rules written")).await;
                drop(permit);
            });
        }
    }
}

fn subscribe(shared: &Arc<Shared>, services: &Informer<Service>, slices: &Informer<EndpointSlice>, nodes: &Informer<Node>) {
    let to = shared.clone();
    services.on_change(move |change| {
        to.index.lock().set_service(change.key(), change.new.clone(), change.cause());
        to.wake.notify_one();
    });
    let to = shared.clone();
    slices.on_change(move |change| {
        to.index.lock().set_slice(change.object(), change.is_delete(), change.cause());
        to.wake.notify_one();
    });
    let to = shared.clone();
    nodes.on_change(move |change| {
        let labels = change.new.as_ref().and_then(|n| n.metadata.labels.as_ref());
        let zone = labels.and_then(|l| l.get("topology.kubernetes.io/zone")).cloned();
        let mut place = to.place.lock();
        if place.zone != zone {
            place.zone = zone;
            to.index.lock().mark_all();
            to.wake.notify_one();
        }
    });
}
