//! The downward API: a pod's own fields and resources as text, for environment variables and volumes.
//!
//! Upstream: `pkg/fieldpath/fieldpath.go`, `pkg/api/v1/resource/helpers.go`, v1.33.

use std::collections::BTreeMap;

use api::field::go_quote;
use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::{ContainerExt, PodExt, milli};

pub struct Context<'a> {
    pub pod: &'a Pod,
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
    /// Stands in for limits that are not set.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("Unsupported container resource : {0}")]
    Resource(String),
    #[error("container {0:?} not found")]
    Container(String),
}

/// `key="value"` lines, sorted.
fn map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
    lines.join("\n")
}

/// `metadata.labels['app']` → `("metadata.labels", "app")`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.split_once("['")?;
    Some((field, rest.strip_suffix("']")?))
}

pub fn field(context: &Context, path: &str) -> Result<String, Error> {
    let pod = context.pod;
    let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
    if let Some((field, key)) = subscript(path) {
        let map = match field {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return Err(Error::Field(path.to_owned())),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => pod.spec().node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => pod.spec().service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(context.host_ips),
        "status.hostIPs" => context.host_ips.join(","),
        "status.podIP" => first(context.pod_ips),
        "status.podIPs" => context.pod_ips.join(","),
        _ => return Err(Error::Field(path.to_owned())),
    })
}

/// `container` is the one that asks, where the selector names none.
pub fn resource(context: &Context, selector: &ResourceFieldSelector, container: &str) -> Result<String, Error> {
    let name = selector.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(container);
    let container = context.pod.container(name).ok_or_else(|| Error::Container(name.to_owned()))?;
    let unknown = || Error::Resource(selector.resource.clone());
    let (kind, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let quantity = match kind {
        "limits" => container.limit(resource).or_else(|| context.allocatable.get(resource).filter(|_| !resource.starts_with("hugepages-"))),
        "requests" => container.request(resource).or_else(|| container.limit(resource)),
        _ => return Err(unknown()),
    };
    let amount = quantity.map_or(0, milli);
    let divisor = selector.divisor.as_ref().map(milli).filter(|d| *d > 0).unwrap_or(1000);
    Ok(((amount + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}
        }))
        .unwrap();
        let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity("2".into()))]);
        let ips = ["10.0.0.1".to_owned()];
        let context = Context { pod: &pod, pod_ips: &ips, host_ips: &[], allocatable: &allocatable };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("metadata.annotations['none']", ""),
            ("status.podIP", "10.0.0.1"),
        ] {
            assert_eq!(field(&context, path).unwrap(), expected, "{path}");
        }
        for (name, divisor, expected) in [
            ("limits.memory", "1Mi", "64"),
            ("limits.cpu", "1", "2"),
            ("requests.cpu", "1m", "250"),
            ("requests.cpu", "1", "1"),
            ("requests.memory", "1", "67108864"),
        ] {
            let selector = ResourceFieldSelector { resource: name.into(), divisor: Some(Quantity(divisor.into())), container_name: None };
            assert_eq!(resource(&context, &selector, "c").unwrap(), expected, "{name} / {divisor}");
        }
    }
}
