//! The documents with which others verify our tokens: OpenID provider metadata and the key set.

use serde_json::json;

use super::keys::VerifyingKey;

/// Bodies of `/.well-known/openid-configuration` (application/json) and
/// `/openid/v1/jwks` (application/jwk-set+json). Made once; served with `Cache-Control: public, max-age=3600`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    pub configuration: String,
    pub key_set: String,
}

impl Discovery {
    pub const CONFIGURATION_PATH: &'static str = "/.well-known/openid-configuration";
    pub const KEY_SET_PATH: &'static str = "/openid/v1/jwks";

    /// `address`: `host:port` at which this server is reached from outside.
    pub fn new(issuer: &str, address: &str, keys: &[VerifyingKey]) -> Self {
        let mut algorithms: Vec<&str> = keys.iter().map(|key| key.algorithm.name()).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        let configuration = json!({
            "issuer": issuer,
            "jwks_uri": format!("https://{address}{}", Discovery::KEY_SET_PATH),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        });
        let key_set = json!({"keys": keys.iter().map(VerifyingKey::jwk).collect::<Vec<_>>()});
        Discovery { configuration: configuration.to_string(), key_set: key_set.to_string() }
    }
}
