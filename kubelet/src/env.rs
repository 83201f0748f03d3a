//! A container's environment: services, envFrom, env, with `$(VAR)` expanded.
//!
//! Upstream: `pkg/kubelet/kubelet_pods.go` (makeEnvironmentVariables, getServiceEnvVarMap), `pkg/kubelet/envvars`,
//! `third_party/forked/golang/expansion`, v1.33.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Service};

use crate::fields;
use crate::objects::{self, Objects};
use crate::pod::PodExt;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Object(#[from] objects::Error),
    #[error(transparent)]
    Field(#[from] fields::Error),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, namespace: String, name: String, key: String },
}

pub type Variables = BTreeMap<String, String>;

/// In upstream's order: `env` as declared, then services, by name.
pub async fn environment(
    context: &fields::Context<'_>,
    container: &Container,
    objects: &Objects,
    services: &Variables,
) -> Result<Vec<(String, String)>, Error> {
    let mut result = from_sources(context, container, objects).await?;
    let mut order: Vec<String> = result.keys().cloned().collect();
    let mut known = result.clone();
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => expand(value, |name| known.get(name).or_else(|| services.get(name)).cloned()),
            (_, Some(source)) => match from_source(context, container, objects, source).await? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        known.insert(variable.name.clone(), value.clone());
        if result.insert(variable.name.clone(), value).is_none() {
            order.push(variable.name.clone());
        }
    }
    order.extend(services.keys().filter(|name| !result.contains_key(*name)).cloned());
    Ok(order
        .into_iter()
        .map(|name| {
            let value = result.get(&name).or_else(|| services.get(&name)).cloned().unwrap_or_default();
            (name, value)
        })
        .collect())
}

async fn from_sources(context: &fields::Context<'_>, container: &Container, objects: &Objects) -> Result<Variables, Error> {
    let mut result = Variables::new();
    let namespace = context.pod.namespace();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let map = objects.config_map(namespace, &reference.name, reference.optional == Some(true)).await?;
            let data = map.as_ref().and_then(|m| m.data.as_ref()).into_iter().flatten();
            result.extend(data.map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
        }
        if let Some(reference) = &source.secret_ref {
            let secret = objects.secret(namespace, &reference.name, reference.optional == Some(true)).await?;
            let data = secret.as_ref().and_then(|s| s.data.as_ref()).into_iter().flatten();
            result.extend(data.map(|(k, v)| (format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned())));
        }
    }
    Ok(result)
}

/// `None`: optional, and not there.
async fn from_source(
    context: &fields::Context<'_>,
    container: &Container,
    objects: &Objects,
    source: &EnvVarSource,
) -> Result<Option<String>, Error> {
    let namespace = context.pod.namespace();
    let missing =
        |kind, name: &str, key: &str| Error::Key { kind, namespace: namespace.to_owned(), name: name.to_owned(), key: key.to_owned() };
    if let Some(field) = &source.field_ref {
        return Ok(Some(fields::field(context, &field.field_path)?));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(fields::resource(context, resource, &container.name)?));
    }
    let (value, optional, error) = if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let map = objects.config_map(namespace, &selector.name, optional).await?;
        let value = map.as_ref().and_then(|m| m.data.as_ref()?.get(&selector.key).cloned());
        (value, optional, missing("ConfigMap", &selector.name, &selector.key))
    } else if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let secret = objects.secret(namespace, &selector.name, optional).await?;
        let bytes = secret.as_ref().and_then(|s| s.data.as_ref()?.get(&selector.key).cloned());
        let value = bytes.map(|b| String::from_utf8_lossy(&b.0).into_owned());
        (value, optional, missing("Secret", &selector.name, &selector.key))
    } else {
        return Ok(Some(String::new()));
    };
    match value {
        None if !optional => Err(error),
        value => Ok(value),
    }
}

/// `$(NAME)` becomes the variable where it is known and stays as it is where not; `$$` is `$`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables of the services that a pod sees: those of its namespace (if it wants links) and `default/kubernetes`.
pub fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> Variables {
    let mut variables = Variables::new();
    let is_master = |s: &Service| s.metadata.name.as_deref() == Some("kubernetes") && s.metadata.namespace.as_deref() == Some("default");
    // The pod's own namespace wins over the master's service of the same name.
    for service in services.iter().filter(|s| is_master(s)) {
        add_service(&mut variables, service);
    }
    for service in services.iter().filter(|s| links && s.metadata.namespace.as_deref() == Some(namespace)) {
        add_service(&mut variables, service);
    }
    variables
}

fn add_service(variables: &mut Variables, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let address = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (Some(first), false) = (ports.first(), address.is_empty() || address == "None") else { return };
    let shout = |text: &str| text.replace('-', "_").to_uppercase();
    let name = shout(service.metadata.name.as_deref().unwrap_or_default());
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    variables.insert(format!("{name}_SERVICE_HOST"), address.to_owned());
    variables.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in ports.iter().filter(|p| p.name.as_deref().is_some_and(|n| !n.is_empty())) {
        let port_name = shout(port.name.as_deref().unwrap_or_default());
        variables.insert(format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string());
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        if index == 0 {
            variables.insert(format!("{name}_PORT"), format!("{lower}://{host}:{}", port.port));
        }
        variables.insert(prefix.clone(), format!("{lower}://{host}:{}", port.port));
        variables.insert(format!("{prefix}_PROTO"), lower);
        variables.insert(format!("{prefix}_PORT"), port.port.to_string());
        variables.insert(format!("{prefix}_ADDR"), address.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_upstream() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn services_by_dockers_old_names() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-db", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}
        }))
        .unwrap();
        let variables = service_variables(&[Arc::new(service)], "n", true);
        let lines: Vec<String> = variables.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            lines,
            [
                "MY_DB_PORT=tcp://10.96.0.7:5432",
                "MY_DB_PORT_5432_TCP=tcp://10.96.0.7:5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.96.0.7",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_SERVICE_HOST=10.96.0.7",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_SERVICE_PORT_SQL=5432",
            ]
        );
    }
}
