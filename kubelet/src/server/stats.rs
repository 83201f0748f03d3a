//! What pods and node use: `/stats/summary`, `/metrics/resource`, `/metrics`.
//!
//! Upstream: `pkg/kubelet/server/stats`, `pkg/kubelet/metrics/collectors/resource_metrics.go`, v1.33.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_cri::v1::{ContainerState, ContainerStats};
use machinery::https;
use serde_json::{Value, json};

use super::{Answer, json as json_answer};
use crate::kubelet::Kubelet;
use crate::pod::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};

struct Used {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    cpu_nanos: u64,
    working_set: u64,
}

async fn used(kubelet: &Kubelet) -> Result<Vec<Used>, (u16, String)> {
    let failed = |e: crate::cri::Error| (500, e.to_string());
    let (stats, containers) =
        tokio::try_join!(kubelet.cri.container_stats(), kubelet.cri.list_containers(HashMap::new())).map_err(failed)?;
    // The runtime reports zeros for containers that have ended.
    let running: HashSet<String> =
        containers.into_iter().filter(|c| c.state == ContainerState::ContainerRunning as i32).map(|c| c.id).collect();
    let alive = |s: &ContainerStats| s.attributes.as_ref().is_some_and(|a| running.contains(&a.id));
    Ok(stats.into_iter().filter(alive).filter_map(of_container).collect())
}

fn of_container(stats: ContainerStats) -> Option<Used> {
    let labels = stats.attributes?.labels;
    let label = |name: &str| labels.get(name).cloned();
    Some(Used {
        namespace: label(LABEL_POD_NAMESPACE)?,
        pod: label(LABEL_POD_NAME)?,
        uid: label(LABEL_POD_UID)?,
        container: label(LABEL_CONTAINER_NAME)?,
        cpu_nanos: stats.cpu.and_then(|c| c.usage_core_nano_seconds).map(|v| v.value).unwrap_or_default(),
        working_set: stats.memory.and_then(|m| m.working_set_bytes).map(|v| v.value).unwrap_or_default(),
    })
}

pub async fn summary(kubelet: &Arc<Kubelet>) -> Answer {
    let now = Timestamp::now().to_string();
    let usage =
        |cpu: u64, memory: u64| (json!({"time": now, "usageCoreNanoSeconds": cpu}), json!({"time": now, "workingSetBytes": memory}));
    let mut pods: BTreeMap<String, Vec<Used>> = BTreeMap::new();
    for one in used(kubelet).await? {
        pods.entry(one.uid.clone()).or_default().push(one);
    }
    let pods: Vec<Value> = pods
        .into_iter()
        .filter_map(|(uid, used)| {
            let first = used.first()?;
            let reference = json!({"name": first.pod, "namespace": first.namespace, "uid": uid});
            let (cpu, memory) = usage(used.iter().map(|u| u.cpu_nanos).sum(), used.iter().map(|u| u.working_set).sum());
            let containers: Vec<Value> = used
                .iter()
                .map(|u| {
                    let (cpu, memory) = usage(u.cpu_nanos, u.working_set);
                    json!({"name": u.container, "cpu": cpu, "memory": memory})
                })
                .collect();
            Some(json!({"podRef": reference, "cpu": cpu, "memory": memory, "containers": containers}))
        })
        .collect();
    let node = kubelet.cgroups.usage(kubelet.cgroups.root());
    let (cpu, memory) = usage(node.cpu_nanos, node.working_set);
    json_answer(&json!({"node": {"nodeName": kubelet.config.node_name, "cpu": cpu, "memory": memory}, "pods": pods}))
}

pub async fn resource_metrics(kubelet: &Arc<Kubelet>) -> Answer {
    let used = used(kubelet).await?;
    let node = kubelet.cgroups.usage(kubelet.cgroups.root());
    let mut text = String::new();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<String>| {
        // Writing to a String does not fail.
        let _infallible = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        lines.iter().for_each(|line| text.push_str(&format!("{name}{line}\n")));
    };
    let labels = |u: &Used| format!("{{container={:?},namespace={:?},pod={:?}}}", u.container, u.namespace, u.pod);
    let mut pods: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for u in &used {
        let sum = pods.entry((u.namespace.clone(), u.pod.clone())).or_default();
        *sum = (sum.0 + u.cpu_nanos, sum.1 + u.working_set);
    }
    let cpu = "Cumulative cpu time consumed in core-seconds";
    let memory = "Current working set in bytes";
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        cpu,
        used.iter().map(|u| format!("{} {}", labels(u), seconds(u.cpu_nanos))).collect(),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        memory,
        used.iter().map(|u| format!("{} {}", labels(u), u.working_set)).collect(),
    );
    let pod = |(n, p): &(String, String)| format!("{{namespace={n:?},pod={p:?}}}");
    family("pod_cpu_usage_seconds_total", "counter", cpu, pods.iter().map(|(k, v)| format!("{} {}", pod(k), seconds(v.0))).collect());
    family("pod_memory_working_set_bytes", "gauge", memory, pods.iter().map(|(k, v)| format!("{} {}", pod(k), v.1)).collect());
    family("node_cpu_usage_seconds_total", "counter", cpu, vec![format!(" {}", seconds(node.cpu_nanos))]);
    family("node_memory_working_set_bytes", "gauge", memory, vec![format!(" {}", node.working_set)]);
    family("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise", vec![" 0".to_owned()]);
    Ok(https::text(200, text))
}

pub async fn metrics(kubelet: &Arc<Kubelet>) -> Answer {
    let pods = kubelet.pods.list().len();
    let running = kubelet.cri.list_containers(Default::default()).await.map_err(|e| (500, e.to_string()))?;
    let running = running.iter().filter(|c| c.state == k8s_cri::v1::ContainerState::ContainerRunning as i32).count();
    let text = format!(
        "# HELP kubelet_running_pods Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n\
         # HELP kubelet_running_containers Number of containers currently running\n# TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {running}\n"
    );
    Ok(https::text(200, text))
}
