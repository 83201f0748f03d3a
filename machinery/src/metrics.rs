//! What a process counts of itself, in upstream's metric names, for its `/metrics`.
//!
//! One registry per process, as upstream's: programs add their own with [`Metrics::register`]. What is only known by looking (open
//! files, the age of work in hand) is looked at when somebody asks.
//! Upstream: `component-base/metrics/prometheus/{restclient,workqueue}`, `client-go/tools/leaderelection/metrics.go`, Prometheus' process collector.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use procfs::process::{LimitValue, Process};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Label names and values.
pub type Labels = Vec<(&'static str, String)>;
type Seconds = Gauge<f64, AtomicU64>;

/// Of work queues: 10 ns to 10 s, as upstream.
const QUEUE_BUCKETS: [f64; 10] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0];

pub struct Metrics {
    registry: Mutex<Registry>,
    /// Called before each scrape.
    looks: Mutex<Vec<Box<dyn Fn() + Send>>>,
    requests: Family<Labels, Counter>,
    leading: Family<Labels, Gauge>,
    queues: Queues,
}

#[derive(Clone)]
struct Queues {
    depth: Family<Labels, Gauge>,
    adds: Family<Labels, Counter>,
    retries: Family<Labels, Counter>,
    waited: Family<Labels, Histogram>,
    worked: Family<Labels, Histogram>,
    unfinished: Family<Labels, Seconds>,
    longest: Family<Labels, Seconds>,
}

/// What is counted of one work queue.
#[derive(Clone)]
pub struct Queue {
    pub depth: Gauge,
    pub adds: Counter,
    pub retries: Counter,
    /// Seconds from an addition to its turn.
    pub waited: Histogram,
    pub worked: Histogram,
    /// Seconds that the work in hand has taken so far, together and at most.
    pub unfinished: Seconds,
    pub longest: Seconds,
}

/// The process's own.
pub fn get() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        let histogram = || Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(QUEUE_BUCKETS));
        let queues = Queues {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waited: histogram(),
            worked: histogram(),
            unfinished: Family::default(),
            longest: Family::default(),
        };
        registry.register("workqueue_depth", "Current depth of workqueue", queues.depth.clone());
        registry.register("workqueue_adds", "Total number of adds handled by workqueue", queues.adds.clone());
        registry.register("workqueue_retries", "Total number of retries handled by workqueue", queues.retries.clone());
        registry.register(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested",
            queues.waited.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes",
            queues.worked.clone(),
        );
        registry.register(
            "workqueue_unfinished_work_seconds",
            "How many seconds of work is in progress and not yet observed by work_duration",
            queues.unfinished.clone(),
        );
        registry.register(
            "workqueue_longest_running_processor_seconds",
            "How many seconds the longest running processor has been at work",
            queues.longest.clone(),
        );
        let (requests, leading) = (Family::default(), Family::default());
        registry.register(
            "rest_client_requests",
            "Number of HTTP requests, partitioned by status code, method, and host",
            Family::clone(&requests),
        );
        registry.register(
            "leader_election_master_status",
            "Whether the reporting system is the leader of the lease: 0 says no, 1 says yes",
            Family::clone(&leading),
        );
        let own = process(&mut registry);
        Metrics { registry: Mutex::new(registry), looks: Mutex::new(vec![own]), requests, leading, queues }
    }

    /// Adds a program's own metrics.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock());
    }

    /// Calls `look` before each scrape, to set what is not counted as it happens.
    pub fn before_scrape(&self, look: impl Fn() + Send + 'static) {
        self.looks.lock().push(Box::new(look));
    }

    pub(crate) fn request(&self, method: &Method, code: String, host: String) {
        self.requests.get_or_create(&vec![("code", code), ("host", host), ("method", method.to_string())]).inc();
    }

    pub(crate) fn leads(&self, lease: &str, leads: bool) {
        self.leading.get_or_create(&vec![("name", lease.to_owned())]).set(i64::from(leads));
    }

    pub(crate) fn queue(&self, name: &str) -> Queue {
        let labels = vec![("name", name.to_owned())];
        let Queues { depth, adds, retries, waited, worked, unfinished, longest } = &self.queues;
        Queue {
            depth: depth.get_or_create(&labels).clone(),
            adds: adds.get_or_create(&labels).clone(),
            retries: retries.get_or_create(&labels).clone(),
            waited: waited.get_or_create(&labels).clone(),
            worked: worked.get_or_create(&labels).clone(),
            unfinished: unfinished.get_or_create(&labels).clone(),
            longest: longest.get_or_create(&labels).clone(),
        }
    }

    /// The exposition text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        self.looks.lock().iter().for_each(|look| look());
        exposition(&self.registry.lock())
    }
}

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The registry as Prometheus' text, as upstream's: a counter goes by the name of its samples there, in OpenMetrics by the name before `_total`.
pub fn exposition(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut open = String::new();
    prometheus_client::encoding::text::encode(&mut open, registry)?;
    let counters: HashSet<&str> = open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open.len());
    for line in open.lines().filter(|line| *line != "# EOF") {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).and_then(|rest| rest.split_once(' '));
        match described.filter(|(name, _)| counters.contains(name)) {
            Some((name, rest)) => text += &format!("{}{name}_total {rest}\n", &line[.."# HELP ".len()]),
            None => text += &format!("{line}\n"),
        }
    }
    Ok(text)
}

/// CPU, memory and files of the process. Gives what reads them.
fn process(registry: &mut Registry) -> Box<dyn Fn() + Send> {
    let cpu = Counter::<f64, AtomicU64>::default();
    let started = Seconds::default();
    let [resident, virtual_size, open, limit] = [(); 4].map(|()| Gauge::<i64>::default());
    registry.register("process_cpu_seconds", "Total user and system CPU time spent in seconds.", cpu.clone());
    registry.register("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", started.clone());
    registry.register("process_resident_memory_bytes", "Resident memory size in bytes.", resident.clone());
    registry.register("process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual_size.clone());
    registry.register("process_open_fds", "Number of open file descriptors.", open.clone());
    registry.register("process_max_fds", "Maximum number of open file descriptors.", limit.clone());
    Box::new(move || {
        let read = || -> procfs::ProcResult<()> {
            let process = Process::myself()?;
            let stat = process.stat()?;
            let ticks = procfs::ticks_per_second() as f64;
            let used = Duration::from_secs_f64((stat.utime + stat.stime) as f64 / ticks);
            cpu.inner().store(used.as_secs_f64().to_bits(), std::sync::atomic::Ordering::Relaxed);
            started.set(procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks);
            resident.set((stat.rss * procfs::page_size()) as i64);
            virtual_size.set(stat.vsize as i64);
            open.set(process.fd_count()? as i64);
            if let LimitValue::Value(most) = process.limits()?.max_open_files.soft_limit {
                limit.set(most as i64);
            }
            Ok(())
        };
        if let Err(error) = read() {
            tracing::debug!("cannot read the process's own figures: {error}");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_by_their_samples_names() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        registry.register("hits", "All hits", counter.clone());
        registry.register("depth", "Now", Gauge::<i64>::default());
        counter.inc();
        let expected =
            "# HELP hits_total All hits.\n# TYPE hits_total counter\nhits_total 1\n# HELP depth Now.\n# TYPE depth gauge\ndepth 0\n";
        assert_eq!(exposition(&registry).unwrap(), expected);
    }
}
