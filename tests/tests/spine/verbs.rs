//! kubectl's verbs on objects.

use std::fs;

use anyhow::{Result, bail};
use tests::kubectl::Kubectl;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;

/// A Deployment of our web image that needs nothing else.
pub fn deployment(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: web\n        image: coracle/web:1\n        ports: [{{containerPort: 8080}}]\n"
    )
}

pub fn available(kubectl: &Kubectl, name: &str) -> Result<()> {
    kubectl.ok(&format!("rollout status deployment/{name} --timeout=60s")).map(drop)
}

pub fn apply_file_and_directory(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-apply")?;
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    fs::write(path("a.yaml"), deployment("a", 1))?;
    fs::write(path("b.json"), r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":"v"}}"#)?;
    ensure_eq(kubectl.ok_with("apply -f", &[&path("a.yaml")])?, "deployment.apps/a created\n".into(), "apply a file")?;
    let said = kubectl.ok_with("apply -f", &[&path("")])?;
    ensure_contains(&said, &["deployment.apps/a unchanged", "configmap/b created"])?;
    fs::write(path("b.json"), r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":"w"}}"#)?;
    let diff = kubectl.run_with("diff -f", &[&path("")])?;
    ensure_eq(diff.code, 1, "diff's exit status")?;
    ensure_contains(&diff.stdout, &["-  k: v", "+  k: w"])?;
    ensure_contains(&kubectl.ok_with("apply -f", &[&path("")])?, &["configmap/b configured"])?;
    ensure_eq(kubectl.path("configmap/b", "{.data.k}")?, "w".into(), "changed value")?;
    ensure_eq(kubectl.run_with("diff -f", &[&path("")])?.code, 0, "diff after apply")?;
    // A key taken out of the file is taken out of the object.
    fs::write(path("b.json"), r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"x":"y"}}"#)?;
    kubectl.ok_with("apply -f", &[&path("b.json")])?;
    ensure_eq(kubectl.path("configmap/b", "{.data}")?, r#"{"x":"y"}"#.into(), "three-way merge")?;
    ensure_contains(
        &kubectl.ok_with("apply --server-side=false --dry-run=server -f", &[&path("a.yaml")])?,
        &["unchanged (server dry run)"],
    )?;
    ensure_contains(&kubectl.ok_with("delete -f", &[&path("")])?, &["deleted"])
}

pub fn get_in_every_form(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-get")?;
    kubectl.apply(&deployment("web", 2))?;
    available(&kubectl, "web")?;
    ensure_contains(&kubectl.ok("get deployment web")?, &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "web", "2/2"])?;
    ensure_contains(&kubectl.ok("get deploy -o wide")?, &["CONTAINERS", "IMAGES", "SELECTOR", "coracle/web:1", "app=web"])?;
    ensure_contains(
        &kubectl.ok("get pods -o wide")?,
        &["RESTARTS", "IP", "NODE", "NOMINATED NODE", "READINESS GATES", "1/1", "Running", "worker", "10.244."],
    )?;
    ensure_contains(&kubectl.ok("get deployment web -o yaml")?, &["apiVersion: apps/v1", "kind: Deployment", "observedGeneration:"])?;
    ensure_eq(kubectl.json("get deployment web")?["status"]["readyReplicas"].as_u64(), Some(2), "JSON")?;
    ensure_eq(kubectl.path("deployment/web", "{.spec.replicas}")?, "2".into(), "JSONPath")?;
    let columns = kubectl.ok_with("get pods", &["-o", "custom-columns=NAME:.metadata.name,NODE:.spec.nodeName"])?;
    ensure_contains(&columns, &["NAME", "NODE", "web-"])?;
    ensure_eq(kubectl.ok("get pods -o name")?.lines().count(), 2, "names")?;
    ensure_contains(&kubectl.ok("get pods --show-labels")?, &["LABELS", "app=web", "pod-template-hash="])?;
    ensure_contains(&kubectl.ok("get pods -L app")?, &["APP"])?;
    ensure_eq(kubectl.ok("get pods -l app=web,app!=other --no-headers")?.lines().count(), 2, "by label")?;
    ensure_eq(kubectl.ok("get pods --field-selector status.phase=Running --no-headers")?.lines().count(), 2, "by field")?;
    ensure_contains(&kubectl.ok("get pods -A")?, &["NAMESPACE", "kube-system", "v-get"])?;
    let nodes = kubectl.ok("describe node worker1")?;
    let told = [
        "node.alpha.kubernetes.io/ttl: 0",
        "controller-managed-attach-detach: true",
        "Node worker1 status is now: NodeHasSufficientMemory",
    ];
    ensure_contains(&nodes, &told)?;
    let sorted = kubectl.ok("get pods -A --sort-by=.metadata.name -o custom-columns=N:.metadata.name --no-headers")?;
    let names: Vec<&str> = sorted.lines().collect();
    ensure_eq(names.is_sorted(), true, "sorted by name")?;
    ensure_contains(&kubectl.ok("get deployment,replicaset,pods")?, &["deployment.apps/web", "replicaset.apps/web-", "pod/web-"])?;
    ensure_contains(&kubectl.ok("get all")?, &["pod/web-", "deployment.apps/web", "replicaset.apps/web-"])?;
    ensure_contains(&kubectl.fails("get pods nope")?, &["Error from server (NotFound): pods \"nope\" not found"])?;
    ensure_contains(&kubectl.ok("describe deployment web")?, &["StrategyType:", "RollingUpdate", "NewReplicaSet:", "ScalingReplicaSet"])?;
    ensure_contains(
        &kubectl.ok("describe pods -l app=web")?,
        &["Container ID:", "containerd://", "Successfully assigned v-get/web-", "Started container web"],
    )?;
    watch(&kubectl)
}

fn watch(kubectl: &Kubectl) -> Result<()> {
    use std::io::{BufRead, BufReader};
    let mut watching = kubectl.spawn("get deployment web -w --no-headers")?;
    let Some(pipe) = watching.0.stdout.take() else { bail!("no pipe") };
    let mut lines = BufReader::new(pipe).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    ensure_contains(&first, &["2/2"])?;
    kubectl.ok("scale deployment web --replicas=3")?;
    for line in lines {
        if line?.contains("3/3") {
            return watching.end().map(drop);
        }
    }
    bail!("the watch ended before 3/3")
}

pub fn create_family(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-create")?;
    for (words, said) in [
        ("create configmap c --from-literal=a=1", "configmap/c created"),
        ("create secret generic s --from-literal=p=secret", "secret/s created"),
        ("create deployment d --image=coracle/web:1 --replicas=1", "deployment.apps/d created"),
        ("create service clusterip d --tcp=80:8080", "service/d created"),
        ("create service nodeport n --tcp=80:8080", "service/n created"),
        ("create serviceaccount robot", "serviceaccount/robot created"),
        ("create role reader --verb=get,list --resource=pods,configmaps", "role.rbac.authorization.k8s.io/reader created"),
        (
            "create rolebinding readers --role=reader --serviceaccount=v-create:robot",
            "rolebinding.rbac.authorization.k8s.io/readers created",
        ),
        ("create quota q --hard=pods=10", "resourcequota/q created"),
        ("create job j --image=coracle/web:1 --dry-run=server -o name -- true", "job.batch/j"),
    ] {
        ensure_contains(&kubectl.ok(words)?, &[said])?;
    }
    ensure_eq(kubectl.path("secret/s", "{.data.p}")?, "c2VjcmV0".into(), "base64")?;
    let token = kubectl.ok("create token robot --duration=10m")?;
    ensure_eq(token.trim().split('.').count(), 3, "a JWT's parts")?;
    let as_robot = |words: &str| {
        kubectl.run_with(
            words,
            &["--token", token.trim(), "--kubeconfig", "/dev/null", "--server", &server(spine), "--insecure-skip-tls-verify"],
        )
    };
    ensure_eq(as_robot("get configmap c -o name")?.stdout, "configmap/c\n".into(), "the robot may read")?;
    ensure_contains(
        &as_robot("get secret s")?.stderr,
        &[
            "Error from server (Forbidden): secrets \"s\" is forbidden: User \"system:serviceaccount:v-create:robot\" cannot get resource \"secrets\" in API group \"\" in the namespace \"v-create\"",
        ],
    )?;
    ensure_contains(&kubectl.fails("create configmap c")?, &["error: failed to create configmap: configmaps \"c\" already exists"])
}

fn server(spine: &Spine) -> String {
    format!("https://{}:6443", spine.cluster.address("master").unwrap_or_default())
}

pub fn change_in_place(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-change")?;
    kubectl.apply(&deployment("web", 1))?;
    ensure_contains(&kubectl.ok("scale deployment/web --replicas=2")?, &["deployment.apps/web scaled"])?;
    ensure_contains(&kubectl.fails("scale deployment/web --current-replicas=7 --replicas=2")?, &["Expected replicas to be 7, was 2"])?;
    ensure_contains(&kubectl.ok("set env deployment/web A=1")?, &["deployment.apps/web env updated"])?;
    ensure_contains(&kubectl.ok("set image deployment/web web=docker.io/coracle/web:1")?, &["deployment.apps/web image updated"])?;
    ensure_contains(&kubectl.ok("set resources deployment/web --limits=memory=64Mi")?, &["resource requirements updated"])?;
    available(&kubectl, "web")?;
    ensure_eq(kubectl.path("deployment/web", "{.spec.template.spec.containers[0].resources.limits.memory}")?, "64Mi".into(), "limit")?;
    until(30, "old pods gone", || ensure_eq(kubectl.ok("get pods --no-headers")?.lines().count(), 2, "pods"))
}

pub fn patch_label_annotate_edit(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-patch")?;
    kubectl.apply(&deployment("web", 1))?;
    let patch = |kind: &str, body: &str| kubectl.ok_with("patch deployment web", &["--type", kind, "-p", body]);
    patch("strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","value":"1"}]}]}}}}"#)?;
    ensure_eq(
        kubectl.path("deployment/web", "{.spec.template.spec.containers[0].image}")?,
        "coracle/web:1".into(),
        "strategic merge keeps the image",
    )?;
    patch("merge", r#"{"metadata":{"annotations":{"note":"x"}}}"#)?;
    patch("json", r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#)?;
    ensure_eq(kubectl.path("deployment/web", "{.spec.replicas} {.metadata.annotations.note}")?, "2 x".into(), "patched")?;
    ensure_contains(&patch("merge", r#"{"spec":{"replicas":2}}"#)?, &["deployment.apps/web patched (no change)"])?;
    ensure_contains(&kubectl.ok("label deployment web tier=front")?, &["deployment.apps/web labeled"])?;
    ensure_contains(&kubectl.fails("label deployment web tier=back")?, &["'tier' already has a value (front), and --overwrite is false"])?;
    ensure_contains(&kubectl.ok("label deployment web tier-")?, &["deployment.apps/web unlabeled"])?;
    ensure_contains(&kubectl.ok("annotate deployment web note-")?, &["deployment.apps/web annotated"])?;
    let mut edit = kubectl.command("edit deployment web");
    edit.env("KUBE_EDITOR", "sed -i /^..replicas:/s/2/1/");
    let edited = tests::kubectl::finish(edit, "")?;
    ensure_contains(&edited.stdout, &["deployment.apps/web edited"])?;
    ensure_eq(kubectl.path("deployment/web", "{.spec.replicas}")?, "1".into(), "edited")
}

pub fn explain_and_discovery(spine: &Spine) -> Result<()> {
    let kubectl = spine.kubectl("default");
    ensure_contains(
        &kubectl.ok("explain deployment.spec.replicas")?,
        &["KIND:", "Deployment", "FIELD: replicas <integer>", "Number of desired pods"],
    )?;
    ensure_contains(&kubectl.ok("explain pod.spec.containers")?, &["image\t<string>", "ports\t<[]ContainerPort>"])?;
    ensure_contains(&kubectl.ok("api-resources")?, &["deployments", "deploy", "apps/v1", "true", "Deployment", "configmaps", "cm"])?;
    ensure_contains(&kubectl.ok("api-versions")?, &["apps/v1\n", "batch/v1\n", "v1\n", "rbac.authorization.k8s.io/v1\n"])?;
    ensure_contains(&kubectl.ok("cluster-info")?, &["Kubernetes control plane", "is running at", "https://"])?;
    ensure_contains(&kubectl.ok("version -o json")?, &["\"minor\": \"33\""])?;
    ensure_eq(kubectl.ok("get --raw /readyz")?, "ok".into(), "readyz")?;
    ensure_contains(&kubectl.ok("get --raw /metrics")?, &["# TYPE apiserver_request_total counter"])?;
    let versions = kubectl.ok("get --raw /api")?;
    ensure_contains(
        &versions,
        &["{\"kind\":\"APIVersions\",\"versions\":[\"v1\"],\"serverAddressByClientCIDRs\":[{\"clientCIDR\":\"0.0.0.0/0\","],
    )?;
    let components = kubectl.run("get cs")?;
    ensure_contains(&components.stderr, &["Warning: v1 ComponentStatus is deprecated in v1.19+"])?;
    let lines: Vec<Vec<&str>> = components.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure_eq(lines.contains(&vec!["scheduler", "Healthy", "ok"]), true, &format!("the scheduler in\n{}", components.stdout))?;
    ensure_contains(&kubectl.ok("get cs controller-manager -o yaml")?, &["kind: ComponentStatus", "type: Healthy"])?;
    ensure_contains(&kubectl.fails("get cs nobody")?, &["componentstatuses \"nobody\" not found"])?;
    ensure_eq(kubectl.ok("auth can-i create pods")?, "yes\n".into(), "can-i")?;
    let other = kubectl.run("auth can-i create pods --as=jane")?;
    ensure_eq((other.code, other.stdout), (1, "no\n".into()), "can-i of another")
}

pub fn run_expose_wait_events(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-run")?;
    ensure_contains(&kubectl.ok("run web --image=coracle/web:1 --port=8080 --labels=app=web")?, &["pod/web created"])?;
    ensure_contains(&kubectl.ok("wait --for=condition=Ready pod/web --timeout=60s")?, &["pod/web condition met"])?;
    ensure_contains(&kubectl.ok("expose pod web --port=80 --target-port=8080")?, &["service/web exposed"])?;
    until(20, "endpoints", || ensure_contains(&kubectl.ok("get endpoints web")?, &[":8080"]))?;
    ensure_contains(&kubectl.ok("get events")?, &["LAST SEEN", "Scheduled", "Pulled", "Created", "Started", "pod/web"])?;
    let shown = "jsonpath={.items[0].action}/{.items[0].reportingComponent}";
    let scheduled = format!("get events --field-selector reason=Scheduled,involvedObject.name=web -o {shown}");
    ensure_eq(kubectl.ok(&scheduled)?, "Binding/default-scheduler".into(), "an event of the newer sort")?;
    ensure_contains(&kubectl.ok("events --for pod/web")?, &["Started container web"])?;
    ensure_contains(&kubectl.ok("run once --image=coracle/web:1 --restart=Never --command -- sh -c exit")?, &["pod/once created"])?;
    kubectl.ok("wait --for=jsonpath={.status.phase}=Succeeded pod/once --timeout=60s").map(drop)
}

pub fn delete_in_every_form(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-delete")?;
    for name in ["a", "b", "c"] {
        kubectl.ok(&format!("run {name} --image=coracle/web:1 --labels=set={name}"))?;
    }
    kubectl.ok("wait --for=condition=Ready pod --all --timeout=60s")?;
    ensure_contains(&kubectl.ok("delete pod -l set=a --grace-period=1")?, &["pod \"a\" deleted"])?;
    ensure_contains(&kubectl.run("delete pod b --grace-period=0 --force")?.stdout, &["pod \"b\" force deleted"])?;
    ensure_contains(&kubectl.ok("delete pod c --now")?, &["pod \"c\" deleted"])?;
    ensure_contains(&kubectl.fails("delete pod c")?, &["Error from server (NotFound): pods \"c\" not found"])?;
    kubectl.apply(&deployment("web", 1))?;
    available(&kubectl, "web")?;
    kubectl.ok("delete deployment web --cascade=orphan")?;
    ensure_eq(kubectl.ok("get replicaset --no-headers")?.lines().count(), 1, "orphaned ReplicaSet")?;
    kubectl.ok("delete replicaset -l app=web --cascade=foreground --timeout=60s")?;
    ensure_eq(kubectl.ok("get pods --no-headers")?, String::new(), "pods after foreground deletion")?;
    kubectl.apply(&deployment("web", 1))?;
    available(&kubectl, "web")?;
    kubectl.ok("delete deployment web")?;
    until(30, "background deletion", || ensure_eq(kubectl.ok("get replicaset,pods --no-headers")?, String::new(), "dependents"))?;
    kubectl.ok("create configmap c")?;
    kubectl.ok("delete namespace v-delete --timeout=60s")?;
    ensure_contains(&kubectl.fails("get namespace v-delete")?, &["NotFound"])
}

pub fn cordon_taint_drain(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("v-drain")?;
    kubectl.ok("taint node worker1 room=full:NoSchedule")?;
    kubectl.apply(&deployment("web", 2))?;
    available(&kubectl, "web")?;
    let nodes = || kubectl.ok("get pods -l app=web -o custom-columns=N:.spec.nodeName --no-headers");
    ensure_eq(nodes()?.contains("worker1"), false, "a pod on the tainted node")?;
    kubectl.ok("taint node worker1 room-")?;
    ensure_contains(&kubectl.ok("cordon worker2")?, &["node/worker2 cordoned"])?;
    ensure_contains(&kubectl.ok("get node worker2")?, &["Ready,SchedulingDisabled"])?;
    ensure_contains(
        &kubectl.ok("drain worker2 --ignore-daemonsets --delete-emptydir-data --force --timeout=120s")?,
        &["node/worker2 drained"],
    )?;
    available(&kubectl, "web")?;
    until(30, "pods on the other node", || ensure_eq(nodes()?.contains("worker2"), false, "a pod on the drained node"))?;
    ensure_contains(&kubectl.ok("uncordon worker2")?, &["node/worker2 uncordoned"])
}
