use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::authz::Attributes;
use crate::lookup::{items, text};
use crate::testing::Cluster;
use crate::user::User;
use std::sync::Arc;

fn find(resource: &str, namespace: &str, name: &str) -> Value {
    let matches = |o: &Object| {
        o.resource.to_string() == resource
            && text(&o.object, "/metadata/name") == name
            && text(&o.object, "/metadata/namespace") == namespace
    };
    objects().into_iter().find(matches).unwrap_or_else(|| panic!("no {resource} {namespace}/{name}")).object
}

#[test]
fn every_object_once_and_every_binding_has_its_role() {
    let all = objects();
    let id = |o: &Object| {
        (o.resource.to_string(), text(&o.object, "/metadata/namespace").to_owned(), text(&o.object, "/metadata/name").to_owned())
    };
    let ids: BTreeSet<_> = all.iter().map(id).collect();
    assert_eq!(ids.len(), all.len());
    for object in &all {
        let Some(role) = object.object.get("roleRef") else { continue };
        let cluster_wide = text(role, "/kind") == "ClusterRole";
        let resource = if cluster_wide { "clusterroles" } else { "roles" };
        let namespace = if cluster_wide { "" } else { text(&object.object, "/metadata/namespace") };
        let wanted = (format!("{resource}.{RBAC_GROUP}"), namespace.to_owned(), text(role, "/name").to_owned());
        assert!(ids.contains(&wanted), "{wanted:?}");
    }
}

#[test]
fn objects_look_as_upstream_writes_them() {
    assert_eq!(
        find("clusterroles.rbac.authorization.k8s.io", "", "edit"),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {
                "name": "edit", "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
                "labels": {"kubernetes.io/bootstrapping": "rbac-defaults", "rbac.authorization.k8s.io/aggregate-to-admin": "true"},
            },
            "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}}]},
        })
    );
    let binding = find("clusterrolebindings.rbac.authorization.k8s.io", "", "system:controller:deployment-controller");
    assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "namespace": "kube-system", "name": "deployment-controller"}]));
    let scheduler = find("clusterroles.rbac.authorization.k8s.io", "", "system:kube-scheduler");
    assert_eq!(
        scheduler["rules"][0],
        json!({"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]})
    );
    assert!(items(&find("clusterrolebindings.rbac.authorization.k8s.io", "", "system:node"), "/subjects").is_empty());
}

#[test]
fn reconciling_adds_and_never_takes() {
    let wanted = find("clusterroles.rbac.authorization.k8s.io", "", "system:basic-user");
    assert_eq!(reconcile(&wanted, None), Some(wanted.clone()));
    assert_eq!(reconcile(&wanted, Some(&wanted)), None);
    let mut stored = wanted.clone();
    stored["metadata"]["resourceVersion"] = "7".into();
    stored["metadata"]["labels"] = json!({"mine": "x"});
    let extra = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    stored["rules"] = json!([extra, wanted["rules"][0]]);
    let written = reconcile(&wanted, Some(&stored)).unwrap();
    assert_eq!(written["metadata"]["resourceVersion"], "7");
    assert_eq!(written["metadata"]["labels"], json!({"mine": "x", "kubernetes.io/bootstrapping": "rbac-defaults"}));
    assert_eq!(written["rules"], json!([extra, wanted["rules"][0], wanted["rules"][1]]));
    stored["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "false".into();
    assert_eq!(reconcile(&wanted, Some(&stored)), None);
    let mut aggregated = find("clusterroles.rbac.authorization.k8s.io", "", "admin");
    let default = aggregated.clone();
    aggregated["rules"] = json!([extra]);
    assert_eq!(reconcile(&default, Some(&aggregated)), None);
    let binding = find("clusterrolebindings.rbac.authorization.k8s.io", "", "cluster-admin");
    let mut other = binding.clone();
    other["subjects"] = json!([{"apiGroup": RBAC_GROUP, "kind": "User", "name": "me"}]);
    assert_eq!(items(&reconcile(&binding, Some(&other)).unwrap(), "/subjects").len(), 2);
}

/// The processes of the cluster, with what each must be able to do.
#[test]
fn the_control_plane_works_with_the_defaults() {
    let mut cluster = Cluster::default();
    for Object { resource, object } in objects() {
        cluster.put(&resource.to_string(), object);
    }
    let authorizer = cluster.authorizer();
    let may = |user: &str, groups: &[&str], verb: &str, group: &str, thing: &str| {
        let (resource, subresource) = thing.split_once('/').unwrap_or((thing, ""));
        let mut attributes = Attributes {
            user: Arc::new(User::new(user, groups.iter().copied())),
            verb: verb.to_owned(),
            api_group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: "ns".to_owned(),
            resource_request: true,
            ..Attributes::default()
        };
        if thing.starts_with('/') {
            attributes = Attributes { path: thing.to_owned(), resource_request: false, namespace: String::new(), ..attributes };
        }
        authorizer.authorize(&attributes).is_allowed()
    };
    let manager = |verb, group, thing| may("system:kube-controller-manager", &["system:authenticated"], verb, group, thing);
    assert!(manager("create", "apps", "replicasets") && manager("update", "apps", "deployments/status"));
    assert!(manager("patch", "", "nodes") && manager("create", "discovery.k8s.io", "endpointslices") && manager("watch", "x", "y"));
    assert!(!manager("create", "apps", "deployments"));
    let scheduler = |verb, thing| may("system:kube-scheduler", &["system:authenticated"], verb, "", thing);
    assert!(scheduler("create", "pods/binding") && scheduler("patch", "pods/status") && !scheduler("create", "pods"));
    assert!(may("system:kube-proxy", &[], "watch", "discovery.k8s.io", "endpointslices"));
    assert!(may("system:kube-proxy", &[], "post", "", "/debug/journal"));
    assert!(may("system:node:n1", &["system:nodes"], "post", "", "/debug/journal"));
    assert!(may("system:node:n1", &["system:nodes"], "list", "", "nodes"));
    assert!(may("system:serviceaccount:kube-system:kube-dns", &[], "watch", "discovery.k8s.io", "endpointslices"));
    assert!(may("system:anonymous", &["system:unauthenticated"], "get", "", "/livez"));
    assert!(!may("system:anonymous", &["system:unauthenticated"], "get", "", "/api"));
    assert!(may("jane", &["system:authenticated"], "get", "", "/apis/apps/v1"));
    assert!(may("jane", &["system:authenticated"], "create", "authorization.k8s.io", "selfsubjectaccessreviews"));
    assert!(!may("jane", &["system:authenticated"], "list", "", "pods"));
}
