//! The three kinds of patch.
//!
//! Upstream: `apiserver/pkg/endpoints/handlers/patch.go`; codes and messages are its own.

pub mod strategic;

use api::Status;
use api::key::Gvk;
use api::status::{Details, Reason};
use serde_json::Value;

use crate::types::{Kind, Type, lookup};
use strategic::{FieldShape, PatchError, Shape};

/// Operations that one JSON patch may have.
const MAX_OPERATIONS: usize = 10_000;

/// RFC 6902. Errors: 400 for what is no JSON patch, 413 for too many operations, 422 for one that does not apply.
pub fn json(object: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch: json_patch::Patch = serde_json::from_slice(patch).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let count = patch.0.len();
    if count > MAX_OPERATIONS {
        return Err(Status::too_large(format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}")));
    }
    json_patch::patch(object, &patch).map_err(|_| unprocessable())
}

/// RFC 7386. Errors: 400 for what is no JSON object.
pub fn merge(object: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch: Value = serde_json::from_slice(patch).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: Invalid JSON Patch"));
    }
    json_patch::merge(object, &patch);
    Ok(())
}

/// Strategic merge patch, for built-in kinds. Errors: 400 for a malformed patch, 415 for a kind without a schema.
pub fn strategic(gvk: &Gvk, original: &Value, patch: &Value) -> Result<Value, Status> {
    let (Value::Object(original), Value::Object(changes)) = (original, patch) else {
        return Err(Status::bad_request("error decoding patch: Invalid JSON document"));
    };
    let merged = strategic::merge_map(original.clone(), changes.clone(), lookup(gvk))?;
    Ok(Value::Object(merged))
}

impl Shape for &'static Type {
    fn field(self, name: &str) -> FieldShape<Self> {
        let Some(field) = Type::field(self, name) else { return FieldShape::default() };
        let element = match field.kind {
            // The values of a map of structs are merged as the struct; of a map of scalars nothing more is known.
            Kind::Map(_) => None,
            kind => kind.innermost(),
        };
        let strategies = || field.patch_strategy.split(',');
        FieldShape {
            element,
            merge_key: field.merge_key,
            merge: strategies().any(|s| s == "merge"),
            replace: strategies().any(|s| s == "replace"),
        }
    }
}

/// Upstream's `NewGenericServerResponse(422)`: says nothing of what went wrong.
fn unprocessable() -> Status {
    let message = "the server rejected our request due to an error in our request";
    Status { code: 422, reason: Reason::Invalid, message: message.to_owned(), details: Some(Box::default()) }.with_details(Details::default())
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Status {
        match error {
            PatchError::Internal(_) => Status::internal(error),
            _ => Status::bad_request(error.to_string()),
        }
    }
}
