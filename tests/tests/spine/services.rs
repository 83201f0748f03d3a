//! Services of every type and policy, from outside and from pods.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, bail};
use tests::kubectl::Kubectl;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;
use crate::basics::get;
use crate::verbs::{available, deployment};

/// Web pods that answer with their own names.
fn named_pods(kubectl: &Kubectl, replicas: u32) -> Result<()> {
    let web = deployment("web", replicas).replace(
        "image: coracle/web:1\n",
        "image: coracle/web:1\n        command: [sh, -c, \"hostname > /www/index.html; exec httpd -f -p 8080 -h /www\"]\n        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}\n",
    );
    kubectl.apply(&web)?;
    available(kubectl, "web")
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: web}}\n  {}\n",
        spec.replace('\n', "\n  ")
    )
}

/// The body of each of twelve answers.
fn who(address: &str) -> Result<BTreeSet<String>> {
    (0..12).map(|_| Ok(get(address)?.lines().last().unwrap_or_default().to_owned())).collect()
}

pub fn addresses_and_ports_come_and_go(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-types")?;
    kubectl.apply(&service(
        "a",
        "type: NodePort\nports: [{name: one, port: 80, nodePort: 31080}, {name: two, port: 81}, {name: three, port: 80, protocol: UDP}]",
    ))?;
    let ports = kubectl.path("service/a", "{.spec.ports[*].nodePort}")?;
    let ports: Vec<&str> = ports.split(' ').collect();
    ensure_eq((ports[0], ports[2]), ("31080", "31080"), "TCP and UDP under one number share a node port")?;
    let b = service("b", "type: NodePort\nports: [{port: 80, nodePort: 31080}]");
    ensure_contains(
        &kubectl.fails_stdin("apply -f -", &b)?,
        &["spec.ports[0].nodePort: Invalid value: 31080: provided port is already allocated"],
    )?;
    // Without node ports another may have them; the address stays.
    let ip = kubectl.path("service/a", "{.spec.clusterIP}")?;
    kubectl.ok_with("patch service a", &["-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    ensure_eq(kubectl.path("service/a", "{.spec.clusterIP} {.spec.ports[*].nodePort}")?, format!("{ip} "), "after NodePort")?;
    kubectl.apply(&b)?;
    // An ExternalName has no address, and gets one again with another type.
    kubectl.ok_with("patch service a", &["-p", r#"{"spec":{"type":"ExternalName","externalName":"b.s-types.svc.cluster.local"}}"#])?;
    ensure_eq(kubectl.path("service/a", "{.spec.clusterIP}{.spec.ipFamilies}")?, String::new(), "address of an ExternalName")?;
    kubectl.apply(&service("c", &format!("clusterIP: {ip}\nports: [{{port: 80}}]")))?;
    kubectl.ok("run client --image=coracle/web:1")?;
    kubectl.ok("wait --for=condition=Ready pod/client --timeout=60s")?;
    let target = kubectl.path("service/b", "{.spec.clusterIP}")?;
    until(20, "alias", || {
        let said = kubectl.ok("exec client -- nslookup a.s-types.svc.cluster.local")?;
        ensure_contains(&said, &["canonical name = b.s-types.svc.cluster.local", &target])
    })?;
    kubectl.ok_with("patch service a", &["-p", r#"{"spec":{"type":"ClusterIP","externalName":null}}"#])?;
    let again = kubectl.path("service/a", "{.spec.clusterIP} {.spec.ipFamilies} {.spec.ipFamilyPolicy}")?;
    ensure_contains(&again, &["10.96.", "[\"IPv4\"] SingleStack"])?;
    let dual = service("d", "ipFamilyPolicy: RequireDualStack\nports: [{port: 80}]");
    ensure_contains(&kubectl.fails_stdin("apply -f -", &dual)?, &["this cluster is not configured for dual-stack services"])?;
    kubectl.apply(&service("d", "ipFamilyPolicy: PreferDualStack\ntrafficDistribution: PreferClose\nports: [{port: 80}]"))?;
    ensure_eq(kubectl.path("service/d", "{.spec.ipFamilyPolicy} {.spec.ipFamilies}")?, "PreferDualStack [\"IPv4\"]".into(), "families")
}

pub fn load_balancer_and_policies(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-balancer")?;
    named_pods(&kubectl, 2)?;
    kubectl.apply(&service("web", "type: LoadBalancer\nports: [{port: 8888, targetPort: 8080}]"))?;
    let nodes = [spine.cluster.address("worker1")?, spine.cluster.address("worker2")?];
    let status = "{.status.loadBalancer.ingress[*].ip} {.status.loadBalancer.ingress[0].ipMode}";
    until(20, "addresses", || ensure_eq(kubectl.path("service/web", status)?, format!("{} VIP", nodes.join(" ")), "ingress"))?;
    ensure_contains(&kubectl.ok("get service web")?, &[&nodes.join(",")])?;
    let balanced = format!("{}:8888", nodes[0]);
    until(10, "both pods answer", || ensure_eq(who(&balanced)?.len(), 2, "pods"))?;
    // A second Service on that port waits, and follows when the first leaves.
    kubectl.apply(&service("late", "type: LoadBalancer\nports: [{port: 8888, targetPort: 8080}]"))?;
    until(20, "refusal", || ensure_contains(&kubectl.ok("get events")?, &["port 8888/TCP of the nodes is in use by s-balancer/web"]))?;
    ensure_contains(&kubectl.ok("get service late")?, &["<pending>"])?;
    kubectl.ok_with("patch service web", &["-p", r#"{"spec":{"type":"NodePort"}}"#])?;
    until(20, "release", || ensure_eq(kubectl.path("service/web", "{.status.loadBalancer}")?, "{}".into(), "status"))?;
    until(20, "the next in line", || ensure_contains(&kubectl.ok("get service late")?, &[&nodes[0]]))?;
    ensure_contains(&kubectl.ok("describe service late")?, &["EnsuredLoadBalancer"])?;
    local_policy(&kubectl, &nodes)?;
    kubectl.ok_with(
        "patch service late",
        &["-p", r#"{"spec":{"externalTrafficPolicy":"Cluster","loadBalancerSourceRanges":["192.0.2.0/24"]}}"#],
    )?;
    let open = || TcpStream::connect_timeout(&balanced.parse()?, Duration::from_secs(1)).map_err(anyhow::Error::from);
    until(20, "closed to this host", || if open().is_err() { Ok(()) } else { bail!("still open") })
}

/// Under policy Local only nodes with endpoints answer, on the health port too.
fn local_policy(kubectl: &Kubectl, nodes: &[String; 2]) -> Result<()> {
    kubectl.ok("scale deployment web --replicas=1")?;
    available(kubectl, "web")?;
    kubectl.ok_with("patch service late", &["-p", r#"{"spec":{"externalTrafficPolicy":"Local"}}"#])?;
    let health = kubectl.path("service/late", "{.spec.healthCheckNodePort}")?;
    until(30, "one node", || {
        ensure_eq(kubectl.path("service/late", "{.status.loadBalancer.ingress[*].ip}")?.split(' ').count(), 1, "addresses")
    })?;
    let here = kubectl.path("service/late", "{.status.loadBalancer.ingress[0].ip}")?;
    for node in nodes {
        let expected = if *node == here { ["200 OK", "\"localEndpoints\":1"] } else { ["503 Service Unavailable", "\"localEndpoints\":0"] };
        until(20, "health of a node", || ensure_contains(&get(&format!("{node}:{health}"))?, &expected))?;
    }
    ensure_eq(who(&format!("{here}:8888"))?.len(), 1, "pods")?;
    kubectl.ok("scale deployment web --replicas=2")?;
    available(kubectl, "web")
}

pub fn affinity_headless_and_hand_made(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-more")?;
    named_pods(&kubectl, 3)?;
    kubectl.apply(&service(
        "sticky",
        "type: NodePort\nsessionAffinity: ClientIP\nexternalIPs: [198.51.100.7]\nports: [{port: 80, targetPort: 8080}]",
    ))?;
    let port = kubectl.path("service/sticky", "{.spec.ports[0].nodePort}")?;
    let address = format!("{}:{port}", spine.cluster.address("worker1")?);
    until(20, "one pod for one client", || ensure_eq(who(&address)?.len(), 1, "pods"))?;
    kubectl.ok_with("patch service sticky", &["-p", r#"{"spec":{"sessionAffinity":"None"}}"#])?;
    until(20, "all pods", || ensure_eq(who(&address)?.len(), 3, "pods"))?;
    kubectl.ok("run client --image=coracle/web:1")?;
    kubectl.ok("wait --for=condition=Ready pod/client --timeout=60s")?;
    until(10, "external address", || kubectl.ok("exec client -- wget -qO- http://198.51.100.7/"))?;
    headless(&kubectl)?;
    // Endpoints made by hand are mirrored, and lead there.
    let ip = kubectl.ok_with("get pods -l app=web", &["-o", "jsonpath={.items[0].status.podIP}"])?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: made}}\nspec: {{ports: [{{port: 80}}]}}\n---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: made}}\n\
         subsets: [{{addresses: [{{ip: {ip}}}], ports: [{{port: 8080}}]}}]\n"
    ))?;
    until(20, "mirrored endpoints", || kubectl.ok("exec client -- wget -qO- http://made/"))?;
    kubectl.ok("delete endpoints made")?;
    until(20, "slice gone", || {
        ensure_eq(kubectl.ok("get endpointslices -l kubernetes.io/service-name=made --no-headers")?, String::new(), "slices")
    })
}

/// A headless Service names pods that are not ready only if it says so.
fn headless(kubectl: &Kubectl) -> Result<()> {
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: slow, labels: {app: slow}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {name: web, image: \"coracle/web:1\", readinessProbe: {exec: {command: [\"false\"]}}}\n",
    )?;
    for (name, publish) in [("early", true), ("strict", false)] {
        let manifest = service(name, &format!("clusterIP: None\npublishNotReadyAddresses: {publish}\nports: [{{port: 80}}]"));
        kubectl.apply(&manifest.replace("app: web", "app: slow"))?;
    }
    until(30, "published", || {
        let ip = kubectl.path("pod/slow", "{.status.podIP}")?;
        if ip.is_empty() {
            bail!("no address yet");
        }
        ensure_contains(&kubectl.ok("exec client -- nslookup early.s-more.svc.cluster.local")?, &[&ip])
    })?;
    let strict = kubectl.run("exec client -- nslookup strict.s-more.svc.cluster.local")?;
    ensure_contains(&format!("{}{}", strict.stdout, strict.stderr), &["can't find"])
}
