//! One of the two servers: where its resources are, and what it answers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::{Value, json};
use tests::client::{Client, Endpoint};

use crate::{MERGE, NAMESPACE, name_of};

/// What stock 1.20 serves in an older version: seed's apiVersion, kind, stock's apiVersion.
const OLDER: [(&str, &str, &str); 5] = [
    ("batch/v1", "CronJob", "batch/v1beta1"),
    ("policy/v1", "PodDisruptionBudget", "policy/v1beta1"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "autoscaling/v2beta2"),
    ("discovery.k8s.io/v1", "EndpointSlice", "discovery.k8s.io/v1beta1"),
    ("flowcontrol.apiserver.k8s.io/v1", "FlowSchema", "flowcontrol.apiserver.k8s.io/v1beta1"),
];

pub struct Side {
    client: Client,
    stock: bool,
    /// apiVersion and kind → plural and whether it lives in a namespace.
    resources: BTreeMap<(String, String), (String, bool)>,
}

/// The code of a request whose connection the server closed without a word.
pub const UNANSWERED: u16 = 0;

pub struct Reply {
    pub code: u16,
    pub body: Value,
}

impl Side {
    pub async fn connect(kubeconfig: &Path, pki: &Path, stock: bool) -> Result<Side> {
        let client = Client::new(&Endpoint::of_kubeconfig(kubeconfig, pki)?)?;
        let mut side = Side { client, stock, resources: BTreeMap::new() };
        let groups = side.get("/apis").await?;
        let mut versions = vec!["v1".to_owned()];
        for version in
            groups["groups"].as_array().into_iter().flatten().flat_map(|group| group["versions"].as_array().into_iter().flatten())
        {
            versions.push(version["groupVersion"].as_str().context("groupVersion")?.to_owned());
        }
        for version in versions {
            let list = side.get(&root(&version)).await?;
            for resource in list["resources"].as_array().into_iter().flatten() {
                let (name, kind) = (resource["name"].as_str().context("name")?, resource["kind"].as_str().context("kind")?);
                if !name.contains('/') {
                    let row = (name.to_owned(), resource["namespaced"] == json!(true));
                    side.resources.insert((version.clone(), kind.to_owned()), row);
                }
            }
        }
        Ok(side)
    }

    fn version_of(&self, seed: &Value) -> String {
        let (version, kind) = (seed["apiVersion"].as_str().unwrap_or(""), seed["kind"].as_str().unwrap_or(""));
        let older = OLDER.iter().find(|row| self.stock && row.0 == version && row.1 == kind);
        older.map_or(version, |row| row.2).to_owned()
    }

    fn path(&self, seed: &Value, name: &str) -> Result<String> {
        let (version, kind) = (self.version_of(seed), seed["kind"].as_str().unwrap_or("").to_owned());
        let (plural, namespaced) =
            self.resources.get(&(version.clone(), kind.clone())).with_context(|| format!("no {kind} in {version}"))?;
        let namespace = if *namespaced { format!("/namespaces/{NAMESPACE}") } else { String::new() };
        let name = if name.is_empty() { String::new() } else { format!("/{name}") };
        Ok(format!("{}{namespace}/{plural}{name}", root(&version)))
    }

    async fn send(&mut self, method: Method, path: &str, content_type: &str, body: &Value) -> Result<Reply> {
        // A string is sent as it stands: what is no JSON.
        let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
        // The server may have closed a connection that rested: once more.
        for _ in 0..2 {
            if let Ok(answer) = self.client.send(method.clone(), path, content_type, text.clone()).await {
                return Ok(Reply { code: answer.status, body: serde_json::from_slice(&answer.body).unwrap_or(Value::Null) });
            }
        }
        Ok(Reply { code: UNANSWERED, body: Value::Null })
    }

    async fn get(&mut self, path: &str) -> Result<Value> {
        let answer = self.client.get(path).await?;
        Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> Result<Reply> {
        self.send(Method::POST, path, "application/json", body).await
    }

    /// A request that changes nothing. The body speaks of the seed's version; it is said in this side's.
    pub async fn dry(&mut self, method: Method, seed: &Value, name: &str, content_type: &str, body: &Value) -> Result<Reply> {
        let path = format!("{}?dryRun=All", self.path(seed, name)?);
        let mut body = body.clone();
        if body.get("apiVersion") == seed.get("apiVersion") && body.is_object() {
            body["apiVersion"] = self.version_of(seed).into();
        }
        self.send(method, &path, content_type, &body).await
    }

    /// Stores a seed; it may be there already.
    pub async fn store(&mut self, seed: &Value) -> Result<()> {
        let mut body = seed.clone();
        body["apiVersion"] = self.version_of(seed).into();
        let reply = self.post(&self.path(seed, "")?, &body).await?;
        if ![201, 409].contains(&reply.code) {
            bail!("{}: {}", reply.code, reply.body["message"]);
        }
        Ok(())
    }

    pub async fn remove(&mut self, seed: &Value) -> Result<()> {
        let path = self.path(seed, name_of(seed))?;
        self.send(Method::PATCH, &path, MERGE, &json!({"metadata": {"finalizers": null}})).await?;
        self.send(Method::DELETE, &format!("{path}?gracePeriodSeconds=0"), "application/json", &json!({})).await?;
        Ok(())
    }

    /// The body with what the server gave the stored object and a client would send back: revision, addresses.
    pub async fn against_stored(&mut self, seed: &Value, body: &Value) -> Result<Value> {
        let stored = self.get(&self.path(seed, name_of(seed))?).await?;
        let mut body = body.clone();
        if let Some(meta) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("resourceVersion".into(), stored["metadata"]["resourceVersion"].clone());
        }
        for field in ["clusterIP", "clusterIPs", "selector"] {
            let given = stored["spec"].get(field).filter(|_| matches!(seed["kind"].as_str(), Some("Service" | "Job")));
            if let (Some(value), Some(spec)) = (given, body.get_mut("spec").and_then(Value::as_object_mut)) {
                spec.entry(field).or_insert_with(|| value.clone());
            }
        }
        Ok(body)
    }
}

fn root(version: &str) -> String {
    if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") }
}
