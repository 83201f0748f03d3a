//! Controllers that keep one object of a fixed name in every namespace.

use std::future::Future;
use std::sync::Arc;

use api::key::Key;
use k8s_openapi::api::core::v1::Namespace;
use machinery::{Informer, Next, WorkQueue};

use super::write::{self, Object};
use super::{meta, watch};
use crate::context::Context;

/// Calls `sync` for each namespace that is not going away, whenever it or its object called `name` changes.
pub async fn run<K, F>(
    context: &Context,
    controller: &'static str,
    objects: &Informer<K>,
    name: &'static str,
    sync: impl Fn(Arc<Namespace>) -> F + Send + Sync + 'static,
) -> anyhow::Result<()>
where
    K: Object,
    F: Future<Output = anyhow::Result<Next>> + Send,
{
    let queue = WorkQueue::new();
    let namespaces = context.informers.of::<Namespace>();
    watch::itself(&namespaces, &queue);
    let objects_queue = queue.clone();
    objects.on_change(move |change| {
        let object = change.object();
        if meta::name(&**object) == name && change.old.is_some() {
            objects_queue.add_caused(Key::cluster(meta::namespace(&**object)), change.cause());
        }
    });
    namespaces.synced().await;
    let sync = Arc::new(sync);
    context
        .run(controller, queue, move |key| {
            let (sync, namespace) = (sync.clone(), namespaces.get(&key));
            async move {
                match namespace.filter(|namespace| !meta::is_deleting(&**namespace)) {
                    Some(namespace) => sync(namespace).await,
                    None => Ok(Next::Done),
                }
            }
        })
        .await
}

/// A namespace that began to go away meanwhile needs nothing.
pub fn unless_terminating(result: kube::Result<()>) -> anyhow::Result<Next> {
    match result {
        Err(error) if !write::is_namespace_terminating(&error) && !write::is_not_found(&error) => Err(error.into()),
        _ => Ok(Next::Done),
    }
}
