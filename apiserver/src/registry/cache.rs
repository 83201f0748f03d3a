//! Everything the API server knows, in memory, in one revision order.
//!
//! ```text
//! store watch ─▶ feed task ─▶ per kind: ordered map of records + ring of recent events ─▶ watchers (cursors into the ring)
//! ```
//!
//! Invariants: one task applies changes, in revision order, those of one revision at once; `applied` moves after the maps do, so a reader who waited for a revision sees
//! it; a watcher too slow for the ring is told so (`Expired`) and never skips an event. Past snapshots are rebuilt by undoing ring
//! events, so continued lists need no second copy. Upstream counterpart: `apiserver/pkg/storage/cacher` (v1.33).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use api::key::{GroupResource, Key};
use api::selector::{FieldSelector, LabelSelector};
use kinds::Kind;
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch;

use super::layout;
use super::record::Record;
use crate::storage::transform::Transformer;
use crate::storage::{Change, Changes, Storage};

/// Events younger than this stay in the ring (unless there are very many): time for a client to list and come back.
const RING_TIME: Duration = Duration::from_secs(75);
/// Kept whatever their age.
const RING_MIN: usize = 100;
const RING_MAX: usize = 20_000;
/// After this nearly all watchers have had an event; the few others make its other forms anew.
const FORMS_TIME: Duration = Duration::from_secs(10);
const SWEEP_EVERY: Duration = Duration::from_secs(10);
const LOAD_PAGE: usize = 1000;
/// Between two attempts to load a store that does not answer.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);

/// Told of every object at start and of every change after, in revision order, before any reader sees it. Must not block.
pub type Observer = dyn Fn(&'static Kind, &Key, Option<&Value>) + Send + Sync;

/// The asked revision is no longer in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    pub oldest: u64,
}

/// One change of one object. Both sides are there for an update.
pub struct Event {
    pub revision: u64,
    at: Instant,
    pub old: Option<Arc<Record>>,
    pub new: Option<Arc<Record>>,
    parting: OnceLock<Arc<Record>>,
}

/// What a watcher is told. The record is what it shows.
pub enum Told {
    Added(Arc<Record>),
    Modified(Arc<Record>),
    Deleted(Arc<Record>),
}

impl Event {
    /// The event as seen through a selection: an object that no longer matches was, for that watcher, deleted.
    pub fn seen_through(&self, selection: &Selection) -> Option<Told> {
        let was = self.old.as_ref().filter(|r| selection.matches(r));
        let is = self.new.as_ref().filter(|r| selection.matches(r));
        match (was, is) {
            (None, Some(new)) => Some(Told::Added(new.clone())),
            (Some(_), Some(new)) => Some(Told::Modified(new.clone())),
            (Some(old), None) => Some(Told::Deleted(self.parting(old))),
            (None, None) => None,
        }
    }

    /// The last state, under the revision at which it went.
    fn parting(&self, old: &Arc<Record>) -> Arc<Record> {
        self.parting.get_or_init(|| Arc::new(old.at_revision(self.revision))).clone()
    }
}

/// Which objects of a kind a request is about.
#[derive(Clone, Debug)]
pub struct Selection {
    /// `None` = all namespaces (and cluster-scoped kinds).
    pub namespace: Option<String>,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Selection {
    pub fn all() -> Self {
        Selection { namespace: None, labels: LabelSelector::everything(), fields: FieldSelector::default() }
    }

    pub fn in_namespace(namespace: &str) -> Self {
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        Selection { namespace, ..Selection::all() }
    }

    /// Does it select by more than the namespace?
    pub fn filters(&self) -> bool {
        !self.labels.is_everything() || !self.fields.is_everything()
    }

    pub fn matches(&self, record: &Record) -> bool {
        self.namespace.as_ref().is_none_or(|ns| *ns == record.key.namespace)
            && (self.labels.is_everything() || self.labels.matches_by(|key| record.label(key)))
            && (self.fields.is_everything() || self.fields.matches(|field| record.field(field)))
    }
}

pub struct Listing {
    pub records: Vec<Arc<Record>>,
    pub revision: u64,
    /// How many selected objects come after the last one; `None` = none do.
    pub remaining: Option<usize>,
}

pub struct KindCache {
    pub kind: &'static Kind,
    state: RwLock<State>,
    /// Revision of the kind's last change: wakes its watchers.
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Arc<Record>>,
    ring: VecDeque<Arc<Event>>,
    /// Events up to this revision have left the ring.
    forgotten: u64,
    last: u64,
}

pub struct Cache {
    kinds: Vec<KindCache>,
    by_resource: HashMap<GroupResource, usize>,
    by_folder: HashMap<&'static str, usize>,
    applied: watch::Sender<u64>,
}

impl Cache {
    /// Caches for `kinds`, filled from the store, with the changes that follow. Hand those to [`Cache::follow`].
    pub async fn load(
        kinds: impl IntoIterator<Item = &'static Kind>,
        store: &dyn Storage,
        transformer: &dyn Transformer,
        observe: &Observer,
    ) -> anyhow::Result<(Self, Changes)> {
        let mut cache = Cache { kinds: Vec::new(), by_resource: HashMap::new(), by_folder: HashMap::new(), applied: watch::Sender::new(0) };
        for kind in kinds {
            let at = cache.kinds.len();
            cache.by_resource.insert(GroupResource::new(kind.group, kind.plural), at);
            cache.by_folder.insert(layout::folder(kind), at);
            cache.kinds.push(KindCache { kind, state: RwLock::default(), news: watch::Sender::new(0) });
        }
        let changes = cache.fill(store, transformer, observe).await?;
        Ok((cache, changes))
    }

    /// Make every kind what the store holds now. Watchers that come from before are told that their revision is gone.
    async fn fill(&self, store: &dyn Storage, transformer: &dyn Transformer, observe: &Observer) -> anyhow::Result<Changes> {
        let mut stored: Vec<BTreeMap<Key, Arc<Record>>> = self.kinds.iter().map(|_| BTreeMap::new()).collect();
        let (mut at, mut after) = (None, None::<String>);
        loop {
            let page = store.list(layout::ROOT, after.as_deref(), LOAD_PAGE, at).await?;
            at = Some(page.revision);
            for entry in &page.entries {
                let Some((kind, key)) = self.locate(&entry.key) else { continue };
                let (record, tree) = open(self.kinds[kind].kind, key, entry.revision, &entry.key, entry.value.clone(), transformer)?;
                observe(record.kind, &record.key, Some(&tree));
                stored[kind].insert(record.key.clone(), Arc::new(record));
            }
            after = page.entries.last().map(|e| e.key.clone());
            if !page.more {
                break;
            }
        }
        let revision = at.unwrap_or_default();
        let changes = store.watch(revision).await?;
        for (kind, objects) in self.kinds.iter().zip(stored) {
            let known = kind.replace(objects, revision);
            for key in known.keys().filter(|key| kind.get(key).is_none()) {
                observe(kind.kind, key, None);
            }
        }
        self.applied.send_replace(revision);
        Ok(changes)
    }

    /// The place of the kind in `kinds`, and the object.
    fn locate(&self, stored_key: &str) -> Option<(usize, Key)> {
        let (folder, key) = layout::split(stored_key, |f| self.by_folder.contains_key(f))?;
        Some((*self.by_folder.get(folder)?, key))
    }

    /// Apply changes as they come, for ever. `observe` sees each before the readers do. When the stream ends, what came next is lost:
    /// the cache is filled anew.
    pub async fn follow(&self, store: &dyn Storage, mut changes: Changes, transformer: &dyn Transformer, observe: &Observer) {
        loop {
            while let Some(batch) = changes.recv().await {
                let mut batch = batch.into_iter().peekable();
                while let Some(first) = batch.next() {
                    let revision = first.revision;
                    let mut together = vec![first];
                    while let Some(next) = batch.next_if(|next| next.revision == revision) {
                        together.push(next);
                    }
                    self.apply(revision, together, transformer, observe);
                    self.applied.send_replace(revision);
                }
            }
            tracing::warn!("the store's stream of changes has ended, loading everything again");
            changes = loop {
                match self.fill(store, transformer, observe).await {
                    Ok(changes) => break changes,
                    Err(error) => tracing::error!(error = format!("{error:#}"), "loading the store"),
                }
                tokio::time::sleep(RELOAD_PAUSE).await;
            };
        }
    }

    /// All changes of one revision, so that no watcher sees a part of them.
    fn apply(&self, revision: u64, changes: Vec<Change>, transformer: &dyn Transformer, observe: &Observer) {
        let mut by_kind = BTreeMap::<usize, Vec<(Key, Option<Arc<Record>>)>>::new();
        for change in changes {
            let Some((at, key)) = self.locate(&change.key) else { continue };
            let kind = self.kinds[at].kind;
            let new = match change.value.map(|value| open(kind, key.clone(), revision, &change.key, value, transformer)) {
                None => None,
                Some(Ok(opened)) => Some(opened),
                Some(Err(error)) => {
                    // Can't happen for what this server wrote; foreign bytes are left out, loudly, and the order stays whole.
                    tracing::error!(revision, error = format!("{error:#}"), "undecodable change in the store");
                    continue;
                }
            };
            observe(kind, &key, new.as_ref().map(|(_, tree)| tree));
            by_kind.entry(at).or_default().push((key, new.map(|(record, _)| Arc::new(record))));
        }
        for (at, changes) in by_kind {
            self.kinds[at].apply(revision, changes);
        }
    }

    /// Let go, now and then, of what only recent readers need.
    pub async fn keep_small(&self) {
        let mut often = tokio::time::interval(SWEEP_EVERY);
        loop {
            often.tick().await;
            self.kinds.iter().for_each(|kind| kind.sweep(Instant::now()));
        }
    }

    pub fn of(&self, kind: &Kind) -> Option<&KindCache> {
        self.get(&GroupResource::new(kind.group, kind.plural))
    }

    pub fn get(&self, resource: &GroupResource) -> Option<&KindCache> {
        self.by_resource.get(resource).map(|&at| &self.kinds[at])
    }

    pub fn kinds(&self) -> &[KindCache] {
        &self.kinds
    }

    /// All changes up to this revision can be seen.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Wait until `revision` can be seen.
    pub async fn reach(&self, revision: u64) {
        if self.applied() >= revision {
            return;
        }
        // The sender lives as long as `self`, so waiting can't fail.
        if self.applied.subscribe().wait_for(|applied| *applied >= revision).await.is_err() {
            tracing::error!("the cache is gone");
        }
    }
}

fn open(
    kind: &'static Kind,
    key: Key,
    revision: u64,
    stored_key: &str,
    value: bytes::Bytes,
    transformer: &dyn Transformer,
) -> anyhow::Result<(Record, Value)> {
    let plain = transformer.open(stored_key, value).with_context(|| format!("opening {stored_key}"))?;
    let tree: Value = serde_json::from_slice(&plain).with_context(|| format!("decoding {stored_key}"))?;
    Ok((Record::of_tree(kind, key, revision, &plain, &tree)?, tree))
}

impl KindCache {
    fn apply(&self, revision: u64, changes: Vec<(Key, Option<Arc<Record>>)>) {
        let mut state = self.state.write();
        let now = Instant::now();
        for (key, new) in changes {
            let old = match &new {
                Some(record) => state.objects.insert(key, record.clone()),
                None => state.objects.remove(&key),
            };
            if old.is_some() || new.is_some() {
                state.ring.push_back(Arc::new(Event { revision, at: now, old, new, parting: OnceLock::new() }));
            }
        }
        state.trim(now);
        state.last = revision;
        drop(state);
        self.news.send_replace(revision);
    }

    /// Start anew with these objects, as of `revision`. Returns those from before.
    fn replace(&self, objects: BTreeMap<Key, Arc<Record>>, revision: u64) -> BTreeMap<Key, Arc<Record>> {
        let mut state = self.state.write();
        let before = std::mem::replace(&mut *state, State { objects, ring: VecDeque::new(), forgotten: revision, last: revision });
        drop(state);
        self.news.send_replace(revision);
        before.objects
    }

    fn sweep(&self, now: Instant) {
        self.state.write().trim(now);
        let state = self.state.read();
        for event in state.ring.iter().take_while(|event| now.duration_since(event.at) > FORMS_TIME) {
            [&event.old, &event.new, &event.parting.get().cloned()].into_iter().flatten().for_each(|record| record.forget_forms());
        }
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Record>> {
        self.state.read().objects.get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Selected objects in key order after `after`, at most `limit` (0 = all), as of `at` (`None` = now).
    /// `applied` is the cache's revision, read before this call.
    pub fn list(
        &self,
        selection: &Selection,
        at: Option<u64>,
        after: Option<&Key>,
        limit: usize,
        applied: u64,
    ) -> Result<Listing, Expired> {
        let state = self.state.read();
        let revision = at.unwrap_or_else(|| applied.max(state.last));
        let mut pick = Picker { selection, after, limit, records: Vec::new(), beyond: 0 };
        if revision >= state.last {
            pick.all(state.range(selection));
        } else {
            let past = state.snapshot(selection, revision)?;
            pick.all(past.values());
        }
        let remaining = (pick.beyond > 0).then_some(pick.beyond);
        Ok(Listing { records: pick.records, revision, remaining })
    }

    /// Some `max` events after `cursor`, oldest first; those of one revision are never parted.
    pub fn events_after(&self, cursor: u64, max: usize) -> Result<Vec<Arc<Event>>, Expired> {
        let state = self.state.read();
        if cursor < state.forgotten {
            return Err(Expired { oldest: state.forgotten });
        }
        let start = state.ring.partition_point(|event| event.revision <= cursor);
        let last = state.ring.get(start + max.saturating_sub(1)).map(|event| event.revision);
        let end = last.map_or(state.ring.len(), |last| state.ring.partition_point(|event| event.revision <= last));
        Ok(state.ring.range(start..end).cloned().collect())
    }
}

struct Picker<'a> {
    selection: &'a Selection,
    after: Option<&'a Key>,
    limit: usize,
    records: Vec<Arc<Record>>,
    beyond: usize,
}

impl Picker<'_> {
    fn all<'r>(&mut self, records: impl Iterator<Item = &'r Arc<Record>>) {
        for record in records {
            if self.after.is_some_and(|after| record.key <= *after) || !self.selection.matches(record) {
                continue;
            }
            if self.limit != 0 && self.records.len() == self.limit {
                self.beyond += 1;
            } else {
                self.records.push(record.clone());
            }
        }
    }
}

impl State {
    fn range(&self, selection: &Selection) -> impl Iterator<Item = &Arc<Record>> {
        let namespace = selection.namespace.as_deref();
        let from = Key::new(namespace.unwrap_or_default(), "");
        let inside = move |key: &Key| namespace.is_none_or(|ns| key.namespace == ns);
        self.objects.range(from..).take_while(move |(key, _)| inside(key)).map(|(_, record)| record)
    }

    /// The objects as of `revision`: today's, with every later event undone.
    fn snapshot(&self, selection: &Selection, revision: u64) -> Result<BTreeMap<Key, Arc<Record>>, Expired> {
        if revision < self.forgotten {
            return Err(Expired { oldest: self.forgotten });
        }
        let mut objects: BTreeMap<Key, Arc<Record>> = self.range(selection).map(|r| (r.key.clone(), r.clone())).collect();
        for event in self.ring.iter().rev().take_while(|event| event.revision > revision) {
            match (&event.old, &event.new) {
                (Some(old), _) => objects.insert(old.key.clone(), old.clone()),
                (None, Some(new)) => objects.remove(&new.key),
                (None, None) => None,
            };
        }
        Ok(objects)
    }

    fn trim(&mut self, now: Instant) {
        while self.ring.len() > RING_MIN {
            let Some(oldest) = self.ring.front() else { break };
            if self.ring.len() <= RING_MAX && now.duration_since(oldest.at) < RING_TIME {
                break;
            }
            self.forgotten = oldest.revision;
            self.ring.pop_front();
        }
        if self.ring.capacity() > 4 * self.ring.len().max(RING_MIN) {
            self.ring.shrink_to_fit();
        }
    }
}

impl auth::Lookup for Cache {
    fn get(&self, resource: &GroupResource, key: &Key) -> Option<Arc<Value>> {
        Some(Cache::get(self, resource)?.get(key)?.shared_value())
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(kind) = Cache::get(self, resource) else { return Vec::new() };
        let selection = namespace.map_or_else(Selection::all, Selection::in_namespace);
        let state = kind.state.read();
        let records: Vec<Arc<Record>> = state.range(&selection).cloned().collect();
        drop(state);
        records.iter().map(|record| record.shared_value()).collect()
    }
}
