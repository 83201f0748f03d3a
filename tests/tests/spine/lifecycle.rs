//! Pods through their lives.

use anyhow::Result;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;

pub fn killed_container_restarts(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("l-kill")?;
    kubectl.ok("run web --image=coracle/web:1")?;
    kubectl.ok("wait --for=condition=Ready pod/web --timeout=60s")?;
    let id = kubectl.path("pod/web", "{.status.containerStatuses[0].containerID}")?;
    let node = kubectl.path("pod/web", "{.spec.nodeName}")?;
    let task = id.trim_start_matches("containerd://");
    let began = std::time::Instant::now();
    spine.cluster.coracle(&["exec", &node, "--", "ctr", "-n", "k8s.io", "task", "kill", "-s", "KILL", task])?;
    let status = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready} {.status.phase}";
    until(20, "restart", || ensure_eq(kubectl.path("pod/web", status)?, "1 true Running".into(), "status"))?;
    println!("    killed to ready again: {:.2} s", began.elapsed().as_secs_f64());
    ensure_eq(kubectl.path("pod/web", "{.status.containerStatuses[0].lastState.terminated.exitCode}")?, "137".into(), "exit code")
}

pub fn init_containers_and_probes(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("l-init")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: steps}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: one, image: "coracle/web:1", command: [sh, -c, "echo one > /shared/page"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: two, image: "coracle/web:1", command: [sh, -c, "echo two >> /shared/page"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: web
    image: coracle/web:1
    volumeMounts: [{name: shared, mountPath: /www}]
    startupProbe: {exec: {command: [cat, /www/page]}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /page, port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
"#,
    )?;
    kubectl.ok("wait --for=condition=Ready pod/steps --timeout=60s")?;
    ensure_eq(kubectl.ok("exec steps -c web -- cat /www/page")?, "one\ntwo\n".into(), "init containers in order")?;
    // Not ready while the page is gone, and ready again when it is back; never restarted.
    kubectl.ok("exec steps -- mv /www/page /www/away")?;
    kubectl.ok("wait --for=condition=Ready=false pod/steps --timeout=30s")?;
    kubectl.ok("exec steps -- mv /www/away /www/page")?;
    kubectl.ok("wait --for=condition=Ready pod/steps --timeout=30s")?;
    ensure_eq(kubectl.path("pod/steps", "{.status.containerStatuses[0].restartCount}")?, "0".into(), "restarts")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: coracle/web:1
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}
"#,
    )?;
    until(60, "liveness restarts", || {
        ensure_contains(&kubectl.ok("get events --field-selector involvedObject.name=sick")?, &["Unhealthy", "Killing"])
    })?;
    until(60, "restart", || {
        let count: u32 = kubectl.path("pod/sick", "{.status.containerStatuses[0].restartCount}")?.parse()?;
        if count == 0 { anyhow::bail!("not restarted yet") } else { Ok(()) }
    })
}

pub fn failed_pods_say_why(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("l-fail")?;
    kubectl.ok("run lost --image=coracle.invalid/nope:1")?;
    until(60, "image pull", || ensure_contains(&kubectl.ok("get pod lost")?, &["ImagePull"]))?;
    ensure_contains(&kubectl.ok("describe pod lost")?, &["Failed to pull image \"coracle.invalid/nope:1\""])?;
    kubectl.ok("run crash --image=coracle/web:1 --command -- sh -c false")?;
    until(60, "crash loop", || ensure_contains(&kubectl.ok("get pod crash")?, &["CrashLoopBackOff"]))?;
    ensure_contains(&kubectl.ok("describe pod crash")?, &["Back-off restarting failed container crash in pod crash_l-fail"])?;
    kubectl.ok("run missing --image=coracle/web:1 --command -- /no/such/program")?;
    until(60, "start error", || ensure_contains(&kubectl.ok("describe pod missing")?, &["/no/such/program", "no such file or directory"]))?;
    kubectl.ok("delete pod --all --now").map(drop)
}

pub fn unschedulable_says_why(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("l-pending")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: big}
spec:
  containers: [{name: main, image: "coracle/web:1", resources: {requests: {cpu: "1000"}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: picky}
spec:
  nodeSelector: {disk: fast}
  containers: [{name: main, image: "coracle/web:1"}]
"#,
    )?;
    until(20, "events", || {
        let events = kubectl.ok("get events --field-selector reason=FailedScheduling -o custom-columns=M:.message")?;
        ensure_contains(
            &events,
            &[
                "0/3 nodes are available:",
                "2 Insufficient cpu",
                "2 node(s) didn't match Pod's node affinity/selector",
                "1 node(s) had untolerated taint",
            ],
        )
    })?;
    // A change of the cluster wakes the scheduler.
    kubectl.ok("label node worker1 disk=fast")?;
    kubectl.ok("wait --for=condition=Ready pod/picky --timeout=30s")?;
    ensure_eq(kubectl.path("pod/picky", "{.spec.nodeName}")?, "worker1".into(), "node")?;
    kubectl.ok("label node worker1 disk-").map(drop)
}

pub fn runtime_classes_and_kernel_settings(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("l-class")?;
    kubectl.apply(
        r#"
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: l-plain}
handler: runc
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: l-absent}
handler: l-none
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  runtimeClassName: l-plain
  securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]}
  containers: [{name: main, image: "coracle/web:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  runtimeClassName: l-absent
  containers: [{name: main, image: "coracle/web:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: unsafe}
spec:
  securityContext: {sysctls: [{name: kernel.msgmax, value: "1"}]}
  containers: [{name: main, image: "coracle/web:1"}]
"#,
    )?;
    kubectl.ok("wait --for=condition=Ready pod/plain --timeout=60s")?;
    ensure_eq(kubectl.ok("exec plain -- cat /proc/sys/net/ipv4/ip_unprivileged_port_start")?, "80\n".into(), "setting")?;
    until(30, "no such runtime", || {
        ensure_contains(&kubectl.ok("describe pod absent")?, &["FailedCreatePodSandBox", "no runtime for \"l-none\" is configured"])
    })?;
    until(30, "refusal", || {
        let status = kubectl.path("pod/unsafe", "{.status.phase} {.status.reason}: {.status.message}")?;
        let expected = "Failed SysctlForbidden: Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
        ensure_eq(status, expected.into(), "status")
    })?;
    kubectl.ok("delete pod --all --now")?;
    kubectl.ok("delete runtimeclass l-plain l-absent").map(drop)
}
