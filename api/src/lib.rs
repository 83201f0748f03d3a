//! The vocabulary every program shares: keys and kinds, the `Status` error, field errors, names,
//! quantities, selectors and causes. No I/O, no clock, no globals.
//!
//! Upstream counterparts: `k8s.io/apimachinery/pkg/{api,labels,fields,runtime/schema,util/validation}`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub use k8s_openapi;

pub mod amounts;
pub mod cause;
pub mod container;
pub mod field;
pub mod key;
pub mod names;
pub mod nodes;
pub mod quantity;
pub mod quota;
pub mod selector;
pub mod status;
pub mod tree;
pub mod volume;

pub use cause::{Cause, JournalEntry};
pub use key::{GroupKind, GroupResource, Gvk, Gvr, Key};
pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
pub use status::Status;
