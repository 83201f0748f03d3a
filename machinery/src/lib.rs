//! What every client of the API needs, once: the process shell, the client, informers, the work queue, the
//! controller loop, events, leader election, delegated authentication, HTTPS.
//!
//! ```text
//! API server ──watch──▶ Informer ──on_change──▶ WorkQueue ──key──▶ sync(key) ──client──▶ API server
//!                        (cache)     + cause     (dedup)            reads the cache        + cause
//! ```
//! Invariants: one watch per kind per process; a key is never worked on twice at once; nothing polls; every
//! write made inside a sync carries the cause that woke it.
//! Upstream counterparts: `client-go/tools/{cache,record,leaderelection}`, `client-go/util/workqueue`, `component-base`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cause;
mod client;
pub mod controller;
pub mod delegated;
pub mod election;
pub mod events;
pub mod https;
pub mod informer;
pub mod metrics;
pub mod queue;
pub mod shell;
pub mod tls;
pub mod watch;

pub use controller::Next;
pub use informer::{Change, Informer, Informers};
pub use queue::WorkQueue;
pub use tokio_util::sync::CancellationToken;
