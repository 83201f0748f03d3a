//! GET of one object and of collections.
//!
//! A list is the concatenation of bytes that records already hold. `limit`/`continue` page through one snapshot.
//! Upstream counterparts: `endpoints/handlers/get.go`, `storage/continue.go`, `storage/cacher/delegator.go` (v1.33).

use std::time::Duration;

use api::Status;
use api::selector::{FieldSelector, LabelSelector};
use bytes::Bytes;
use jiff::Timestamp;
use schema::Media;
use serde_json::{Value, json};

use super::info::Query;
use super::negotiate::{Shape, Want};
use super::options::{Continue, ListOptions, parse_version};
use super::respond::{self, Answer};
use super::table::{self, Include};
use super::watch;
use super::{App, Call};
use crate::registry::Target;
use crate::registry::cache::{Listing, Selection};
use crate::registry::record::{Form, Record};

/// How long a read waits for a revision the server has not seen yet.
const CATCH_UP: Duration = Duration::from_secs(3);

/// One object in the shape the client wants.
pub fn show(target: &Target, record: &Record, want: Want, query: &Query, code: u16) -> Answer {
    match want.shape {
        Shape::Table(version) => {
            let api_version = target.kind.api_version(target.version);
            let row = table::row(target.kind, record, Include::parse(query.get("includeObject")), version, &api_version, Timestamp::now());
            respond::object(code, table::single(target.kind, version, record.revision, &row, true), want)
        }
        _ => respond::object(code, record.form(form(target, want)), want),
    }
}

pub fn form(target: &Target, want: Want) -> Form {
    let metadata = if let Shape::Metadata(version) = want.shape { Some(version) } else { None };
    Form { group: target.kind.group, version: target.version, metadata, protobuf: want.media == Media::Protobuf }
}

pub async fn get(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    match parse_version(call.query.get("resourceVersion"))? {
        None => app.registry.catch_up().await?,
        Some(revision) => reach(app, revision).await?,
    }
    let record = app.registry.find(target)?;
    Ok(show(target, &record, call.want, &call.query, 200))
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
    let labels = LabelSelector::parse(call.query.get("labelSelector")).map_err(|e| bad(e.to_string()))?;
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
    if field == "metadata.name" || field == "metadata.namespace" && (kind.namespaced || kind.fields.is_empty()) {
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
    let options = ListOptions::parse(&call.query, false)?;
    let selection = selection(call, target)?;
    match options.snapshot().or(options.version) {
        Some(revision) => reach(app, revision).await?,
        None => app.registry.catch_up().await?,
    }
    let applied = app.registry.cache.applied();
    let records = app.registry.records(target.kind)?;
    let after = options.from.as_ref().map(|from| &from.after);
    let listing =
        records.list(&selection, options.snapshot(), after, options.limit, applied).map_err(|_| expired(options.from.as_ref()))?;
    Ok(write_list(call, target, listing, !selection.filters()))
}

/// The snapshot is gone; a client that was paging may go on in the present.
fn expired(from: Option<&Continue>) -> Status {
    let Some(from) = from else { return Status::expired("The resourceVersion for the provided list is too old.") };
    let token = Continue { revision: None, ..from.clone() }.encode();
    Status::expired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.").with_continue(token)
}

fn list_meta(listing: &Listing, count: bool) -> Value {
    // What is not stored has no revision.
    let mut meta = if listing.revision == 0 { json!({}) } else { json!({"resourceVersion": listing.revision.to_string()}) };
    if let (Some(remaining), Some(last)) = (listing.remaining, listing.records.last()) {
        meta["continue"] = Continue { after: last.key.clone(), revision: Some(listing.revision) }.encode().into();
        if count {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    meta
}

pub fn write_list(call: &Call, target: &Target, listing: Listing, count: bool) -> Answer {
    let (meta, want) = (list_meta(&listing, count), call.want);
    let size: usize = listing.records.iter().map(|r| r.json().len()).sum();
    let (kind, api_version) = match want.shape {
        Shape::Table(version) => ("Table".to_owned(), version.to_owned()),
        Shape::Metadata(version) => ("PartialObjectMetadataList".to_owned(), version.to_owned()),
        _ => (format!("{}List", target.kind.kind), target.kind.api_version(target.version)),
    };
    if want.media == Media::Protobuf {
        let form = form(target, want);
        let items = listing.records.iter().map(|record| schema::message_of(&record.form(form))).collect();
        return respond::pieces(want.content_type(), size, call.gzip, schema::protobuf_list(&api_version, &kind, &meta, items));
    }
    let contents = match want.shape {
        Shape::Table(_) => format!(r#""columnDefinitions":{},"rows""#, table::definitions(target.kind)),
        _ => "\"items\"".to_owned(),
    };
    let head = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{meta},{contents}:["#);
    let item = item_writer(call, target);
    let items = listing.records.into_iter().enumerate().flat_map(move |(at, record)| {
        let comma = (at > 0).then(|| Bytes::from_static(b","));
        comma.into_iter().chain([item(&record)])
    });
    let pieces = [Bytes::from(head)].into_iter().chain(items).chain([Bytes::from_static(b"]}\n")]);
    if want.media == Media::Yaml || want.pretty {
        let whole = pieces.fold(Vec::new(), |mut all, piece| {
            all.extend_from_slice(&piece);
            all
        });
        return respond::object(200, whole.into(), want);
    }
    respond::pieces(want.content_type(), size, call.gzip, pieces)
}

/// How one object of a list is written in JSON.
fn item_writer(call: &Call, target: &Target) -> impl Fn(&Record) -> Bytes + Send + use<> {
    let (kind, shape, form, now) = (target.kind, call.want.shape, form(target, call.want), Timestamp::now());
    let (include, api_version) = (Include::parse(call.query.get("includeObject")), target.kind.api_version(target.version));
    move |record| match shape {
        Shape::Table(version) => table::row(kind, record, include, version, &api_version, now),
        // Objects of YAML are JSON until the end.
        _ => record.form(form),
    }
}

pub async fn watch(app: &App, call: &Call, target: &Target) -> Result<Answer, Status> {
    let options = ListOptions::parse(&call.query, true)?;
    let mut selection = selection(call, target)?;
    if !target.key.name.is_empty() {
        select_name(&mut selection, &target.key.name)?;
    }
    let initial = options.send_initial_events.unwrap_or(matches!(options.version, None | Some(0)));
    match options.version {
        None => app.registry.catch_up().await?,
        Some(revision) if initial => reach(app, revision).await?,
        Some(_) => {}
    }
    let request = watch::Request {
        target: target.clone(),
        selection,
        want: call.want,
        include: Include::parse(call.query.get("includeObject")),
        initial,
        mark_initial: options.send_initial_events == Some(true) && options.bookmarks,
        after: options.version.filter(|version| *version > 0).unwrap_or_else(|| app.registry.cache.applied()),
        bookmarks: options.bookmarks,
        timeout: options.timeout,
    };
    watch::stream(app.registry.cache.clone(), request, app.shutdown.clone())
}

/// A watch of one name is a watch by field.
fn select_name(selection: &mut Selection, name: &str) -> Result<(), Status> {
    if selection.fields.is_everything() {
        selection.fields = FieldSelector::parse(&format!("metadata.name={name}")).map_err(|e| Status::bad_request(e.to_string()))?;
    } else if selection.fields.exact("metadata.name") != Some(name) {
        return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
    }
    Ok(())
}
