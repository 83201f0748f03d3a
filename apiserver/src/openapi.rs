//! Serves the OpenAPI documents that `schema` carries: `/openapi/v2`, `/openapi/v3` and `/openapi/v3/GROUP-VERSION`.
//!
//! A client that names the hash of a v3 document may keep it for a year; the index tells it the present hashes.
//! Upstream counterpart: `kube-openapi/pkg/handler{,3}` (v1.33).

use std::sync::OnceLock;

use api::Status;
use http::header::{ACCEPT, CONTENT_ENCODING, HeaderValue, IF_NONE_MATCH, VARY};
use schema::openapi::{self, Document};
use serde_json::{Map, Value, json};

use crate::http::Call;
use crate::http::respond::{self, Answer};

pub fn serve(call: &Call) -> Result<Answer, Status> {
    match call.info.path.as_str() {
        "/openapi/v2" => document(call, &openapi::V2),
        "/openapi/v3" => Ok(respond::json(200, index())),
        path => {
            let found = path.strip_prefix("/openapi/v3/").and_then(openapi::v3);
            let mut answer = document(call, found.ok_or_else(Status::no_such_resource)?)?;
            if !call.query.get("hash").is_empty() {
                respond::header(&mut answer, "cache-control", "public, immutable");
            }
            Ok(answer)
        }
    }
}

/// What there is, with the hash of each.
fn index() -> &'static Value {
    static INDEX: OnceLock<Value> = OnceLock::new();
    INDEX.get_or_init(|| {
        let entry = |d: &Document| (d.path.to_owned(), json!({"serverRelativeURL": format!("/openapi/v3/{}?hash={}", d.path, d.hash())}));
        json!({"paths": openapi::V3.iter().map(entry).collect::<Map<String, Value>>()})
    })
}

/// As JSON only: the protobuf form is upstream's own and clients fall back from it.
fn document(call: &Call, document: &'static Document) -> Result<Answer, Status> {
    let accept = call.headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    if !accept.contains("json") && !accept.contains('*') {
        return Err(Status::not_acceptable(&["application/json"]));
    }
    let etag = format!("\"{}\"", document.hash());
    let known = call.headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut answer = match (known, call.gzip) {
        (true, _) => respond::bytes(304, "application/json", ""),
        (false, true) => respond::bytes(200, "application/json", document.gzip),
        (false, false) => respond::bytes(200, "application/json", document.json().map_err(Status::internal)?),
    };
    if call.gzip && !known {
        answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    respond::header(&mut answer, "etag", &etag);
    Ok(answer)
}
