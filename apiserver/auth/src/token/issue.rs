//! The TokenRequest subresource: `POST serviceaccounts/NAME/token`.
//!
//! Upstream: `pkg/registry/core/serviceaccount/storage/token.go`, `pkg/apis/authentication/validation`.

use api::{GroupKind, GroupResource, Status, field};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::claims::{Bindings, Claims, Reference};
use super::keys::SigningKey;
use crate::lookup::{Lookup, LookupExt, text};
use crate::user::service_account_name;

/// Requests of exactly this length come from `kube-api-access` volumes; pod-bound ones get a year, so that
/// a program which reads its token only once keeps working, and `warnafter` tells the difference.
const WARN_ONLY_SECONDS: i64 = 60 * 60 + 7;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;
const MIN_SECONDS: i64 = 10 * 60;
const MAX_SECONDS: i64 = 1 << 32;
const DEFAULT_SECONDS: i64 = 60 * 60;

pub struct Issuer {
    key: SigningKey,
    url: String,
    /// Audiences of a token that asks for none, and those the API server accepts.
    audiences: Vec<String>,
}

/// One call: the account from the path, the body, the clock.
pub struct Request<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub body: TokenRequest,
    pub now: Timestamp,
}

/// The answer's body, and the token's id for the audit trail.
pub struct Issued {
    pub body: TokenRequest,
    pub id: String,
}

impl Issuer {
    pub fn new(key: SigningKey, url: impl Into<String>, audiences: Vec<String>) -> Self {
        Issuer { key, url: url.into(), audiences }
    }

    pub fn issue(&self, request: Request<'_>, lookup: &dyn Lookup) -> Result<Issued, Status> {
        let Request { namespace, name, mut body, now } = request;
        let seconds = *body.spec.expiration_seconds.get_or_insert(DEFAULT_SECONDS);
        validate(&body)?;
        let account = lookup
            .core("serviceaccounts", namespace, name)
            .ok_or_else(|| Status::not_found(&GroupResource::new("", "serviceaccounts"), name))?;
        check_meta(&mut body, namespace, name)?;
        let mut bindings = Bindings { namespace: namespace.to_owned(), serviceaccount: reference(&account), ..Bindings::default() };
        if let Some(bound) = &body.spec.bound_object_ref {
            bind(&mut bindings, bound, name, lookup)?;
        }
        if body.spec.audiences.is_empty() {
            body.spec.audiences = self.audiences.clone();
        }
        let mut lifetime = seconds;
        if bindings.pod.is_some() && seconds == WARN_ONLY_SECONDS && self.is_our_audience(&body.spec.audiences) {
            bindings.warnafter = Some(now.as_second() + seconds);
            lifetime = EXTENDED_SECONDS;
        }
        let id = uuid::Uuid::new_v4().to_string();
        let claims = Claims {
            aud: body.spec.audiences.clone(),
            exp: Some(now.as_second() + lifetime),
            iat: Some(now.as_second()),
            iss: self.url.clone(),
            jti: id.clone(),
            bindings,
            nbf: Some(now.as_second()),
            sub: service_account_name(namespace, name),
        };
        let expires = now + SignedDuration::from_secs(seconds);
        body.status = Some(TokenRequestStatus { token: self.sign(&claims)?, expiration_timestamp: Time(expires) });
        Ok(Issued { body, id })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String, Status> {
        let header = json!({"alg": self.key.algorithm().name(), "kid": self.key.public().id});
        let claims = serde_json::to_vec(claims).map_err(Status::internal)?;
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.key.sign(token.as_bytes()).map_err(|e| Status::internal(format!("failed to sign token: {e}")))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    fn is_our_audience(&self, audiences: &[String]) -> bool {
        audiences.iter().all(|audience| self.audiences.contains(audience))
    }
}

fn validate(body: &TokenRequest) -> Result<(), Status> {
    let path = field::Path::new("spec").child("expirationSeconds");
    let seconds = body.spec.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
    let mut errors = Vec::new();
    if seconds < MIN_SECONDS {
        errors.push(field::Error::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > MAX_SECONDS {
        errors.push(field::Error::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&GroupKind::new("authentication.k8s.io", "TokenRequest"), "", errors))
}

/// A body may repeat the path's names; it may not contradict them.
fn check_meta(body: &mut TokenRequest, namespace: &str, name: &str) -> Result<(), Status> {
    let meta = &mut body.metadata;
    if meta.name.as_deref().is_some_and(|n| !n.is_empty() && n != name) {
        return Err(Status::bad_request("must match the service account name"));
    }
    if meta.namespace.as_deref().is_some_and(|n| !n.is_empty() && n != namespace) {
        return Err(Status::bad_request("must match the service account namespace"));
    }
    meta.name = Some(name.to_owned());
    meta.namespace = Some(namespace.to_owned());
    Ok(())
}

fn reference(object: &Value) -> Reference {
    Reference { name: text(object, "/metadata/name").to_owned(), uid: text(object, "/metadata/uid").to_owned() }
}

/// Ties the token's life to an object's: `spec.boundObjectRef`.
fn bind(bindings: &mut Bindings, bound: &BoundObjectReference, account: &str, lookup: &dyn Lookup) -> Result<(), Status> {
    let api_version = bound.api_version.as_deref().unwrap_or_default();
    let kind = bound.kind.as_deref().unwrap_or_default();
    let name = bound.name.as_deref().unwrap_or_default();
    let find = |resource: &str, namespace: &str| {
        lookup.core(resource, namespace, name).ok_or_else(|| Status::not_found(&GroupResource::new("", resource), name))
    };
    let group = api::key::parse_api_version(api_version).0;
    let found = match (group, kind) {
        ("", "Pod") => {
            let pod = find("pods", &bindings.namespace)?;
            if text(&pod, "/spec/serviceAccountName") != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            bindings.pod = Some(reference(&pod));
            bindings.node = node_of(&pod, lookup);
            pod
        }
        ("", "Secret") => {
            let secret = find("secrets", &bindings.namespace)?;
            bindings.secret = Some(reference(&secret));
            secret
        }
        ("", "Node") => {
            let node = find("nodes", "")?;
            bindings.node = Some(reference(&node));
            node
        }
        _ => return Err(Status::bad_request(format!("cannot bind token to object of type {}", go_gvk(api_version, kind)))),
    };
    let (asked, actual) = (bound.uid.as_deref().unwrap_or_default(), text(&found, "/metadata/uid"));
    if !asked.is_empty() && asked != actual {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&GroupResource::new(group, kind), name, why));
    }
    Ok(())
}

/// A pod-bound token also names the pod's node; without a uid when the node object is gone.
fn node_of(pod: &Value, lookup: &dyn Lookup) -> Option<Reference> {
    let name = text(pod, "/spec/nodeName");
    if name.is_empty() {
        return None;
    }
    let node = lookup.core("nodes", "", name);
    Some(node.map_or_else(|| Reference { name: name.to_owned(), uid: String::new() }, |node| reference(&node)))
}

/// Go's `GroupVersionKind.String`: `apps/v1, Kind=Deployment`.
fn go_gvk(api_version: &str, kind: &str) -> String {
    let (group, version) = api::key::parse_api_version(api_version);
    format!("{group}/{version}, Kind={kind}")
}
