//! What a pod asks for and a node has, as plain integers.
//!
//! Quantities are parsed once, when an object arrives; the inner loop of a cycle only adds and compares.
//! Upstream: pkg/scheduler/framework/types.go (Resource), component-helpers/resource/helpers.go (PodRequests), v1.33.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use api::quantity::Quantity;

/// Counted for a container that requests no CPU when nodes are scored: 0.1 core.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// Counted for a container that requests no memory when nodes are scored: 200 MiB.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

pub type QuantityMap = BTreeMap<String, K8sQuantity>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Number of pods; a node's capacity only.
    pub pods: i64,
    /// Extended resources and huge pages, sorted by name. Nearly always empty.
    pub scalars: Vec<(Arc<str>, i64)>,
}

impl Resources {
    pub fn of(map: &QuantityMap) -> Self {
        let mut resources = Resources::default();
        for (name, quantity) in map {
            resources.set(name, quantity);
        }
        resources
    }

    /// A quantity that does not parse counts as nothing: the API server refuses such objects.
    fn set(&mut self, name: &str, quantity: &K8sQuantity) {
        let Ok(quantity) = Quantity::parse(&quantity.0) else { return };
        match name {
            "cpu" => self.milli_cpu = i64::try_from(quantity.milli()).unwrap_or(i64::MAX),
            "memory" => self.memory = quantity.value(),
            "ephemeral-storage" => self.ephemeral_storage = quantity.value(),
            "pods" => self.pods = quantity.value(),
            _ if is_scalar(name) => *self.scalar_mut(name) = quantity.value(),
            _ => {}
        }
    }

    pub fn scalar(&self, name: &str) -> i64 {
        self.scalars.iter().find(|(n, _)| **n == *name).map_or(0, |(_, v)| *v)
    }

    fn scalar_mut(&mut self, name: &str) -> &mut i64 {
        let index = match self.scalars.binary_search_by(|(n, _)| (**n).cmp(name)) {
            Ok(index) => index,
            Err(index) => {
                self.scalars.insert(index, (Arc::from(name), 0));
                index
            }
        };
        &mut self.scalars[index].1
    }

    pub fn add(&mut self, other: &Resources) {
        self.apply(other, |mine, theirs| mine + theirs);
    }

    pub fn subtract(&mut self, other: &Resources) {
        self.apply(other, |mine, theirs| mine - theirs);
    }

    /// The larger of both, resource by resource.
    pub fn raise_to(&mut self, other: &Resources) {
        self.apply(other, i64::max);
    }

    fn apply(&mut self, other: &Resources, f: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, other.milli_cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral_storage = f(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = f(self.pods, other.pods);
        for (name, value) in &other.scalars {
            let mine = self.scalar_mut(name);
            *mine = f(*mine, *value);
        }
    }
}

/// Extended resources (`example.com/gpu`), huge pages and attachable volumes.
fn is_scalar(name: &str) -> bool {
    name.contains('/') || name.starts_with("hugepages-") || name.starts_with("attachable-volumes-")
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    resources.and_then(|r| r.requests.as_ref()).map(Resources::of).unwrap_or_default()
}

/// A container's request; while it is resized in place, the larger of what is asked and what it has.
fn container_requests(pod: &Pod, container: &Container) -> Resources {
    let mut asked = requests(container.resources.as_ref());
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    if let Some(status) = statuses.iter().find(|s| s.name == container.name) {
        if let Some(allocated) = &status.allocated_resources {
            asked.raise_to(&Resources::of(allocated));
        }
        asked.raise_to(&requests(status.resources.as_ref()));
    }
    asked
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the pod needs at its hungriest moment: the containers together, or one init container beside the sidecars
/// that started before it; plus the runtime's overhead.
pub fn pod_requests(pod: &Pod, spec: &PodSpec) -> Resources {
    aggregate(spec, |container| container_requests(pod, container))
}

/// CPU (milli) and memory (bytes) for scoring, where a container without a request counts as a small one.
pub fn pod_requests_for_scoring(spec: &PodSpec) -> (i64, i64) {
    let total = aggregate(spec, |container| {
        let asked = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let mut resources = requests(container.resources.as_ref());
        if asked.is_none_or(|r| !r.contains_key("cpu")) {
            resources.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if asked.is_none_or(|r| !r.contains_key("memory")) {
            resources.memory = DEFAULT_MEMORY;
        }
        resources
    });
    (total.milli_cpu, total.memory)
}

fn aggregate(spec: &PodSpec, request: impl Fn(&Container) -> Resources) -> Resources {
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&request(container));
    }
    let mut sidecars = Resources::default();
    let mut init = Resources::default();
    for container in spec.init_containers.as_deref().unwrap_or_default() {
        let mut need = request(container);
        if is_sidecar(container) {
            total.add(&need);
            sidecars.add(&need);
            need = sidecars.clone();
        } else {
            need.add(&sidecars);
        }
        init.raise_to(&need);
    }
    total.raise_to(&init);
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::of(overhead));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cpu: &str, restart: Option<&str>) -> Container {
        let requests = BTreeMap::from([("cpu".to_owned(), K8sQuantity(cpu.to_owned()))]);
        Container {
            resources: Some(ResourceRequirements { requests: Some(requests), ..Default::default() }),
            restart_policy: restart.map(str::to_owned),
            ..Default::default()
        }
    }

    #[test]
    fn init_containers_and_sidecars() {
        // (containers, init containers, total milli cpu)
        type Case = (&'static [&'static str], &'static [(&'static str, bool)], i64);
        let cases: &[Case] = &[
            (&["100m", "200m"], &[], 300),
            (&["100m"], &[("1", false)], 1000),
            (&["100m"], &[("50m", false), ("80m", false)], 100),
            (&["100m"], &[("50m", true)], 150),
            (&["100m"], &[("50m", true), ("300m", false)], 350),
            (&["100m"], &[("300m", false), ("50m", true)], 300),
        ];
        for (containers, init, expected) in cases {
            let spec = PodSpec {
                containers: containers.iter().map(|c| container(c, None)).collect(),
                init_containers: Some(init.iter().map(|(c, s)| container(c, s.then_some("Always"))).collect()),
                ..Default::default()
            };
            assert_eq!(pod_requests(&Pod::default(), &spec).milli_cpu, *expected, "{containers:?} {init:?}");
        }
    }

    #[test]
    fn unset_requests_count_as_small_ones_in_scores() {
        let spec = PodSpec { containers: vec![Container::default(), container("2", None)], ..Default::default() };
        assert_eq!(pod_requests_for_scoring(&spec), (2100, 2 * DEFAULT_MEMORY));
    }
}
