//! Which nodes need which objects: what a node's pods refer to, kept as counts per (object, node).
//!
//! ```text
//! node ◄─ pod ◄─ secret | configmap | serviceaccount | claim ◄─ volume ◄─ secret
//! node ◄─ volumeattachment, volume that is a directory on it
//! ```
//! Upstream: `plugin/pkg/auth/authorizer/node/{graph,graph_populator}.go`: a general graph there, four maps here.

use std::collections::{BTreeSet, HashMap};

use api::volume::directory;
use api::{GroupResource, Key};
use serde_json::Value;

use crate::lookup::{items, meta_entry, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
}

pub type Reference = (Kind, Key);

struct Pod {
    node: String,
    references: BTreeSet<Reference>,
}

struct Volume {
    claim: Key,
    secrets: BTreeSet<Key>,
}

#[derive(Default)]
pub struct Graph {
    pods: HashMap<Key, Pod>,
    /// How many of a node's pods refer to an object.
    uses: HashMap<Reference, HashMap<String, usize>>,
    volumes: HashMap<String, Volume>,
    volumes_with_secret: HashMap<Key, BTreeSet<String>>,
    attachments: HashMap<String, String>,
    /// Volumes that are a directory on a node, by name.
    directories: HashMap<String, String>,
}

pub fn follows(resource: &GroupResource) -> bool {
    matches!(
        (resource.group.as_str(), resource.resource.as_str()),
        ("", "pods" | "persistentvolumes") | ("storage.k8s.io", "volumeattachments")
    )
}

impl Graph {
    pub fn observe(&mut self, resource: &GroupResource, key: &Key, new: Option<&Value>) {
        match resource.resource.as_str() {
            "pods" => self.observe_pod(key, new),
            "persistentvolumes" => self.observe_volume(&key.name, new),
            _ => {
                self.attachments.remove(&key.name);
                if let Some(attachment) = new {
                    self.attachments.insert(key.name.clone(), text(attachment, "/spec/nodeName").to_owned());
                }
            }
        }
    }

    fn observe_pod(&mut self, key: &Key, new: Option<&Value>) {
        if let Some(old) = self.pods.remove(key) {
            for reference in &old.references {
                let Some(nodes) = self.uses.get_mut(reference) else { continue };
                if let Some(count) = nodes.get_mut(&old.node) {
                    *count -= 1;
                    if *count == 0 {
                        nodes.remove(&old.node);
                    }
                }
                if nodes.is_empty() {
                    self.uses.remove(reference);
                }
            }
        }
        let Some(pod) = new else { return };
        let node = text(pod, "/spec/nodeName").to_owned();
        if node.is_empty() {
            return;
        }
        // A mirror pod is written by the node itself: it must not open anything.
        let is_mirror = meta_entry(pod, "annotations", "kubernetes.io/config.mirror").is_some();
        let references = if is_mirror { BTreeSet::new() } else { pod_references(pod, key) };
        for reference in &references {
            *self.uses.entry(reference.clone()).or_default().entry(node.clone()).or_default() += 1;
        }
        self.pods.insert(key.clone(), Pod { node, references });
    }

    fn observe_volume(&mut self, name: &str, new: Option<&Value>) {
        match new.and_then(|volume| meta_entry(volume, "labels", directory::NODE)) {
            Some(node) => drop(self.directories.insert(name.to_owned(), node.to_owned())),
            None => drop(self.directories.remove(name)),
        }
        if let Some(old) = self.volumes.remove(name) {
            for secret in old.secrets {
                if let Some(volumes) = self.volumes_with_secret.get_mut(&secret) {
                    volumes.remove(name);
                    if volumes.is_empty() {
                        self.volumes_with_secret.remove(&secret);
                    }
                }
            }
        }
        let Some(volume) = new.filter(|v| v.pointer("/spec/claimRef/name").is_some()) else { return };
        let claim = Key::new(text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
        let secrets = volume_secrets(volume, &claim.namespace);
        for secret in &secrets {
            self.volumes_with_secret.entry(secret.clone()).or_default().insert(name.to_owned());
        }
        self.volumes.insert(name.to_owned(), Volume { claim, secrets });
    }

    pub fn uses(&self, node: &str, kind: Kind, key: &Key) -> bool {
        let reference = (kind, key.clone());
        self.uses.get(&reference).is_some_and(|nodes| nodes.contains_key(node))
            || (kind == Kind::Secret
                && self.volumes_with_secret.get(key).is_some_and(|volumes| volumes.iter().any(|v| self.uses_volume(node, v))))
    }

    pub fn uses_volume(&self, node: &str, volume: &str) -> bool {
        self.volumes.get(volume).is_some_and(|volume| self.uses(node, Kind::Claim, &volume.claim))
    }

    pub fn has_directory(&self, node: &str, volume: &str) -> bool {
        self.directories.get(volume).is_some_and(|n| n == node)
    }

    pub fn runs_pod(&self, node: &str, pod: &Key) -> bool {
        self.pods.get(pod).is_some_and(|pod| pod.node == node)
    }

    pub fn has_attachment(&self, node: &str, attachment: &str) -> bool {
        self.attachments.get(attachment).is_some_and(|n| n == node)
    }
}

/// Fields of volume sources that hold `{name}` of a secret in the pod's namespace.
#[rustfmt::skip]
const SECRET_REFS: &[&str] = &[
    "/cephfs/secretRef/name", "/flexVolume/secretRef/name", "/rbd/secretRef/name", "/scaleIO/secretRef/name",
    "/iscsi/secretRef/name", "/storageos/secretRef/name", "/csi/nodePublishSecretRef/name",
];

/// Everything a pod's spec names.
pub fn pod_references(pod: &Value, key: &Key) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let mut refer = |kind: Kind, name: &str| {
        if !name.is_empty() {
            found.insert((kind, Key::new(key.namespace.clone(), name)));
        }
    };
    refer(Kind::ServiceAccount, text(pod, "/spec/serviceAccountName"));
    items(pod, "/spec/imagePullSecrets").iter().for_each(|r| refer(Kind::Secret, text(r, "/name")));
    for list in ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"] {
        for container in items(pod, list) {
            for env in items(container, "/env") {
                refer(Kind::Secret, text(env, "/valueFrom/secretKeyRef/name"));
                refer(Kind::ConfigMap, text(env, "/valueFrom/configMapKeyRef/name"));
            }
            for source in items(container, "/envFrom") {
                refer(Kind::Secret, text(source, "/secretRef/name"));
                refer(Kind::ConfigMap, text(source, "/configMapRef/name"));
            }
        }
    }
    for volume in items(pod, "/spec/volumes") {
        refer(Kind::Secret, text(volume, "/secret/secretName"));
        refer(Kind::Secret, text(volume, "/azureFile/secretName"));
        SECRET_REFS.iter().for_each(|field| refer(Kind::Secret, text(volume, field)));
        refer(Kind::ConfigMap, text(volume, "/configMap/name"));
        for source in items(volume, "/projected/sources") {
            refer(Kind::Secret, text(source, "/secret/name"));
            refer(Kind::ConfigMap, text(source, "/configMap/name"));
        }
        refer(Kind::Claim, text(volume, "/persistentVolumeClaim/claimName"));
        if volume.get("ephemeral").is_some_and(|e| !e.is_null()) {
            refer(Kind::Claim, &format!("{}-{}", key.name, text(volume, "/name")));
        }
    }
    found
}

/// Secrets of a PersistentVolume that a kubelet reads. Without a namespace of their own they are in the claim's.
fn volume_secrets(volume: &Value, claim_namespace: &str) -> BTreeSet<Key> {
    const REFS: &[&str] = &[
        "cephfs/secretRef",
        "flexVolume/secretRef",
        "rbd/secretRef",
        "scaleIO/secretRef",
        "iscsi/secretRef",
        "storageos/secretRef",
        "csi/nodePublishSecretRef",
        "csi/nodeStageSecretRef",
        "csi/nodeExpandSecretRef",
    ];
    let mut found = BTreeSet::new();
    let mut add = |namespace: &str, name: &str| {
        if !name.is_empty() {
            found.insert(Key::new(if namespace.is_empty() { claim_namespace } else { namespace }, name));
        }
    };
    add(text(volume, "/spec/azureFile/secretNamespace"), text(volume, "/spec/azureFile/secretName"));
    for reference in REFS {
        let field = |name: &str| text(volume, &format!("/spec/{reference}/{name}")).to_owned();
        add(&field("namespace"), &field("name"));
    }
    found
}
