//! GET of one object and of collections.
//!
//! A list is the concatenation of bytes that records already hold. `limit`/`continue` page through one snapshot.
//! Upstream counterparts: `endpoints/handlers/get.go`, `storage/continue.go`, `storage/cacher/delegator.go` (v1.33).

use std::sync::Arc;
use std::time::Duration;

use api::selector::{FieldSelector, LabelSelector};
use api::{Key, Status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::info::Query;
use super::negotiate::{Shape, Want};
use super::respond::{self, Answer};
use super::table::{self, Include};
use super::watch;
use super::{App, Call};
use crate::registry::Target;
use crate::registry::cache::{Listing, Selection};
use crate::registry::record::{Form, Record};
use crate::registry::write::plain_error;

/// How long a read waits for a revision the server has not seen yet.
const CATCH_UP: Duration = Duration::from_secs(3);
const MATCH_EXACT: &str = "Exact";
const MATCH_NOT_OLDER: &str = "NotOlderThan";

/// One object in the shape the client wants.
pub fn show(target: &Target, record: &Record, want: Want, query: &Query, code: u16) -> Answer {
    match want.shape {
        Shape::Table => {
            let api_version = target.kind.api_version(target.version);
            let row = table::row(target.kind, record, Include::parse(query.get("includeObject")), &api_version, Timestamp::now());
            respond::object(code, table::single(target.kind, record.revision, &row, true), want.yaml)
        }
        shape => respond::object(code, record.form(form(target, shape)), want.yaml),
    }
}

fn form(target: &Target, shape: Shape) -> Form {
    Form { group: target.kind.group, version: target.version, metadata_only: shape == Shape::Metadata }
}

pub async fn get(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    match parse_version(call.query.get("resourceVersion"))? {
        None => app.registry.catch_up().await?,
        Some(revision) => reach(app, revision).await?,
    }
    let record = app.registry.find(target)?;
    Ok(show(target, &record, call.want, &call.query, 200))
}

/// `None` = the most recent; 0 = any.
fn parse_version(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || Status::bad_request(format!("Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"));
    text.parse().map(Some).map_err(|_| invalid())
}

async fn reach(app: &App, revision: u64) -> Result<(), Status> {
    let cache = &app.registry.cache;
    if tokio::time::timeout(CATCH_UP, cache.reach(revision)).await.is_ok() {
        return Ok(());
    }
    let message = format!("Too large resource version: {revision}, current: {}", cache.applied());
    Err(Status::timeout(message, 1).with_cause("ResourceVersionTooLarge", "", "Too large resource version"))
}

/// The selection of a request, with the kind's own field names checked and, for a shared kind, translated to the stored one's.
pub fn selection(call: &Call, target: &Target) -> Result<Selection, Status> {
    let bad = |why: String| Status::bad_request(why);
    let labels = LabelSelector::parse(call.query.get("labelSelector"))
        .map_err(|e| bad(format!("unable to parse requirement: {e}")))?;
    let fields = FieldSelector::parse(call.query.get("fieldSelector")).map_err(|e| bad(e.to_string()))?;
    let mut translated = Vec::new();
    for requirement in fields.requirements() {
        let field = stored_field(target, &requirement.field)?;
        let value = requirement.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        translated.push(format!("{field}{}{value}", if requirement.equal { "=" } else { "!=" }));
    }
    let fields = FieldSelector::parse(&translated.join(",")).map_err(|e| bad(e.to_string()))?;
    let namespace = (!target.key.namespace.is_empty()).then(|| target.key.namespace.clone());
    Ok(Selection { namespace, labels, fields })
}

fn stored_field<'a>(target: &Target, field: &'a str) -> Result<&'a str, Status> {
    let kind = target.kind;
    if field == "metadata.name" || field == "metadata.namespace" && kind.namespaced {
        return Ok(field);
    }
    let Some(selectable) = kind.fields.iter().find(|f| f.field == field) else {
        return Err(Status::bad_request(if kind.fields.is_empty() {
            format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        } else {
            format!("field label not supported: {field}")
        }));
    };
    let stored = target.storage().fields.iter().find(|f| f.paths == selectable.paths);
    Ok(stored.map_or(selectable.field, |f| f.field))
}

pub async fn list(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let selection = selection(call, target)?;
    let query = &call.query;
    let limit: usize = query.get("limit").parse().unwrap_or(0);
    let from = Start::parse(query)?;
    match (&from.at, query.get("resourceVersion")) {
        (Some(revision), _) => reach(app, *revision).await?,
        (None, "") => app.registry.catch_up().await?,
        (None, version) => reach(app, parse_version(version)?.unwrap_or(0)).await?,
    }
    let applied = app.registry.cache.applied();
    let records = app.registry.records(target.kind)?;
    let listing = records.list(&selection, from.at, from.after.as_ref(), limit, applied).map_err(|_| from.expired())?;
    Ok(write_list(call, target, listing, !selection.filters()))
}

/// Where a list starts.
struct Start {
    at: Option<u64>,
    after: Option<Key>,
}

/// Upstream's continue token, base64 of this JSON.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: u64,
    start: String,
}

impl Start {
    fn parse(query: &Query) -> Result<Self, Status> {
        let (token, version, matching) = (query.get("continue"), query.get("resourceVersion"), query.get("resourceVersionMatch"));
        if !token.is_empty() {
            if !version.is_empty() && version != "0" {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let invalid = || Status::bad_request("continue key is not valid: illegal base64 data or unknown format");
            let decoded = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
            let token: Token = serde_json::from_slice(&decoded).map_err(|_| invalid())?;
            let Ok(after) = token.start.trim_end_matches('\0').parse();
            return Ok(Start { at: Some(token.rv), after: Some(after) });
        }
        if !matching.is_empty() && version.is_empty() {
            return Err(Status::bad_request("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        let at = match matching {
            "" | MATCH_NOT_OLDER => None,
            MATCH_EXACT => parse_version(version)?,
            other => {
                let message = format!("resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\"");
                return Err(Status::bad_request(message));
            }
        };
        if at == Some(0) {
            return Err(Status::bad_request("resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\""));
        }
        Ok(Start { at, after: None })
    }

    fn expired(&self) -> Status {
        Status::expired(if self.after.is_some() {
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.".to_owned()
        } else {
            "The resourceVersion for the provided list is too old.".to_owned()
        })
    }
}

fn list_meta(listing: &Listing, count: bool) -> String {
    let mut meta = json!({"resourceVersion": listing.revision.to_string()});
    if let (Some(remaining), Some(last)) = (listing.remaining, listing.records.last()) {
        let token = Token { v: "meta.k8s.io/v1".into(), rv: listing.revision, start: format!("{}\0", last.key) };
        let encoded = serde_json::to_vec(&token).unwrap_or_default();
        meta["continue"] = URL_SAFE_NO_PAD.encode(encoded).into();
        if count {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    meta.to_string()
}

fn write_list(call: &Call, target: &Target, listing: Listing, count: bool) -> Answer {
    let meta = list_meta(&listing, count);
    let (api_version, want) = (target.kind.api_version(target.version), call.want);
    let (head, tail): (String, &'static [u8]) = match want.shape {
        Shape::Table => {
            let columns = table::definitions(target.kind);
            (format!(r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{meta},"columnDefinitions":{columns},"rows":["#), b"]}\n")
        }
        Shape::Metadata => (format!(r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{meta},"items":["#), b"]}\n"),
        _ => (format!(r#"{{"kind":"{}List","apiVersion":"{api_version}","metadata":{meta},"items":["#, target.kind.kind), b"]}\n"),
    };
    let size: usize = listing.records.iter().map(|r| r.json().len()).sum();
    let (target, include, now) = (target.clone(), Include::parse(call.query.get("includeObject")), Timestamp::now());
    let item = move |record: &Arc<Record>| match want.shape {
        Shape::Table => table::row(target.kind, record, include, &api_version, now),
        shape => record.form(form(&target, shape)),
    };
    let items = listing.records.into_iter().enumerate().flat_map(move |(at, record)| {
        let comma = (at > 0).then(|| Bytes::from_static(b","));
        comma.into_iter().chain([item(&record)])
    });
    let pieces = [Bytes::from(head)].into_iter().chain(items).chain([Bytes::from_static(tail)]);
    if want.yaml {
        let whole: Vec<u8> = pieces.fold(Vec::new(), |mut all, piece| {
            all.extend_from_slice(&piece);
            all
        });
        return respond::object(200, whole.into(), true);
    }
    respond::pieces("application/json", size, call.gzip, pieces)
}

pub async fn watch(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let mut selection = selection(call, target)?;
    if !target.key.name.is_empty() && !selection.fields.requirements().iter().any(|r| r.field == "metadata.name") {
        let text = [format!("metadata.name={}", target.key.name), selection.fields.to_string()].join(",");
        selection.fields = FieldSelector::parse(text.trim_end_matches(',')).map_err(|e| Status::bad_request(e.to_string()))?;
    }
    let query = &call.query;
    let version = parse_version(query.get("resourceVersion"))?;
    let streaming_list = query.flag("sendInitialEvents");
    let bookmarks = query.flag("allowWatchBookmarks");
    if query.has("sendInitialEvents") && query.get("resourceVersionMatch") != MATCH_NOT_OLDER {
        return Err(plain_invalid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    match version {
        None => app.registry.catch_up().await?,
        Some(revision) if streaming_list => reach(app, revision).await?,
        Some(_) => {}
    }
    let no_initial = query.has("sendInitialEvents") && !streaming_list;
    let initial = streaming_list || !no_initial && matches!(version, None | Some(0));
    let after = match version {
        None | Some(0) => app.registry.cache.applied(),
        Some(revision) => revision,
    };
    let seconds: Option<u64> = query.get("timeoutSeconds").parse().ok().filter(|s| *s > 0);
    let request = watch::Request {
        target: target.clone(),
        selection,
        shape: call.want.shape,
        include: Include::parse(query.get("includeObject")),
        initial,
        mark_initial: streaming_list && bookmarks,
        after,
        bookmarks,
        timeout: seconds.map(Duration::from_secs),
    };
    watch::stream(app.registry.cache.clone(), request, app.shutdown.clone())
}

fn plain_invalid(why: &str) -> Status {
    let mut status = plain_error(&format!("ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: {why}"));
    (status.code, status.reason) = (422, api::status::Reason::Invalid);
    status
}
