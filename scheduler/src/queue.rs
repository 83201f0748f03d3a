//! Pods that wait: ready to be tried (active), tried lately (backoff), or until something changes (unschedulable).
//!
//! ```text
//!            add                 pop
//! pod ─────────────▶ active ───────────▶ cycle ──▶ bound
//!                     ▲   ▲                │ rejected
//!            time     │   │ an event helps ▼
//!                 backoff ◀──────── unschedulable
//! ```
//! The queue has no clock: `now` is an argument, [`Queue::next_wakeup`] says when to come again.
//! Invariants: a pod is in exactly one of the three; a gated pod is in `unschedulable` until it is updated.
//! Upstream: pkg/scheduler/backend/queue/scheduling_queue.go, v1.33.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::PodInfo;
use crate::framework::PluginSet;
use crate::metrics::Pending;

pub const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A pod is tried again after this time even if no event promised to help: the safety net under `Plugin::helps`.
pub const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
pub struct QueuedPod {
    pub info: Arc<PodInfo>,
    /// When it came into the queue last; ties of priority go to the oldest.
    pub since: Instant,
    pub attempts: u32,
    /// When it first came.
    pub added: Instant,
    /// Who rejected it in the last attempt; empty after an error, so that any event helps.
    pub rejected_by: PluginSet,
    pub gated: bool,
}

/// Priority first, then age; the uid makes it unique.
type Order = (Reverse<i32>, Instant, String);

enum Place {
    Active,
    Backoff(Instant),
    Unschedulable,
}

#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, (QueuedPod, Place)>,
    active: BTreeSet<Order>,
    backoff: BTreeSet<(Instant, String)>,
}

fn order(pod: &QueuedPod) -> Order {
    (Reverse(pod.info.priority), pod.since, pod.info.uid.clone())
}

fn backoff_after(attempts: u32) -> Duration {
    INITIAL_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(MAX_BACKOFF)
}

impl Queue {
    /// A new pod. `gate`: the plugin that keeps it out for now.
    pub fn add(&mut self, info: Arc<PodInfo>, gate: Option<PluginSet>, now: Instant) {
        let gated = gate.is_some();
        let pod = QueuedPod { info, since: now, attempts: 0, added: now, rejected_by: gate.unwrap_or_default(), gated };
        let place = if gated { Place::Unschedulable } else { Place::Active };
        self.put(pod, place);
    }

    /// The pod itself changed. Whatever rejected it may see it differently now, unless only its status changed.
    pub fn update(&mut self, info: Arc<PodInfo>, gate: Option<PluginSet>, relevant: bool, now: Instant) {
        let Some((mut pod, mut place)) = self.take(&info.uid) else {
            return self.add(info, gate, now);
        };
        pod.info = info;
        match (pod.gated, gate) {
            (_, Some(gate)) => {
                (pod.gated, pod.rejected_by, place) = (true, gate, Place::Unschedulable);
            }
            (true, None) => {
                (pod.gated, pod.since, place) = (false, now, Place::Active);
            }
            (false, None) if relevant && matches!(place, Place::Unschedulable) => place = self.retry_place(&pod, now),
            _ => {}
        }
        self.put(pod, place);
    }

    /// The attempt failed because no node fits.
    pub fn unschedulable(&mut self, mut pod: QueuedPod, now: Instant) {
        pod.since = now;
        self.put(pod, Place::Unschedulable);
    }

    /// The attempt failed for another reason; try again without waiting for an event.
    pub fn failed(&mut self, mut pod: QueuedPod, now: Instant) {
        pod.since = now;
        pod.rejected_by = PluginSet::default();
        let until = now + backoff_after(pod.attempts);
        self.put(pod, Place::Backoff(until));
    }

    pub fn remove(&mut self, uid: &str) -> Option<QueuedPod> {
        self.take(uid).map(|(pod, _)| pod)
    }

    /// The next pod to try. It is out of the queue until it is given back.
    pub fn pop(&mut self, now: Instant) -> Option<QueuedPod> {
        self.flush(now);
        let (_, _, uid) = self.active.first()?.clone();
        let (mut pod, _) = self.take(&uid)?;
        pod.attempts += 1;
        Some(pod)
    }

    /// Wakes every unschedulable pod that `helps` says yes to.
    pub fn wake(&mut self, now: Instant, helps: impl Fn(&QueuedPod) -> bool) {
        let waiting = self.pods.values().filter(|(pod, place)| matches!(place, Place::Unschedulable) && !pod.gated);
        let woken: Vec<String> =
            waiting.filter(|(pod, _)| pod.rejected_by.is_empty() || helps(pod)).map(|(pod, _)| pod.info.uid.clone()).collect();
        for uid in woken {
            self.retry(&uid, now);
        }
    }

    /// Brings one unschedulable pod back.
    fn retry(&mut self, uid: &str, now: Instant) {
        if let Some((pod, _)) = self.take(uid) {
            let place = self.retry_place(&pod, now);
            self.put(pod, place);
        }
    }

    fn retry_place(&self, pod: &QueuedPod, now: Instant) -> Place {
        let until = pod.since + backoff_after(pod.attempts);
        if pod.attempts == 0 || until <= now { Place::Active } else { Place::Backoff(until) }
    }

    /// Moves on what only time held back.
    fn flush(&mut self, now: Instant) {
        while let Some((until, uid)) = self.backoff.first().cloned()
            && until <= now
        {
            if let Some((pod, _)) = self.take(&uid) {
                self.put(pod, Place::Active);
            }
        }
        let stale = self
            .pods
            .values()
            .filter(|(pod, place)| matches!(place, Place::Unschedulable) && !pod.gated && pod.since + MAX_UNSCHEDULABLE <= now);
        let stale: Vec<String> = stale.map(|(pod, _)| pod.info.uid.clone()).collect();
        for uid in stale {
            self.retry(&uid, now);
        }
    }

    /// How many pods wait, and where.
    pub fn pending(&self) -> Pending {
        let gated = self.pods.values().filter(|(pod, _)| pod.gated).count();
        let (active, backoff) = (self.active.len(), self.backoff.len());
        Pending { active, backoff, unschedulable: self.pods.len() - active - backoff - gated, gated }
    }

    /// When `pop` may have something new although nothing happened.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let waiting = self.pods.values().filter(|(pod, place)| matches!(place, Place::Unschedulable) && !pod.gated);
        let stale = waiting.map(|(pod, _)| pod.since + MAX_UNSCHEDULABLE).min();
        [backoff, stale].into_iter().flatten().min()
    }

    fn put(&mut self, pod: QueuedPod, place: Place) {
        let uid = pod.info.uid.clone();
        match &place {
            Place::Active => {
                self.active.insert(order(&pod));
            }
            Place::Backoff(until) => {
                self.backoff.insert((*until, uid.clone()));
            }
            Place::Unschedulable => {}
        }
        self.pods.insert(uid, (pod, place));
    }

    fn take(&mut self, uid: &str) -> Option<(QueuedPod, Place)> {
        let (pod, place) = self.pods.remove(uid)?;
        match &place {
            Place::Active => {
                self.active.remove(&order(&pod));
            }
            Place::Backoff(until) => {
                self.backoff.remove(&(*until, uid.to_owned()));
            }
            Place::Unschedulable => {}
        }
        Some((pod, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::pod;

    fn info(name: &str, priority: i32) -> Arc<PodInfo> {
        Arc::new(pod(name).priority(priority).info())
    }

    fn rejected() -> PluginSet {
        PluginSet(1)
    }

    #[test]
    fn priority_then_age() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.add(info("old", 0), None, start);
        queue.add(info("young", 0), None, start + Duration::from_secs(1));
        queue.add(info("important", 10), None, start + Duration::from_secs(2));
        let names: Vec<String> = std::iter::from_fn(|| queue.pop(start)).map(|p| p.info.key.name.clone()).collect();
        assert_eq!(names, ["important", "old", "young"]);
    }

    #[test]
    fn an_unschedulable_pod_wakes_by_a_helping_event_and_backs_off_longer_each_time() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.add(info("web", 0), None, now);
        for backoff in [1, 2, 4, 8, 10, 10] {
            let mut pod = queue.pop(now).unwrap();
            pod.rejected_by = rejected();
            queue.unschedulable(pod, now);
            queue.wake(now, |_| false);
            assert!(queue.pop(now + Duration::from_secs(60)).is_none());
            queue.wake(now, |_| true);
            assert!(queue.pop(now + Duration::from_secs(backoff) - Duration::from_millis(1)).is_none());
            assert_eq!(queue.next_wakeup(), Some(now + Duration::from_secs(backoff)));
            now += Duration::from_secs(backoff);
        }
        assert!(queue.pop(now).is_some());
    }

    #[test]
    fn five_minutes_wake_everything() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(info("web", 0), None, now);
        let mut pod = queue.pop(now).unwrap();
        pod.rejected_by = rejected();
        queue.unschedulable(pod, now);
        assert_eq!(queue.next_wakeup(), Some(now + MAX_UNSCHEDULABLE));
        assert!(queue.pop(now + MAX_UNSCHEDULABLE).is_some());
    }

    #[test]
    fn gated_pods_wait_for_their_own_update() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(info("web", 0), Some(rejected()), now);
        queue.wake(now, |_| true);
        assert!(queue.pop(now + MAX_UNSCHEDULABLE).is_none());
        queue.update(info("web", 0), None, true, now);
        assert!(queue.pop(now).is_some());
    }

    #[test]
    fn updates_of_status_do_not_wake() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(info("web", 0), None, now);
        let mut pod = queue.pop(now).unwrap();
        pod.rejected_by = rejected();
        queue.unschedulable(pod, now);
        let later = now + Duration::from_secs(5);
        queue.update(info("web", 0), None, false, later);
        assert!(queue.pop(later).is_none());
        queue.update(info("web", 0), None, true, later);
        assert!(queue.pop(later).is_some());
        assert!(queue.remove("uid-web").is_none());
    }
}
