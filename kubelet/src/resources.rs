//! Requests and limits as Linux numbers: CPU shares and quota, memory, OOM score; for containers and for whole pods.
//!
//! Upstream: `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`, `component-helpers/resource/helpers.go`, v1.33.

use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::{ContainerExt, PodExt, Qos, milli, value};

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Microseconds; the kernel's and upstream's default CFS period.
pub const QUOTA_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1000;

pub fn shares(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 { MIN_SHARES } else { (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

/// Zero: no limit.
pub fn quota(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 { 0 } else { (milli_cpu * QUOTA_PERIOD / 1000).max(MIN_QUOTA) }
}

/// cgroup v2's 1–10000 from v1's 2–262144, as runc does.
pub fn weight(shares: i64) -> i64 {
    1 + ((shares - 2) * 9999) / 262_142
}

fn cpu_milli(quantity: Option<&Quantity>) -> i64 {
    quantity.map_or(0, |q| i64::try_from(milli(q)).unwrap_or(i64::MAX))
}

/// A container's resources; what it does not request it is taken to request as its limit.
pub fn container(pod: &Pod, container: &Container, machine_memory: i64) -> LinuxContainerResources {
    let cpu_limit = cpu_milli(container.limit("cpu"));
    let cpu_request = container.request("cpu").map_or(cpu_limit, |q| cpu_milli(Some(q)));
    LinuxContainerResources {
        cpu_shares: shares(cpu_request),
        cpu_period: QUOTA_PERIOD,
        cpu_quota: quota(cpu_limit),
        memory_limit_in_bytes: container.limit("memory").map_or(0, value),
        oom_score_adj: oom_score(pod, container, machine_memory),
        ..LinuxContainerResources::default()
    }
}

/// The smaller its share of the machine's memory, the sooner a burstable container dies.
fn oom_score(pod: &Pod, container: &Container, machine_memory: i64) -> i64 {
    if matches!(pod.spec().priority_class_name.as_deref(), Some("system-node-critical")) {
        return -997;
    }
    match Qos::of(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = container.request("memory").or(container.limit("memory")).map_or(0, value);
            let score = 1000 - (1000 * request) / machine_memory.max(1);
            score.clamp(3, 999)
        }
    }
}

/// What a pod's own cgroup allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    pub cpu_shares: i64,
    /// None: no limit.
    pub cpu_quota: Option<i64>,
    pub memory: Option<i64>,
}

pub fn pod(pod: &Pod) -> PodResources {
    let containers = pod.all_containers();
    let limited = |resource: &str| containers.iter().all(|c| c.limit(resource).is_some());
    let cpu_limit = total(pod, |c| cpu_milli(c.limit("cpu")));
    let requests = total(pod, |c| c.request("cpu").map_or_else(|| cpu_milli(c.limit("cpu")), |q| cpu_milli(Some(q))));
    PodResources {
        cpu_shares: shares(requests),
        cpu_quota: (limited("cpu") && cpu_limit > 0).then(|| quota(cpu_limit)),
        memory: limited("memory").then(|| total(pod, |c| c.limit("memory").map_or(0, value))).filter(|m| *m > 0),
    }
}

/// What a pod uses of a resource at most: the containers and sidecars together, or the hungriest moment of its start.
pub fn total(pod: &Pod, of: impl Fn(&Container) -> i64) -> i64 {
    let mut sidecars = 0;
    let mut start = 0;
    for container in pod.init_containers() {
        if container.is_sidecar() {
            sidecars += of(container);
            start = start.max(sidecars);
        } else {
            start = start.max(sidecars + of(container));
        }
    }
    let running: i64 = pod.spec().containers.iter().map(&of).sum();
    start.max(sidecars + running)
}

/// A pod's request of `cpu` (in thousandths) or of another resource (in units), overhead included.
pub fn pod_request(pod: &Pod, resource: &str) -> i64 {
    let amount = |q: Option<&Quantity>| if resource == "cpu" { cpu_milli(q) } else { q.map_or(0, value) };
    let overhead = pod.spec().overhead.as_ref().and_then(|o| o.get(resource));
    total(pod, |c| amount(c.request(resource))) + amount(overhead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_upstream() {
        assert_eq!([shares(0), shares(1), shares(100), shares(1000)], [2, 2, 102, 1024]);
        assert_eq!([quota(0), quota(5), quota(500), quota(2000)], [0, 1000, 50_000, 200_000]);
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 39, 10_000]);
    }

    #[test]
    fn a_pod_needs_its_hungriest_moment() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "i", "resources": {"requests": {"cpu": "300m"}}},
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "64Mi"}}},
                           {"name": "b", "resources": {"requests": {"cpu": "100m"}}}]}}))
        .unwrap();
        assert_eq!(pod_request(&pod, "cpu"), 300);
        let resources = super::pod(&pod);
        assert_eq!((resources.cpu_quota, resources.memory), (None, None));
    }
}
