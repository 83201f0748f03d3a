//! What a write's query (and DELETE's body) says besides the object: dryRun, fieldManager, fieldValidation, force, DeleteOptions.
//!
//! Upstream counterpart: `apimachinery/pkg/apis/meta/v1/validation/validation.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::{GroupKind, Gvk, Status};
use http::header::{CONTENT_TYPE, USER_AGENT};
use schema::FieldValidation;

use super::Call;
use super::negotiate::{self, media_type};
use crate::registry::delete::{DeleteOptions, validate_dry_run};
use crate::registry::patch::{Patch, PatchType};
use crate::registry::{WriteOptions, managers};

const MAX_MANAGER: usize = 128;

impl Call {
    /// `CreateOptions`, `UpdateOptions`; 422 for what they can't be.
    pub fn write_options(&self, kind: &str) -> Result<WriteOptions, Status> {
        self.check_options(kind, Vec::new())?;
        let manager = match self.query.get("fieldManager") {
            "" => managers::of_agent(self.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default()),
            named => named.to_owned(),
        };
        Ok(WriteOptions { dry_run: self.query.has("dryRun"), manager: Some(manager) })
    }

    /// `PatchOptions` and the patch itself. An apply notes its managers itself.
    pub fn patch(&self) -> Result<(Patch<'_>, WriteOptions), Status> {
        let value = self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let patch_type = PatchType::of(media_type(value))?;
        let manager = self.query.get("fieldManager");
        let mut errors = Vec::new();
        if patch_type == PatchType::Apply && manager.is_empty() {
            errors.push(Error::required(&Path::new("fieldManager"), "is required for apply patch"));
        }
        if patch_type != PatchType::Apply && self.query.has("force") {
            errors.push(Error::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
        }
        self.check_options("PatchOptions", errors)?;
        let options = self.write_options("PatchOptions")?;
        let options = if patch_type == PatchType::Apply { options.untracked() } else { options };
        Ok((Patch { patch_type, body: &self.body, validation: self.validation(), manager, force: self.query.flag("force") }, options))
    }

    fn check_options(&self, kind: &str, mut errors: ErrorList) -> Result<(), Status> {
        errors.extend(validate_manager(self.query.get("fieldManager")));
        errors.extend(validate_dry_run(self.query.all("dryRun")));
        let validation = self.query.get("fieldValidation");
        if !matches!(validation, "" | "Ignore" | "Strict" | "Warn") {
            errors.push(Error::not_supported(&Path::new("fieldValidation"), validation, &["", "Ignore", "Strict", "Warn"]));
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid(&GroupKind::new("meta.k8s.io", kind), "", errors)),
        }
    }

    /// Of options that have been checked.
    pub fn validation(&self) -> FieldValidation {
        match self.query.get("fieldValidation") {
            "Strict" => FieldValidation::Strict,
            "Ignore" => FieldValidation::Ignore,
            _ => FieldValidation::Warn,
        }
    }

    /// From the body, or else from the query.
    pub fn delete_options(&self) -> Result<DeleteOptions, Status> {
        if self.body.is_empty() { self.delete_options_of_query() } else { self.delete_options_of_body() }
    }

    fn delete_options_of_body(&self) -> Result<DeleteOptions, Status> {
        let media = negotiate::content(&self.headers)?;
        // Upstream does not call it the client's fault.
        let options = schema::decode_options(&self.body, media, &Gvk::new("", "v1", "DeleteOptions")).map_err(Status::unclassified)?;
        serde_json::from_value(options).map_err(|e| Status::unclassified(e.to_string()))
    }

    fn delete_options_of_query(&self) -> Result<DeleteOptions, Status> {
        let set = |name: &str| Some(self.query.get(name)).filter(|v| !v.is_empty());
        let seconds = set("gracePeriodSeconds")
            .map(|grace| grace.parse().map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {grace:?}: invalid syntax"))));
        Ok(DeleteOptions {
            grace_period_seconds: seconds.transpose()?,
            propagation_policy: set("propagationPolicy").map(str::to_owned),
            orphan_dependents: self.query.has("orphanDependents").then(|| self.query.flag("orphanDependents")),
            dry_run: self.query.has("dryRun").then(|| self.query.all("dryRun").map(str::to_owned).collect()),
            preconditions: None,
        })
    }
}

fn validate_manager(manager: &str) -> ErrorList {
    let path = Path::new("fieldManager");
    let mut errors = Vec::new();
    if manager.len() > MAX_MANAGER {
        errors.push(Error::too_long(&path, manager, MAX_MANAGER));
    }
    errors.extend(manager.char_indices().filter(|(_, c)| c.is_control()).map(|(at, c)| {
        let detail = format!("should only contain printable characters (invalid character U+{:04X} in position {at})", u32::from(c));
        Error::invalid(&path, manager, detail)
    }));
    errors
}
