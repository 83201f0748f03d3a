//! PATCH: the stored object in the request's version, changed, and taken through the same pipeline as a PUT. Server-side apply is a
//! patch that knows who owns what.
//!
//! Upstream counterpart: `apiserver/pkg/endpoints/handlers/patch.go` (v1.33).

use api::{Gvk, Status};
use schema::FieldValidation;
use serde_json::Value;

use super::write::{check_name, check_namespace, to_storage};
use super::{Caller, Target, managers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Change(schema::patch::PatchType),
    /// Server-side apply.
    Apply,
}

impl PatchType {
    pub fn of(media: &str) -> Result<Self, Status> {
        match media {
            "application/json-patch+json" => Ok(PatchType::Change(schema::patch::PatchType::Json)),
            "application/merge-patch+json" => Ok(PatchType::Change(schema::patch::PatchType::Merge)),
            "application/strategic-merge-patch+json" => Ok(PatchType::Change(schema::patch::PatchType::Strategic)),
            "application/apply-patch+yaml" => Ok(PatchType::Apply),
            _ => Err(Status::unsupported_patch()),
        }
    }
}

pub struct Patch<'a> {
    pub patch_type: PatchType,
    pub body: &'a [u8],
    pub validation: FieldValidation,
    /// Who applies, and whether others' fields may be taken.
    pub manager: &'a str,
    pub force: bool,
}

impl Patch<'_> {
    /// The stored object with the patch applied, in storage form again.
    pub fn apply(&self, caller: &Caller, target: &Target, stored: &Value) -> Result<Value, Status> {
        let object = kinds::convert(stored.clone(), &target.gvk().api_version());
        let object = match self.patch_type {
            PatchType::Change(how) => self.change(caller, how, &target.gvk(), &object)?,
            PatchType::Apply => self.lay_over(caller, target, Some(&object), &self.configuration(caller)?)?,
        };
        self.named(target, to_storage(target, object))
    }

    /// An object of the kind with a patch that is no apply.
    pub fn change(&self, caller: &Caller, how: schema::patch::PatchType, gvk: &Gvk, object: &Value) -> Result<Value, Status> {
        let (object, warnings) = schema::patch::apply(gvk, object, how, self.body, self.validation)?;
        warnings.into_iter().for_each(|w| caller.warn(w));
        Ok(object)
    }

    /// What an apply makes of nothing, in the target's version.
    pub fn fresh(&self, caller: &Caller, target: &Target) -> Result<Value, Status> {
        let mut object = self.named(target, self.lay_over(caller, target, None, &self.configuration(caller)?)?)?;
        let uid = super::tree::text(&object, "/metadata/uid");
        if !uid.is_empty() {
            let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(Status::conflict(&target.resource(), &target.key.name, why));
        }
        super::tree::take_resource_version(&mut object);
        Ok(object)
    }

    /// Apply's body as its author wrote it.
    pub fn configuration(&self, caller: &Caller) -> Result<Value, Status> {
        let (document, fault) =
            schema::patch::document(self.body).map_err(|why| Status::bad_request(format!("error decoding YAML: {why}")))?;
        match fault {
            Some(fault) if self.validation == FieldValidation::Strict => {
                Err(Status::bad_request(format!("error strict decoding YAML: {fault}")))
            }
            Some(fault) if self.validation == FieldValidation::Warn => {
                caller.warn(fault);
                Ok(document)
            }
            _ => Ok(document),
        }
    }

    /// `live` and the result are in the target's version.
    pub fn lay_over(&self, caller: &Caller, target: &Target, live: Option<&Value>, configuration: &Value) -> Result<Value, Status> {
        managers::apply(target, live, configuration, self.manager, self.force, caller.now)
    }

    /// A patch can't give the object another name.
    fn named(&self, target: &Target, mut object: Value) -> Result<Value, Status> {
        check_namespace(target, &mut object)?;
        check_name(target, &object)?;
        Ok(object)
    }
}
