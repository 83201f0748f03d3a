//! Authentication and authorization delegated to the API server: for the kubelet's port and every `/metrics`.
//!
//! A client is known by its certificate (checked in the TLS handshake) or by a bearer token (TokenReview); whether it may is asked
//! with a SubjectAccessReview. Answers are remembered for a short while.
//! Upstream: `apiserver/pkg/{authentication,authorization}/…delegating*.go`; the same cache times.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use api::k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use api::k8s_openapi::api::authorization::v1::{NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use http::HeaderMap;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::https::Peer;

const TOKEN_TTL: Duration = Duration::from_secs(10);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
const CACHE_SIZE: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

/// What a client wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Path { verb: String, path: String },
    Resource { verb: String, resource: String, subresource: String, name: String },
}

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// 401
    #[error("Unauthorized")]
    Unauthorized,
    /// 403
    #[error("Forbidden (user={user}, verb={verb}, resource={resource}, subresource(s)=[{subresource}])")]
    Forbidden { user: String, verb: String, resource: String, subresource: String },
    /// 500: the API server could not be asked.
    #[error("cannot ask the API server: {0}")]
    Unavailable(#[from] kube::Error),
}

impl Refusal {
    pub fn code(&self) -> u16 {
        match self {
            Refusal::Unauthorized => 401,
            Refusal::Forbidden { .. } => 403,
            Refusal::Unavailable(_) => 500,
        }
    }
}

pub struct Delegated {
    client: Client,
    tokens: Mutex<Expiring<String, Option<User>>>,
    decisions: Mutex<Expiring<(User, Action), bool>>,
}

struct Expiring<K, V>(HashMap<K, (Instant, V)>);

impl<K: Eq + Hash, V: Clone> Expiring<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.0.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    fn put(&mut self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        if self.0.len() >= CACHE_SIZE {
            self.0.retain(|_, (until, _)| *until > now);
        }
        if self.0.len() < CACHE_SIZE {
            self.0.insert(key, (now + ttl, value));
        }
    }
}

impl Delegated {
    pub fn new(client: Client) -> Self {
        Delegated { client, tokens: Mutex::new(Expiring(HashMap::new())), decisions: Mutex::new(Expiring(HashMap::new())) }
    }

    /// Who is asking, and may they? Errors: a [`Refusal`] with the HTTP code to answer.
    pub async fn check(&self, peer: &Peer, headers: &HeaderMap, action: Action) -> Result<User, Refusal> {
        let user = self.authenticate(peer, headers).await?.ok_or(Refusal::Unauthorized)?;
        if self.authorize(&user, &action).await? {
            return Ok(user);
        }
        Err(match action {
            Action::Path { verb, path } => Refusal::Forbidden { user: user.name, verb, resource: path, subresource: String::new() },
            Action::Resource { verb, resource, subresource, .. } => Refusal::Forbidden { user: user.name, verb, resource, subresource },
        })
    }

    async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<User>, Refusal> {
        if let Some(certificate) = peer.certificates.first() {
            return Ok(user_of_certificate(certificate));
        }
        let header = headers.get(http::header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        match header.and_then(|h| h.strip_prefix("Bearer ")) {
            Some(token) => self.review(token).await,
            None => Ok(None),
        }
    }

    async fn review(&self, token: &str) -> Result<Option<User>, Refusal> {
        if let Some(known) = self.tokens.lock().get(&token.to_owned()) {
            return Ok(known);
        }
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|info| User {
            name: info.username.unwrap_or_default(),
            uid: info.uid.unwrap_or_default(),
            groups: info.groups.unwrap_or_default(),
        });
        self.tokens.lock().put(token.to_owned(), user.clone(), TOKEN_TTL);
        Ok(user)
    }

    async fn authorize(&self, user: &User, action: &Action) -> Result<bool, Refusal> {
        let question = (user.clone(), action.clone());
        if let Some(known) = self.decisions.lock().get(&question) {
            return Ok(known);
        }
        let review = SubjectAccessReview { spec: access_spec(user, action), ..SubjectAccessReview::default() };
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        self.decisions.lock().put(question, allowed, if allowed { ALLOWED_TTL } else { DENIED_TTL });
        Ok(allowed)
    }
}

fn access_spec(user: &User, action: &Action) -> SubjectAccessReviewSpec {
    let mut spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(user.groups.clone()),
        ..SubjectAccessReviewSpec::default()
    };
    match action.clone() {
        Action::Path { verb, path } => {
            spec.non_resource_attributes = Some(NonResourceAttributes { verb: Some(verb), path: Some(path) });
        }
        Action::Resource { verb, resource, subresource, name } => {
            spec.resource_attributes = Some(ResourceAttributes {
                verb: Some(verb),
                version: Some("v1".to_owned()),
                resource: Some(resource),
                subresource: Some(subresource).filter(|s| !s.is_empty()),
                name: Some(name),
                ..ResourceAttributes::default()
            });
        }
    }
    spec
}

/// Common name → user, organizations → groups, as upstream's x509 authenticator.
pub fn user_of_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    Some(User { name, uid: String::new(), groups })
}
