//! The cause of the work at hand, carried by the task and sent with every write.
//!
//! A controller's sync runs inside [`scope`]; [`Layer`], part of every client made by [`crate::shell::client`],
//! reads it and adds the header `coracle-cause`. The client calls its layers from a task of its own (a tower buffer),
//! where our task-local is unknown; but the buffer takes the caller's tracing span along, so the cause rides on a span.
//! No upstream counterpart.

use std::future::Future;
use std::task::{Context, Poll};

use api::cause::{Cause, HEADER, JournalEntry};
use http::{HeaderName, HeaderValue, Request};
use kube::client::Body;
use tracing::{Instrument, Span};
use tracing_subscriber::Registry;
use tracing_subscriber::registry::LookupSpan;

tokio::task_local! {
    static CAUSE: Option<Cause>;
}

/// Runs `work` so that all it writes is attributed to `cause`.
pub async fn scope<F: Future>(cause: Option<Cause>, work: F) -> F::Output {
    let span = cause.as_ref().map_or_else(Span::none, carrier);
    CAUSE.scope(cause, work).instrument(span).await
}

/// A span that holds the cause. At the highest level, so that no log filter takes it away.
fn carrier(cause: &Cause) -> Span {
    let span = tracing::error_span!("because", %cause);
    with_registry(|registry| {
        if let Some(data) = span.id().and_then(|id| registry.span(&id)) {
            data.extensions_mut().insert(cause.clone());
        }
        Some(())
    });
    span
}

/// The cause on the current span or the nearest one around it.
fn carried() -> Option<Cause> {
    let id = Span::current().id()?;
    with_registry(|registry| registry.span(&id)?.scope().find_map(|span| span.extensions().get::<Cause>().cloned()))
}

fn with_registry<T>(f: impl Fn(&Registry) -> Option<T>) -> Option<T> {
    tracing::dispatcher::get_default(|dispatch| dispatch.downcast_ref::<Registry>().and_then(&f))
}

/// The cause of the running task, if it has one. A spawned task has none: pass it on with [`scope`].
pub fn current() -> Option<Cause> {
    CAUSE.try_with(Clone::clone).ok().flatten()
}

/// Tells the API server's journal of work that writes no object: "sandbox created", "rules written".
/// Errors are logged only: the journal is a lesson, not a ledger.
pub async fn note(client: &kube::Client, object: &Cause, note: &str) {
    let entry = JournalEntry {
        revision: object.revision,
        resource: object.resource.to_string(),
        namespace: object.key.namespace.clone(),
        name: object.key.name.clone(),
        verb: "note".to_owned(),
        note: Some(note.to_owned()),
        cause: current().or_else(|| Some(object.clone())),
        ..JournalEntry::default()
    };
    if let Err(error) = post(client, &entry).await {
        tracing::debug!(%error, %object, note, "journal note not taken");
    }
}

async fn post(client: &kube::Client, entry: &JournalEntry) -> Result<(), anyhow::Error> {
    let request =
        Request::post("/debug/journal").header(http::header::CONTENT_TYPE, "application/json").body(serde_json::to_vec(entry)?)?;
    client.request_text(request).await?;
    Ok(())
}

/// Adds the running task's cause to requests that write.
#[derive(Clone, Copy, Debug)]
pub struct Layer;

impl<S> tower::Layer<S> for Layer {
    type Service = Service<S>;
    fn layer(&self, inner: S) -> Service<S> {
        Service { inner }
    }
}

#[derive(Clone, Debug)]
pub struct Service<S> {
    inner: S,
}

impl<S: tower::Service<Request<Body>>> tower::Service<Request<Body>> for Service<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if request.method() != http::Method::GET
            && let Some(cause) = current().or_else(carried)
            && let Ok(value) = HeaderValue::from_str(&cause.to_string())
        {
            request.headers_mut().insert(HeaderName::from_static(HEADER), value);
        }
        self.inner.call(request)
    }
}
