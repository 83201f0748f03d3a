//! Cases of the plugins that look at who writes: NodeRestriction, the certificate plugins, PodSecurity.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use super::tests::{pod, write};
use super::*;
use crate::testing::Cluster;

const N1: &str = "n1";

fn cluster() -> Cluster {
    Cluster::default()
        .with("nodes", json!({"metadata": {"name": "n1", "uid": "u1"}}))
        .with("pods", json!({"metadata": {"namespace": "ns", "name": "mine", "uid": "p1"}, "spec": {"nodeName": "n1", "volumes": [
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"serviceAccountToken": {"audience": "vault", "path": "v"}}]}},
        ]}}))
        .with("pods", json!({"metadata": {"namespace": "ns", "name": "other", "uid": "p2"}, "spec": {"nodeName": "n2"}}))
}

fn check(write: tests::Write, object: Value) -> Result<(), String> {
    write.by_node(N1).mutated(&node_restriction::NodeRestriction, &cluster(), object).map(drop)
}

fn mirror(edit: impl Fn(&mut Value)) -> Value {
    let mut pod = json!({
        "metadata": {
            "name": "m", "annotations": {"kubernetes.io/config.mirror": "h"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true}],
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
    });
    edit(&mut pod);
    pod
}

#[test]
fn nodes_make_only_mirror_pods_of_their_own() {
    assert_eq!(check(write("pods"), mirror(|_| {})), Ok(()));
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str); 8] = [
        (
            |p| p["metadata"]["annotations"] = Value::Null,
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n1\" can only create mirror pods",
        ),
        (|p| p["spec"]["nodeName"] = "n2".into(), "node \"n1\" can only create pods with spec.nodeName set to itself"),
        (|p| p["metadata"]["ownerReferences"] = json!([]), "node \"n1\" can only create pods with an owner reference set to itself"),
        (
            |p| p["metadata"]["ownerReferences"][0]["controller"] = false.into(),
            "node \"n1\" can only create pods with a controller owner reference set to itself",
        ),
        (|p| p["metadata"]["ownerReferences"][0]["uid"] = "x".into(), "node n1 UID mismatch: expected x got u1"),
        (|p| p["spec"]["serviceAccountName"] = "a".into(), "node \"n1\" can not create pods that reference a service account"),
        (
            |p| p["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]),
            "node \"n1\" can not create pods that reference secrets",
        ),
        (
            |p| p["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "s"}}]),
            "node \"n1\" can not create pods that reference configmaps",
        ),
    ];
    for (edit, message) in cases {
        assert_eq!(check(write("pods"), mirror(edit)), Err(format!("pods \"m\" is forbidden: {message}")));
    }
}

#[test]
fn nodes_touch_only_their_own_pods() {
    let stored = |node: &str| json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"nodeName": node}});
    assert_eq!(check(write("pods").delete("mine"), Value::Null), Ok(()));
    assert_eq!(check(write("pods").delete("gone"), Value::Null).unwrap_err(), "pods \"gone\" not found");
    assert_eq!(
        check(write("pods").delete("other"), Value::Null).unwrap_err(),
        "pods \"other\" is forbidden: node \"n1\" can only delete pods with spec.nodeName set to itself"
    );
    assert_eq!(check(write("pods/status").update(stored("n1")), stored("n1")), Ok(()));
    assert!(check(write("pods/status").update(stored("n2")), stored("n2")).unwrap_err().contains("can only update pod status for pods"));
    let mut relabelled = stored("n1");
    relabelled["metadata"]["labels"] = json!({});
    assert!(check(write("pods/status").update(stored("n1")), relabelled).unwrap_err().contains("cannot update labels through pod status"));
    assert_eq!(check(write("pods/eviction").named("mine"), json!({})), Ok(()));
    assert!(check(write("pods/eviction").named("other"), json!({})).unwrap_err().contains("can only evict pods"));
    assert!(check(write("pods/exec").named("mine"), json!({})).unwrap_err().contains("unexpected pod subresource \"exec\""));
    assert!(check(write("pods").update(stored("n1")), stored("n1")).unwrap_err().contains("can only create and delete mirror pods"));
}

#[test]
fn nodes_write_only_themselves_and_no_steering_labels() {
    let node = |labels: Value, taints: Value| json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}});
    let good = node(json!({"kubernetes.io/hostname": "n1", "node.kubernetes.io/role": "x", "team": "a"}), json!([]));
    assert_eq!(check(write("nodes").within("").named("n1"), good.clone()), Ok(()));
    assert!(
        check(write("nodes").within("").named("n2"), good.clone())
            .unwrap_err()
            .contains("node \"n1\" is not allowed to modify node \"n2\"")
    );
    assert_eq!(
        check(
            write("nodes").within("").named("n1"),
            node(json!({"a.node-restriction.kubernetes.io/x": "", "x.k8s.io/y": "", "ok": ""}), json!([]))
        )
        .unwrap_err(),
        "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: a.node-restriction.kubernetes.io/x, x.k8s.io/y"
    );
    let update = |new: Value| check(write("nodes").within("").update(good.clone()), new);
    assert_eq!(update(good.clone()), Ok(()));
    assert!(
        update(node(good["metadata"]["labels"].clone(), json!([{"key": "a"}]))).unwrap_err().contains("is not allowed to modify taints")
    );
    assert!(
        update(node(json!({"node-role.kubernetes.io/master": ""}), json!([])))
            .unwrap_err()
            .contains("is not allowed to modify labels: node-role.kubernetes.io/master")
    );
    let lease = |name: &str| json!({"metadata": {"name": name}});
    let leases = || write("leases.coordination.k8s.io").within("kube-node-lease");
    assert_eq!(check(leases(), lease("n1")), Ok(()));
    assert!(check(leases(), lease("n2")).is_err() && check(leases().within("ns"), lease("n1")).is_err());
    assert!(check(write("persistentvolumeclaims"), json!({})).unwrap_err().contains("may only update PVC status"));
}

#[test]
fn nodes_say_of_a_volume_only_that_its_directory_is_gone() {
    let volume = |node: &str, deleted: Value, finalizers: Value| {
        json!({"metadata": {"name": "v", "labels": {"coracle.dev/node": node}, "deletionTimestamp": deleted, "finalizers": finalizers},
            "spec": {"local": {"path": "/x"}}})
    };
    let (ended, held) = (|| json!("2026-01-01T00:00:00Z"), || json!(["coracle.dev/directory", "other"]));
    let update = |old: Value, new: Value| check(write("persistentvolumes").within("").update(old), new);
    assert_eq!(update(volume("n1", ended(), held()), volume("n1", ended(), json!(["other"]))), Ok(()));
    let mut moved = volume("n1", ended(), json!(["other"]));
    moved["spec"]["local"]["path"] = json!("/etc");
    for (old, new) in [
        (volume("n2", ended(), held()), volume("n2", ended(), json!(["other"]))),
        (volume("n1", Value::Null, held()), volume("n1", Value::Null, json!(["other"]))),
        (volume("n1", ended(), held()), volume("n1", ended(), json!([]))),
        (volume("n1", ended(), held()), moved),
    ] {
        assert!(update(old, new).unwrap_err().contains("may only let go of the finalizer"));
    }
    assert!(check(write("persistentvolumes").within(""), volume("n1", Value::Null, held())).unwrap_err().contains("unexpected operation"));
}

#[test]
fn nodes_get_tokens_only_for_their_pods() {
    let request = |name: &str, uid: &str, audiences: &[&str]| json!({"spec": {"audiences": audiences, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}});
    let ask = |body: Value| check(write("serviceaccounts/token").named("app"), body);
    assert_eq!(ask(request("mine", "p1", &[])), Ok(()));
    assert_eq!(ask(request("mine", "p1", &["vault"])), Ok(()));
    for (body, why) in [
        (json!({"spec": {}}), "node requested token not bound to a pod"),
        (request("mine", "", &[]), "node requested token with a pod binding without a uid"),
        (request("mine", "old", &[]), "does not match the UID in record (p1)"),
        (request("other", "p2", &[]), "node requested token bound to a pod scheduled on a different node"),
        (request("mine", "p1", &["bank"]), "audience \"bank\" not found in pod spec volume"),
        (request("mine", "p1", &["a", "b"]), "node may only request 0 or 1 audiences"),
    ] {
        let message = ask(body).unwrap_err();
        assert!(message.contains(why), "{message}");
    }
}

#[test]
fn people_are_not_restricted() {
    let done = write("nodes").within("").mutated(&node_restriction::NodeRestriction, &cluster(), json!({"metadata": {"name": "n9"}}));
    assert!(done.is_ok());
}

const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";

#[test]
fn certificates() {
    let g = "rbac.authorization.k8s.io";
    let rule =
        json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["approve"], "resourceNames": ["kubernetes.io/*"]});
    let cluster = Cluster::default()
        .with(&format!("clusterroles.{g}"), json!({"metadata": {"name": "a"}, "rules": [rule]}))
        .with(&format!("clusterrolebindings.{g}"), json!({
            "metadata": {"name": "a"}, "roleRef": {"apiGroup": g, "kind": "ClusterRole", "name": "a"}, "subjects": [{"kind": "User", "name": "jane"}],
        }));
    let csr = |signer: &str| json!({"metadata": {"name": "c"}, "spec": {"signerName": signer}});
    let approve = |signer: &str| {
        write(&format!("{REQUESTS}/approval")).within("").update(csr(signer)).validated(
            &certificates::CertificateApproval,
            &cluster,
            &csr(signer),
        )
    };
    assert!(approve("kubernetes.io/kubelet-serving").is_ok());
    assert_eq!(
        approve("example.com/x").unwrap_err(),
        "certificatesigningrequests.certificates.k8s.io \"c\" is forbidden: user not permitted to approve requests with signerName \"example.com/x\""
    );
    let mut signed = csr("kubernetes.io/kubelet-serving");
    signed["status"] = json!({"certificate": "x"});
    let sign = |new: &Value| {
        write(&format!("{REQUESTS}/status")).within("").update(csr("kubernetes.io/kubelet-serving")).validated(
            &certificates::CertificateSigning,
            &cluster,
            new,
        )
    };
    assert!(sign(&csr("kubernetes.io/kubelet-serving")).is_ok());
    assert!(sign(&signed).unwrap_err().contains("user not permitted to sign requests with signerName \"kubernetes.io/kubelet-serving\""));
}

#[test]
fn nobody_asks_for_masters() {
    let request = |organization: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        json!({"metadata": {"name": "c"}, "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "request": STANDARD.encode(pem)}})
    };
    let check =
        |object: &Value| write(REQUESTS).within("").validated(&certificates::CertificateSubjectRestriction, &Cluster::default(), object);
    assert!(check(&request("dev")).is_ok());
    assert!(
        check(&request("system:masters"))
            .unwrap_err()
            .contains("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
    );
    assert!(
        check(&json!({"metadata": {"name": "c"}, "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "request": "AAAA"}}))
            .is_err()
    );
}

fn secured(level: &str) -> Cluster {
    let labels = json!({"pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/warn": "restricted"});
    Cluster::default().with("namespaces", json!({"metadata": {"name": "ns", "labels": labels}})).with(
        "pods",
        json!({"metadata": {"namespace": "ns", "name": "root"}, "spec": {"hostNetwork": true, "containers": [{"name": "c"}]}}),
    )
}

#[test]
fn pod_security_enforces_and_warns() {
    let check = |level: &str, object: &Value| write("pods").validated(&pod_security::PodSecurity, &secured(level), object);
    let plain = pod(json!({"containers": [{"name": "c"}]}));
    let restricted = "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
        unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
        runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
        seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
    assert_eq!(check("baseline", &plain).unwrap().warnings, [format!("would violate PodSecurity \"restricted:latest\": {restricted}")]);
    assert_eq!(
        check("restricted", &plain).unwrap_err(),
        format!("pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\": {restricted}")
    );
    let good = pod(json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}, "containers": [
        {"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}},
    ]}));
    assert_eq!(check("restricted", &good), Ok(Outcome::default()));
    let template = json!({"metadata": {"name": "d"}, "spec": {"template": {"spec": plain["spec"]}}});
    let outcome = write("deployments.apps").validated(&pod_security::PodSecurity, &secured("restricted"), &template).unwrap();
    assert_eq!(outcome.warnings.len(), 1);
}

#[test]
fn pod_security_baseline() {
    let container = |context: Value| json!({"containers": [{"name": "c", "securityContext": context}]});
    let cases = [
        (json!({"hostNetwork": true, "hostPID": true}), "host namespaces (hostNetwork=true, hostPID=true)"),
        (container(json!({"privileged": true})), "privileged (container \"c\" must not set securityContext.privileged=true)"),
        (
            container(json!({"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}})),
            "non-default capabilities (container \"c\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
        ),
        (
            container(json!({"seccompProfile": {"type": "Unconfined"}})),
            "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (container(json!({"procMount": "Unmasked"})), "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")"),
        (json!({"volumes": [{"name": "a", "hostPath": {}}, {"name": "b", "hostPath": {}}]}), "hostPath volumes (volumes \"a\", \"b\")"),
        (json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}), "hostPort (container \"c\" uses hostPort 80)"),
        (json!({"securityContext": {"sysctls": [{"name": "kernel.sem"}]}}), "forbidden sysctls (kernel.sem)"),
    ];
    for (spec, violation) in cases {
        let message = write("pods").validated(&pod_security::PodSecurity, &secured("baseline"), &pod(spec)).unwrap_err();
        assert_eq!(message, format!("pods \"web\" is forbidden: violates PodSecurity \"baseline:latest\": {violation}"));
    }
}

#[test]
fn pod_security_labels() {
    let namespace = |level: &str| json!({"metadata": {"name": "ns", "labels": {"pod-security.kubernetes.io/enforce": level}}});
    let tighten = write("namespaces").within("ns").update(namespace("privileged"));
    let outcome = tighten.validated(&pod_security::PodSecurity, &secured("privileged"), &namespace("baseline")).unwrap();
    assert_eq!(
        outcome.warnings,
        ["existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"baseline:latest\"", "root: host namespaces",]
    );
    assert_eq!(
        tighten.validated(&pod_security::PodSecurity, &Cluster::default(), &namespace("tight")).unwrap_err(),
        "Namespace \"ns\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"tight\": must be one of privileged, baseline, restricted"
    );
}
