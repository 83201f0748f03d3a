//! Volumes and the data in them; what follows a changed ConfigMap; sidecars and hooks.

use anyhow::Result;
use tests::kubectl::Kubectl;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;

/// Where a volume's directory is on its node.
const ROOT: &str = "/var/lib/coracle/volumes";

/// A pod that mounts the claim at /data, ready.
fn pod_with_claim(kubectl: &Kubectl, pod: &str, claim: &str, more: &str) -> Result<()> {
    kubectl.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {pod}}}
spec:
  terminationGracePeriodSeconds: 1
  {more}
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
  containers: [{{name: main, image: "coracle/web:1", volumeMounts: [{{name: data, mountPath: /data}}]}}]
"#
    ))?;
    kubectl.ok(&format!("wait --for=condition=Ready pod/{pod} --timeout=60s")).map(drop)
}

pub fn claims_find_volumes(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-static")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: s-static-large}
spec: {storageClassName: s-static, capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp/s-static-large}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: s-static-small}
spec: {storageClassName: s-static, capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /tmp/s-static-small, type: DirectoryOrCreate}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: fits}
spec: {storageClassName: s-static, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: too-large}
spec: {storageClassName: s-static, accessModes: [ReadWriteOnce], resources: {requests: {storage: 50Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: classless}
spec: {storageClassName: "", accessModes: [ReadWriteOnce], resources: {requests: {storage: 50Gi}}}
"#,
    )?;
    let phases = "{.items[*].status.phase}";
    until(20, "binding", || ensure_eq(kubectl.path("pvc", phases)?, "Pending Bound Pending".into(), "classless, fits, too-large"))?;
    ensure_eq(
        kubectl.path("pvc/fits", "{.spec.volumeName} {.status.capacity.storage}")?,
        "s-static-small 2Gi".into(),
        "the smallest that is large enough",
    )?;
    until(20, "events", || {
        let events = kubectl.ok("get events -o custom-columns=M:.message")?;
        ensure_contains(
            &events,
            &[
                "storageclass.storage.k8s.io \"s-static\" not found",
                "no persistent volumes available for this claim and no storage class is set",
            ],
        )
    })?;
    pod_with_claim(&kubectl, "user", "fits", "")?;
    // In use it stays; and a claim's end does not end the volume's data.
    kubectl.ok("delete pvc fits --wait=false")?;
    ensure_contains(&kubectl.ok("get pvc fits")?, &["Terminating"])?;
    kubectl.ok("delete pod user --now")?;
    kubectl.ok("wait --for=delete pvc/fits --timeout=20s")?;
    until(20, "release", || ensure_eq(kubectl.path("pv/s-static-small", "{.status.phase}")?, "Released".into(), "phase"))?;
    // A pod that needs what is not there waits and says why.
    kubectl.ok_stdin("apply -f -", "{apiVersion: v1, kind: Pod, metadata: {name: waits}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: too-large}}], containers: [{name: c, image: 'coracle/web:1', volumeMounts: [{name: v, mountPath: /v}]}]}}")?;
    until(20, "the reason", || ensure_contains(&kubectl.ok("get events")?, &["pod has unbound immediate PersistentVolumeClaims"]))?;
    kubectl.ok("delete pod,pvc --all --now")?;
    kubectl.ok("delete pv s-static-large s-static-small").map(drop)
}

pub fn data_outlives_pods(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-data")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: coracle/web:1
        command: [sh, -c, "hostname >> /data/names; exec sleep 1000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#,
    )?;
    kubectl.ok("rollout status statefulset/db --timeout=90s")?;
    let names = |pod: &str| kubectl.ok(&format!("exec {pod} -- cat /data/names"));
    let node = kubectl.path("pod/db-1", "{.spec.nodeName}")?;
    kubectl.ok("delete pod db-1 --now")?;
    kubectl.ok("rollout status statefulset/db --timeout=60s")?;
    until(60, "the pod again", || ensure_eq(names("db-1")?, "db-1\ndb-1\n".into(), "what both wrote"))?;
    ensure_eq(kubectl.path("pod/db-1", "{.spec.nodeName}")?, node.clone(), "the node that has the data")?;
    // Down to one and up again: the claims have waited.
    kubectl.ok("scale statefulset db --replicas=1")?;
    kubectl.ok("wait --for=delete pod/db-2 pod/db-1 --timeout=60s")?;
    kubectl.ok("scale statefulset db --replicas=3")?;
    kubectl.ok("rollout status statefulset/db --timeout=60s")?;
    until(20, "the names", || ensure_eq(names("db-2")?, "db-2\ndb-2\n".into(), "what both wrote"))?;
    // A pod whose volume is elsewhere waits, with upstream's reason.
    kubectl.ok(&format!("cordon {node}"))?;
    kubectl.ok("delete pod db-1 --now")?;
    until(30, "the reason", || {
        let events = kubectl.ok("get events --field-selector involvedObject.name=db-1,reason=FailedScheduling")?;
        ensure_contains(&events, &["node(s) didn't match PersistentVolume's node affinity", "node(s) were unschedulable"])
    })?;
    kubectl.ok(&format!("uncordon {node}"))?;
    kubectl.ok("rollout status statefulset/db --timeout=60s")?;
    // Without claims there are no volumes, and without volumes no directories.
    let volume = kubectl.path("pvc/data-db-1", "{.spec.volumeName}")?;
    let exists =
        || spine.cluster.coracle(&["exec", &node, "--", "sh", "-c", &format!("ls {ROOT}/{volume} >/dev/null 2>&1 && echo yes || echo no")]);
    ensure_contains(&exists()?, &["yes"])?;
    kubectl.ok("delete statefulset db")?;
    kubectl.ok("delete pvc --all --timeout=60s")?;
    kubectl.ok(&format!("wait --for=delete pv/{volume} --timeout=30s"))?;
    ensure_contains(&exists()?, &["no"])
}

pub fn a_kept_volume_is_kept(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-keep")?;
    let claim = |name: &str, more: &str| {
        kubectl.apply(&format!("{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}{more}}}}}"))
    };
    claim("data", "")?;
    until(20, "the event", || {
        ensure_contains(
            &kubectl.ok("describe pvc data")?,
            &["WaitForFirstConsumer", "waiting for first consumer to be created before binding"],
        )
    })?;
    pod_with_claim(&kubectl, "first", "data", "securityContext: {runAsUser: 1000, fsGroup: 2000}")?;
    ensure_eq(
        kubectl.ok_with("exec first -- sh -c", &["echo kept > /data/f; stat -c '%u %g' /data/f"])?,
        "1000 2000\n".into(),
        "owner and group",
    )?;
    // Larger while in use.
    kubectl.ok_with("patch pvc data", &["-p", r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#])?;
    until(20, "growth", || ensure_eq(kubectl.path("pvc/data", "{.status.capacity.storage}")?, "2Gi".into(), "capacity"))?;
    let volume = kubectl.path("pvc/data", "{.spec.volumeName}")?;
    kubectl.ok_with(&format!("patch pv {volume}"), &["-p", r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#])?;
    kubectl.ok("delete pod first --now")?;
    kubectl.ok("delete pvc data")?;
    until(20, "release", || ensure_eq(kubectl.path(&format!("pv/{volume}"), "{.status.phase}")?, "Released".into(), "phase"))?;
    // Given to another claim by hand.
    kubectl.ok_with(&format!("patch pv {volume} --type=merge"), &["-p", r#"{"spec":{"claimRef":null}}"#])?;
    claim("again", &format!(", volumeName: {volume}"))?;
    pod_with_claim(&kubectl, "second", "again", "")?;
    ensure_eq(kubectl.ok("exec second -- cat /data/f")?, "kept\n".into(), "the data")?;
    kubectl.ok_with(&format!("patch pv {volume}"), &["-p", r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#])?;
    kubectl.ok("delete pod second --now")?;
    kubectl.ok("delete pvc again")?;
    kubectl.ok(&format!("wait --for=delete pv/{volume} --timeout=30s")).map(drop)
}

pub fn ephemeral_volumes_and_sub_paths(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-paths")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: paths}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - name: scratch
    ephemeral: {volumeClaimTemplate: {metadata: {labels: {kind: scratch}}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}
  initContainers:
  - name: attack
    image: coracle/web:1
    command: [sh, -c, "ln -s /etc /all/outside; ln -s logs /all/inside"]
    volumeMounts: [{name: scratch, mountPath: /all}, {name: scratch, mountPath: /logs, subPath: logs}]
  containers:
  - name: main
    image: coracle/web:1
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts:
    - {name: scratch, mountPath: /all, readOnly: true}
    - {name: scratch, mountPath: /own, subPathExpr: logs/$(NAME)}
    - {name: scratch, mountPath: /inside, subPath: inside}
  - name: victim
    image: coracle/web:1
    volumeMounts: [{name: scratch, mountPath: /stolen, subPath: outside}]
"#,
    )?;
    until(60, "the refusal", || {
        ensure_contains(&kubectl.ok("get pod paths -o yaml")?, &["CreateContainerConfigError", "failed to prepare subPath for volumeMount"])
    })?;
    ensure_eq(
        kubectl.ok_with("exec paths -c main -- sh -c", &["echo x > /own/f; cat /all/logs/paths/f /inside/paths/f"])?,
        "x\nx\n".into(),
        "one file, three paths",
    )?;
    ensure_contains(&kubectl.run_with("exec paths -c main -- sh -c", &["echo y > /all/f"])?.stderr, &["Read-only file system"])?;
    ensure_contains(&kubectl.ok("get pvc -l kind=scratch")?, &["paths-scratch", "Bound"])?;
    // The claim goes with its pod.
    kubectl.ok("delete pod paths --now")?;
    kubectl.ok("wait --for=delete pvc/paths-scratch --timeout=30s").map(drop)
}

pub fn volumes_follow_their_sources(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-live")?;
    kubectl.ok("create configmap settings --from-literal=color=blue")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {v: "1"}}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: later, secret: {secretName: later, optional: true}}
  - {name: facts, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  containers:
  - name: main
    image: coracle/web:1
    volumeMounts: [{name: settings, mountPath: /settings}, {name: later, mountPath: /later}, {name: facts, mountPath: /facts}]
"#,
    )?;
    kubectl.ok("wait --for=condition=Ready pod/reader --timeout=60s")?;
    let shell = |script: &str| kubectl.ok_with("exec reader -- sh -c", &[script]);
    ensure_eq(shell("cat /settings/color; ls /later")?, "blue".into(), "at first")?;
    let began = std::time::Instant::now();
    kubectl.ok_with("patch configmap settings", &["-p", r#"{"data":{"color":"red","size":"big"}}"#])?;
    until(20, "a changed ConfigMap", || ensure_eq(shell("cat /settings/color /settings/size")?, "redbig".into(), "values"))?;
    println!("    changed to seen in the pod: {:.2} s", began.elapsed().as_secs_f64());
    kubectl.ok("create secret generic later --from-literal=key=value")?;
    until(20, "a Secret that comes later", || ensure_eq(shell("cat /later/key")?, "value".into(), "value"))?;
    ensure_contains(&shell("mount | grep ' /later '")?, &["tmpfs"])?;
    kubectl.ok("label pod reader v=2 --overwrite")?;
    until(20, "a changed label", || ensure_eq(shell("cat /facts/labels")?, "v=\"2\"".into(), "labels"))
}

pub fn sidecars_and_hooks(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-side")?;
    let log = "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}";
    kubectl.apply(&format!("{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: log}}, {log}}}"))?;
    let sidecar = |name: &str| {
        format!(
            r#"
  - name: {name}
    image: coracle/web:1
    restartPolicy: Always
    command: [sh, -c, "echo {name} up >> /log/f; trap 'echo {name} down >> /log/f; exit 0' TERM; while :; do sleep 0.1; done"]
    startupProbe: {{exec: {{command: [grep, "{name} up", /log/f]}}, periodSeconds: 1}}
    volumeMounts: [{{name: log, mountPath: /log}}]"#
        )
    };
    kubectl.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: crew}}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{{name: log, persistentVolumeClaim: {{claimName: log}}}}]
  initContainers:{}{}
  containers:
  - name: main
    image: coracle/web:1
    command: [sh, -c, "echo main up >> /log/f; trap 'echo main down >> /log/f; exit 0' TERM; while :; do sleep 0.1; done"]
    lifecycle:
      postStart: {{exec: {{command: [sh, -c, "sleep 0.5; echo main started >> /log/f"]}}}}
      preStop: {{exec: {{command: [sh, -c, "echo main stopping >> /log/f"]}}}}
    volumeMounts: [{{name: log, mountPath: /log}}]
"#,
        sidecar("first"),
        sidecar("second")
    ))?;
    kubectl.ok("wait --for=condition=Ready pod/crew --timeout=60s")?;
    kubectl.ok("delete pod crew")?;
    pod_with_claim(&kubectl, "reader", "log", "")?;
    let order = "first up\nsecond up\nmain up\nmain started\nmain stopping\nmain down\nsecond down\nfirst down\n";
    ensure_eq(kubectl.ok("exec reader -- cat /data/f")?, order.into(), "the order of things")
}
