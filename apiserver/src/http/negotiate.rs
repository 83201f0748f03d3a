//! Which form of an answer the client accepts, and in which form its body comes.
//!
//! Upstream counterpart: `apiserver/pkg/endpoints/handlers/negotiation/negotiate.go` (v1.33). Answers are JSON or YAML: every client
//! that sends protobuf also takes JSON back.

use api::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use schema::Media;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub const SUPPORTED: [&str; 3] = [JSON, YAML, PROTOBUF];

/// What the objects of an answer are shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Metadata,
    Table,
    /// `APIGroupDiscoveryList`, by its version.
    Discovery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub shape: Shape,
    pub yaml: bool,
}

/// The first clause of `Accept` that can be served.
pub fn accept(headers: &HeaderMap) -> Result<Want, Status> {
    let mut clauses = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).peekable();
    if clauses.peek().is_none() {
        return Ok(Want { shape: Shape::Object, yaml: false });
    }
    clauses.find_map(clause).ok_or_else(|| Status::not_acceptable(&SUPPORTED))
}

fn clause(clause: &str) -> Option<Want> {
    let mut parts = clause.split(';').map(str::trim);
    let yaml = match parts.next()? {
        "application/json" | "application/*" | "*/*" | "" => false,
        "application/yaml" | "text/yaml" => true,
        _ => return None,
    };
    let (mut shown, mut group, mut version) = ("", "", "");
    for (name, value) in parts.filter_map(|p| p.split_once('=')) {
        match name {
            "as" => shown = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    let shape = match (shown, group, version) {
        ("", ..) => Shape::Object,
        ("Table", "meta.k8s.io", "v1" | "v1beta1") => Shape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1" | "v1beta1") => Shape::Metadata,
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Shape::Discovery,
        _ => return None,
    };
    Some(Want { shape, yaml })
}

/// The body's form, from `Content-Type`; none means JSON.
pub fn content(headers: &HeaderMap) -> Result<Media, Status> {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match media_type(value) {
        "" | "application/json" => Ok(Media::Json),
        "application/yaml" | "text/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        _ => Err(Status::unsupported_media_type(&SUPPORTED)),
    }
}

/// A media type without its parameters.
pub fn media_type(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_clause_it_can_serve() {
        let cases = [
            ("", Some((Shape::Object, false))),
            ("application/vnd.kubernetes.protobuf, */*", Some((Shape::Object, false))),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some((Shape::Table, false))),
            ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json", Some((Shape::Metadata, false))),
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", Some((Shape::Discovery, false))),
            ("application/yaml", Some((Shape::Object, true))),
            ("text/html", None),
        ];
        for (header, expected) in cases {
            let mut headers = HeaderMap::new();
            if !header.is_empty() {
                headers.insert(ACCEPT, header.parse().unwrap());
            }
            assert_eq!(accept(&headers).ok().map(|w| (w.shape, w.yaml)), expected, "{header}");
        }
    }
}
