//! The OpenAPI documents. Written by `schema-gen`; do not edit.

use super::Document;

pub static V2: Document = Document { path: "", gzip: include_bytes!("../../openapi/v2.json.gz") };

/// By path below `/openapi/v3/`.
#[rustfmt::skip]
pub static V3: &[Document] = &[
    Document { path: "api/v1", gzip: include_bytes!("../../openapi/api.v1.json.gz") },
    Document { path: "apis/admissionregistration.k8s.io/v1", gzip: include_bytes!("../../openapi/admissionregistration.k8s.io.v1.json.gz") },
    Document { path: "apis/apiextensions.k8s.io/v1", gzip: include_bytes!("../../openapi/apiextensions.k8s.io.v1.json.gz") },
    Document { path: "apis/apiregistration.k8s.io/v1", gzip: include_bytes!("../../openapi/apiregistration.k8s.io.v1.json.gz") },
    Document { path: "apis/apps/v1", gzip: include_bytes!("../../openapi/apps.v1.json.gz") },
    Document { path: "apis/authentication.k8s.io/v1", gzip: include_bytes!("../../openapi/authentication.k8s.io.v1.json.gz") },
    Document { path: "apis/authorization.k8s.io/v1", gzip: include_bytes!("../../openapi/authorization.k8s.io.v1.json.gz") },
    Document { path: "apis/autoscaling/v1", gzip: include_bytes!("../../openapi/autoscaling.v1.json.gz") },
    Document { path: "apis/autoscaling/v2", gzip: include_bytes!("../../openapi/autoscaling.v2.json.gz") },
    Document { path: "apis/batch/v1", gzip: include_bytes!("../../openapi/batch.v1.json.gz") },
    Document { path: "apis/certificates.k8s.io/v1", gzip: include_bytes!("../../openapi/certificates.k8s.io.v1.json.gz") },
    Document { path: "apis/coordination.k8s.io/v1", gzip: include_bytes!("../../openapi/coordination.k8s.io.v1.json.gz") },
    Document { path: "apis/discovery.k8s.io/v1", gzip: include_bytes!("../../openapi/discovery.k8s.io.v1.json.gz") },
    Document { path: "apis/events.k8s.io/v1", gzip: include_bytes!("../../openapi/events.k8s.io.v1.json.gz") },
    Document { path: "apis/flowcontrol.apiserver.k8s.io/v1", gzip: include_bytes!("../../openapi/flowcontrol.apiserver.k8s.io.v1.json.gz") },
    Document { path: "apis/networking.k8s.io/v1", gzip: include_bytes!("../../openapi/networking.k8s.io.v1.json.gz") },
    Document { path: "apis/node.k8s.io/v1", gzip: include_bytes!("../../openapi/node.k8s.io.v1.json.gz") },
    Document { path: "apis/policy/v1", gzip: include_bytes!("../../openapi/policy.v1.json.gz") },
    Document { path: "apis/rbac.authorization.k8s.io/v1", gzip: include_bytes!("../../openapi/rbac.authorization.k8s.io.v1.json.gz") },
    Document { path: "apis/scheduling.k8s.io/v1", gzip: include_bytes!("../../openapi/scheduling.k8s.io.v1.json.gz") },
    Document { path: "apis/storage.k8s.io/v1", gzip: include_bytes!("../../openapi/storage.k8s.io.v1.json.gz") },
];
