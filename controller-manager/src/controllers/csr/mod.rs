//! CertificateSigningRequests: approving (kubelets' own), signing with the cluster's CA, cleaning up.
//!
//! Upstream: `pkg/controller/certificates/{approver,signer,cleaner}`. Upstream leaves serving certificates of kubelets
//! to a human; here one is approved if the node itself asks and names only itself, so that every kubelet's port has
//! a certificate that the API server can verify.

pub mod approving;
pub mod cleaner;
pub mod signing;

use base64::Engine as _;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use std::net::IpAddr;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use crate::shared::conditions;

pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// What a request asks to be certified.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// E-mail addresses, URIs: nothing a node has.
    pub other_names: usize,
}

pub fn has(csr: &CertificateSigningRequest, condition: &str) -> bool {
    csr.status.as_ref().is_some_and(|status| conditions::find(&status.conditions, condition).is_some())
}

pub fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|bytes| !bytes.0.is_empty())
}

/// The DER inside the request's PEM.
pub fn der(csr: &CertificateSigningRequest) -> anyhow::Result<Vec<u8>> {
    let text = std::str::from_utf8(&csr.spec.request.0)?;
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    Ok(base64::engine::general_purpose::STANDARD.decode(body)?)
}

pub fn subject(der: &[u8]) -> anyhow::Result<Subject> {
    let (_, request) = X509CertificationRequest::from_der(der)?;
    let name = &request.certification_request_info.subject;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue| attribute.as_str().map(str::to_owned);
    let mut subject = Subject {
        common_name: name.iter_common_name().next().map(text).transpose()?.unwrap_or_default(),
        organizations: name.iter_organization().map(text).collect::<Result<_, _>>()?,
        ..Subject::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => subject.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => subject.addresses.extend(address(bytes)),
                _ => subject.other_names += 1,
            }
        }
    }
    Ok(subject)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
pub mod fixtures {
    use super::*;
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DnType, KeyPair};

    pub fn request(signer: &str, name: &str, organization: &str, sans: &[&str], usages: &[&str]) -> CertificateSigningRequest {
        let mut params = CertificateParams::new(sans.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.name = Some("csr-1".into());
        csr.spec.request = ByteString(pem.into_bytes());
        csr.spec.signer_name = signer.into();
        csr.spec.username = Some(name.into());
        csr.spec.usages = Some(usages.iter().map(|usage| usage.to_string()).collect());
        csr
    }
}
