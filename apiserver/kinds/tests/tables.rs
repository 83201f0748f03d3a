//! Printed rows, as `kubectl get -o wide` shows them.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

/// The cells of an object, separated by ` | `, five minutes after 2025-01-01.
fn row(group: &str, kind: &str, object: Value) -> String {
    let now = "2025-01-01T00:05:00Z".parse().unwrap();
    let kind = kinds::by_kind(group, kind).unwrap();
    let text = |cell: Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    kind.columns.iter().map(|column| text(column.render(&object, now))).collect::<Vec<_>>().join(" | ")
}

fn pod(spec: Value, status: Value) -> String {
    row("", "Pod", json!({"metadata": {"name": "p", "creationTimestamp": "2025-01-01T00:00:00Z"}, "spec": spec, "status": status}))
}

#[test]
fn pods() {
    let spec = json!({"nodeName": "n1", "containers": [{"name": "c"}], "initContainers": [{"name": "i"}]});
    let running = json!({"name": "c", "ready": true, "restartCount": 1, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "2025-01-01T00:04:55Z"}}});
    let cases = [
        (json!({"phase": "Pending"}), "p | 0/1 | Pending | 0 | 5m | <none> | n1 | <none> | <none>"),
        (
            json!({"phase": "Running", "podIPs": [{"ip": "10.244.0.5"}], "containerStatuses": [running]}),
            "p | 1/1 | Running | 1 (5s ago) | 5m | 10.244.0.5 | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"running": {}}}]}),
            "p | 0/1 | Init:0/1 | 0 | 5m | <none> | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 1}}}]}),
            "p | 0/1 | Init:ExitCode:1 | 2 | 5m | <none> | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            "p | 0/1 | CrashLoopBackOff | 3 | 5m | <none> | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [{"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
            "p | 0/1 | Completed | 0 | 5m | <none> | n1 | <none> | <none>",
        ),
    ];
    for (status, expected) in cases {
        assert_eq!(pod(spec.clone(), status), expected);
    }
}

#[test]
fn services_and_nodes() {
    let meta = json!({"name": "s", "creationTimestamp": "2024-12-31T22:00:00Z"});
    let service = |spec: Value| row("", "Service", json!({"metadata": meta, "spec": spec, "status": {"loadBalancer": {}}}));
    let ports = json!([{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
    assert_eq!(
        service(json!({"type": "NodePort", "clusterIPs": ["10.96.0.7"], "ports": ports, "selector": {"app": "web"}})),
        "s | NodePort | 10.96.0.7 | <none> | 80:30080/TCP,53/UDP | 125m | app=web"
    );
    assert_eq!(
        service(json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.7"], "ports": []})),
        "s | LoadBalancer | 10.96.0.7 | <pending> | <none> | 125m | <none>"
    );
    let node = json!({
        "metadata": {"name": "n1", "creationTimestamp": "2024-12-01T00:00:00Z", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.88.0.2"}],
            "nodeInfo": {"kubeletVersion": "v1.33.0", "osImage": "Debian", "kernelVersion": "6.18"}},
    });
    assert_eq!(
        row("", "Node", node),
        "n1 | Ready,SchedulingDisabled | control-plane | 31d | v1.33.0 | 10.88.0.2 | <none> | Debian | 6.18 | <unknown>"
    );
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y"}]}});
    let deployment = json!({"metadata": {"name": "web", "creationTimestamp": "2025-01-01T00:04:18Z"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
    assert_eq!(row("apps", "Deployment", deployment), "web | 2/3 | 3 | 2 | 42s | a,b | x:1,y | app=web");
    let job = json!({"metadata": {"name": "j", "creationTimestamp": "2025-01-01T00:04:50Z"},
        "spec": {"completions": 1, "template": template, "selector": {"matchLabels": {"u": "1"}}},
        "status": {"succeeded": 1, "startTime": "2025-01-01T00:04:50Z", "completionTime": "2025-01-01T00:04:53Z",
            "conditions": [{"type": "Complete", "status": "True"}]}});
    assert_eq!(row("batch", "Job", job), "j | Complete | 1/1 | 3s | 10s | a,b | x:1,y | u=1");
}
