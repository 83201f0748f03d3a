//! What the scheduler counts, in upstream's names.
//!
//! Upstream: pkg/scheduler/metrics/metrics.go, v1.33.

use std::time::Duration;

use machinery::metrics::{self, Labels};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// How many pods wait, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
    pub gated: usize,
}

pub struct Metrics {
    profile: String,
    attempts: Family<Labels, Counter>,
    durations: Family<Labels, Histogram>,
    pending: Family<Labels, Gauge>,
    until_bound: Family<Labels, Histogram>,
    tries: Histogram,
    preemptions: Counter,
    victims: Histogram,
}

impl Metrics {
    /// `profile`: the name that pods call the scheduler by.
    pub fn new(profile: &str) -> Self {
        let this = Metrics {
            profile: profile.to_owned(),
            attempts: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            pending: Family::default(),
            until_bound: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 20))),
            tries: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            preemptions: Counter::default(),
            victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        };
        metrics::get().register(|registry| {
            let all = registry.sub_registry_with_prefix("scheduler");
            all.register("schedule_attempts", "Number of attempts to schedule pods, by the result", this.attempts.clone());
            all.register(
                "scheduling_attempt_duration_seconds",
                "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
                this.durations.clone(),
            );
            all.register("pending_pods", "Number of pending pods, by the queue type", this.pending.clone());
            all.register(
                "pod_scheduling_sli_duration_seconds",
                "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue",
                this.until_bound.clone(),
            );
            all.register("pod_scheduling_attempts", "Number of attempts to successfully schedule a pod.", this.tries.clone());
            all.register("preemption_attempts", "Total preemption attempts in the cluster till now", this.preemptions.clone());
            all.register("preemption_victims", "Number of selected preemption victims", this.victims.clone());
        });
        this
    }

    /// `result`: scheduled, unschedulable or error.
    pub fn attempt(&self, result: &str, took: Duration) {
        let labels = vec![("profile", self.profile.clone()), ("result", result.to_owned())];
        self.attempts.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A pod got its node at this attempt, so long after it came.
    pub fn bound(&self, attempts: u32, waited: Duration) {
        self.tries.observe(f64::from(attempts));
        self.until_bound.get_or_create(&vec![("attempts", attempts.to_string())]).observe(waited.as_secs_f64());
    }

    pub fn preempted(&self, victims: usize) {
        self.preemptions.inc();
        self.victims.observe(victims as f64);
    }

    pub fn pending(&self, pending: Pending) {
        let Pending { active, backoff, unschedulable, gated } = pending;
        for (queue, number) in [("active", active), ("backoff", backoff), ("unschedulable", unschedulable), ("gated", gated)] {
            self.pending.get_or_create(&vec![("queue", queue.to_owned())]).set(number as i64);
        }
    }
}
