//! Every built-in resource as one row of [`KINDS`], and what is particular to each: how it is shaped
//! before a write, what makes it valid, which fields select it and how `kubectl get` prints it.
//!
//! Pure: no storage, no clock (`now` is an argument), no network. Routes, discovery, OpenAPI and tables
//! are derived from the rows; nothing else in the API server knows a kind by name.
//!
//! A new kind is one row in `table.rs` and, where it has rules of its own, one small file that
//! implements [`Strategy`].
//!
//! Upstream: `pkg/registry/*/strategy.go`, `pkg/apis/*/validation`, `pkg/printers/internalversion` (v1.33).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod kind;
mod meta;
mod strategy;
mod table;
mod value;

pub mod columns;
pub mod convert;
pub mod strategies;
pub mod validation;

pub use convert::convert;
pub use kind::{Column, Kind, NameRule, Propagation, ScalePaths, Selectable, Served, Storage, Subresource};
pub use meta::{validate_object_meta, validate_object_meta_update, validate_replacement};
pub use strategy::{Generic, Strategy};
pub use table::{KINDS, by_gvk, by_gvr, by_kind, by_resource};
