//! DefaultBinder: tells the API server. Upstream: plugins/defaultbinder/default_binder.go, v1.33.

use api::k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use futures::future::BoxFuture;
use kube::api::{Api, PostParams};

use crate::cache::PodInfo;
use crate::framework::{BindContext, Plugin};

pub struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn bind<'a>(&'a self, context: &'a BindContext, pod: &'a PodInfo, node: &'a str) -> Option<BoxFuture<'a, anyhow::Result<()>>> {
        let mut binding = Binding {
            target: ObjectReference { kind: Some("Node".to_owned()), name: Some(node.to_owned()), ..Default::default() },
            ..Default::default()
        };
        binding.metadata.name = Some(pod.key.name.clone());
        binding.metadata.namespace = Some(pod.key.namespace.clone());
        // The uid keeps us from binding a new pod of the same name.
        binding.metadata.uid = Some(pod.uid.clone());
        Some(Box::pin(async move {
            let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.key.namespace);
            let _status: serde_json::Value = pods.create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await?;
            Ok(())
        }))
    }
}
