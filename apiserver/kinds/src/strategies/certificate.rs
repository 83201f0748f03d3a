//! Certificate signing requests.
//!
//! Upstream: `pkg/registry/certificates/certificates/strategy.go`, `pkg/apis/certificates/validation` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::names;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::meta::validate_object_meta_update;
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
            errors.push(Error::invalid(&path.child("request"), object["spec"]["request"].clone(), message));
        }
        errors.extend(usages(&path.child("usages"), list(object, "/spec/usages")));
        errors.extend(signer_name(&path.child("signerName"), text(object, "/spec/signerName")));
        if let Some(seconds) = object.pointer("/spec/expirationSeconds").and_then(Value::as_i64).filter(|s| *s < 600) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, detail));
        }
        errors.extend(conditions(&Path::new("status").child("conditions"), object));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_status_update(kind, new, old);
        if new.pointer("/status/certificate") != old.pointer("/status/certificate") {
            let path = Path::new("status").child("certificate");
            errors.push(Error::forbidden(&path, "updates may not set certificate content"));
        }
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        let path = Path::new("status").child("conditions");
        let count = |object: &Value, name: &str| list(object, "/status/conditions").iter().filter(|c| text(c, "/type") == name).count();
        for name in ["Approved", "Denied", "Failed"] {
            if count(new, name) < count(old, name) {
                errors.push(Error::forbidden(&path, format!("updates may not remove a condition of type {name:?}")));
            }
        }
        errors.extend(validate_object_meta_update(kind, new, old));
        errors
    }
}

/// Known ones, each once.
fn usages(path: &Path, usages: &[Value]) -> ErrorList {
    const KNOWN: &[&str] = &[
        "any",
        "cert sign",
        "client auth",
        "code signing",
        "content commitment",
        "crl sign",
        "data encipherment",
        "decipher only",
        "digital signature",
        "email protection",
        "encipher only",
        "ipsec end system",
        "ipsec tunnel",
        "ipsec user",
        "key agreement",
        "key encipherment",
        "microsoft sgc",
        "netscape sgc",
        "ocsp signing",
        "s/mime",
        "server auth",
        "signing",
        "timestamping",
    ];
    let mut errors = if usages.is_empty() { vec![Error::required(path, "usages must be provided")] } else { Vec::new() };
    let names: Vec<&str> = usages.iter().filter_map(Value::as_str).collect();
    for (index, name) in names.iter().enumerate().filter(|(_, name)| !KNOWN.contains(name)) {
        errors.push(Error::not_supported(&path.index(index), *name, KNOWN));
    }
    for (index, name) in names.iter().enumerate().filter(|(index, name)| names[..*index].contains(name)) {
        errors.push(Error::duplicate(&path.index(index), *name));
    }
    errors
}

fn conditions(path: &Path, object: &Value) -> ErrorList {
    let mut errors = Vec::new();
    let all = list(object, "/status/conditions");
    for (index, condition) in all.iter().enumerate() {
        let path = path.index(index);
        let (name, status) = (text(condition, "/type"), text(condition, "/status"));
        let before = |other: &str| all[..index].iter().any(|condition| text(condition, "/type") == other);
        if name.is_empty() {
            errors.push(Error::required(&path.child("type"), ""));
        }
        let allowed: &[&str] = if matches!(name, "Approved" | "Denied" | "Failed") { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(Error::required(&path.child("status"), ""));
        } else if !allowed.contains(&status) {
            errors.push(Error::not_supported(&path.child("status"), status, allowed));
        }
        if name == "Approved" && before("Denied") || name == "Denied" && before("Approved") {
            errors.push(Error::invalid(&path.child("type"), name, "Approved and Denied conditions are mutually exclusive"));
        }
        if before(name) {
            errors.push(Error::duplicate(&path.child("type"), name));
        }
    }
    errors
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
    const MAX_DOMAIN: usize = 253;
    const MAX_NAME: usize = MAX_DOMAIN + 1 + 253 + 63 + 1;
    if name == "kubernetes.io/legacy-unknown" {
        return vec![Error::invalid(path, name, "the legacy signerName is not allowed via this API version")];
    }
    if name.is_empty() {
        return vec![Error::required(path, "signerName must be provided")];
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(_, rest)| !rest.contains('/')) else {
        return vec![Error::invalid(path, name, FORM)];
    };
    let mut errors = Vec::new();
    if domain.len() > MAX_DOMAIN {
        errors.push(Error::too_long(path, domain, MAX_DOMAIN));
    }
    errors.extend(labels_of(path, domain, names::is_dns1123_label));
    if !domain.contains('.') {
        errors.push(Error::invalid(path, domain, "should be a domain with at least two segments separated by dots"));
    }
    errors.extend(labels_of(path, rest, names::is_dns1123_subdomain));
    if name.len() > MAX_NAME {
        errors.push(Error::too_long(path, name, MAX_NAME));
    }
    errors
}

/// What is wrong with the first of the dotted parts that is wrong.
fn labels_of(path: &Path, whole: &str, rule: fn(&str) -> Vec<String>) -> ErrorList {
    let first = whole.split('.').map(|label| (label, rule(label))).find(|(_, messages)| !messages.is_empty());
    let Some((label, messages)) = first else { return Vec::new() };
    messages.into_iter().map(|message| Error::invalid(path, whole, format!("validating label {label:?}: {message}"))).collect()
}
