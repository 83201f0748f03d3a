//! The list-and-watch protocol: every object of a resource, then each change to it, for ever.
//!
//! ```text
//! list in pages ──▶ Item… Listed ──▶ watch from there ──▶ Applied, Deleted … ──(410 Gone)──▶ list again
//! ```
//! Invariants: an interrupted watch goes on where it was, so nothing is missed and nothing listed twice without need; an object is
//! decoded once, from the bytes that came; what it keeps has no `managedFields`, which take more room than all else and which
//! only the API server reads.
//! Upstream: `client-go/tools/cache/reflector.go`.

use std::time::Duration;

use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use http::Request;
use http::header::ACCEPT;
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Status;
use kube::{Client, Error, Resource};
use rand::Rng;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::Instant;

/// As client-go's pager.
const PAGE: u32 = 500;
/// A server ends a watch after five to ten minutes; ours are spread over that, as client-go's.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;
/// The first retry comes soon: a restarted server, or an authorizer that has not heard of a new pod, is a matter of moments.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// A watch that lasted this long was none that failed.
const LASTED: Duration = Duration::from_secs(5);

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// What a reader is told, in order.
#[derive(Debug)]
pub enum Event<K> {
    /// A list begins: what was known may be gone.
    Listing,
    Item(K),
    /// The list is whole.
    Listed,
    Applied(K),
    /// With the object's last form, at the revision of its deletion.
    Deleted(K),
    /// Something failed, and is tried again.
    Interrupted(Error),
}

/// What to watch.
#[derive(Clone)]
pub struct Source {
    client: Client,
    path: String,
    selector: String,
    metadata_only: bool,
}

impl Source {
    /// All objects of a kind, in a namespace or in all of them.
    pub fn of<K: Resource<DynamicType = ()>>(client: Client, namespace: Option<&str>) -> Self {
        Source::dynamic::<K>(client, namespace, &())
    }

    pub fn dynamic<K: Resource>(client: Client, namespace: Option<&str>, kind: &K::DynamicType) -> Self {
        Source { client, path: K::url_path(kind, namespace), selector: String::new(), metadata_only: false }
    }

    /// Only what matches a field selector.
    pub fn fields(mut self, selector: &str) -> Self {
        self.selector += &format!("&fieldSelector={}", encoded(selector));
        self
    }

    /// Only what matches a label selector.
    pub fn labels(mut self, selector: &str) -> Self {
        self.selector += &format!("&labelSelector={}", encoded(selector));
        self
    }

    /// Objects come as PartialObjectMetadata.
    pub fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }
}

/// Tells `tell` of the source's objects until it is dropped.
pub async fn follow<K: Resource + DeserializeOwned>(source: Source, mut tell: impl FnMut(Event<K>) + Send) {
    let mut hear = |heard: Heard<'_>| {
        let (event, raw): (fn(K) -> Event<K>, _) = match heard {
            Heard::Listing => return tell(Event::Listing),
            Heard::Listed => return tell(Event::Listed),
            Heard::Interrupted(error) => return tell(Event::Interrupted(error)),
            Heard::Item(raw) => (Event::Item, raw),
            Heard::Applied(raw) => (Event::Applied, raw),
            Heard::Deleted(raw) => (Event::Deleted, raw),
        };
        match serde_json::from_str::<K>(raw.get()) {
            Ok(mut object) => {
                object.meta_mut().managed_fields = None;
                tell(event(object));
            }
            // The others must not suffer for one.
            Err(error) => tracing::error!(path = source.path, "an object does not decode: {error}"),
        }
    };
    source.run(&mut hear).await;
}

/// An event whose object is still text: all that is the same for every kind deals in these.
enum Heard<'a> {
    Listing,
    Item(&'a RawValue),
    Listed,
    Applied(&'a RawValue),
    Deleted(&'a RawValue),
    Interrupted(Error),
}

type Hear<'a> = dyn FnMut(Heard<'_>) + Send + 'a;

#[derive(Deserialize)]
struct Page<'a> {
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Line<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// As much of an object as resuming takes.
#[derive(Deserialize)]
struct Versioned {
    metadata: ListMeta,
}

impl Source {
    async fn run(&self, hear: &mut Hear<'_>) {
        let (mut revision, mut delay) = (None, FIRST_RETRY);
        loop {
            let began = Instant::now();
            let outcome = match &mut revision {
                Some(revision) => self.watch(revision, hear).await,
                None => match self.list(hear).await {
                    Ok(listed) => {
                        revision = Some(listed);
                        delay = FIRST_RETRY;
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            if began.elapsed() >= LASTED {
                delay = FIRST_RETRY;
            }
            if let Err(error) = outcome {
                if matches!(&error, Error::Api(status) if status.code == 410) {
                    revision = None;
                }
                hear(Heard::Interrupted(error));
            }
            let jitter = rand::rng().random_range(1.0..1.5);
            tokio::time::sleep(delay.mul_f64(jitter)).await;
            delay = (delay * 2).min(LAST_RETRY);
        }
    }

    fn get(&self, query: &str, metadata: &str) -> Result<Request<Vec<u8>>, Error> {
        let accept = if self.metadata_only { metadata } else { "application/json" };
        let request = Request::get(format!("{}?{query}{}", self.path, self.selector)).header(ACCEPT, accept);
        request.body(Vec::new()).map_err(Error::HttpError)
    }

    /// Gives the revision the list is of.
    async fn list(&self, hear: &mut Hear<'_>) -> Result<String, Error> {
        hear(Heard::Listing);
        let mut query = format!("limit={PAGE}");
        loop {
            let text = self.client.request_text(self.get(&query, METADATA_LIST)?).await?;
            let page: Page<'_> = serde_json::from_str(&text).map_err(Error::SerdeError)?;
            page.items.into_iter().for_each(|item| hear(Heard::Item(item)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => query = format!("limit={PAGE}&continue={}", encoded(&token)),
                None => {
                    hear(Heard::Listed);
                    return Ok(page.metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }

    /// Until the server ends it. `revision` is how far it came.
    async fn watch(&self, revision: &mut String, hear: &mut Hear<'_>) -> Result<(), Error> {
        let seconds = rand::rng().random_range(WATCH_SECONDS);
        let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={revision}");
        let answer = self.client.send(self.get(&query, METADATA)?.map(Body::from)).await?;
        let refused = (!answer.status().is_success()).then(|| answer.status().as_u16());
        let mut body = answer.into_body();
        if let Some(code) = refused {
            let text = body.collect().await?.to_bytes();
            let status = serde_json::from_slice(&text).unwrap_or_else(|_| Status { code, ..Status::default() });
            return Err(Error::Api(Box::new(status)));
        }
        let mut buffer = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            buffer.extend_from_slice(&data);
            let mut done = 0;
            while let Some(length) = buffer[done..].iter().position(|byte| *byte == b'\n') {
                line(&buffer[done..done + length], revision, hear)?;
                done += length + 1;
            }
            buffer.drain(..done);
            if buffer.is_empty() {
                // Most watches are silent most of the time: none keeps room for its longest line.
                buffer = Vec::new();
            }
        }
        Ok(())
    }
}

fn line(text: &[u8], revision: &mut String, hear: &mut Hear<'_>) -> Result<(), Error> {
    let line: Line<'_> = serde_json::from_slice(text).map_err(Error::SerdeError)?;
    if line.r#type == "ERROR" {
        return Err(Error::Api(serde_json::from_str(line.object.get()).map_err(Error::SerdeError)?));
    }
    let versioned: Versioned = serde_json::from_str(line.object.get()).map_err(Error::SerdeError)?;
    *revision = versioned.metadata.resource_version.unwrap_or_default();
    match line.r#type {
        "ADDED" | "MODIFIED" => hear(Heard::Applied(line.object)),
        "DELETED" => hear(Heard::Deleted(line.object)),
        // A bookmark says how far we are, and nothing else.
        _ => {}
    }
    Ok(())
}

/// A query's value, percent-encoded.
fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_and_move_the_revision() {
        let mut told = Vec::new();
        let mut revision = String::from("1");
        let mut tell = |text: &str| {
            line(text.as_bytes(), &mut revision, &mut |heard| {
                told.push(match heard {
                    Heard::Applied(_) => "applied",
                    Heard::Deleted(_) => "deleted",
                    _ => "other",
                })
            })
            .map_err(|error| error.to_string())?;
            Ok::<_, String>(revision.clone())
        };
        assert_eq!(tell(r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"5"}}}"#).unwrap(), "5");
        assert_eq!(tell(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#).unwrap(), "9");
        assert_eq!(tell(r#"{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"10"}}}"#).unwrap(), "10");
        assert!(tell(r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old","reason":"Expired"}}"#).is_err());
        assert_eq!(told, ["applied", "deleted"]);
    }
}
