//! The work queue: keys wait in order, each at most once, and none is worked on twice at once.
//!
//! A key added while it is worked on is marked dirty and queued again when that work is done, so no change
//! is lost. Why a key was added (its cause) rides along but is no part of its identity, so triggers merge; the newest wins.
//! Upstream: `client-go/util/workqueue/{queue,delaying_queue,rate_limiting_queue}.go`.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use api::Cause;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics;

/// Delay of a first retry, doubled with each failure up to [`MAX_DELAY`]: upstream's defaults.
const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);

pub trait Item: Clone + Eq + Hash + Debug + Send + Sync + 'static {}
impl<T: Clone + Eq + Hash + Debug + Send + Sync + 'static> Item for T {}

/// Cheap to clone; all clones are the one queue.
pub struct WorkQueue<T: Item> {
    shared: Arc<Shared<T>>,
}

impl<T: Item> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        WorkQueue { shared: self.shared.clone() }
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    /// What to hand out next, in order; all of it is in `dirty`.
    ready: VecDeque<T>,
    /// Everything that needs work.
    dirty: HashMap<T, Wanted>,
    /// What is worked on, and since when.
    processing: HashMap<T, Instant>,
    /// The earliest pending delayed addition of each key.
    delayed: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
    shut: bool,
    metrics: Option<metrics::Queue>,
}

struct Wanted {
    /// The newest known.
    cause: Option<Cause>,
    since: Instant,
}

impl<T> State<T> {
    fn ready(&mut self, item: T) {
        self.ready.push_back(item);
        if let Some(metrics) = &self.metrics {
            metrics.depth.set(self.ready.len() as i64);
        }
    }
}

impl<T: Item> Default for WorkQueue<T> {
    fn default() -> Self {
        WorkQueue::new()
    }
}

impl<T: Item> WorkQueue<T> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            processing: HashMap::new(),
            delayed: HashMap::new(),
            failures: HashMap::new(),
            shut: false,
            metrics: None,
        };
        WorkQueue { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Counts what the queue does from now on, under this name.
    pub fn measure(&self, name: &str) {
        let metrics = metrics::get().queue(name);
        {
            let mut state = self.shared.state.lock();
            metrics.depth.set(state.ready.len() as i64);
            metrics.adds.inc_by(state.ready.len() as u64);
            state.metrics = Some(metrics.clone());
        }
        let shared = Arc::downgrade(&self.shared);
        metrics::get().before_scrape(move || {
            let Some(shared) = shared.upgrade() else { return };
            let now = Instant::now();
            let ages: Vec<f64> = shared.state.lock().processing.values().map(|since| (now - *since).as_secs_f64()).collect();
            metrics.unfinished.set(ages.iter().sum());
            metrics.longest.set(ages.iter().copied().fold(0.0, f64::max));
        });
    }

    /// Queues a key; the running task's cause, if any, goes with it.
    pub fn add(&self, item: T) {
        self.put(item, crate::cause::current());
    }

    pub fn add_caused(&self, item: T, cause: Cause) {
        self.put(item, Some(cause));
    }

    fn put(&self, item: T, cause: Option<Cause>) {
        let mut state = self.shared.state.lock();
        if state.shut {
            return;
        }
        if let Some(known) = state.dirty.get_mut(&item) {
            if cause.is_some() {
                known.cause = cause;
            }
            return;
        }
        state.dirty.insert(item.clone(), Wanted { cause, since: Instant::now() });
        if let Some(metrics) = &state.metrics {
            metrics.adds.inc();
        }
        if !state.processing.contains_key(&item) {
            state.ready(item);
            drop(state);
            self.shared.changed.notify_one();
        }
    }

    /// Queues a key once `delay` has passed. An earlier pending addition of the same key makes this one needless.
    pub fn add_after(&self, item: T, delay: Duration) {
        let cause = crate::cause::current();
        if delay.is_zero() {
            return self.put(item, cause);
        }
        let at = Instant::now() + delay;
        {
            let mut state = self.shared.state.lock();
            if state.shut || state.delayed.get(&item).is_some_and(|pending| *pending <= at) {
                return;
            }
            state.delayed.insert(item.clone(), at);
        }
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            {
                let mut state = queue.shared.state.lock();
                if state.delayed.get(&item) == Some(&at) {
                    state.delayed.remove(&item);
                }
            }
            queue.put(item, cause);
        });
    }

    /// Queues a key after its back-off: 5 ms doubled per failure since the last [`forget`](Self::forget), at most 1000 s.
    pub fn add_rate_limited(&self, item: T) {
        let failures = {
            let mut state = self.shared.state.lock();
            if let Some(metrics) = &state.metrics {
                metrics.retries.inc();
            }
            let failures = state.failures.entry(item.clone()).or_default();
            *failures += 1;
            *failures - 1
        };
        let delay = BASE_DELAY.saturating_mul(1 << failures.min(20)).min(MAX_DELAY);
        self.add_after(item, delay);
    }

    pub fn forget(&self, item: &T) {
        self.shared.state.lock().failures.remove(item);
    }

    pub fn num_requeues(&self, item: &T) -> u32 {
        self.shared.state.lock().failures.get(item).copied().unwrap_or(0)
    }

    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all waiting; what is queued is not handed out any more.
    pub fn shut_down(&self) {
        self.shared.state.lock().shut = true;
        self.shared.changed.notify_waiters();
    }

    /// The next key to work on, or `None` once shut down. The key is worked on until the item is dropped.
    pub async fn next(&self) -> Option<WorkItem<T>> {
        loop {
            let notified = self.shared.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut state = self.shared.state.lock();
                if state.shut {
                    return None;
                }
                if let Some(item) = state.ready.pop_front() {
                    let wanted = state.dirty.remove(&item);
                    state.processing.insert(item.clone(), Instant::now());
                    if let Some((metrics, wanted)) = state.metrics.as_ref().zip(wanted.as_ref()) {
                        metrics.depth.set(state.ready.len() as i64);
                        metrics.waited.observe(wanted.since.elapsed().as_secs_f64());
                    }
                    if !state.ready.is_empty() {
                        self.shared.changed.notify_one();
                    }
                    let cause = wanted.and_then(|wanted| wanted.cause);
                    return Some(WorkItem { item, cause, queue: self.clone() });
                }
            }
            notified.await;
        }
    }

    fn done(&self, item: &T) {
        let mut state = self.shared.state.lock();
        let began = state.processing.remove(item);
        if let Some((metrics, began)) = state.metrics.as_ref().zip(began) {
            metrics.worked.observe(began.elapsed().as_secs_f64());
        }
        if state.dirty.contains_key(item) {
            state.ready(item.clone());
            drop(state);
            self.shared.changed.notify_one();
        }
    }
}

/// A key being worked on. Dropping it ends the work.
pub struct WorkItem<T: Item> {
    item: T,
    pub cause: Option<Cause>,
    queue: WorkQueue<T>,
}

impl<T: Item> Deref for WorkItem<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T: Item> Drop for WorkItem<T> {
    fn drop(&mut self) {
        self.queue.done(&self.item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_and_is_worked_on_alone() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        let a = queue.next().await.unwrap();
        assert_eq!((*a, queue.len()), ("a", 1));
        queue.add("a");
        assert_eq!(queue.len(), 1, "not handed out while worked on");
        drop(a);
        assert_eq!(queue.len(), 2, "but not lost");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_the_earliest_delay_wins() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        for expected in [5, 10, 20, 40] {
            let before = Instant::now();
            queue.add_rate_limited("a");
            drop(queue.next().await);
            assert_eq!(before.elapsed().as_millis(), expected);
        }
        queue.forget(&"a");
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(3));
        drop(queue.next().await);
        assert_eq!(start.elapsed().as_millis(), 3075);
    }

    #[tokio::test]
    async fn shutting_down_ends_waiting() {
        let queue = WorkQueue::<u8>::new();
        let waiter = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await.is_none() }
        });
        tokio::task::yield_now().await;
        queue.shut_down();
        assert!(waiter.await.unwrap());
    }
}
