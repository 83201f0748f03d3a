//! The cause of the work at hand, carried by the task and sent with every write.
//!
//! A controller's sync runs inside [`scope`]; [`Layer`], part of every client made by [`crate::shell::client`],
//! reads it and adds the header `coracle-cause`. No upstream counterpart.

use std::future::Future;
use std::task::{Context, Poll};

use api::cause::{Cause, HEADER, JournalEntry};
use http::{HeaderName, HeaderValue, Request};
use kube::client::Body;

tokio::task_local! {
    static CAUSE: Option<Cause>;
}

/// Runs `work` so that all it writes is attributed to `cause`.
pub async fn scope<F: Future>(cause: Option<Cause>, work: F) -> F::Output {
    CAUSE.scope(cause, work).await
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
    let request = Request::post("/debug/journal")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(entry)?)?;
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
            && let Some(cause) = current()
            && let Ok(value) = HeaderValue::from_str(&cause.to_string())
        {
            request.headers_mut().insert(HeaderName::from_static(HEADER), value);
        }
        self.inner.call(request)
    }
}
