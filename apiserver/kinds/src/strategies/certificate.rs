//! Certificate signing requests.
//!
//! Upstream: `pkg/registry/certificates/certificates/strategy.go`, `pkg/apis/certificates/validation` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::names;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::strategy::{prepare_for_status_update, prepare_for_update};
use crate::value::{child, copy_field, list, set, text};
use crate::{Kind, Strategy};

const FORM: &str = "must be a fully qualified domain and path of the form 'example.com/signer-name'";

pub struct SigningRequest;

/// `/approval` changes the decision and nothing else.
pub fn prepare_for_approval(kind: &Kind, new: &mut Value, old: &Value) {
    let conditions = new["status"]["conditions"].clone();
    prepare_for_status_update(kind, new, old);
    copy_field(new, old, "status");
    if !conditions.is_null() {
        set(child(new, "status"), "conditions", conditions);
    }
}

fn is_decision(condition: &Value) -> bool {
    matches!(text(condition, "/type"), "Approved" | "Denied")
}

impl Strategy for SigningRequest {
    /// Who asks is not for the asker to say.
    fn stamp_requester(&self, object: &mut Value, user: &Value) {
        let spec = child(object, "spec");
        for field in ["username", "uid", "groups", "extra"] {
            copy_field(spec, user, field);
        }
    }

    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        copy_field(new, old, "spec");
    }

    /// Signers write everything but the decision.
    fn prepare_for_status_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_status_update(kind, new, old);
        let decided = list(old, "/status/conditions").iter().filter(|c| is_decision(c));
        let rest = list(new, "/status/conditions").iter().filter(|c| !is_decision(c));
        let conditions: Vec<Value> = decided.chain(rest).cloned().collect();
        if !conditions.is_empty() {
            set(child(new, "status"), "conditions", Value::Array(conditions));
        }
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("spec");
        let mut errors = Vec::new();
        if let Err(message) = parse_request(text(object, "/spec/request")) {
            let shown = object["spec"]["request"].clone();
            errors.push(Error::invalid(&path.child("request"), shown, message));
        }
        if list(object, "/spec/usages").is_empty() {
            errors.push(Error::required(&path.child("usages"), "usages must be provided"));
        }
        errors.extend(signer_name(&path.child("signerName"), text(object, "/spec/signerName")));
        if let Some(seconds) = object.pointer("/spec/expirationSeconds").and_then(Value::as_i64).filter(|s| *s < 600) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, detail));
        }
        errors
    }

    fn validate_update(&self, _kind: &Kind, _new: &Value, _old: &Value) -> ErrorList {
        Vec::new()
    }

    fn validate_status_update(&self, _kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        let has = |kind: &str| list(new, "/status/conditions").iter().any(|c| c["type"] == json!(kind));
        let path = Path::new("status").child("conditions");
        if has("Approved") && has("Denied") {
            let detail = "Approved and Denied conditions are mutually exclusive";
            return vec![Error::invalid(&path, "Denied", detail)];
        }
        Vec::new()
    }
}

fn parse_request(encoded: &str) -> Result<(), String> {
    let bytes = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    let wrong = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&bytes).map_err(|_| wrong())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(wrong());
    }
    match X509CertificationRequest::from_der(&pem.contents) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("asn1: structure error: {error}")),
    }
}

/// `example.com/name`, both parts well formed.
fn signer_name(path: &Path, name: &str) -> ErrorList {
    if name.is_empty() {
        return vec![Error::required(path, "")];
    }
    let Some((domain, rest)) = name.split_once('/') else {
        let detail = FORM;
        return vec![Error::invalid(path, name, detail)];
    };
    let mut errors = Vec::new();
    for message in names::is_dns1123_subdomain(domain) {
        errors.push(Error::invalid(path, domain, format!("validating label {domain:?}: {message}")));
    }
    if !domain.contains('.') {
        errors.push(Error::invalid(path, domain, "should be a domain with at least two segments separated by dots"));
    }
    if rest.is_empty() {
        errors.push(Error::invalid(path, name, FORM));
    }
    errors
}
