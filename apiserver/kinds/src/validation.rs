//! What makes objects valid, by area, in upstream's words. Each function takes typed fields and their
//! path and returns what is wrong; nothing here reads anything but its arguments.
//!
//! Upstream: `pkg/apis/*/validation/validation.go` (v1.33).

pub mod container;
pub mod field;
pub mod pod;
pub mod scheduling;
pub mod source;
pub mod volume;
