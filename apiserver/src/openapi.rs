//! Serves the OpenAPI documents that `schema` carries: `/openapi/v2`, `/openapi/v3` and `/openapi/v3/GROUP-VERSION`.
//!
//! Sent as they are stored, compressed; unpacked on the way for the rare client that can't. A client that names the hash of a v3 document
//! may keep it for a year; the index tells it the present hashes. Upstream counterpart: `kube-openapi/pkg/handler{,3}` (v1.33).

use std::io::{ErrorKind, Read};
use std::sync::OnceLock;

use api::Status;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use schema::openapi::{self, Document};
use serde_json::{Map, Value, json};

use crate::http::Call;
use crate::http::negotiate::{self, Clause};
use crate::http::respond::{self, Answer};

const JSON: &str = "application/json";
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The name clients before 1.27 ask for.
const V2_PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const CHUNK: usize = 64 * 1024;

/// Media type asked for, media type answered, document.
type Offer = (&'static str, &'static str, &'static Document);

pub fn serve(call: &Call) -> Result<Answer, Status> {
    match call.info.path.as_str() {
        "/openapi/v2" => Ok(document(
            call,
            &[
                (JSON, JSON, &openapi::V2),
                (V2_PROTOBUF_OLD, V2_PROTOBUF, &openapi::V2_PROTOBUF),
                (V2_PROTOBUF, V2_PROTOBUF, &openapi::V2_PROTOBUF),
            ],
        )),
        "/openapi/v3" => Ok(respond::bytes(200, JSON, index())),
        path => {
            let found = path.strip_prefix("/openapi/v3/").and_then(openapi::v3).ok_or_else(Status::no_such_resource)?;
            let mut answer = document(call, &[(JSON, JSON, found)]);
            if !call.query.get("hash").is_empty() {
                respond::header(&mut answer, "cache-control", "public, immutable");
            }
            Ok(answer)
        }
    }
}

/// What there is, with the hash of each.
fn index() -> Bytes {
    static INDEX: OnceLock<Bytes> = OnceLock::new();
    let entry = |d: &Document| (d.path.to_owned(), json!({"serverRelativeURL": format!("/openapi/v3/{}?hash={}", d.path, d.hash)}));
    INDEX.get_or_init(|| json!({"paths": openapi::V3.iter().map(entry).collect::<Map<String, Value>>()}).to_string().into()).clone()
}

/// The first of the client's clauses that is on offer; else 406 without a body, as upstream.
fn document(call: &Call, offers: &[Offer]) -> Answer {
    let clauses = negotiate::clauses(&call.headers);
    let takes = |clause: &Clause<'_>| offers.iter().find(|(media, ..)| clause.takes(media));
    let Some((_, content_type, document)) = (if clauses.is_empty() { offers.first() } else { clauses.iter().find_map(takes) }) else {
        return respond::bytes(406, "text/plain; charset=utf-8", Bytes::new());
    };
    let etag = format!("\"{}\"", document.hash);
    let known = call.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|known| known == "*" || known.contains(&etag));
    let mut answer = match (known, call.gzip) {
        (true, _) => respond::bytes(304, content_type, Bytes::new()),
        (false, true) => respond::bytes(200, content_type, document.gzip),
        (false, false) => respond::pieces(content_type, 0, false, unpacked(document)),
    };
    let headers = answer.headers_mut();
    if call.gzip && !known {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if let Ok(etag) = etag.parse() {
        headers.insert(ETAG, etag);
    }
    answer
}

/// Unpacked chunk by chunk while it is sent: the client need not wait for the whole, and nobody holds it.
fn unpacked(document: &'static Document) -> impl Iterator<Item = Bytes> + Send {
    let mut plain = document.plain();
    std::iter::from_fn(move || {
        let mut chunk = Vec::with_capacity(CHUNK);
        match plain.by_ref().take(CHUNK as u64).read_to_end(&mut chunk) {
            Ok(0) => None,
            Ok(_) => Some(chunk.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Some(Bytes::new()),
            Err(error) => {
                tracing::error!(%error, "an OpenAPI document does not unpack");
                None
            }
        }
    })
}
