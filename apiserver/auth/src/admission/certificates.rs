//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction.
//!
//! Upstream: `plugin/pkg/admission/certificates`, `pkg/apis/certificates` (v1.33).

use api::GroupResource;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::text;

const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// For the signer itself or for all of its domain: `kubernetes.io/*`.
fn may_for_signer(request: &Request<'_>, verb: &str, signer: &str) -> bool {
    let signers = GroupResource::new("certificates.k8s.io", "signers");
    let domain = signer.split('/').next().unwrap_or_default();
    request.may(verb, &signers, "", signer) || request.may(verb, &signers, "", &format!("{domain}/*"))
}

/// The signer is taken from the stored request: nobody approves by naming another.
fn signer_of<'a>(request: &Request<'a>) -> &'a str {
    request.old.map_or("", |old| text(old, "/spec/signerName"))
}

pub struct CertificateApproval;

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn validate(&self, request: &Request<'_>, object: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        if request.operation != Operation::Update || request.subresource != "approval" || !request.is_any(REQUESTS) {
            return Ok(());
        }
        let signer = signer_of(request);
        if may_for_signer(request, "approve", signer) {
            return Ok(());
        }
        Err(request.forbidden(object, format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

pub struct CertificateSigning;

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn validate(&self, request: &Request<'_>, object: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        if request.operation != Operation::Update || request.subresource != "status" || !request.is_any(REQUESTS) {
            return Ok(());
        }
        let changed = |pointer: &str| request.old.and_then(|old| old.pointer(pointer)) != object.pointer(pointer);
        let signer = signer_of(request);
        if !(changed("/status/certificate") || changed("/status/conditions")) || may_for_signer(request, "sign", signer) {
            return Ok(());
        }
        Err(request.forbidden(object, format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

/// Nobody becomes `system:masters` by asking for a certificate.
pub struct CertificateSubjectRestriction;

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn validate(&self, request: &Request<'_>, object: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        let applies = request.operation == Operation::Create && request.is(REQUESTS);
        if !applies || text(object, "/spec/signerName") != CLIENT_SIGNER {
            return Ok(());
        }
        let organizations =
            organizations(text(object, "/spec/request")).map_err(|why| request.forbidden(object, format!("failed to parse CSR: {why}")))?;
        if organizations.iter().any(|o| o == "system:masters") {
            let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
            return Err(request.forbidden(object, why));
        }
        Ok(())
    }
}

fn organizations(encoded: &str) -> Result<Vec<String>, &'static str> {
    const NO_PEM: &str = "PEM block type must be CERTIFICATE REQUEST";
    let pem = STANDARD.decode(encoded).map_err(|_| NO_PEM)?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem).map_err(|_| NO_PEM)?;
    let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|_| "malformed certificate request")?;
    let subject = &parsed.certification_request_info.subject;
    Ok(subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect())
}
