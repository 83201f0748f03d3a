//! Root CA publisher: every namespace has the ConfigMap `kube-root-ca.crt`, by which pods trust the API server.
//!
//! Upstream: `pkg/controller/certificates/rootcacertpublisher/publisher.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use api::key::Key;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use machinery::Informer;

use crate::context::Context;
use crate::shared::{per_namespace, write};

const CONFIG_MAP: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let Some(path) = context.config.root_ca_file.clone() else {
        tracing::info!("no --root-ca-file: kube-root-ca.crt is not published");
        return Ok(());
    };
    let ca = tokio::fs::read_to_string(&path).await.with_context(|| format!("cannot read {}", path.display()))?;
    // Its own ConfigMaps alone: those of everybody else would fill the memory for nothing.
    let own = format!("metadata.name={CONFIG_MAP}");
    let (client, config_maps) =
        (context.client.clone(), Informer::<ConfigMap>::with_fields(context.client.clone(), context.token.clone(), &own));
    config_maps.synced().await;
    let name = "root-ca-certificate-publisher-controller";
    per_namespace::run(&context, name, &config_maps.clone(), CONFIG_MAP, move |namespace: Arc<Namespace>| {
        let (client, config_maps, ca) = (client.clone(), config_maps.clone(), ca.clone());
        async move {
            let namespace = namespace.metadata.name.clone().unwrap_or_default();
            let current = config_maps.get(&Key::new(namespace.as_str(), CONFIG_MAP));
            let wanted = plan(&namespace, &ca, current.as_deref());
            per_namespace::unless_terminating(match current {
                None => write::unless_exists(write::create(&client, &wanted).await),
                Some(current) if *current != wanted => write::update(&client, &wanted).await.map(drop),
                Some(_) => Ok(()),
            })
        }
    })
    .await
}

fn plan(namespace: &str, ca: &str, current: Option<&ConfigMap>) -> ConfigMap {
    let mut wanted = current.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta { name: Some(CONFIG_MAP.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    });
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned());
    wanted.data = Some(BTreeMap::from([("ca.crt".to_owned(), ca.to_owned())]));
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_put_right_again() {
        let made = plan("default", "CA", None);
        let mut spoilt = made.clone();
        spoilt.data = None;
        assert_eq!(plan("default", "CA", Some(&spoilt)), made);
        assert_eq!(plan("default", "CA", Some(&made)), made);
    }
}
