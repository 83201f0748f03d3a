//! Kubeconfig files: those of the cluster's own programs, and the entry in the user's `~/.kube/config`.
//!
//! Merging and removing are pure functions on the document, so that other contexts, and fields we do not know, survive.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::cluster::{Cluster, write_file};

/// A program's kubeconfig, which names its certificate files by path.
pub fn of_program(server: &str, pki: &str, identity: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: coracle\n  cluster:\n    server: {server}\n    certificate-authority: {pki}/ca.crt\n\
         users:\n- name: {identity}\n  user:\n    client-certificate: {pki}/{identity}.crt\n    client-key: {pki}/{identity}.key\n\
         contexts:\n- name: coracle\n  context:\n    cluster: coracle\n    user: {identity}\ncurrent-context: coracle\n"
    )
}

/// The administrator's entry: one cluster, one user and one context, all of the context's name, with the certificates inside.
pub fn of_admin(cluster: &Cluster) -> Result<Value> {
    let data = |file: &str| -> Result<String> {
        let path = cluster.pki_dir().join(file);
        Ok(STANDARD.encode(fs::read(&path).with_context(|| format!("read {}", path.display()))?))
    };
    let name = cluster.context();
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": cluster.server(), "certificate-authority-data": data("ca.crt")?}}],
        "users": [{"name": name, "user": {"client-certificate-data": data("admin.crt")?, "client-key-data": data("admin.key")?}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }))
}

const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

/// Puts `entry` into `config`: entries of the same name are replaced, all others stay, and its context becomes the current one.
pub fn merge(mut config: Value, entry: &Value) -> Value {
    if !config.is_object() {
        config = json!({"apiVersion": "v1", "kind": "Config"});
    }
    for list in LISTS {
        let ours = entry[list].as_array().cloned().unwrap_or_default();
        let mut merged: Vec<Value> = config[list].as_array().cloned().unwrap_or_default();
        merged.retain(|old| !ours.iter().any(|new| new["name"] == old["name"]));
        merged.extend(ours);
        config[list] = Value::Array(merged);
    }
    config["current-context"] = entry["current-context"].clone();
    config
}

/// Takes the entries called `name` out. If that context was the current one, `previous` becomes current if it still exists.
pub fn remove(mut config: Value, name: &str, previous: Option<&str>) -> Value {
    for list in LISTS {
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|entry| entry["name"] != name);
        }
    }
    if config["current-context"] == name {
        let known = |wanted: &str| config["contexts"].as_array().is_some_and(|all| all.iter().any(|context| context["name"] == wanted));
        config["current-context"] = json!(previous.filter(|wanted| known(wanted)).unwrap_or_default());
    }
    config
}

/// Writes the cluster's `admin.conf` and merges it into the user's configuration. Returns the context that was current before.
pub fn install(cluster: &Cluster) -> Result<Option<String>> {
    let entry = of_admin(cluster)?;
    write_file(&cluster.admin_conf(), to_yaml(&entry)?.as_bytes(), 0o600)?;
    let path = user_config();
    let config = read(&path)?;
    let previous = config["current-context"].as_str().filter(|name| !name.is_empty() && *name != cluster.context()).map(String::from);
    let merged = merge(config.clone(), &entry);
    if merged != config {
        write_file(&path, to_yaml(&merged)?.as_bytes(), 0o600)?;
    }
    Ok(previous)
}

/// Takes the cluster out of the user's configuration.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let path = user_config();
    if !path.exists() {
        return Ok(());
    }
    let config = read(&path)?;
    let without = remove(config.clone(), &cluster.context(), cluster.previous_context.as_deref());
    if without != config {
        write_file(&path, to_yaml(&without)?.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// `$KUBECONFIG` if it names one file, else `~/.kube/config`.
pub fn user_config() -> PathBuf {
    match std::env::var("KUBECONFIG") {
        Ok(path) if !path.is_empty() && !path.contains(':') => PathBuf::from(path),
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".kube/config"),
    }
}

fn read(path: &Path) -> Result<Value> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(Value::Null),
        Ok(text) => serde_yaml::from_str(&text).with_context(|| format!("{} is not YAML; it was left alone", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

fn to_yaml(value: &Value) -> Result<String> {
    serde_yaml::to_string(value).context("write YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, server: &str) -> Value {
        json!({
            "clusters": [{"name": name, "cluster": {"server": server}}],
            "users": [{"name": name, "user": {}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        })
    }

    #[test]
    fn other_contexts_and_unknown_fields_survive() {
        let mut theirs = entry("prod", "https://prod");
        theirs["preferences"] = json!({"colors": true});
        let merged = merge(theirs.clone(), &entry("coracle", "https://one"));
        assert_eq!(merged["preferences"]["colors"], true);
        assert_eq!(merged["current-context"], "coracle");
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(remove(merged, "coracle", Some("prod")), theirs);
    }

    #[test]
    fn merging_again_replaces() {
        let once = merge(Value::Null, &entry("coracle", "https://one"));
        let twice = merge(once, &entry("coracle", "https://two"));
        assert_eq!(twice["clusters"], json!([{"name": "coracle", "cluster": {"server": "https://two"}}]));
    }

    #[test]
    fn a_previous_context_that_is_gone_is_not_restored() {
        let config = merge(Value::Null, &entry("coracle", "https://one"));
        assert_eq!(remove(config, "coracle", Some("gone"))["current-context"], "");
    }

    #[test]
    fn the_file_reads_back_as_it_was_written() {
        let config = entry("coracle", "https://10.88.0.2:6443");
        let back: Value = serde_yaml::from_str(&to_yaml(&config).unwrap()).unwrap();
        assert_eq!(back, config);
    }
}
