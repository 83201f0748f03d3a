//! Looks at every machine's runtime all the time: nothing may run twice, not even for a moment.
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
    containers: BTreeSet<String>,
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
                // A machine whose runtime is just dead shows nothing.
                let look = cluster.machines.iter().flat_map(|machine| census::found(&cluster, machine, namespace).unwrap_or_default());
                seen.look(&look.collect::<Vec<_>>());
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
        Ok(format!("{} looks at the machines saw {} pods and {} runs of containers, none twice", seen.looks, seen.pods.len(), seen.containers.len()))
    }
}

impl Seen {
    fn look(&mut self, found: &[Found]) {
        self.looks += 1;
        let mut running: BTreeMap<(&str, &str), &Found> = BTreeMap::new();
        let mut identities: BTreeMap<&str, &Found> = BTreeMap::new();
        for one in found {
            self.pods.insert(one.pod.clone());
            let is_container = !one.container.is_empty();
            if is_container && one.state != Life::New {
                self.containers.insert(one.id.clone());
                if objects::runs_once(&one.name) {
                    let runs = self.single.entry((one.pod.clone(), one.container.clone())).or_default();
                    runs.insert(one.id.clone());
                    if runs.len() > 1 {
                        self.wrong.insert(format!("pod {} ({}): {} was run again", one.name, one.pod, one.container));
                    }
                }
            }
            if one.state != Life::Running {
                continue;
            }
            if let Some(other) = running.insert((&one.pod, &one.container), one) {
                let what = if is_container { &one.container } else { "the sandbox" };
                let places = format!("{} on {}, {} on {}", other.id, other.machine, one.id, one.machine);
                self.wrong.insert(format!("pod {} ({}): {what} runs twice: {places}", one.name, one.pod));
            }
            if is_container
                && objects::is_identity(&one.name)
                && let Some(other) = identities.insert(&one.name, one).filter(|other| other.pod != one.pod)
            {
                self.wrong.insert(format!("two pods are {}: {} on {}, {} on {}", one.name, other.pod, other.machine, one.pod, one.machine));
            }
        }
    }
}
