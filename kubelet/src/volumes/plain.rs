//! Volumes that are a directory: emptyDir, hostPath, and claims bound to hostPath or local volumes.
//!
//! Upstream: `pkg/volume/{emptydir,hostpath,local}`, v1.33.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};
use kube::Api;
use nix::mount::{MsFlags, mount};

use super::{Context, Error, Mounted, VolumePlugin, io_error, is_mount_point, own_by_group};
use crate::pod::{PodExt, value};
use crate::resources;

pub struct EmptyDir;

#[async_trait]
impl VolumePlugin for EmptyDir {
    fn name(&self) -> &'static str {
        "kubernetes.io~empty-dir"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let directory = &context.directory;
        let fresh = !directory.exists();
        let failed = |what: &str| io_error(format!("{what} {}", directory.display()));
        if fresh {
            fs::create_dir_all(directory).map_err(failed("create"))?;
        }
        if source.medium.as_deref() == Some("Memory") && !is_mount_point(directory) {
            let pod_limit = resources::pod(context.pod).memory;
            let limit = source.size_limit.as_ref().map(value).filter(|s| *s > 0).into_iter().chain(pod_limit).min();
            let options = limit.map(|bytes| format!("size={bytes}"));
            mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), options.as_deref())
                .map_err(|e| Error::Io(format!("mount tmpfs on {}", directory.display()), e.into()))?;
        }
        if fresh {
            fs::set_permissions(directory, Permissions::from_mode(0o777)).map_err(failed("chmod"))?;
            if let Some(group) = context.fs_group() {
                own_by_group(directory, group, true).map_err(failed("chown"))?;
            }
        }
        Ok(Mounted::at(directory))
    }
}

pub struct HostPath;

#[async_trait]
impl VolumePlugin for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io~host-path"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    async fn mount(&self, _: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.host_path.clone().unwrap_or_default();
        check_host_path(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
        Ok(Mounted::at(source.path))
    }
}

/// Upstream: `pkg/volume/hostpath/host_path.go` (checkTypeInternal).
fn check_host_path(path: &Path, kind: &str) -> Result<(), Error> {
    let failed = |what: &str| io_error(format!("{what} {}", path.display()));
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(failed("create"))?;
            return fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed("chmod"));
        }
        "FileOrCreate" if !path.exists() => {
            fs::File::create_new(path).map_err(failed("create"))?;
            return fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(failed("chmod"));
        }
        _ => {}
    }
    let Ok(metadata) = fs::metadata(path) else {
        // Without a type anything goes; the runtime makes a directory of what is missing.
        return if kind.is_empty() { fs::create_dir_all(path).map_err(failed("create")) } else { Err(wrong(path, kind)) };
    };
    let file_type = metadata.file_type();
    let right = match kind {
        "Directory" | "DirectoryOrCreate" => file_type.is_dir(),
        "File" | "FileOrCreate" => file_type.is_file(),
        "Socket" => file_type.is_socket(),
        "CharDevice" => file_type.is_char_device(),
        "BlockDevice" => file_type.is_block_device(),
        _ => true,
    };
    if right { Ok(()) } else { Err(wrong(path, kind)) }
}

fn wrong(path: &Path, kind: &str) -> Error {
    let noun = match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "File" | "FileOrCreate" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        _ => "block device",
    };
    Error::Refused(format!("hostPath type check failed: {} is not a {noun}", path.display()))
}

/// A claim (or a generic ephemeral volume, whose claim is named after pod and volume) that is bound to a volume on this node.
pub struct PersistentClaim;

#[async_trait]
impl VolumePlugin for PersistentClaim {
    fn name(&self) -> &'static str {
        "kubernetes.io~local-volume"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let pod = context.pod;
        let (claim, read_only) = match &volume.persistent_volume_claim {
            Some(source) => (source.claim_name.clone(), source.read_only == Some(true)),
            None => (format!("{}-{}", pod.name(), volume.name), false),
        };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), pod.namespace());
        let found = claims.get(&claim).await?;
        let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let name = found.spec.and_then(|s| s.volume_name).filter(|n| bound && !n.is_empty());
        let Some(name) = name else {
            return Err(Error::Refused(format!("error processing PVC {}/{claim}: PVC is not bound", pod.namespace())));
        };
        let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
        let spec = volumes.get(&name).await?.spec.unwrap_or_default();
        let path = if let Some(source) = spec.host_path {
            check_host_path(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
            source.path
        } else if let Some(source) = spec.local {
            local(context, Path::new(&source.path))?;
            source.path
        } else {
            return Err(Error::Refused(format!("no volume plugin matched for PersistentVolume {name:?}")));
        };
        Ok(Mounted { read_only, ..Mounted::at(path) })
    }
}

fn local(context: &Context<'_>, path: &Path) -> Result<(), Error> {
    if !path.exists() {
        let missing = io::Error::new(io::ErrorKind::NotFound, "no such file or directory");
        return Err(Error::Io(format!("path {:?} does not exist", path.display().to_string()), missing));
    }
    match context.fs_group() {
        Some(group) => own_by_group(path, group, true).map_err(io_error(format!("chown {}", path.display()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let check = |path: &Path, kind: &str| check_host_path(path, kind).map_err(|e| e.to_string());
        assert_eq!(check(&file, "File"), Err(format!("hostPath type check failed: {} is not a file", file.display())));
        assert_eq!(check(&file, "FileOrCreate"), Ok(()));
        assert_eq!(check(&file, "File"), Ok(()));
        assert_eq!(check(&file, "Directory"), Err(format!("hostPath type check failed: {} is not a directory", file.display())));
        assert_eq!(check(&dir.path().join("a/b"), "DirectoryOrCreate"), Ok(()));
        assert_eq!(check(dir.path(), "Socket"), Err(format!("hostPath type check failed: {} is not a socket file", dir.path().display())));
    }
}
