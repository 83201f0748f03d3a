//! Volumes that are directories of this node: made when a pod first mounts them, removed when they end.
//!
//! ```text
//! claim ─scheduler─▶ selected node ─volume controller─▶ PersistentVolume (local, labelled with the node, with our finalizer)
//!    first mount here ─▶ the directory is made         deleted, and no claim's any more ─▶ removed here ─▶ finalizer goes
//! ```
//! Why in the kubelet: it is the one program that has power over its node's files already, and it knows when nobody mounts
//! them. So nothing else needs that power, and one node none over another's: the API server shows a node only the volumes
//! that carry its name, and takes nothing from it about them but that the finalizer goes.
//!
//! Invariants: the finalizer goes after the directory, so a crash between them repeats the removal and leaks nothing; what is
//! removed is named after the volume, below the one root, whatever path the object claims; data of a volume whose policy
//! is Retain is never touched.
//! Upstream: no counterpart in tree; nearest is the local-path provisioner, which runs privileged pods for this.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use api::volume::{PROVISIONED_BY, annotation, directory};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use kube::api::{Patch, PatchParams};
use machinery::{Informer, Next, WorkQueue, controller};
use serde_json::json;

use super::unmount_below;
use crate::kubelet::Kubelet;

const IN_USE: &str = "kubernetes.io/pv-protection";

/// Whether the volume is a directory that some node's kubelet makes.
pub fn is_ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(directory::PROVISIONER)
}

/// Makes the directory if it is not there: anyone's to write, as its first user may be no root.
pub fn ensure(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o777))
}

/// Removes the directories of volumes that end, until the kubelet stops.
pub async fn run(kubelet: Arc<Kubelet>) {
    let queue = WorkQueue::new();
    let selector = format!("{}={}", directory::NODE, kubelet.config.node_name);
    let volumes: Informer<PersistentVolume> = Informer::with_labels(kubelet.client.clone(), kubelet.token.clone(), &selector);
    let to = queue.clone();
    volumes.on_change(move |change| {
        if change.new.as_deref().is_some_and(has_ended) {
            to.add_caused(change.key(), change.cause());
        }
    });
    let client = kubelet.client.clone();
    let sync = move |key: api::Key| {
        let (client, volume) = (client.clone(), volumes.get(&key));
        async move {
            match volume.filter(|volume| has_ended(volume)) {
                Some(volume) => end(&client, &volume).await.map(|()| Next::Done),
                None => Ok(Next::Done),
            }
        }
    };
    controller::run("directory-volumes", queue, 2, sync, kubelet.token.clone()).await;
}

/// Deleted, and no claim's any more: only the directory is left of it.
fn has_ended(volume: &PersistentVolume) -> bool {
    let finalizers = volume.metadata.finalizers.as_deref().unwrap_or_default();
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    volume.metadata.deletion_timestamp.is_some() && has(directory::FINALIZER) && !has(IN_USE)
}

/// The directory to remove, if its data may go.
fn doomed(root: &Path, volume: &PersistentVolume) -> Option<PathBuf> {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let name = volume.metadata.name.as_deref().filter(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('.'))?;
    (policy == Some("Delete") && is_ours(volume)).then(|| root.join(name))
}

async fn end(client: &kube::Client, volume: &PersistentVolume) -> anyhow::Result<()> {
    if let Some(path) = doomed(Path::new(directory::ROOT), volume) {
        tokio::task::spawn_blocking(move || remove(&path).with_context(|| format!("remove {}", path.display()))).await??;
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let left: Vec<&String> = volume.metadata.finalizers.iter().flatten().filter(|finalizer| *finalizer != directory::FINALIZER).collect();
    // With the revision that was looked at, so that nobody else's finalizer is lost.
    let patch = json!({"metadata": {"finalizers": left, "resourceVersion": volume.metadata.resource_version}});
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    match volumes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(error) if !controller::is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    // A container with Bidirectional propagation may have left a mount in it: another's data.
    unmount_below(path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_ended_and_may_go() {
        let volume = |deleted: bool, finalizers: &[&str], policy: &str, name: &str| -> PersistentVolume {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({
                "metadata": {"name": name, "deletionTimestamp": deleted, "finalizers": finalizers,
                    "annotations": {(PROVISIONED_BY): directory::PROVISIONER}},
                "spec": {"persistentVolumeReclaimPolicy": policy, "local": {"path": "/etc"}}
            }))
            .unwrap()
        };
        let ours = directory::FINALIZER;
        assert!(has_ended(&volume(true, &[ours], "Delete", "v")));
        assert!(!has_ended(&volume(true, &[ours, IN_USE], "Delete", "v")), "a claim has it");
        assert!(!has_ended(&volume(false, &[ours], "Delete", "v")));
        assert!(!has_ended(&volume(true, &[], "Delete", "v")));
        let root = Path::new("/root");
        assert_eq!(doomed(root, &volume(true, &[ours], "Delete", "v")), Some(PathBuf::from("/root/v")));
        assert_eq!(doomed(root, &volume(true, &[ours], "Retain", "v")), None);
        assert_eq!(doomed(root, &volume(true, &[ours], "Delete", "..")), None);
    }

    #[test]
    fn made_and_removed_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/v");
        for _ in 0..2 {
            ensure(&path).unwrap();
            fs::write(path.join("data"), "x").unwrap();
            ensure(&path).unwrap();
            assert!(path.join("data").exists());
            remove(&path).unwrap();
            remove(&path).unwrap();
            assert!(!path.exists());
        }
    }
}
