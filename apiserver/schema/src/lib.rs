//! What the API server knows of types: decode, fill in, write as Go would, patch; the OpenAPI documents.
//!
//! Pure functions over `serde_json::Value` and one static table ([`types::TYPES`]); no state, no I/O. Names no kind's logic: that is `kinds`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decode;
mod defaults;
mod generated;
pub mod managed;
mod normalize;
pub mod openapi;
pub mod patch;
mod protobuf;
mod scalar;
pub mod types;

pub use decode::{FieldValidation, Media, decode, decode_as_written, decode_options, decode_value, peek_gvk};
pub use defaults::default;
pub use normalize::normalize;
pub use protobuf::{encode as encode_protobuf, list as protobuf_list, message_of, watch_event};
pub use types::{Field, Kind, ListType, Type, lookup};
