//! What every new cluster holds: namespaces, priority classes, and the roles and bindings that make the
//! control plane, the nodes and plain users work.
//!
//! At start the API server reads each object, and writes what [`reconcile`] returns: a missing object is
//! created, a present one only gains what it lacks, and one annotated
//! `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.
//!
//! Upstream: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy`, `pkg/registry/rbac/rest/storage_rbac.go`,
//! `component-helpers/auth/rbac/reconciliation`, `pkg/registry/scheduling/rest`, `pkg/controlplane/controller/systemnamespaces` (v1.33).

mod controllers;
mod policy;
mod reconcile;
#[cfg(test)]
mod tests;

use api::GroupResource;
use serde_json::{Value, json};

use crate::authz::{RBAC_GROUP, Rule};
pub use reconcile::reconcile;

/// An object to ensure, with the resource it is stored under.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub resource: GroupResource,
    pub object: Value,
}

/// Everything, namespaces first. In the storage version (`v1` of each group).
pub fn objects() -> Vec<Object> {
    let mut all = namespaces();
    all.extend(priority_classes());
    all.extend(policy::objects());
    all.extend(controllers::objects());
    all
}

/// The static rules of the Node authorizer, for what its graph does not decide.
pub fn node_rules() -> Vec<Rule> {
    policy::NODE_RULES.iter().map(Line::rule).collect()
}

/// In the core group these exist before anyone asks, and can't be deleted.
pub const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

fn namespaces() -> Vec<Object> {
    SYSTEM_NAMESPACES
        .iter()
        .map(|name| Object {
            resource: GroupResource::new("", "namespaces"),
            object: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}),
        })
        .collect()
}

pub const SYSTEM_CLUSTER_CRITICAL: &str = "system-cluster-critical";
pub const SYSTEM_NODE_CRITICAL: &str = "system-node-critical";

fn priority_classes() -> Vec<Object> {
    let class = |name: &str, value: i64, description: &str| Object {
        resource: GroupResource::new("scheduling.k8s.io", "priorityclasses"),
        object: json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name, "generation": 1},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        }),
    };
    vec![
        class(SYSTEM_NODE_CRITICAL, 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
        class(
            SYSTEM_CLUSTER_CRITICAL,
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// A rule as a table line: space-separated lists; `core` is the core group.
#[derive(Clone, Copy, PartialEq)]
struct Line {
    verbs: &'static str,
    groups: &'static str,
    /// Resources, or non-resource URLs when `groups` is empty.
    things: &'static str,
    names: &'static str,
}

const fn on(verbs: &'static str, groups: &'static str, resources: &'static str) -> Line {
    Line { verbs, groups, things: resources, names: "" }
}

const fn named(verbs: &'static str, groups: &'static str, resources: &'static str, names: &'static str) -> Line {
    Line { verbs, groups, things: resources, names }
}

const fn urls(verbs: &'static str, urls: &'static str) -> Line {
    Line { verbs, groups: "", things: urls, names: "" }
}

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const READ_WRITE: &str = "create delete deletecollection get list patch update watch";
const EVENTS: Line = on("create patch update", "core events.k8s.io", "events");

impl Line {
    fn rule(&self) -> Rule {
        let sorted = |text: &str| {
            let mut items: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            items.sort();
            items
        };
        let mut rule = Rule { verbs: sorted(self.verbs), resource_names: sorted(self.names), ..Rule::default() };
        if self.groups.is_empty() {
            rule.non_resource_urls = sorted(self.things);
        } else {
            rule.api_groups = sorted(self.groups).into_iter().map(|g| if g == "core" { String::new() } else { g }).collect();
            rule.api_groups.sort();
            rule.resources = sorted(self.things);
        }
        rule
    }
}

/// A role: cluster-wide when `namespace` is empty.
struct Role<'a> {
    namespace: &'a str,
    name: &'a str,
    /// The aggregated role this one is part of: admin, edit or view.
    part_of: &'a str,
    /// Labels of the roles this one is the sum of.
    sum_of: &'a str,
    rules: &'a [Line],
}

const fn role(name: &'static str, rules: &'static [Line]) -> Role<'static> {
    Role { namespace: "", name, part_of: "", sum_of: "", rules }
}

/// A binding to the role of the same scope: subjects as `user:NAME`, `group:NAME`, `sa:NAME` (in kube-system).
struct Binding<'a> {
    namespace: &'a str,
    name: &'a str,
    role: &'a str,
    subjects: &'a str,
}

const fn bind(role: &'static str, subjects: &'static str) -> Binding<'static> {
    Binding { namespace: "", name: role, role, subjects }
}

fn rbac_object(kind: &str, namespace: &str, name: &str, body: Value) -> Object {
    let mut object = json!({
        "apiVersion": format!("{RBAC_GROUP}/v1"), "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {reconcile::AUTO_UPDATE: "true"},
        },
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    if let (Some(object), Value::Object(body)) = (object.as_object_mut(), body) {
        object.extend(body);
    }
    Object { resource: GroupResource::new(RBAC_GROUP, format!("{}s", kind.to_lowercase())), object }
}

impl Role<'_> {
    fn object(&self) -> Object {
        let kind = if self.namespace.is_empty() { "ClusterRole" } else { "Role" };
        let label = |to: &str| format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        let rules: Vec<Rule> = self.rules.iter().map(Line::rule).collect();
        let mut body = json!({"rules": rules});
        if !self.sum_of.is_empty() {
            body = json!({"rules": null, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {label(self.sum_of): "true"}}]}});
        }
        let mut made = rbac_object(kind, self.namespace, self.name, body);
        if !self.part_of.is_empty() {
            made.object["metadata"]["labels"][label(self.part_of)] = "true".into();
        }
        made
    }
}

impl Binding<'_> {
    fn object(&self) -> Object {
        let (kind, role_kind) = if self.namespace.is_empty() { ("ClusterRoleBinding", "ClusterRole") } else { ("RoleBinding", "Role") };
        let subjects: Vec<Value> = self
            .subjects
            .split_whitespace()
            .map(|subject| match subject.split_once(':') {
                Some(("sa", name)) => json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": name}),
                Some(("user", name)) => json!({"apiGroup": RBAC_GROUP, "kind": "User", "name": name}),
                _ => json!({"apiGroup": RBAC_GROUP, "kind": "Group", "name": subject.trim_start_matches("group:")}),
            })
            .collect();
        let role_ref = json!({"apiGroup": RBAC_GROUP, "kind": role_kind, "name": self.role});
        rbac_object(kind, self.namespace, self.name, json!({"roleRef": role_ref, "subjects": subjects}))
    }
}
