//! NamespaceLifecycle: nothing is made in a namespace that is missing or on its way out.
//!
//! Upstream: `apiserver/pkg/admission/plugin/namespace/lifecycle`. Its waits and live lookups answer informer lag,
//! which [`crate::Lookup`] does not have.

use api::{GroupResource, Status};
use serde_json::Value;

use super::{Operation, Plugin, Refusal, Request};
use crate::lookup::{LookupExt, text};

pub struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Refusal> {
        let is_namespace = request.is_any("namespaces");
        if is_namespace && request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
            return Err(request.forbidden(object, "this namespace may not be deleted"));
        }
        // A review must not tell which namespaces exist.
        let is_review = request.is("localsubjectaccessreviews.authorization.k8s.io");
        let applies = matches!(request.operation, Operation::Create | Operation::Update);
        if request.namespace.is_empty() || is_namespace || is_review || !applies {
            return Ok(());
        }
        let name = request.namespace;
        let Some(namespace) = request.lookup.core("namespaces", "", name) else {
            return Err(Status::not_found(&GroupResource::new("", "namespaces"), name).into());
        };
        if request.operation != Operation::Create || text(&namespace, "/status/phase") != "Terminating" {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let status = request.forbidden(object, why).status();
        let cause = format!("namespace {name} is being terminated");
        Err(status.with_cause("NamespaceTerminating", "metadata.namespace", cause).into())
    }
}
