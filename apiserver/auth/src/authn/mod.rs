//! Who is it: client certificate, bearer token, else nobody yet.
//!
//! rustls has verified a client's chain against the client CA before this is called; here its leaf only becomes a name.
//! A bad bearer token is an error, never a fall back to anonymous.
//!
//! Upstream: `apiserver/pkg/authentication/request/{x509,bearertoken,union,anonymous}`, `group/authenticated_group_adder.go`.

mod impersonation;
#[cfg(test)]
mod tests;

use api::Status;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

pub use impersonation::{Impersonation, impersonate};

use crate::Lookup;
use crate::token::{TokenError, Verified, Verifier};
use crate::user::{User, extra};

pub struct Authenticator {
    tokens: Verifier,
}

impl Authenticator {
    pub fn new(tokens: Verifier) -> Self {
        Authenticator { tokens }
    }

    pub fn tokens(&self) -> &Verifier {
        &self.tokens
    }

    /// `None`: no credentials were offered (see [`User::anonymous`]). `bearer` is the token without `Bearer `.
    pub fn authenticate(
        &self,
        certificates: &[CertificateDer<'_>],
        bearer: Option<&str>,
        now: Timestamp,
        lookup: &dyn Lookup,
    ) -> Result<Option<User>, Status> {
        if let Some(user) = certificates.first().and_then(from_certificate) {
            return Ok(Some(user.authenticated()));
        }
        let Some(token) = bearer.map(str::trim).filter(|token| !token.is_empty()) else { return Ok(None) };
        match self.tokens.verify(token, &[], now, lookup) {
            Ok(Verified { user, .. }) => Ok(Some(user.authenticated())),
            Err(error) => {
                tracing::info!(%error, "bearer token refused");
                Err(Status::unauthorized("Unauthorized"))
            }
        }
    }

    /// For TokenReview: the user and the audiences the token is good for.
    pub fn review(&self, token: &str, audiences: &[String], now: Timestamp, lookup: &dyn Lookup) -> Result<Verified, TokenError> {
        let Verified { user, audiences } = self.tokens.verify(token, audiences, now, lookup)?;
        Ok(Verified { user: user.authenticated(), audiences })
    }
}

/// The token of an `Authorization` header. The scheme is case-insensitive.
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The token of a browser's WebSocket, which can set no header but `Sec-WebSocket-Protocol`, and the protocols without it:
/// `base64url.bearer.authorization.k8s.io.TOKEN, v4.channel.k8s.io`. Errors: a token that can't be read, or two, or nothing besides it.
/// Upstream: `apiserver/pkg/authentication/request/websocket/protocol.go`.
pub fn bearer_of_protocols<'a>(headers: impl Iterator<Item = &'a str>) -> Result<Option<(String, String)>, &'static str> {
    const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
    let (tokens, others): (Vec<&str>, Vec<&str>) = headers.flat_map(|h| h.split(',')).map(str::trim).partition(|p| p.starts_with(PREFIX));
    let encoded = match tokens.as_slice() {
        [] => return Ok(None),
        [one] => &one[PREFIX.len()..],
        _ => return Err("multiple base64.bearer.authorization tokens specified"),
    };
    let decoded = URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|token| String::from_utf8(token).ok());
    let token = decoded.ok_or("invalid base64.bearer.authorization token encoding")?;
    match others.is_empty() {
        true => Err("missing additional subprotocol"),
        false => Ok((!token.is_empty()).then(|| (token, others.join(",")))),
    }
}

/// CN is the user, each O a group. A certificate without a CN names nobody.
fn from_certificate(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| tracing::warn!(%error, "client certificate does not parse"))
        .ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().last()?.as_str().ok().filter(|name| !name.is_empty())?;
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok());
    let mut user = User::new(name, groups);
    let id = format!("X509SHA256={}", hex::encode(Sha256::digest(certificate)));
    user.extra.insert(extra::CREDENTIAL_ID.to_owned(), vec![id]);
    Some(user)
}
