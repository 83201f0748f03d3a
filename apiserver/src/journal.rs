//! The cause journal: who wrote what, when, and because of which change.
//!
//! A bounded ring in memory, indexed by object. Every committed write and every note becomes one entry; a chain is read by following
//! the entries that name an object as their cause, from object to object. Entries are dropped oldest first and do not
//! survive a restart: the journal explains what just happened, it is not an audit log.
//! No upstream counterpart.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use api::{JournalEntry, Key};
use parking_lot::Mutex;

/// Entries kept; about 300 bytes each.
const CAPACITY: usize = 20_000;

/// Resource and key of an object: `("deployments.apps", default/web)`.
type Object = (String, Key);

#[derive(Default)]
pub struct Journal {
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<JournalEntry>,
    /// Sequence number of the first entry in `entries`.
    first: u64,
    /// Sequence numbers of the entries about an object, or caused by it.
    about: HashMap<Object, BTreeSet<u64>>,
}

fn subject(entry: &JournalEntry) -> Object {
    (entry.resource.clone(), Key::new(&*entry.namespace, &*entry.name))
}

fn origin(entry: &JournalEntry) -> Option<Object> {
    entry.cause.as_ref().map(|cause| (cause.resource.to_string(), cause.key.clone()))
}

/// Microseconds since the epoch.
pub fn now_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as u64)
}

impl Journal {
    /// Adds an entry, stamped with the present time.
    pub fn record(&self, mut entry: JournalEntry) {
        entry.time = now_micros();
        self.ring.lock().push(entry);
    }

    /// Everything that followed from what was done to this object, oldest first.
    pub fn chain(&self, resource: &str, key: &Key) -> Vec<JournalEntry> {
        self.ring.lock().chain((resource.to_owned(), key.clone()))
    }
}

impl Ring {
    fn push(&mut self, entry: JournalEntry) {
        if self.entries.len() == CAPACITY {
            self.drop_oldest();
        }
        let sequence = self.first + self.entries.len() as u64;
        for object in [Some(subject(&entry)), origin(&entry)].into_iter().flatten() {
            self.about.entry(object).or_default().insert(sequence);
        }
        self.entries.push_back(entry);
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        for object in [Some(subject(&entry)), origin(&entry)].into_iter().flatten() {
            if let Some(sequences) = self.about.get_mut(&object) {
                sequences.remove(&self.first);
                if sequences.is_empty() {
                    self.about.remove(&object);
                }
            }
        }
        self.first += 1;
    }

    fn chain(&self, root: Object) -> Vec<JournalEntry> {
        let mut found = BTreeSet::new();
        let mut seen = HashSet::from([root.clone()]);
        let mut waiting = vec![root];
        while let Some(object) = waiting.pop() {
            for &sequence in self.about.get(&object).into_iter().flatten() {
                let entry = &self.entries[(sequence - self.first) as usize];
                // What an unrelated cause did to an object on the way is another story.
                let ours = origin(entry).is_none_or(|cause| cause == object || seen.contains(&cause));
                if !ours || !found.insert(sequence) {
                    continue;
                }
                let next = subject(entry);
                if seen.insert(next.clone()) {
                    waiting.push(next);
                }
            }
        }
        found.into_iter().map(|sequence| self.entries[(sequence - self.first) as usize].clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: u64, resource: &str, name: &str, cause: Option<&str>) -> JournalEntry {
        JournalEntry {
            revision,
            resource: resource.into(),
            namespace: "d".into(),
            name: name.into(),
            cause: cause.map(|c| c.parse().unwrap()),
            ..JournalEntry::default()
        }
    }

    #[test]
    fn a_chain_follows_causes_and_leaves_other_stories_out() {
        let journal = Journal::default();
        for e in [
            entry(1, "deployments.apps", "web", None),
            entry(2, "replicasets.apps", "web-1", Some("deployments.apps/d/web@1")),
            entry(3, "pods", "other", None),
            entry(4, "pods", "web-1-a", Some("replicasets.apps/d/web-1@2")),
            entry(5, "pods", "web-1-a", Some("pods/d/web-1-a@4")),
            entry(6, "pods", "web-1-a", Some("nodes/d/n1@1")),
            entry(7, "endpointslices.discovery.k8s.io", "s", Some("pods/d/web-1-a@5")),
        ] {
            journal.record(e);
        }
        let chain = journal.chain("deployments.apps", &Key::new("d", "web"));
        assert_eq!(chain.iter().map(|e| e.revision).collect::<Vec<_>>(), [1, 2, 4, 5, 7]);
    }

    #[test]
    fn the_oldest_entries_make_room() {
        let journal = Journal::default();
        (0..CAPACITY as u64 + 10).for_each(|i| journal.record(entry(i, "pods", &format!("p{i}"), None)));
        assert!(journal.chain("pods", &Key::new("d", "p9")).is_empty());
        assert_eq!(journal.chain("pods", &Key::new("d", "p10")).len(), 1);
        assert_eq!(journal.ring.lock().about.len(), CAPACITY);
    }
}
