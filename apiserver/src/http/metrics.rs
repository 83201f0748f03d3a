//! What the server counts, in upstream's metric names and labels.
//!
//! Upstream counterpart: `apiserver/pkg/endpoints/metrics/metrics.go` (v1.33).

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::info::RequestInfo;

const BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Series {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Coded {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    code: u16,
}

pub struct Metrics {
    registry: Registry,
    requests: Family<Coded, Counter>,
    durations: Family<Series, Histogram>,
    objects: Family<Vec<(String, String)>, Gauge>,
}

impl Series {
    pub fn of(info: &RequestInfo) -> Self {
        let scope = match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        // Unknown names would let a client grow the set of series without bound.
        let known = kinds::by_resource(&info.group, &info.resource)
            .is_some_and(|k| info.subresource.is_empty() || k.subresource(&info.subresource).is_some());
        let of_known = |text: &str| if known { text.to_owned() } else { String::new() };
        Series {
            verb: info.verb.to_uppercase(),
            group: of_known(&info.group),
            version: of_known(&info.version),
            resource: of_known(&info.resource),
            subresource: of_known(&info.subresource),
            scope: scope.to_owned(),
        }
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<Coded, Counter>::default();
        let durations = Family::<Series, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let objects = Family::<Vec<(String, String)>, Gauge>::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, group, version, resource, scope and HTTP response code.",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency by verb, group, version, resource, subresource, scope.",
            durations.clone(),
        );
        registry.register("apiserver_storage_objects", "Number of stored objects by resource.", objects.clone());
        Metrics { registry, requests, durations, objects }
    }

    pub fn observe(&self, series: Series, code: u16, took: Duration, long_running: bool) {
        let Series { verb, group, version, resource, subresource, scope } = series.clone();
        self.requests.get_or_create(&Coded { verb, group, version, resource, subresource, scope, code }).inc();
        if !long_running {
            self.durations.get_or_create(&series).observe(took.as_secs_f64());
        }
    }

    pub fn set_objects(&self, resource: String, count: usize) {
        self.objects.get_or_create(&vec![("resource".to_owned(), resource)]).set(count as i64);
    }

    /// The exposition text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        machinery::metrics::exposition(&self.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}
