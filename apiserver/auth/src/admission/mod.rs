//! Policy on writes: plugins that change an object, then plugins that refuse it, in upstream's order.
//!
//! ```text
//! decode → default → [`mutate`] ──► validate ──► [`validate`] ─► Outcome { warnings, charges } → compare-and-swap
//!                     │ Refusal::Transient: what is missing is on its way; wait for it and call again
//! ```
//! A plugin is one file and one row of [`CHAIN`]. Plugins see the object in its storage version.
//!
//! Upstream: `apiserver/pkg/admission`, `pkg/kubeapiserver/options/plugins.go` (order and defaults, v1.33).

mod certificates;
#[cfg(test)]
mod identity_tests;
mod ingress;
mod limit_ranger;
mod namespace;
mod node_restriction;
mod nodes;
mod object;
mod pod_security;
mod priority;
mod quota;
mod runtime_class;
mod service_account;
mod storage;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::{GroupKind, GroupResource, Key, Status};
use jiff::Timestamp;
use serde_json::Value;

use crate::authz::{Attributes, Authorizer, ReferenceKind, pod_references};
use crate::lookup::text;
use crate::{Lookup, User};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// exec, attach, portforward, proxy
    Connect,
}

/// Everything about a write but the object itself.
pub struct Request<'a> {
    pub user: &'a Arc<User>,
    pub operation: Operation,
    /// Of the body: `Pod`, or for `pods/eviction` `Eviction.policy`.
    pub kind: &'a GroupKind,
    pub resource: &'a GroupResource,
    pub subresource: &'a str,
    /// "" for cluster-scoped resources.
    pub namespace: &'a str,
    /// "" in a create by `generateName`.
    pub name: &'a str,
    /// The stored object, on update and delete.
    pub old: Option<&'a Value>,
    /// An apply or update that creates what is not there.
    pub dry_run: bool,
    pub now: Timestamp,
    pub lookup: &'a dyn Lookup,
    pub authorizer: &'a Authorizer,
}

impl Request<'_> {
    /// Whether this is about `resource` ("pods", "deployments.apps") itself and not a subresource.
    pub fn is(&self, resource: &str) -> bool {
        self.subresource.is_empty() && self.is_any(resource)
    }

    /// The resource or any of its subresources.
    pub fn is_any(&self, resource: &str) -> bool {
        match resource.split_once('.') {
            Some((name, group)) => self.resource.resource == name && self.resource.group == group,
            None => self.resource.resource == resource && self.resource.group.is_empty(),
        }
    }

    /// 403 about the object, which may not have its final name yet.
    pub fn forbidden(&self, object: &Value, why: impl std::fmt::Display) -> Refusal {
        let names = [self.name, text(object, "/metadata/name"), text(object, "/metadata/generateName"), "Unknown"];
        let name = names.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
        Refusal::Denied(Status::forbidden(self.resource, name, why))
    }

    /// Whether the caller may do `verb` to something of the API, by the same rules as a request of its own.
    pub fn may(&self, verb: &str, resource: &GroupResource, namespace: &str, name: &str) -> bool {
        let attributes = Attributes {
            user: self.user.clone(),
            verb: verb.to_owned(),
            namespace: namespace.to_owned(),
            api_group: resource.group.clone(),
            api_version: "*".to_owned(),
            resource: resource.resource.clone(),
            name: name.to_owned(),
            resource_request: true,
            ..Attributes::default()
        };
        self.authorizer.authorize(&attributes).is_allowed()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    Denied(Status),
    /// Denied for now: something a controller is about to make is not there yet (the `default` service account of a
    /// new namespace). Try again for about a second, as upstream does, before giving the client this status.
    Transient(Status),
}

impl Refusal {
    pub fn status(self) -> Status {
        match self {
            Refusal::Denied(status) | Refusal::Transient(status) => status,
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal::Denied(status)
    }
}

/// What validating admission leaves to do besides the write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// `Warning` headers.
    pub warnings: Vec<String>,
    /// Quota statuses to compare-and-swap before the object is written; [`charges`] gives them anew when it is their turn.
    pub charges: Vec<Charge>,
}

/// A ResourceQuota with its new `status.used`, to be written at the revision it was read at.
#[derive(Clone, Debug, PartialEq)]
pub struct Charge {
    pub quota: Value,
}

pub trait Plugin: Sync {
    fn name(&self) -> &'static str;

    /// `object` is `Null` where the request has none (delete, connect).
    fn mutate(&self, _request: &Request<'_>, _object: &mut Value) -> Result<(), Refusal> {
        Ok(())
    }

    fn validate(&self, _request: &Request<'_>, _object: &Value, _outcome: &mut Outcome) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Upstream's recommended order; the plugins it enables by default.
pub const CHAIN: &[&dyn Plugin] = &[
    &namespace::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &nodes::TaintNodesByCondition,
    &pod_security::PodSecurity,
    &priority::Priority,
    &nodes::DefaultTolerationSeconds,
    &storage::DefaultStorageClass,
    &storage::StorageObjectInUseProtection,
    &storage::PersistentVolumeClaimResize,
    &runtime_class::RuntimeClass,
    &certificates::CertificateApproval,
    &certificates::CertificateSigning,
    &certificates::CertificateSubjectRestriction,
    &ingress::DefaultIngressClass,
    &quota::ResourceQuota,
];

/// The mutating phase. May be repeated from the object as decoded.
pub fn mutate(request: &Request<'_>, object: &mut Value) -> Result<(), Refusal> {
    CHAIN.iter().try_for_each(|plugin| plugin.mutate(request, object))
}

/// The validating phase, on the object as it will be stored.
pub fn validate(request: &Request<'_>, object: &Value) -> Result<Outcome, Refusal> {
    let mut outcome = Outcome::default();
    for plugin in CHAIN {
        plugin.validate(request, object, &mut outcome)?;
    }
    Ok(outcome)
}

/// What the quotas as they are now would be charged for an object that passed [`validate`] before.
pub fn charges(request: &Request<'_>, object: &Value) -> Result<Vec<Charge>, Refusal> {
    let mut outcome = Outcome::default();
    quota::ResourceQuota.validate(request, object, &mut outcome)?;
    Ok(outcome.charges)
}

/// Whether a pod names any object of a kind.
fn refers_to(pod: &Value, kind: ReferenceKind) -> bool {
    pod_references(pod, &Key::cluster("")).iter().any(|(found, _)| *found == kind)
}
