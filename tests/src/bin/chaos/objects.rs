//! The manifests of what churns. Together they use every kind of volume, every kind of probe, hooks, init containers, sidecars and host ports.

use serde_json::{Value, json};

/// What all pods mount: see [`settings`].
const SETTINGS: &str = "settings";
/// Where bare pods' host ports begin, above the node ports.
const HOST_PORT: usize = 40_000;

/// Pods by the first letter of their names: d Deployment, s StatefulSet, e DaemonSet ("every"), j Job, b bare, o bare and run once.
pub fn runs_once(pod: &str) -> bool {
    pod.starts_with(['j', 'o'])
}

pub fn is_identity(pod: &str) -> bool {
    pod.starts_with('s')
}

/// A ConfigMap and a Secret; their values are changed now and then.
pub fn settings() -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": SETTINGS}, "data": {"step": "0"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SETTINGS}, "stringData": {"step": "0"}},
    ]})
}

fn volumes() -> Value {
    json!([
        {"name": "scratch", "emptyDir": {"medium": "Memory"}},
        {"name": "disk", "emptyDir": {}},
        {"name": "config", "configMap": {"name": SETTINGS}},
        {"name": "secret", "secret": {"secretName": SETTINGS}},
        {"name": "about", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": SETTINGS}}]}},
    ])
}

fn mounts() -> Value {
    json!([
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "disk", "mountPath": "/disk", "subPath": "deep/down"},
        {"name": "config", "mountPath": "/config"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "about", "mountPath": "/about"},
        {"name": "token", "mountPath": "/token"},
    ])
}

fn web() -> Value {
    json!({"name": "web", "image": "coracle/web:1", "volumeMounts": mounts(),
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 2}})
}

fn pod(app: &str, container: Value) -> Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [container], "volumes": volumes()}})
}

fn workload(kind: &str, name: &str, mut spec: Value) -> Value {
    spec["selector"] = json!({"matchLabels": {"app": name}});
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// The first has a sidecar and an init container.
pub fn deployment(name: &str, replicas: u32) -> Value {
    let mut template = pod(name, web());
    if name == "d0" {
        template["spec"]["initContainers"] = json!([
            {"name": "side", "image": "coracle/web:1", "restartPolicy": "Always", "command": ["sleep", "100000"]},
            {"name": "first", "image": "coracle/web:1", "command": ["sh", "-c", "echo made > /disk/made"], "volumeMounts": mounts()},
        ]);
    }
    workload("Deployment", name, json!({"replicas": replicas, "template": template}))
}

pub fn stateful_set(name: &str, replicas: u32) -> Value {
    let mut container = web();
    container["command"] = json!(["sh", "-c", "echo $HOSTNAME >> /data/log; trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait"]);
    container["volumeMounts"].as_array_mut().into_iter().for_each(|all| all.push(json!({"name": "data", "mountPath": "/data"})));
    container["lifecycle"] = json!({"preStop": {"exec": {"command": ["true"]}}});
    container["livenessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 6});
    let claim = json!({"metadata": {"name": "data"}, "spec": claim_spec()});
    let policy = if name == "s0" { "OrderedReady" } else { "Parallel" };
    let rest = json!({"replicas": replicas, "serviceName": name, "podManagementPolicy": policy,
        "template": pod(name, container), "volumeClaimTemplates": [claim]});
    workload("StatefulSet", name, rest)
}

pub fn daemon_set(name: &str) -> Value {
    let mut template = pod(name, web());
    template["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    workload("DaemonSet", name, json!({"template": template}))
}

/// Kills may fail its pods: it may try often. Every other one is indexed.
pub fn job(n: usize, completions: u64) -> Value {
    let mut template = pod("job", json!({"name": "work", "image": "coracle/web:1", "command": ["sleep", "2"], "volumeMounts": mounts()}));
    template["spec"]["restartPolicy"] = json!("Never");
    let mode = if n.is_multiple_of(2) { "NonIndexed" } else { "Indexed" };
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job_name(n)},
        "spec": {"completions": completions, "parallelism": 2, "completionMode": mode, "backoffLimit": 1000, "template": template}})
}

pub fn job_name(n: usize) -> String {
    format!("j{n}")
}

pub fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

/// Pods that nobody makes again: some run for ever, some once; some with a claim, some with a host port, some pull their image each time.
pub fn bare_name(n: usize) -> String {
    format!("{}{n}", if n.is_multiple_of(3) { "o" } else { "b" })
}

pub fn bare(n: usize) -> Value {
    let name = bare_name(n);
    let mut container = web();
    let once = runs_once(&name);
    if once {
        container = json!({"name": "web", "image": "coracle/web:1", "command": ["sleep", "8"], "volumeMounts": mounts()});
    }
    let mut items = Vec::new();
    match n % 4 {
        0 => container["imagePullPolicy"] = json!("Always"),
        1 => container["ports"] = json!([{"containerPort": 8080, "hostPort": HOST_PORT + n}]),
        2 => {
            items.push(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim_spec()}));
            container["volumeMounts"].as_array_mut().into_iter().for_each(|all| all.push(json!({"name": "data", "mountPath": "/data"})));
        }
        _ => {}
    }
    let mut made = pod("bare", container);
    if !items.is_empty() {
        let claim = json!({"name": "data", "persistentVolumeClaim": {"claimName": name}});
        made["spec"]["volumes"].as_array_mut().into_iter().for_each(|all| all.push(claim.clone()));
    }
    made["spec"]["restartPolicy"] = json!(if once { "Never" } else { "Always" });
    made["metadata"]["name"] = json!(name);
    items.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": made["metadata"], "spec": made["spec"]}));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn claim_spec() -> Value {
    json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}})
}
