//! Looks at every machine all the time: nothing may run twice, not even for a moment.
//!
//! What runs is what has a living process before and after the runtimes are asked who is who, so two that are seen have been there together.
//!
//! - a container of a pod, a pod's sandbox: once
//! - the name of a StatefulSet's pod: one pod at a time, on whatever machine
//! - what is never to be restarted: one run, ever

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use coracle::cluster::Cluster;

use crate::census::{self, Found, Life};
use crate::objects;

const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    looks: usize,
    pods: BTreeSet<String>,
    containers: usize,
    /// Containers and sandboxes by id.
    known: BTreeMap<String, Found>,
    /// By pod and container: the runs of what has only one.
    single: BTreeMap<(String, String), BTreeSet<String>>,
    wrong: BTreeSet<String>,
}

impl Witness {
    pub fn start(cluster: &Cluster, namespace: &'static str) -> Witness {
        let stop = Arc::new(AtomicBool::new(false));
        let (cluster, ended) = (cluster.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !ended.load(Ordering::Relaxed) {
                let before = census::alive(&cluster);
                // A runtime that is just dead tells nothing; who was known before still is.
                let told = cluster.machines.iter().flat_map(|machine| census::found(&cluster, machine, namespace).unwrap_or_default());
                seen.know(told.collect());
                let after = census::alive(&cluster);
                seen.look(before.intersection(&after));
                std::thread::sleep(BETWEEN_LOOKS);
            }
            seen
        });
        Witness { stop, thread }
    }

    /// What was seen; an error if anything ran twice.
    pub fn end(self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(seen) = self.thread.join() else { bail!("the witness fell over") };
        if !seen.wrong.is_empty() {
            bail!("{}", seen.wrong.into_iter().collect::<Vec<_>>().join("\n"));
        }
        Ok(format!("{} looks saw {} pods and {} runs of containers, none twice", seen.looks, seen.pods.len(), seen.containers))
    }
}

impl Seen {
    fn know(&mut self, told: Vec<Found>) {
        for one in told {
            self.pods.insert(one.pod.clone());
            let before = self.known.insert(one.id.clone(), one.clone()).map(|before| before.state);
            if one.container.is_empty() || one.state == Life::New || before.is_some_and(|before| before != Life::New) {
                continue;
            }
            self.containers += 1;
            if objects::runs_once(&one.name) {
                let runs = self.single.entry((one.pod.clone(), one.container.clone())).or_default();
                runs.insert(one.id);
                if runs.len() > 1 {
                    self.wrong.insert(format!("pod {} ({}): {} was run again: {runs:?}", one.name, one.pod, one.container));
                }
            }
        }
    }

    fn look<'a>(&mut self, living: impl Iterator<Item = &'a String>) {
        self.looks += 1;
        let mut running: BTreeMap<(&str, &str), &Found> = BTreeMap::new();
        let mut identities: BTreeMap<&str, &Found> = BTreeMap::new();
        for one in living.filter_map(|id| self.known.get(id)) {
            let place = |one: &Found| format!("{} on {}", one.id, one.machine);
            if let Some(other) = running.insert((&one.pod, &one.container), one) {
                let what = if one.container.is_empty() { "the sandbox" } else { &one.container };
                let text = format!("pod {} ({}): {what} runs twice: {}, {}", one.name, one.pod, place(other), place(one));
                self.wrong.insert(text);
            }
            if !one.container.is_empty()
                && objects::is_identity(&one.name)
                && let Some(other) = identities.insert(&one.name, one).filter(|other| other.pod != one.pod)
            {
                self.wrong.insert(format!("two pods are {}: {}, {}", one.name, place(other), place(one)));
            }
        }
    }
}
