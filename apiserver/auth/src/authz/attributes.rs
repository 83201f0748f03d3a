//! What is asked of an authorizer, what it answers, and how a refusal reads.
//!
//! Upstream: `apiserver/pkg/authorization/authorizer`, `endpoints/handlers/responsewriters/errors.go`.

use std::sync::Arc;

use api::{FieldSelector, GroupResource, LabelSelector, Status};

use crate::user::User;

#[derive(Clone, Debug, Default)]
pub struct Attributes {
    pub user: Arc<User>,
    /// get, list, watch, create, update, patch, delete, deletecollection, … or the lower-case HTTP method
    pub verb: String,
    pub namespace: String,
    pub api_group: String,
    pub api_version: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Of a request that names no resource.
    pub path: String,
    pub resource_request: bool,
    pub field_selector: Option<FieldSelector>,
    pub label_selector: Option<LabelSelector>,
}

impl Attributes {
    /// `get`, `list` and `watch` change nothing.
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.api_group.clone(), self.resource.clone())
    }

    /// `pods` or `pods/exec`.
    pub fn combined_resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            sub => format!("{}/{sub}", self.resource),
        }
    }
}

/// Each with a reason, often empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// No, whatever the others say.
    Deny(String),
    /// Ask the next; nobody left means no.
    NoOpinion(String),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }

    pub fn reason(&self) -> &str {
        match self {
            Decision::Allow(reason) | Decision::Deny(reason) | Decision::NoOpinion(reason) => reason,
        }
    }
}

/// The 403: `pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default"`.
pub fn forbidden(attributes: &Attributes, reason: &str) -> Status {
    let Attributes { user, verb, namespace, api_group, path, .. } = attributes;
    let user = &user.name;
    let mut message = if attributes.resource_request {
        let place = match namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!("User {user:?} cannot {verb} resource {:?} in API group {api_group:?} {place}", attributes.combined_resource())
    } else {
        format!("User {user:?} cannot {verb} path {path:?}")
    };
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    let resource = if attributes.resource_request { attributes.group_resource() } else { GroupResource::default() };
    Status::forbidden(&resource, &attributes.name, message)
}
