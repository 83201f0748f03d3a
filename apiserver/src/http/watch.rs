//! Watch: a cursor into a kind's ring of events, written as frames of JSON or protobuf.
//!
//! A slow client costs only its own connection; one that falls behind the ring is told 410 `Expired` in an ERROR event.
//! Upstream counterparts: `apiserver/pkg/endpoints/handlers/watch.go`, `storage/cacher/cache_watcher.go` (v1.33).

use std::sync::Arc;
use std::time::Duration;

use api::Status;
use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use rand::Rng;
use schema::Media;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::negotiate::{Shape, Want};
use super::read;
use super::respond::{Answer, BoxError};
use super::table::{self, Include};
use crate::registry::Target;
use crate::registry::cache::{Cache, Selection, Told};
use crate::registry::record::{self, Form, Record};

const BATCH: usize = 256;
/// As upstream: a bookmark a minute tells an idle watcher how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
const MIN_TIMEOUT: u64 = 1800;

/// What a watch request asks for.
pub struct Request {
    pub target: Target,
    pub selection: Selection,
    pub want: Want,
    pub include: Include,
    /// Deliver what exists first.
    pub initial: bool,
    /// End the initial events with a marked bookmark.
    pub mark_initial: bool,
    /// Where to start when nothing is delivered first.
    pub after: u64,
    pub bookmarks: bool,
    pub timeout: Option<Duration>,
}

struct Watcher {
    cache: Arc<Cache>,
    request: Request,
    cursor: u64,
    news: watch::Receiver<u64>,
    deadline: Instant,
    next_bookmark: Instant,
    started: bool,
    columns_sent: bool,
    ended: bool,
    shutdown: CancellationToken,
}

/// Start the stream. The client learns of an expired start in its first event, as upstream.
pub fn stream(cache: Arc<Cache>, request: Request, shutdown: CancellationToken) -> Result<Answer, Status> {
    let records = cache.get(&request.target.kind.storage_resource()).ok_or_else(Status::no_such_resource)?;
    let timeout = request.timeout.unwrap_or_else(|| Duration::from_secs(rand::rng().random_range(MIN_TIMEOUT..2 * MIN_TIMEOUT)));
    let news = records.subscribe();
    let now = Instant::now();
    let content_type =
        if request.want.media == Media::Protobuf { "application/vnd.kubernetes.protobuf;stream=watch" } else { "application/json" };
    let watcher = Watcher {
        cursor: request.after,
        cache,
        request,
        news,
        deadline: now + timeout,
        next_bookmark: bookmark_after(now, now + timeout),
        started: false,
        columns_sent: false,
        ended: false,
        shutdown,
    };
    let frames = futures::stream::unfold(watcher, |mut watcher| async move {
        let chunk = watcher.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(chunk)), watcher))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

impl Watcher {
    /// The next frames, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if !self.started {
            self.started = true;
            let first = self.begin();
            if !first.is_empty() {
                return Some(first);
            }
        }
        loop {
            // Marked before reading: news that come meanwhile wake the next wait.
            self.news.mark_unchanged();
            let chunk = self.gather();
            if !chunk.is_empty() {
                return Some(chunk);
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.next_bookmark), if self.request.bookmarks && self.next_bookmark < self.deadline => {
                    self.next_bookmark = bookmark_after(Instant::now(), self.deadline);
                    // Read before the events: all of this kind's events up to here are then in the ring.
                    let applied = self.cache.applied();
                    let late = self.gather();
                    return Some(if late.is_empty() { self.bookmark(self.cursor.max(applied), false) } else { late });
                }
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = self.shutdown.cancelled() => return None,
            }
        }
    }

    /// What exists, if asked for.
    fn begin(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        if !self.request.initial {
            return out.freeze();
        }
        let cache = self.cache.clone();
        let Some(records) = cache.get(&self.request.target.kind.storage_resource()) else { return out.freeze() };
        let Ok(listing) = records.list(&self.request.selection, None, None, 0, cache.applied()) else { return out.freeze() };
        self.cursor = listing.revision;
        for record in &listing.records {
            self.frame(&mut out, "ADDED", record, Record::form);
        }
        if self.request.mark_initial {
            out.extend_from_slice(&self.bookmark(listing.revision, true));
        }
        out.freeze()
    }

    fn gather(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        let cache = self.cache.clone();
        let Some(records) = cache.get(&self.request.target.kind.storage_resource()) else { return out.freeze() };
        match records.events_after(self.cursor, BATCH) {
            Ok(events) => {
                for event in events {
                    self.cursor = event.revision;
                    match event.seen_through(&self.request.selection) {
                        Some(Told::Added(record)) => self.frame(&mut out, "ADDED", &record, Record::shared_form),
                        Some(Told::Modified(record)) => self.frame(&mut out, "MODIFIED", &record, Record::shared_form),
                        Some(Told::Deleted(record)) => self.frame(&mut out, "DELETED", &record, Record::shared_form),
                        None => {}
                    }
                }
            }
            Err(expired) => {
                self.ended = true;
                let status = Status::expired(format!("too old resource version: {} ({})", self.cursor, expired.oldest));
                self.write_tree(&mut out, "ERROR", &json!(status));
            }
        }
        out.freeze()
    }

    fn frame(&mut self, out: &mut BytesMut, kind: &str, record: &Record, encoded: fn(&Record, Form) -> Bytes) {
        let target = &self.request.target;
        let object = match self.request.want.shape {
            Shape::Table(version) => {
                let row = table::row(
                    target.kind,
                    record,
                    self.request.include,
                    version,
                    &target.kind.api_version(target.version),
                    Timestamp::now(),
                );
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                table::single(target.kind, version, record.revision, &row, with_columns)
            }
            _ => encoded(record, read::form(target, self.request.want)),
        };
        self.write(out, kind, &object);
    }

    fn bookmark(&self, revision: u64, ends_initial: bool) -> Bytes {
        let target = &self.request.target;
        let (kind, api_version) = match self.request.want.shape {
            Shape::Metadata(version) => ("PartialObjectMetadata", version.to_owned()),
            _ => (target.kind.kind, target.kind.api_version(target.version)),
        };
        let mut object = json!({"kind": kind, "apiVersion": api_version, "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null}});
        if ends_initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut out = BytesMut::new();
        match self.request.want.shape {
            Shape::Table(version) => {
                let row = Bytes::from(json!({"cells": [], "object": object}).to_string());
                self.write(&mut out, "BOOKMARK", &table::single(target.kind, version, revision, &row, false));
            }
            _ => self.write_tree(&mut out, "BOOKMARK", &object),
        }
        out.freeze()
    }

    fn write_tree(&self, out: &mut BytesMut, kind: &str, tree: &Value) {
        let object = if self.request.want.media == Media::Protobuf { record::encode_protobuf(tree) } else { record::encode(tree) };
        self.write(out, kind, &object);
    }

    fn write(&self, out: &mut BytesMut, kind: &str, object: &[u8]) {
        if self.request.want.media == Media::Protobuf {
            out.extend_from_slice(&schema::watch_event(kind, object));
        } else {
            write_json(out, kind, object);
        }
    }
}

/// About every minute, and once more just before the end, so that the client's next watch starts from there.
fn bookmark_after(now: Instant, deadline: Instant) -> Instant {
    let regular = now + BOOKMARK_EVERY.mul_f64(rand::rng().random_range(1.0..1.25));
    match deadline.checked_sub(BOOKMARK_BEFORE_END) {
        Some(last) if last < regular && last > now => last,
        Some(last) if last < regular => deadline,
        _ => regular,
    }
}

fn write_json(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
