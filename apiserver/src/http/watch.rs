//! Watch: a cursor into a kind's ring of events, written as JSON frames.
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
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::negotiate::Shape;
use super::respond::{Answer, BoxError};
use super::table::{self, Include};
use crate::registry::Target;
use crate::registry::cache::{Cache, Selection, Told};
use crate::registry::record::{Form, Record};

const BATCH: usize = 256;
/// As upstream: a bookmark a minute tells an idle watcher how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
const MIN_TIMEOUT: u64 = 1800;

/// What a watch request asks for.
pub struct Request {
    pub target: Target,
    pub selection: Selection,
    pub shape: Shape,
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
    let watcher = Watcher {
        cursor: request.after,
        cache,
        request,
        news,
        deadline: now + timeout,
        next_bookmark: now + BOOKMARK_EVERY,
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
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
                () = tokio::time::sleep_until(self.next_bookmark), if self.request.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
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
            self.frame(&mut out, "ADDED", record);
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
                        Some(Told::Added(record)) => self.frame(&mut out, "ADDED", &record),
                        Some(Told::Modified(record)) => self.frame(&mut out, "MODIFIED", &record),
                        Some(Told::Deleted(record)) => self.frame(&mut out, "DELETED", &record),
                        None => {}
                    }
                }
            }
            Err(expired) => {
                self.ended = true;
                let status = Status::expired(format!("too old resource version: {} ({})", self.cursor, expired.oldest));
                write_frame(&mut out, "ERROR", json!(status).to_string().as_bytes());
            }
        }
        out.freeze()
    }

    fn frame(&mut self, out: &mut BytesMut, kind: &str, record: &Record) {
        let target = &self.request.target;
        match self.request.shape {
            Shape::Table => {
                let row = table::row(target.kind, record, self.request.include, &target.kind.api_version(target.version), Timestamp::now());
                let table = table::single(target.kind, record.revision, &row, !self.columns_sent);
                self.columns_sent = true;
                write_frame(out, kind, &table);
            }
            shape => {
                let form = Form { group: target.kind.group, version: target.version, metadata_only: shape == Shape::Metadata };
                write_frame(out, kind, &record.form(form));
            }
        }
    }

    fn bookmark(&self, revision: u64, ends_initial: bool) -> Bytes {
        let target = &self.request.target;
        let (kind, api_version) = match self.request.shape {
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            _ => (target.kind.kind, target.kind.api_version(target.version)),
        };
        let mut object = json!({"kind": kind, "apiVersion": api_version, "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null}});
        if ends_initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.request.shape == Shape::Table {
            let row = Bytes::from(json!({"cells": [], "object": object}).to_string());
            object = serde_json::from_slice(&table::single(target.kind, revision, &row, false)).unwrap_or(object);
        }
        let mut out = BytesMut::new();
        write_frame(&mut out, "BOOKMARK", object.to_string().as_bytes());
        out.freeze()
    }
}

fn write_frame(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
