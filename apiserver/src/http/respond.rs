//! Answers: bodies, headers, compression, and the one place where a `Status` becomes HTTP.
//!
//! Lists are written piece by piece from records that already hold their bytes; nothing assembles a whole list in memory.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use api::Status;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY, WARNING};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use schema::Media;
use serde::Serialize;
use serde_json::Value;

use super::negotiate::Want;
use crate::registry::record;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Answer = Response<Body>;

/// Compress answers larger than this, as upstream.
const GZIP_FROM: usize = 128 * 1024;
/// Upstream's level: a little smaller for little time.
const GZIP_LEVEL: u32 = 1;
const CHUNK: usize = 64 * 1024;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn bytes(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Indented, for the few documents that upstream writes for people.
pub fn pretty(code: u16, body: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(body) {
        Ok(encoded) => bytes(code, "application/json", encoded),
        Err(error) => status(&Status::internal(error), Want::JSON),
    }
}

pub fn json(code: u16, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(mut encoded) => {
            encoded.push(b'\n');
            bytes(code, "application/json", encoded)
        }
        Err(error) => status(&Status::internal(error), Want::JSON),
    }
}

pub fn text(code: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = bytes(code, "text/plain; charset=utf-8", body);
    answer.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

/// A refusal as clients know it.
pub fn status(status: &Status, want: Want) -> Answer {
    let mut answer = match serde_json::to_value(status) {
        Ok(body) if want.media == Media::Protobuf => tree(status.code, &body, want),
        // In the order in which people read it.
        _ => object(status.code, serde_json::to_vec(status).unwrap_or_default().into(), want),
    };
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// An object that says its kind.
pub fn tree(code: u16, tree: &Value, want: Want) -> Answer {
    object(code, if want.media == Media::Protobuf { record::encode_protobuf(tree) } else { record::encode(tree) }.into(), want)
}

/// One object's bytes: protobuf, or JSON which may be wanted as YAML or for people's eyes.
pub fn object(code: u16, encoded: Bytes, want: Want) -> Answer {
    if want.media == Media::Protobuf || want.media == Media::Json && !want.pretty {
        return bytes(code, want.content_type(), encoded);
    }
    let text = serde_json::from_slice(&encoded).map_err(|e| e.to_string()).and_then(|tree: Value| {
        if want.pretty {
            serde_json::to_string_pretty(&tree).map_err(|e| e.to_string())
        } else {
            serde_yaml::to_string(&tree).map_err(|e| e.to_string())
        }
    });
    match text {
        Ok(text) => bytes(code, want.content_type(), text),
        Err(error) => status(&Status::internal(error), Want::JSON),
    }
}

/// `Warning: 299 - "text"`.
pub fn add_warnings(answer: &mut Answer, warnings: Vec<String>) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(WARNING, value);
        }
    }
}

/// A long answer from pieces, gathered into chunks of useful size and, when it is long and the client agrees, compressed.
pub fn pieces(content_type: &'static str, size: usize, gzip: bool, pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Answer {
    let gzip = gzip && size > GZIP_FROM;
    let encoder = gzip.then(|| GzEncoder::new(Vec::with_capacity(CHUNK), Compression::new(GZIP_LEVEL)));
    let body = PieceBody { pieces: Box::new(pieces), encoder, done: false };
    let mut response = Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

struct PieceBody {
    pieces: Box<dyn Iterator<Item = Bytes> + Send>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    done: bool,
}

impl PieceBody {
    fn next_chunk(&mut self) -> std::io::Result<Option<Bytes>> {
        if self.done {
            return Ok(None);
        }
        let mut gathered = BytesMut::new();
        while gathered.len() < CHUNK {
            match self.pieces.next() {
                Some(piece) => gathered.extend_from_slice(&piece),
                None => {
                    self.done = true;
                    break;
                }
            }
        }
        let Some(encoder) = &mut self.encoder else { return Ok((!gathered.is_empty()).then(|| gathered.freeze())) };
        encoder.write_all(&gathered)?;
        if self.done {
            encoder.try_finish()?;
        }
        Ok(Some(Bytes::from(std::mem::take(encoder.get_mut()))))
    }
}

impl http_body::Body for PieceBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            return Poll::Ready(match this.next_chunk() {
                // The encoder may keep a chunk to itself.
                Ok(Some(chunk)) if chunk.is_empty() => continue,
                Ok(Some(chunk)) => Some(Ok(Frame::data(chunk))),
                Ok(None) => None,
                Err(error) => Some(Err(error.into())),
            });
        }
    }
}

pub fn header(answer: &mut Answer, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
