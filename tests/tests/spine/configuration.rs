//! Configuration as environment and files; limits; identity.

use anyhow::Result;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;

pub fn environment_and_volumes(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("c-volumes")?;
    kubectl.ok("create configmap settings --from-literal=color=blue --from-literal=size=big")?;
    kubectl.ok("create secret generic secrets --from-literal=password=swordfish")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {app: reader}, annotations: {note: hello}}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: secrets, secret: {secretName: secrets, defaultMode: 0400}}
  - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: /etc/hostname, type: File}}
  - name: facts
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
  - name: all
    projected:
      sources:
      - configMap: {name: settings, items: [{key: color, path: nested/color}]}
      - secret: {name: secrets}
      - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
  containers:
  - name: main
    image: coracle/web:1
    envFrom: [{configMapRef: {name: settings}, prefix: S_}]
    env:
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: secrets, key: password}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: JOINED, value: "$(S_color)-$(NODE)"}
    resources: {limits: {memory: 32Mi}}
    volumeMounts:
    - {name: settings, mountPath: /v/settings}
    - {name: secrets, mountPath: /v/secrets}
    - {name: scratch, mountPath: /v/scratch}
    - {name: host, mountPath: /v/host, readOnly: true}
    - {name: facts, mountPath: /v/facts}
    - {name: all, mountPath: /v/all}
    - {name: settings, mountPath: /v/one, subPath: size}
"#,
    )?;
    kubectl.ok("wait --for=condition=Ready pod/reader --timeout=60s")?;
    let node = kubectl.path("pod/reader", "{.spec.nodeName}")?;
    let address = kubectl.path("pod/reader", "{.status.podIP}")?;
    let shell = |script: &str| kubectl.ok_with("exec reader -- sh -c", &[script]);
    ensure_eq(
        shell("echo $S_color $PASSWORD $NODE $IP $MEMORY $JOINED")?,
        format!("blue swordfish {node} {address} 33554432 blue-{node}\n"),
        "environment",
    )?;
    let files =
        shell("cd /v; cat settings/color secrets/password host all/nested/color all/password all/name one; stat -Lc %a secrets/password")?;
    ensure_eq(files, format!("blueswordfish{node}\nblueswordfishreaderbig400\n"), "files")?;
    ensure_contains(&shell("cat /v/facts/labels; mount | grep /v/scratch")?, &["app=\"reader\"", "tmpfs"])?;
    // Files follow the ConfigMap; the environment does not.
    kubectl.ok_with("patch configmap settings", &["-p", r#"{"data":{"color":"red"}}"#])?;
    until(120, "a changed ConfigMap in the volume", || {
        ensure_eq(shell("cat /v/settings/color; echo $S_color")?, "redblue\n".into(), "values")
    })
}

pub fn limits_become_control_groups(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("c-limits")?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: coracle/web:1
    command: [sh, -c, "sleep 3; exec tail -c 90m /dev/zero"]
    resources: {limits: {memory: 20Mi, cpu: 500m}}
"#,
    )?;
    ensure_eq(kubectl.path("pod/hungry", "{.status.qosClass}")?, "Guaranteed".into(), "QoS class")?;
    let state = "{.status.containerStatuses[0].state.terminated.reason}{.status.containerStatuses[0].state.running.startedAt}";
    until(60, "a state", || if kubectl.path("pod/hungry", state)?.is_empty() { anyhow::bail!("none yet") } else { Ok(()) })?;
    let node = kubectl.path("pod/hungry", "{.spec.nodeName}")?;
    let found = spine.cluster.coracle(&["exec", &node, "--", "sh", "-c", "grep -rlx 20971520 /sys/fs/cgroup/memory/coracle/*/*/kubepods --include=memory.limit_in_bytes 2>/dev/null || grep -rlx 20971520 /sys/fs/cgroup/coracle --include=memory.max; true"])?;
    ensure_contains(&found, &["kubepods"])?;
    until(60, "out of memory", || ensure_contains(&kubectl.ok("get pod hungry -o yaml")?, &["OOMKilled"]))
}

pub fn service_account_token_works(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("c-token")?;
    kubectl.ok("create role reader --verb=get --resource=configmaps")?;
    kubectl.ok("create rolebinding default-reads --role=reader --serviceaccount=c-token:default")?;
    kubectl.ok("run robot --image=coracle/web:1")?;
    kubectl.ok("wait --for=condition=Ready pod/robot --timeout=60s")?;
    let files = kubectl.ok("exec robot -- ls /var/run/secrets/kubernetes.io/serviceaccount")?;
    ensure_eq(files.split_whitespace().collect::<Vec<_>>(), vec!["ca.crt", "namespace", "token"], "files")?;
    // The token is the pod's: the API server knows it by the pod's own name, and no longer once the pod is gone.
    let token = kubectl.ok("exec robot -- cat /var/run/secrets/kubernetes.io/serviceaccount/token")?;
    let server = format!("https://{}:6443", spine.cluster.address("master")?);
    let with_token = |words: &str| {
        kubectl.run_with(words, &["--kubeconfig", "/dev/null", "--server", &server, "--insecure-skip-tls-verify", "--token", token.trim()])
    };
    ensure_contains(&with_token("get configmap kube-root-ca.crt -o name")?.stdout, &["configmap/kube-root-ca.crt"])?;
    ensure_contains(&with_token("get pods")?.stderr, &["system:serviceaccount:c-token:default", "Forbidden"])?;
    ensure_contains(&with_token("auth whoami")?.stdout, &["system:serviceaccount:c-token:default", "robot"])?;
    kubectl.ok("delete pod robot --now")?;
    until(30, "a dead pod's token", || ensure_contains(&with_token("get configmap kube-root-ca.crt")?.stderr, &["Unauthorized"]))
}
