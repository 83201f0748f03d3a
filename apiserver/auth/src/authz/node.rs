//! What a kubelet may do: its own node, lease and CSINode; its pods; and what those pods refer to.
//!
//! Never denies: where it has no answer RBAC may still have one.
//!
//! Upstream: `plugin/pkg/auth/authorizer/node/node_authorizer.go` (v1.33, AuthorizeNodeWithSelectors on).

use std::sync::LazyLock;

use api::Key;
use api::selector::Operator;
use api::volume::directory;
use parking_lot::RwLock;

use super::attributes::{Attributes, Decision};
use super::graph::{Graph, Kind};
use super::rules::Rule;
use crate::bootstrap;

static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(bootstrap::node_rules);

pub fn authorize(attributes: &Attributes, graph: &RwLock<Graph>) -> Decision {
    let Some(node) = attributes.user.node_name() else { return no("") };
    if node.is_empty() {
        return no(format!("unknown node for user {:?}", attributes.user.name));
    }
    if attributes.resource_request {
        let request = Request { node, attributes, graph };
        match (attributes.api_group.as_str(), attributes.resource.as_str()) {
            ("", "secrets") => return request.read(Kind::Secret),
            ("", "configmaps") => return request.read(Kind::ConfigMap),
            ("", "persistentvolumeclaims") => return request.claim(),
            ("", "persistentvolumes") => return request.volume(),
            ("storage.k8s.io", "volumeattachments") => return request.get(|graph, key| graph.has_attachment(node, &key.name)),
            ("", "serviceaccounts") => return request.token(),
            ("coordination.k8s.io", "leases") => return request.lease(),
            ("storage.k8s.io", "csinodes") => return request.csi_node(),
            ("", "nodes") => return request.node(),
            ("", "pods") => return request.pod(),
            _ => {}
        }
    }
    if NODE_RULES.iter().any(|rule| rule.allows(attributes)) { yes() } else { no("") }
}

fn yes() -> Decision {
    Decision::Allow(String::new())
}

fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

struct Request<'a> {
    node: &'a str,
    attributes: &'a Attributes,
    graph: &'a RwLock<Graph>,
}

impl Request<'_> {
    fn verb(&self) -> &str {
        &self.attributes.verb
    }

    fn related(&self, related: impl Fn(&Graph, &Key) -> bool) -> Decision {
        if self.attributes.name.is_empty() {
            return no("No Object name found");
        }
        let key = Key::new(self.attributes.namespace.clone(), self.attributes.name.clone());
        if related(&self.graph.read(), &key) {
            return yes();
        }
        no(format!("no relationship found between node '{}' and this object", self.node))
    }

    fn get(&self, related: impl Fn(&Graph, &Key) -> bool) -> Decision {
        if self.verb() != "get" {
            return no("can only get individual resources of this type");
        }
        if !self.attributes.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(related)
    }

    fn read(&self, kind: Kind) -> Decision {
        if !self.attributes.is_read_only() {
            return no("can only read resources of this type");
        }
        if !self.attributes.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if self.attributes.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(|graph, key| graph.uses(self.node, kind, key))
    }

    fn claim(&self) -> Decision {
        let related = |graph: &Graph, key: &Key| graph.uses(self.node, Kind::Claim, key);
        if self.attributes.subresource != "status" {
            return self.get(related);
        }
        match self.verb() {
            "update" | "patch" => self.related(related),
            _ => no("can only get/update/patch this type"),
        }
    }

    /// Beyond upstream: the node's own directories, of which it must know when to remove one, and must say that it has.
    /// What it may write, NodeRestriction checks.
    fn volume(&self) -> Decision {
        let own = |graph: &Graph, key: &Key| graph.has_directory(self.node, &key.name);
        match self.verb() {
            "list" | "watch" if self.selects_own_directories() => yes(),
            "patch" if self.attributes.subresource.is_empty() => self.related(own),
            _ => self.get(|graph, key| graph.uses_volume(self.node, &key.name)),
        }
    }

    fn selects_own_directories(&self) -> bool {
        let requirements = self.attributes.label_selector.iter().flat_map(|selector| selector.requirements());
        requirements.into_iter().any(|r| r.key == directory::NODE && r.operator == Operator::In && r.values == [self.node])
    }

    fn token(&self) -> Decision {
        if self.verb() != "create" || self.attributes.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if self.attributes.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(|graph, key| graph.uses(self.node, Kind::ServiceAccount, key))
    }

    fn lease(&self) -> Decision {
        if !matches!(self.verb(), "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a node lease");
        }
        if self.attributes.namespace != "kube-node-lease" {
            return no("can only access leases in the \"kube-node-lease\" system namespace");
        }
        // The name of what is being created is not known here: NodeRestriction checks it.
        if self.verb() != "create" && self.attributes.name != self.node {
            return no("can only access node lease with the same name as the requesting node");
        }
        yes()
    }

    fn csi_node(&self) -> Decision {
        if !matches!(self.verb(), "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a CSINode");
        }
        if !self.attributes.subresource.is_empty() {
            return no("cannot authorize CSINode subresources");
        }
        if self.verb() != "create" && self.attributes.name != self.node {
            return no("can only access CSINode with the same name as the requesting node");
        }
        yes()
    }

    fn node(&self) -> Decision {
        match (self.attributes.subresource.as_str(), self.verb()) {
            // Whose node is written is NodeRestriction's to check.
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => yes(),
            ("", "get" | "list" | "watch") => match self.attributes.name.as_str() {
                name if name == self.node => yes(),
                "" => no(format!("node '{}' cannot read all nodes, only its own Node object", self.node)),
                other => no(format!("node '{}' cannot read '{other}', only its own Node object", self.node)),
            },
            _ => no(""),
        }
    }

    fn pod(&self) -> Decision {
        match (self.attributes.subresource.as_str(), self.verb()) {
            ("", "get") => self.get(|graph, key| graph.runs_pod(self.node, key)),
            ("", "list" | "watch") => {
                let on_node = self.attributes.field_selector.as_ref().and_then(|selector| selector.exact("spec.nodeName"));
                match on_node {
                    Some(node) if node == self.node => yes(),
                    // One pod by name.
                    _ if !self.attributes.name.is_empty() => self.related(|graph, key| graph.runs_pod(self.node, key)),
                    _ => no("can only list/watch pods with spec.nodeName field selector"),
                }
            }
            // Which pods, NodeRestriction checks.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => yes(),
            _ => no(""),
        }
    }
}
