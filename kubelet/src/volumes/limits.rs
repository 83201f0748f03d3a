//! An emptyDir on disk that grows past its `sizeLimit` costs the pod its place. (One in memory can't: its file system is that small.)
//!
//! Nothing tells when a directory grows, so those with a limit, and only those, are measured now and then.
//! Upstream: `pkg/kubelet/eviction/eviction_manager.go` (emptyDirLimitEviction), v1.33.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pod_directory;
use crate::pod::{PodExt, value};

/// Between two looks. Upstream's `evictionMonitoringPeriod`.
pub const PERIOD: Duration = Duration::from_secs(10);

fn limited(pod: &Pod) -> impl Iterator<Item = (&Volume, &Quantity)> {
    let volumes = pod.spec().volumes.iter().flatten();
    volumes.filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let limit = source.size_limit.as_ref().filter(|limit| value(limit) > 0)?;
        (source.medium.as_deref().unwrap_or_default() != "Memory").then_some((volume, limit))
    })
}

pub fn any(pod: &Pod) -> bool {
    limited(pod).next().is_some()
}

/// What the Evicted event says, if a volume is too large.
pub fn exceeded(root: &Path, pod: &Pod) -> Option<String> {
    let directory = pod_directory(root, pod.uid()).join("volumes").join("kubernetes.io~empty-dir");
    let too_large = |(volume, limit): &(&Volume, &Quantity)| used(&directory.join(&volume.name)) > value(limit).unsigned_abs();
    let (volume, limit) = limited(pod).find(too_large)?;
    Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0))
}

/// Bytes on disk; what vanishes meanwhile counts nothing, and no link is followed.
fn used(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let inside =
        if metadata.is_dir() { fs::read_dir(path).into_iter().flatten().flatten().map(|entry| used(&entry.path())).sum() } else { 0 };
    metadata.blocks() * 512 + inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large() {
        let root = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": {"containers": [], "volumes": [
            {"name": "free", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}},
            {"name": "small", "emptyDir": {"sizeLimit": "64Ki"}}]}}))
        .unwrap();
        assert!(any(&pod));
        let volumes = root.path().join("pods/u/volumes/kubernetes.io~empty-dir");
        for name in ["free", "memory", "small"] {
            fs::create_dir_all(volumes.join(name).join("deep")).unwrap();
            fs::write(volumes.join(name).join("deep/f"), vec![1; 32 << 10]).unwrap();
        }
        assert_eq!(exceeded(root.path(), &pod), None);
        fs::write(volumes.join("small/deep/g"), vec![1; 64 << 10]).unwrap();
        assert_eq!(exceeded(root.path(), &pod).as_deref(), Some("Usage of EmptyDir volume \"small\" exceeds the limit \"64Ki\". "));
    }
}
