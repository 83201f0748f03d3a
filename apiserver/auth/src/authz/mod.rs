//! May they: the Node authorizer, then RBAC; the first to allow decides, and nobody allowing is a no.
//!
//! Both work on views of their own, fed with every committed change ([`Authorizer::observe`]): the node graph is
//! updated in place, RBAC's rules are compiled again on the next question.
//!
//! Upstream: `apiserver/pkg/authorization/union`, `plugin/pkg/auth/authorizer/{node,rbac}` (v1.33).

mod attributes;
pub mod escalation;
mod graph;
mod node;
mod rbac;
mod rules;
#[cfg(test)]
mod tests;

use api::{GroupResource, Key};
use parking_lot::RwLock;
use serde_json::Value;

pub use attributes::{Attributes, Decision, forbidden};
pub(crate) use graph::{Kind as ReferenceKind, pod_references};
pub(crate) use rbac::aggregate;
pub use rbac::{RBAC_GROUP, Rbac};
pub use rules::{Rule, RulesReview};

use crate::user::{PRIVILEGED_GROUP, User};

#[derive(Default)]
pub struct Authorizer {
    graph: RwLock<graph::Graph>,
    rbac: Rbac,
}

impl Authorizer {
    pub fn new() -> Self {
        Authorizer::default()
    }

    pub fn authorize(&self, attributes: &Attributes) -> Decision {
        if attributes.user.in_group(PRIVILEGED_GROUP) {
            return Decision::Allow(String::new());
        }
        let node = node::authorize(attributes, &self.graph);
        if !matches!(node, Decision::NoOpinion(_)) {
            return node;
        }
        let rbac = self.rbac.authorize(attributes);
        if !matches!(rbac, Decision::NoOpinion(_)) {
            return rbac;
        }
        let reasons: Vec<&str> = [node.reason(), rbac.reason()].into_iter().filter(|r| !r.is_empty()).collect();
        Decision::NoOpinion(reasons.join("\n"))
    }

    /// `Ok` or the 403 a client sees.
    pub fn check(&self, attributes: &Attributes) -> Result<(), api::Status> {
        match self.authorize(attributes) {
            Decision::Allow(_) => Ok(()),
            refused => Err(forbidden(attributes, refused.reason())),
        }
    }

    /// Every committed change in revision order, before readers of the API can see it, and at start every stored object.
    /// Cheap for resources this crate does not follow.
    pub fn observe(&self, resource: &GroupResource, key: &Key, new: Option<&Value>) {
        if resource.group == RBAC_GROUP {
            self.rbac.observe(&resource.resource, key, new);
        } else if graph::follows(resource) {
            self.graph.write().observe(resource, key, new);
        }
    }

    /// For SelfSubjectRulesReview. Node permissions are not enumerable, as upstream.
    pub fn rules_for(&self, user: &User, namespace: &str) -> RulesReview {
        self.rbac.rules_for(user, namespace)
    }

    pub fn rbac(&self) -> &Rbac {
        &self.rbac
    }
}
