//! Who is asking, may they, and what do the cluster's policies make of the request.
//!
//! | module | question | upstream (v1.33) |
//! |---|---|---|
//! | [`authn`] | who is it | `apiserver/pkg/authentication`, `pkg/kubeapiserver/authenticator` |
//! | [`token`] | issue and verify service-account tokens | `pkg/serviceaccount` |
//! | [`authz`] | may they | `plugin/pkg/auth/authorizer/{node,rbac}` |
//! | [`bootstrap`] | what a new cluster holds | `plugin/pkg/auth/authorizer/rbac/bootstrappolicy` |
//! | [`admission`] | what policy changes or refuses in a write | `plugin/pkg/admission` |
//!
//! Invariants: no storage, no HTTP, no clock of its own (`now` is an argument), no waiting. Everything known
//! about the cluster comes through [`Lookup`]; whatever has to be written besides the object itself
//! is returned as a plan ([`admission::Outcome`]) for the API server to apply.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod lookup;
pub mod token;
pub mod user;

#[cfg(test)]
pub mod testing;

pub use lookup::Lookup;
pub use user::User;
