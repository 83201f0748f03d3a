//! Who wrote what, when and why: the last writes of this server, with the cause that each client sent along.
//!
//! A bounded ring, indexed by object when it is asked; nothing survives a restart, and nothing depends on it.
//! Leases and Events are left out: they would push out everything else. No upstream counterpart.

use std::collections::{HashMap, HashSet, VecDeque};

use api::{Cause, GroupResource, JournalEntry, Key};
use parking_lot::Mutex;

const CAPACITY: usize = 20_000;
/// Longest chain answered.
const MAX_ANSWER: usize = 2_000;

#[derive(Default)]
pub struct Journal {
    lines: Mutex<VecDeque<Line>>,
}

/// An entry at rest: its texts in one. There are many, and they are seldom read.
struct Line {
    revision: u64,
    time: u64,
    text: Box<str>,
}

const SEPARATOR: char = '\u{1f}';

impl Line {
    fn pack(entry: &JournalEntry) -> Self {
        let cause = entry.cause.as_ref().map(ToString::to_string).unwrap_or_default();
        let JournalEntry { user, agent, verb, resource, subresource, namespace, name, uid, note, .. } = entry;
        let texts = [user.as_str(), agent, verb, resource, subresource, namespace, name, uid, &cause, note.as_deref().unwrap_or_default()];
        Line { revision: entry.revision, time: entry.time, text: texts.join("\u{1f}").into() }
    }

    fn unpack(&self) -> JournalEntry {
        let mut texts = self.text.splitn(10, SEPARATOR);
        let mut next = || texts.next().unwrap_or_default().to_owned();
        JournalEntry {
            revision: self.revision,
            time: self.time,
            user: next(),
            agent: next(),
            verb: next(),
            resource: next(),
            subresource: next(),
            namespace: next(),
            name: next(),
            uid: next(),
            cause: next().parse().ok(),
            note: Some(next()).filter(|note| !note.is_empty()),
        }
    }
}

/// An object of the journal: resource and key.
type Object = (String, String, String);

fn object(entry: &JournalEntry) -> Object {
    (entry.resource.clone(), entry.namespace.clone(), entry.name.clone())
}

fn cause_object(cause: &Cause) -> Object {
    (cause.resource.to_string(), cause.key.namespace.clone(), cause.key.name.clone())
}

impl Journal {
    /// Add an entry, stamped with the present time.
    pub fn record(&self, mut entry: JournalEntry) {
        if matches!(entry.resource.as_str(), "events" | "leases.coordination.k8s.io") {
            return;
        }
        entry.time = jiff::Timestamp::now().as_microsecond().max(0) as u64;
        let line = Line::pack(&entry);
        let mut lines = self.lines.lock();
        if lines.len() == CAPACITY {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// All that happened to the object and, transitively, all that it caused. In order of time.
    pub fn chain(&self, resource: &GroupResource, key: &Key) -> Vec<JournalEntry> {
        let entries: Vec<JournalEntry> = self.lines.lock().iter().map(Line::unpack).collect();
        let mut caused: HashMap<Object, Vec<usize>> = HashMap::new();
        let mut about: HashMap<Object, Vec<usize>> = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            about.entry(object(entry)).or_default().push(at);
            if let Some(cause) = &entry.cause {
                caused.entry(cause_object(cause)).or_default().push(at);
            }
        }
        let root = (resource.to_string(), key.namespace.clone(), key.name.clone());
        let (mut seen, mut found, mut open) = (HashSet::from([root.clone()]), HashSet::new(), vec![root]);
        while let Some(next) = open.pop() {
            found.extend(about.get(&next).into_iter().flatten().copied());
            for &at in caused.get(&next).into_iter().flatten() {
                found.insert(at);
                let effect = object(&entries[at]);
                // A node's own bookkeeping is not an effect to follow: everything on it would join the chain.
                if effect.0 != "nodes" && seen.insert(effect.clone()) {
                    open.push(effect);
                }
            }
        }
        let mut found: Vec<usize> = found.into_iter().collect();
        found.sort_unstable();
        found.iter().rev().take(MAX_ANSWER).rev().map(|&at| entries[at].clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: u64, resource: &str, name: &str, cause: Option<&str>) -> JournalEntry {
        let cause = cause.map(|c| c.parse().unwrap());
        JournalEntry {
            revision,
            resource: resource.into(),
            namespace: "default".into(),
            name: name.into(),
            cause,
            ..JournalEntry::default()
        }
    }

    #[test]
    fn a_chain_follows_causes_down() {
        let journal = Journal::default();
        journal.record(entry(1, "deployments.apps", "web", None));
        journal.record(entry(2, "deployments.apps", "other", None));
        journal.record(entry(3, "replicasets.apps", "web-1", Some("deployments.apps/default/web@1")));
        journal.record(entry(4, "pods", "web-1-a", Some("replicasets.apps/default/web-1@3")));
        journal.record(entry(5, "leases.coordination.k8s.io", "n", None));
        let chain = journal.chain(&GroupResource::new("apps", "deployments"), &Key::new("default", "web"));
        assert_eq!(chain.iter().map(|e| e.revision).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(chain[1].cause, Some("deployments.apps/default/web@1".parse().unwrap()));
        assert_eq!(JournalEntry { time: 0, ..chain[2].clone() }, entry(4, "pods", "web-1-a", Some("replicasets.apps/default/web-1@3")));
    }
}
