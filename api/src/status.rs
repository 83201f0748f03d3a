//! `meta/v1 Status` as an error type: the one form in which the API server says no.
//!
//! Upstream: `apimachinery/pkg/api/errors/errors.go` (v1.33): same codes, reasons and messages.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::field;
use crate::key::{GroupKind, GroupResource};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    #[serde(rename = "")]
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A refusal. Serializes as `kind: Status, apiVersion: v1, metadata: {}, status: Failure`.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// For a list that can go on, though not in its snapshot.
    pub continue_token: Option<Box<str>>,
}

impl std::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", "Status")?;
        map.serialize_entry("apiVersion", "v1")?;
        let meta = self.continue_token.iter().map(|token| ("continue", token));
        map.serialize_entry("metadata", &meta.collect::<std::collections::BTreeMap<_, _>>())?;
        map.serialize_entry("status", "Failure")?;
        map.serialize_entry("message", &self.message)?;
        if self.reason != Reason::Unknown {
            map.serialize_entry("reason", &self.reason)?;
        }
        if let Some(details) = &self.details {
            map.serialize_entry("details", details)?;
        }
        map.serialize_entry("code", &self.code)?;
        map.end()
    }
}

impl Status {
    /// For the rare refusal without a function of its own below.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None, continue_token: None }
    }

    #[must_use]
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    #[must_use]
    pub fn with_cause(mut self, reason: &str, field: &str, message: impl Into<String>) -> Self {
        let cause = StatusCause { reason: reason.to_owned(), message: message.into(), field: field.to_owned() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// Details naming the resource, as upstream does: `kind` holds the plural resource name.
    fn about(self, resource: &GroupResource, name: &str) -> Self {
        self.with_details(Details {
            name: name.to_owned(),
            group: resource.group.clone(),
            kind: resource.resource.clone(),
            ..Details::default()
        })
    }

    #[must_use]
    pub fn with_continue(mut self, token: String) -> Self {
        self.continue_token = Some(token.into());
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::new(400, Reason::BadRequest, message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        let message = message.into();
        Status::new(401, Reason::Unauthorized, if message.is_empty() { "Unauthorized".to_owned() } else { message })
    }

    /// `pods "x" is forbidden: why`, or `pods is forbidden: why`, or `forbidden: why` without a resource.
    pub fn forbidden(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = match (resource.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Status::new(403, Reason::Forbidden, message).about(resource, name)
    }

    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Status::new(404, Reason::NotFound, format!("{resource} {name:?} not found")).about(resource, name)
    }

    /// For a path no resource is served under.
    pub fn no_such_resource() -> Self {
        Status::new(404, Reason::NotFound, "the server could not find the requested resource").with_details(Details::default())
    }

    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Status::new(409, Reason::AlreadyExists, format!("{resource} {name:?} already exists")).about(resource, name)
    }

    /// `generateName` met an existing name too often.
    pub fn generate_name_conflict(resource: &GroupResource, name: &str) -> Self {
        let message = format!("{resource} {name:?} already exists, the server was not able to generate a unique name for the object");
        Status::new(409, Reason::AlreadyExists, message).about(resource, name).with_retry_after(1)
    }

    pub fn conflict(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Status::new(409, Reason::Conflict, message).about(resource, name)
    }

    /// Optimistic locking failed.
    pub fn modified(resource: &GroupResource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Status::conflict(resource, name, why)
    }

    pub fn invalid(kind: &GroupKind, name: &str, errors: Vec<field::Error>) -> Self {
        let causes =
            errors.iter().map(|e| StatusCause { reason: e.kind.reason().to_owned(), message: e.body(), field: e.field.clone() }).collect();
        let message = if errors.is_empty() {
            format!("{kind} {name:?} is invalid")
        } else {
            format!("{kind} {name:?} is invalid: {}", field::aggregate(&errors))
        };
        Status::new(422, Reason::Invalid, message).with_details(Details {
            name: name.to_owned(),
            group: kind.group.clone(),
            kind: kind.kind.clone(),
            causes,
            ..Details::default()
        })
    }

    pub fn method_not_supported(resource: &GroupResource, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {:?}", resource.to_string());
        Status::new(405, Reason::MethodNotAllowed, message).about(resource, "")
    }

    /// A method the path does not take at all.
    pub fn method_not_allowed() -> Self {
        Status::new(405, Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
            .with_details(Details::default())
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Status::new(406, Reason::NotAcceptable, message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!("the body of the request was in an unknown format - accepted media types include: {}", accepted.join(", "));
        Status::new(415, Reason::UnsupportedMediaType, message)
    }

    /// For a patch of no known type. Upstream's router says it, before the handler that would list the known ones.
    pub fn unsupported_patch() -> Self {
        Status::new(415, Reason::UnsupportedMediaType, "415: Unsupported Media Type").with_details(Details::default())
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Status::new(413, Reason::RequestEntityTooLarge, format!("Request entity too large: {}", message.into()))
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Status::new(410, Reason::Gone, message)
    }

    /// A resource version or continue token that has been compacted away.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::new(410, Reason::Expired, message)
    }

    pub fn timeout(message: impl Into<String>, retry_seconds: u32) -> Self {
        Status::new(504, Reason::Timeout, format!("Timeout: {}", message.into())).with_retry_after(retry_seconds)
    }

    pub fn server_timeout(resource: &GroupResource, operation: &str, retry_seconds: u32) -> Self {
        let message = format!("The {operation} operation against {resource} could not be completed at this time, please try again.");
        Status::new(500, Reason::ServerTimeout, message).about(resource, "").with_retry_after(retry_seconds)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_seconds: u32) -> Self {
        let status = Status::new(429, Reason::TooManyRequests, message);
        if retry_seconds > 0 { status.with_retry_after(retry_seconds) } else { status.with_details(Details::default()) }
    }

    pub fn internal(error: impl fmt::Display) -> Self {
        let detail = error.to_string();
        Status::new(500, Reason::InternalError, format!("Internal error occurred: {detail}")).with_cause("", "", detail)
    }

    /// An error that upstream returns without a reason: 500 and the bare text.
    pub fn unclassified(message: impl Into<String>) -> Self {
        Status::new(500, Reason::Unknown, message)
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Status::new(503, Reason::ServiceUnavailable, message)
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serializes_as_a_status_object() {
        let status = Status::not_found(&GroupResource::new("apps", "deployments"), "web");
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"web\" not found","reason":"NotFound","details":{"name":"web","group":"apps","kind":"deployments"},"code":404}"#
        );
    }
}
