//! RbacEscalation: the check of `authz::escalation` on writes of roles and bindings.
//!
//! Upstream makes it in the storage of those kinds (`pkg/registry/rbac/*/policybased`); as a link of the chain it can't be forgotten.

use serde_json::Value;

use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::authz::{RBAC_GROUP, escalation};

pub struct RbacEscalation;

impl Plugin for RbacEscalation {
    fn name(&self) -> &'static str {
        "RbacEscalation"
    }

    fn validate(&self, request: &Request<'_>, object: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        let applies = matches!(request.operation, Operation::Create | Operation::Update) && request.resource.group == RBAC_GROUP;
        if !applies || !request.subresource.is_empty() {
            return Ok(());
        }
        let write = escalation::Write {
            user: request.user,
            resource: &request.resource.resource,
            namespace: request.namespace,
            new: object,
            old: request.old,
        };
        escalation::check(&write, request.authorizer, request.lookup).map_err(Refusal::from)
    }
}
