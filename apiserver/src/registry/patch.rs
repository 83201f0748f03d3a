//! PATCH: the stored object in the request's version, changed, and taken through the same pipeline as a PUT.
//!
//! Upstream counterpart: `apiserver/pkg/endpoints/handlers/patch.go` (v1.33).

use api::Status;
use schema::{FieldValidation, Media};
use serde_json::Value;

use super::write::to_storage;
use super::{Caller, Target};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

impl PatchType {
    pub const ACCEPTED: [&str; 3] = ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

    /// Server-side apply (`application/apply-patch+yaml`) is not among them until managed fields are kept.
    pub fn of(media: &str) -> Result<Self, Status> {
        match media {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchType::Strategic),
            _ => Err(Status::unsupported_media_type(&PatchType::ACCEPTED)),
        }
    }
}

pub struct Patch<'a> {
    pub patch_type: PatchType,
    pub body: &'a [u8],
    pub validation: FieldValidation,
}

impl Patch<'_> {
    /// The stored object with the patch applied, in storage form again.
    pub fn apply(&self, caller: &Caller, target: &Target, stored: &Value) -> Result<Value, Status> {
        let gvk = target.gvk();
        let mut object = kinds::convert(stored.clone(), &gvk.api_version());
        match self.patch_type {
            PatchType::Json => schema::patch::json(&mut object, self.body)?,
            PatchType::Merge => schema::patch::merge(&mut object, self.body)?,
            PatchType::Strategic => {
                let patch: Value = serde_json::from_slice(self.body)
                    .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
                object = schema::patch::strategic(&gvk, &object, &patch)?;
            }
        }
        let patched = super::record::encode(&object);
        let (object, warnings) = schema::decode(&patched, Media::Json, &gvk, self.validation)?;
        warnings.into_iter().for_each(|w| caller.warn(w));
        Ok(to_storage(target, object))
    }
}
