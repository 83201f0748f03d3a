//! Service account tokens for pods: asked from the API server, kept, and asked anew before they end.
//!
//! A token is replaced when four fifths of its life or a day have passed. The old one serves on while the server is away.
//! Upstream: `pkg/kubelet/token/token_manager.go`, v1.33.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::pod::PodExt;

const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Id {
    uid: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone)]
struct Token {
    text: String,
    refresh_at: Timestamp,
    expires_at: Timestamp,
}

pub struct Tokens {
    client: Client,
    tokens: Mutex<HashMap<Id, Token>>,
}

impl Tokens {
    pub fn new(client: Client) -> Self {
        Tokens { client, tokens: Mutex::default() }
    }

    /// The token, and how long until it should be fetched again.
    pub async fn get(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<(String, Duration), kube::Error> {
        let id = Id { uid: pod.uid().to_owned(), audience: audience.to_owned(), seconds };
        let now = Timestamp::now();
        let known = self.tokens.lock().get(&id).cloned();
        if let Some(token) = known.as_ref().filter(|t| now < t.refresh_at) {
            return Ok((token.text.clone(), until(token.refresh_at, now)));
        }
        match self.request(pod, audience, seconds).await {
            Ok(token) => {
                let answer = (token.text.clone(), until(token.refresh_at, now));
                self.tokens.lock().insert(id, token);
                Ok(answer)
            }
            Err(error) => match known.filter(|t| now < t.expires_at) {
                Some(token) => {
                    tracing::warn!(pod = %pod.key(), %error, "token not refreshed; the old one serves on");
                    Ok((token.text, Duration::from_secs(30)))
                }
                None => Err(error),
            },
        }
    }

    async fn request(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<Token, kube::Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod.namespace());
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: if audience.is_empty() { Vec::new() } else { vec![audience.to_owned()] },
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name().to_owned()),
                    uid: Some(pod.uid().to_owned()),
                }),
            },
            ..TokenRequest::default()
        };
        let account = pod.spec().service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        let answer = accounts.create_token_request(account, &kube::api::PostParams::default(), &request).await?;
        let missing = || kube::Error::Service("the token request came back without a token".into());
        let status = answer.status.ok_or_else(missing)?;
        let now = Timestamp::now();
        let expires_at = status.expiration_timestamp.0;
        let life = until(expires_at, now);
        let refresh = (life.mul_f64(0.8)).min(MAX_AGE).mul_f64(rand::random_range(0.95..1.0));
        Ok(Token { text: status.token, expires_at, refresh_at: now + jiff::SignedDuration::try_from(refresh).unwrap_or_default() })
    }

    pub fn forget(&self, uid: &str) {
        self.tokens.lock().retain(|id, _| id.uid != uid);
    }
}

fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}
