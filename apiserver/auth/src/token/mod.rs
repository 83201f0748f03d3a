//! Service-account tokens: JSON Web Tokens bound to an audience, an account and optionally a Pod, Secret or Node.
//!
//! ```text
//! TokenRequest ──[`Issuer::issue`]──► header.claims.signature ──[`Verifier::verify`]──► User
//!                                                     ▲ every binding is checked against the cluster each time
//! ```
//! Upstream: `pkg/serviceaccount/{jwt,claims,openidmetadata}.go`, `pkg/registry/core/serviceaccount/storage/token.go` (v1.33).

mod claims;
mod discovery;
mod issue;
pub mod keys;
#[cfg(test)]
mod tests;
mod verify;

pub use claims::{Bindings, Claims, Reference};
pub use discovery::Discovery;
pub use issue::{Issued, Issuer, Request};
pub use keys::{KeyError, SigningKey, VerifyingKey};
pub use verify::{TokenError, Verified, Verifier};
