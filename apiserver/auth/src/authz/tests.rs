use std::sync::Arc;

use api::{FieldSelector, Key};
use serde_json::{Value, json};

use super::*;
use crate::testing::Cluster;
use crate::user::User;

const G: &str = "rbac.authorization.k8s.io";

/// `ask("jane", "list", "pods")`, `"apps/deployments/scale"`, `"/metrics"`; then `.named(..)`, `.within(..)`.
fn ask(user: &str, verb: &str, thing: &str) -> Attributes {
    let groups: &[&str] = if user.starts_with("system:node:") { &["system:nodes"] } else { &["system:authenticated"] };
    let mut attributes =
        Attributes { user: Arc::new(User::new(user, groups.iter().copied())), verb: verb.to_owned(), ..Attributes::default() };
    if thing.starts_with('/') {
        attributes.path = thing.to_owned();
        return attributes;
    }
    let (group, rest) = match thing.split_once(':') {
        Some((group, rest)) => (group, rest),
        None => ("", thing),
    };
    let (resource, subresource) = rest.split_once('/').unwrap_or((rest, ""));
    attributes.resource_request = true;
    attributes.api_group = group.to_owned();
    attributes.resource = resource.to_owned();
    attributes.subresource = subresource.to_owned();
    attributes
}

impl Attributes {
    fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    fn within(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    fn where_label(mut self, selector: &str) -> Self {
        self.label_selector = Some(api::LabelSelector::parse(selector).unwrap());
        self
    }

    fn where_field(mut self, selector: &str) -> Self {
        self.field_selector = Some(FieldSelector::parse(selector).unwrap());
        self
    }
}

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names})
}

fn role(namespace: &str, name: &str, rules: Value) -> (String, Value) {
    let kind = if namespace.is_empty() { "clusterroles" } else { "roles" };
    (format!("{kind}.{G}"), json!({"metadata": {"namespace": namespace, "name": name}, "rules": rules}))
}

fn binding(namespace: &str, name: &str, role: (&str, &str), subjects: Value) -> (String, Value) {
    let kind = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
    let role_ref = json!({"apiGroup": G, "kind": role.0, "name": role.1});
    (format!("{kind}.{G}"), json!({"metadata": {"namespace": namespace, "name": name}, "roleRef": role_ref, "subjects": subjects}))
}

fn cluster(objects: Vec<(String, Value)>) -> Cluster {
    objects.into_iter().fold(Cluster::default(), |cluster, (resource, object)| cluster.with(&resource, object))
}

fn sample() -> Cluster {
    cluster(vec![
        role("", "viewer", json!([rule(&["get", "list"], &[""], &["pods", "pods/log"], &[])])),
        role("", "scaler", json!([rule(&["get", "update"], &["*"], &["*/scale"], &[])])),
        role("", "web", json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz/*", "/version"]}])),
        role("dev", "one", json!([rule(&["get"], &[""], &["configmaps"], &["a", "b"])])),
        binding("", "all-scale", ("ClusterRole", "scaler"), json!([{"kind": "Group", "name": "system:authenticated"}])),
        binding("", "web", ("ClusterRole", "web"), json!([{"kind": "User", "name": "jane"}])),
        binding("", "gone", ("ClusterRole", "nothing"), json!([{"kind": "User", "name": "joe"}])),
        binding("dev", "jane-views", ("ClusterRole", "viewer"), json!([{"kind": "User", "name": "jane"}])),
        binding("dev", "app-one", ("Role", "one"), json!([{"kind": "ServiceAccount", "name": "app"}])),
        binding("dev", "far-one", ("Role", "one"), json!([{"kind": "ServiceAccount", "name": "app", "namespace": "far"}])),
    ])
}

#[test]
fn rbac_decides() {
    let authorizer = sample().authorizer();
    let sa = "system:serviceaccount:dev:app";
    let cases = [
        (ask("jane", "list", "pods").within("dev"), true),
        (ask("jane", "list", "pods").within("prod"), false),
        (ask("jane", "list", "pods"), false),
        (ask("jane", "get", "pods/log").within("dev").named("x"), true),
        (ask("jane", "get", "pods/exec").within("dev").named("x"), false),
        (ask("jane", "delete", "pods").within("dev"), false),
        (ask("jane", "get", "apps:deployments/scale").within("prod").named("x"), true),
        (ask("jane", "get", "apps:deployments").within("prod").named("x"), false),
        (ask("jane", "get", "/healthz/etcd"), true),
        (ask("jane", "get", "/healthz"), false),
        (ask("jane", "get", "/version"), true),
        (ask("jane", "post", "/version"), false),
        (ask(sa, "get", "configmaps").within("dev").named("a"), true),
        (ask(sa, "get", "configmaps").within("dev").named("c"), false),
        (ask(sa, "get", "configmaps").within("dev"), false),
        (ask("system:serviceaccount:far:app", "get", "configmaps").within("dev").named("b"), true),
        (ask("system:serviceaccount:other:app", "get", "configmaps").within("dev").named("b"), false),
    ];
    for (attributes, allowed) in cases {
        assert_eq!(authorizer.authorize(&attributes).is_allowed(), allowed, "{attributes:?}");
    }
}

#[test]
fn reasons_and_refusals_read_as_upstream() {
    let authorizer = sample().authorizer();
    let allowed = authorizer.authorize(&ask("jane", "list", "pods").within("dev"));
    assert_eq!(
        allowed,
        Decision::Allow("RBAC: allowed by RoleBinding \"jane-views/dev\" of ClusterRole \"viewer\" to User \"jane\"".into())
    );
    let cases = [
        (
            ask("jane", "list", "pods").within("default"),
            "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
        ),
        (
            ask("jane", "delete", "apps:deployments").within("dev").named("web"),
            "deployments.apps \"web\" is forbidden: User \"jane\" cannot delete resource \"deployments\" in API group \"apps\" in the namespace \"dev\"",
        ),
        (
            ask("jane", "create", "pods/exec").within("dev").named("x"),
            "pods \"x\" is forbidden: User \"jane\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"dev\"",
        ),
        (
            ask("jane", "list", "nodes"),
            "nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the cluster scope",
        ),
        (ask("jane", "get", "/metrics"), "forbidden: User \"jane\" cannot get path \"/metrics\""),
        (
            ask("joe", "list", "nodes"),
            "nodes is forbidden: User \"joe\" cannot list resource \"nodes\" in API group \"\" at the cluster scope: RBAC: clusterrole.rbac.authorization.k8s.io \"nothing\" not found",
        ),
    ];
    for (attributes, message) in cases {
        let status = authorizer.check(&attributes).unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (403, message));
    }
}

#[test]
fn masters_may_do_anything_and_changes_show_at_once() {
    let authorizer = Authorizer::new();
    let mut root = ask("root", "delete", "secrets");
    root.user = Arc::new(User::new("root", ["system:masters"]));
    assert!(authorizer.authorize(&root).is_allowed());
    let jane = || authorizer.authorize(&ask("jane", "list", "pods")).is_allowed();
    assert!(!jane());
    let (roles, all) = role("", "r", json!([rule(&["*"], &["*"], &["*"], &[])]));
    let (bindings, janes) = binding("", "b", ("ClusterRole", "r"), json!([{"kind": "User", "name": "jane"}]));
    observe(&authorizer, &bindings, &janes);
    assert!(!jane());
    observe(&authorizer, &roles, &all);
    assert!(jane());
    authorizer.observe(&rbac::resource("clusterrolebindings"), &Key::cluster("b"), None);
    assert!(!jane());
}

#[test]
fn rules_for_a_review() {
    let review = sample().authorizer().rules_for(&User::new("jane", ["system:authenticated"]), "dev");
    assert_eq!((review.resource_rules.len(), review.non_resource_rules.len(), review.incomplete), (2, 1, false));
    let node = sample().authorizer().rules_for(&User::new("system:node:n", ["system:nodes"]), "dev");
    assert_eq!((node.incomplete, node.error.as_str()), (true, "node authorizer does not support user rule resolution"));
}

fn observe(authorizer: &Authorizer, resource: &str, object: &Value) {
    let Ok(parsed) = resource.parse::<GroupResource>();
    let key = Key::new(crate::lookup::text(object, "/metadata/namespace"), crate::lookup::text(object, "/metadata/name"));
    authorizer.observe(&parsed, &key, Some(object));
}

fn pod(name: &str, node: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"namespace": "d", "name": name}, "spec": spec});
    pod["spec"]["nodeName"] = node.into();
    pod
}

#[test]
fn nodes_reach_what_their_pods_name() {
    let authorizer = Authorizer::new();
    let spec = json!({
        "serviceAccountName": "app",
        "containers": [{"name": "c", "env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "cm"}}]}],
        "volumes": [
            {"name": "s", "secret": {"secretName": "vol"}},
            {"name": "k", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
            {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
        ],
    });
    observe(&authorizer, "pods", &pod("p", "n1", spec));
    observe(
        &authorizer,
        "persistentvolumes",
        &json!({"metadata": {"name": "pv1"}, "spec": {
            "claimRef": {"namespace": "d", "name": "data"}, "csi": {"nodePublishSecretRef": {"namespace": "store", "name": "key"}},
        }}),
    );
    observe(&authorizer, "volumeattachments.storage.k8s.io", &json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}));
    observe(&authorizer, "persistentvolumes", &json!({"metadata": {"name": "dir", "labels": {"coracle.dev/node": "n1"}}}));
    let n1 = |verb: &str, thing: &str| ask("system:node:n1", verb, thing);
    let yes = [
        n1("watch", "persistentvolumes").where_label("coracle.dev/node=n1"),
        n1("patch", "persistentvolumes").named("dir"),
        n1("get", "secrets").within("d").named("env"),
        n1("watch", "secrets").within("d").named("vol"),
        n1("get", "configmaps").within("d").named("cm"),
        n1("list", "configmaps").within("d").named("kube-root-ca.crt"),
        n1("get", "persistentvolumeclaims").within("d").named("data"),
        n1("patch", "persistentvolumeclaims/status").within("d").named("data"),
        n1("get", "persistentvolumes").named("pv1"),
        n1("get", "secrets").within("store").named("key"),
        n1("get", "storage.k8s.io:volumeattachments").named("va"),
        n1("create", "serviceaccounts/token").within("d").named("app"),
        n1("get", "pods").within("d").named("p"),
        n1("list", "pods").where_field("spec.nodeName=n1"),
        n1("watch", "pods").within("d").named("p"),
        n1("get", "nodes").named("n1"),
        n1("create", "nodes"),
        n1("patch", "nodes/status").named("n1"),
        n1("update", "coordination.k8s.io:leases").within("kube-node-lease").named("n1"),
        n1("create", "storage.k8s.io:csinodes"),
        n1("create", "events").within("d"),
        n1("list", "services"),
        n1("create", "authentication.k8s.io:tokenreviews"),
        n1("create", "certificates.k8s.io:certificatesigningrequests"),
        n1("delete", "pods").within("d").named("p"),
    ];
    for attributes in yes {
        assert!(authorizer.authorize(&attributes).is_allowed(), "{attributes:?}");
    }
    let unrelated = "no relationship found between node 'n1' and this object";
    let no = [
        (n1("get", "secrets").within("d").named("other"), unrelated),
        (n1("get", "secrets").within("x").named("env"), unrelated),
        (n1("list", "secrets").within("d"), "No Object name found"),
        (n1("list", "secrets"), "can only read namespaced object of this type"),
        (n1("update", "secrets").within("d").named("env"), "can only read resources of this type"),
        (n1("patch", "persistentvolumes").named("pv1"), unrelated),
        (n1("patch", "persistentvolumes/status").named("dir"), "can only get individual resources of this type"),
        (n1("list", "persistentvolumes").where_label("coracle.dev/node=n2"), "can only get individual resources of this type"),
        (n1("list", "persistentvolumes"), "can only get individual resources of this type"),
        (n1("create", "serviceaccounts/token").within("d").named("admin"), unrelated),
        (n1("get", "nodes").named("n2"), "node 'n1' cannot read 'n2', only its own Node object"),
        (n1("list", "nodes"), "node 'n1' cannot read all nodes, only its own Node object"),
        (n1("list", "pods"), "can only list/watch pods with spec.nodeName field selector"),
        (n1("list", "pods").where_field("spec.nodeName=n2"), "can only list/watch pods with spec.nodeName field selector"),
        (
            n1("get", "coordination.k8s.io:leases").within("kube-node-lease").named("n2"),
            "can only access node lease with the same name as the requesting node",
        ),
        (
            n1("get", "coordination.k8s.io:leases").within("d").named("n1"),
            "can only access leases in the \"kube-node-lease\" system namespace",
        ),
        (n1("list", "apps:deployments"), ""),
    ];
    for (attributes, reason) in no {
        assert_eq!(authorizer.authorize(&attributes), Decision::NoOpinion(reason.into()), "{attributes:?}");
    }
    let env = |node: &str| authorizer.authorize(&ask(node, "get", "secrets").within("d").named("env")).is_allowed();
    assert!(env("system:node:n1") && !env("system:node:n2"));
    authorizer.observe(&GroupResource::new("", "pods"), &Key::new("d", "p"), None);
    assert!(!env("system:node:n1"));
}

#[test]
fn a_mirror_pod_opens_nothing() {
    let authorizer = Authorizer::new();
    let mut mirror = pod("m", "n1", json!({"volumes": [{"name": "s", "secret": {"secretName": "vol"}}]}));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    observe(&authorizer, "pods", &mirror);
    let attributes = ask("system:node:n1", "get", "secrets").within("d").named("vol");
    assert!(!authorizer.authorize(&attributes).is_allowed());
}

#[test]
fn nobody_grants_more_than_they_hold() {
    let editor = rule(&["get", "create", "update"], &[G], &["roles", "rolebindings", "clusterroles"], &[]);
    let pods = rule(&["get", "list"], &[""], &["pods"], &[]);
    let authorizer = cluster(vec![
        role("", "editor", json!([editor, pods])),
        role("", "boss", json!([rule(&["*"], &["*"], &["*"], &[])])),
        role("", "binder", json!([rule(&["bind"], &[G], &["clusterroles"], &["boss"])])),
        binding("", "e", ("ClusterRole", "editor"), json!([{"kind": "User", "name": "ed"}])),
        binding("d", "b", ("ClusterRole", "binder"), json!([{"kind": "User", "name": "ed"}])),
    ])
    .authorizer();
    let ed = Arc::new(User::new("ed", ["system:authenticated"]));
    let check = |resource: &str, namespace: &str, new: &Value, old: Option<&Value>| {
        let write = escalation::Write { user: &ed, resource, namespace, new, old };
        escalation::check(&write, &authorizer).map_err(|status| status.message)
    };
    let role = |rules: Value| json!({"metadata": {"name": "x", "namespace": "d"}, "rules": rules});
    assert_eq!(check("roles", "d", &role(json!([rule(&["get"], &[""], &["pods"], &["one"])])), None), Ok(()));
    let greedy = role(json!([rule(&["get", "delete"], &[""], &["pods", "secrets"], &[])]));
    assert_eq!(
        check("roles", "d", &greedy, None).unwrap_err(),
        "roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"ed\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"delete\"]}"
    );
    let mut touched = greedy.clone();
    touched["metadata"]["finalizers"] = json!(["a/b"]);
    assert_eq!(check("roles", "d", &touched, Some(&greedy)), Ok(()));
    let bind = |name: &str| json!({"metadata": {"name": "y"}, "roleRef": {"apiGroup": G, "kind": "ClusterRole", "name": name}});
    assert_eq!(check("rolebindings", "d", &bind("boss"), None), Ok(()));
    assert!(check("rolebindings", "e", &bind("boss"), None).is_err());
    assert_eq!(check("rolebindings", "e", &bind("nope"), None).unwrap_err(), "clusterroles.rbac.authorization.k8s.io \"nope\" not found");
    let mut aggregated = json!({"metadata": {"name": "agg"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    assert_eq!(
        check("clusterroles", "", &aggregated, None).unwrap_err(),
        "clusterroles.rbac.authorization.k8s.io \"agg\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
    );
    aggregated["aggregationRule"] = Value::Null;
    assert_eq!(check("clusterroles", "", &aggregated, None), Ok(()));
}
