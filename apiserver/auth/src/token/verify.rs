//! From a bearer string to a user: signature, audience, time, and every binding against the cluster.
//!
//! Signatures are checked once per token and remembered by digest; bindings are looked up on every call,
//! so a deleted account, pod, secret or node ends its tokens at once.

use std::collections::HashMap;

use api::{GroupResource, Key};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::Arc;

use super::claims::{Claims, LEGACY_ISSUER, LegacyClaims, Reference};
use super::keys::VerifyingKey;
use crate::lookup::{Lookup, is_being_deleted, meta_entry, text};
use crate::user::{User, extra};

/// Clocks may differ by this much, and an object that is being deleted counts as there for as long.
const LEEWAY_SECONDS: i64 = 60;
const REMEMBERED: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not one of our tokens: another authenticator may know it.
    #[error("invalid bearer token")]
    Foreign,
    #[error("invalid signature, {0}")]
    Signature(&'static str),
    #[error("token audiences {tokens} is invalid for the target audiences {targets}")]
    Audience { tokens: String, targets: String },
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    #[error("service account token has been invalidated")]
    Invalidated,
    #[error("token does not match server's copy")]
    NotTheStored,
    #[error("the token in secret {0} has been marked invalid")]
    MarkedInvalid(Key),
    #[error("{resource} {name:?} not found")]
    NoAccount { resource: &'static str, name: String },
    #[error("service account {0} has been deleted")]
    AccountDeleted(Key),
    #[error("{kind} UID ({actual}) does not match {reference} claim ({claimed})")]
    Uid { kind: &'static str, reference: &'static str, actual: String, claimed: String },
}

/// A token found good for `audiences`: those it has of the ones asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Without `system:authenticated`; the authenticator adds it.
    pub user: User,
    pub audiences: Vec<String>,
}

pub struct Verifier {
    issuers: Vec<String>,
    keys: Vec<VerifyingKey>,
    /// What the API server itself answers to.
    audiences: Vec<String>,
    known: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

impl Verifier {
    pub fn new(issuers: Vec<String>, keys: Vec<VerifyingKey>, audiences: Vec<String>) -> Self {
        Verifier { issuers, keys, audiences, known: Mutex::default() }
    }

    pub fn keys(&self) -> &[VerifyingKey] {
        &self.keys
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// `wanted`: audiences of which the token must have at least one; empty means the API server's own.
    pub fn verify(&self, token: &str, wanted: &[String], now: Timestamp, lookup: &dyn Lookup) -> Result<Verified, TokenError> {
        let claims = self.claims(token)?;
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        let is_legacy = claims.iss == LEGACY_ISSUER;
        // A token without audiences is for the API server.
        let of_token = if is_legacy { &self.audiences } else { &claims.aud };
        let audiences: Vec<String> = of_token.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if audiences.is_empty() {
            return Err(TokenError::Audience { tokens: go_list(of_token), targets: go_list(wanted) });
        }
        if is_legacy {
            check_stored(token, &claims, lookup)?;
        } else {
            check_time(&claims, now)?;
        }
        let user = check_bindings(&claims, now, lookup)?;
        Ok(Verified { user, audiences })
    }

    /// The claims of a token whose signature is ours.
    fn claims(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.known.lock().get(&digest) {
            return Ok(claims.clone());
        }
        let claims = Arc::new(self.check_signature(token)?);
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(digest, claims.clone());
        Ok(claims)
    }

    fn check_signature(&self, token: &str) -> Result<Claims, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Foreign)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Foreign)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Foreign);
        let payload = decode(payload)?;
        let mut claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenError::Foreign)?;
        if claims.iss == LEGACY_ISSUER {
            let legacy: LegacyClaims = serde_json::from_slice(&payload).map_err(|_| TokenError::Foreign)?;
            claims = legacy.into();
        } else if !self.issuers.contains(&claims.iss) {
            return Err(TokenError::Foreign);
        }
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Foreign)?;
        let (kid, algorithm) = (text(&header, "/kid"), text(&header, "/alg"));
        let signature = decode(signature)?;
        let mut candidates = self.keys.iter().filter(|key| kid.is_empty() || key.id == kid).peekable();
        if candidates.peek().is_none() {
            return Err(TokenError::Signature("no keys found"));
        }
        // The key decides the algorithm; a header that names another is refused, never followed.
        let good = candidates.any(|key| key.algorithm.name() == algorithm && key.verify(message.as_bytes(), &signature));
        if good { Ok(claims) } else { Err(TokenError::Signature("no key verifies it")) }
    }
}

fn check_time(claims: &Claims, now: Timestamp) -> Result<(), TokenError> {
    let now = now.as_second();
    // A token without an end is none of ours: the issuer always sets one.
    if claims.exp.is_none_or(|exp| now - LEEWAY_SECONDS > exp) {
        return Err(TokenError::Expired);
    }
    if claims.nbf.is_some_and(|nbf| now + LEEWAY_SECONDS < nbf) || claims.iat.is_some_and(|iat| now + LEEWAY_SECONDS < iat) {
        return Err(TokenError::NotYet);
    }
    Ok(())
}

/// A token of a Secret lives as long as the Secret holds it.
fn check_stored(token: &str, claims: &Claims, lookup: &dyn Lookup) -> Result<(), TokenError> {
    const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
    let name = claims.bindings.secret.as_ref().map_or("", |secret| &secret.name);
    let key = Key::new(claims.bindings.namespace.as_str(), name);
    let secret = lookup.get(&GroupResource::new("", "secrets"), &key);
    let secret = secret.filter(|secret| !is_being_deleted(secret)).ok_or(TokenError::Invalidated)?;
    if STANDARD.decode(text(&secret, "/data/token")).ok().as_deref() != Some(token.as_bytes()) {
        return Err(TokenError::NotTheStored);
    }
    match meta_entry(&secret, "labels", INVALID_SINCE) {
        Some(_) => Err(TokenError::MarkedInvalid(key)),
        None => Ok(()),
    }
}

fn check_bindings(claims: &Claims, now: Timestamp, lookup: &dyn Lookup) -> Result<User, TokenError> {
    let bindings = &claims.bindings;
    let (namespace, account) = (bindings.namespace.as_str(), &bindings.serviceaccount);
    if claims.sub != crate::user::service_account_name(namespace, &account.name) {
        return Err(TokenError::Invalidated);
    }
    let get = |resource: &str, namespace: &str, name: &str| lookup.get(&GroupResource::new("", resource), &Key::new(namespace, name));
    let found = get("serviceaccounts", namespace, &account.name)
        .ok_or_else(|| TokenError::NoAccount { resource: "serviceaccounts", name: account.name.clone() })?;
    if gone(&found, now) {
        return Err(TokenError::AccountDeleted(Key::new(namespace, account.name.clone())));
    }
    check_uid(&found, account, "ServiceAccount", "service account")?;

    let check = |resource: &'static str, kind: &'static str, reference: &'static str, namespace: &str, bound: &Reference| {
        let found = get(resource, namespace, &bound.name).filter(|f| !gone(f, now)).ok_or(TokenError::Invalidated)?;
        check_uid(&found, bound, kind, reference)
    };
    if let Some(secret) = bindings.secret.as_ref().filter(|secret| !secret.uid.is_empty()) {
        check("secrets", "Secret", "secret ref", namespace, secret)?;
    }
    if let Some(pod) = &bindings.pod {
        check("pods", "Pod", "pod ref", namespace, pod)?;
    }
    // Next to a pod the node is information, not a binding: the pod's own life decides.
    if let (Some(node), None) = (&bindings.node, &bindings.pod) {
        check("nodes", "Node", "node ref", "", node)?;
    }

    let mut user = User::service_account(namespace, &account.name, &account.uid);
    let mut note = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(key.to_owned(), vec![value.to_owned()]);
        }
    };
    if !claims.jti.is_empty() {
        note(extra::CREDENTIAL_ID, &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &bindings.pod {
        note(extra::POD_NAME, &pod.name);
        note(extra::POD_UID, &pod.uid);
    }
    if let Some(node) = &bindings.node {
        note(extra::NODE_NAME, &node.name);
        note(extra::NODE_UID, &node.uid);
    }
    Ok(user)
}

fn gone(object: &Value, now: Timestamp) -> bool {
    let deleted = text(object, "/metadata/deletionTimestamp");
    deleted.parse::<Timestamp>().is_ok_and(|at| at.as_second() < now.as_second() - LEEWAY_SECONDS)
}

fn check_uid(found: &Value, claimed: &Reference, kind: &'static str, reference: &'static str) -> Result<(), TokenError> {
    let actual = text(found, "/metadata/uid");
    if actual == claimed.uid {
        return Ok(());
    }
    Err(TokenError::Uid { kind, reference, actual: actual.to_owned(), claimed: claimed.uid.clone() })
}

/// Go's `%q` of a string list: `["a" "b"]`.
fn go_list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}
