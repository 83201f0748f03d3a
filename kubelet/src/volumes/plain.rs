//! Volumes that are a directory: emptyDir and hostPath.
//!
//! Upstream: `pkg/volume/{emptydir,hostpath}`, v1.33.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;
use nix::mount::{MsFlags, mount};

use super::{Context, Error, Mounted, VolumePlugin, io_error, is_mount_point, own_by_group};
use crate::pod::value;
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

    fn lasts(&self) -> bool {
        true
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let directory = &context.directory;
        if source.medium.as_deref() == Some("Memory") {
            let pod_limit = resources::pod(context.pod).memory;
            let limit = source.size_limit.as_ref().map(value).filter(|s| *s > 0).into_iter().chain(pod_limit).min();
            memory(directory, limit, context.fs_group()).map_err(io_error(format!("mount tmpfs on {}", directory.display())))?;
        } else if !directory.exists() {
            disk(directory, context.fs_group()).map_err(io_error(format!("create {}", directory.display())))?;
        }
        Ok(Mounted::at(directory))
    }
}

/// Its mode and group come with the mount, so it is never seen without them. Sticky, as the kernel makes a tmpfs of itself.
pub fn memory(directory: &Path, limit: Option<i64>, group: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    if is_mount_point(directory) {
        return Ok(());
    }
    let mode = group.map_or("mode=1777".to_owned(), |group| format!("mode=3777,gid={group}"));
    let options = limit.into_iter().map(|bytes| format!("size={bytes}")).chain([mode]).collect::<Vec<_>>().join(",");
    Ok(mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?)
}

/// Made aside and renamed into place, so that what a crash leaves half made is made anew.
fn disk(directory: &Path, group: Option<i64>) -> io::Result<()> {
    let aside = directory.with_extension("new~");
    fs::create_dir_all(&aside)?;
    fs::set_permissions(&aside, Permissions::from_mode(0o777))?;
    if let Some(group) = group {
        own_by_group(&aside, group, true)?;
    }
    fs::rename(aside, directory)
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

    fn lasts(&self) -> bool {
        true
    }

    async fn mount(&self, _: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.host_path.clone().unwrap_or_default();
        check_host_path(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
        Ok(Mounted::at(source.path))
    }
}

/// Upstream: `pkg/volume/hostpath/host_path.go` (checkTypeInternal).
pub fn check_host_path(path: &Path, kind: &str) -> Result<(), Error> {
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
        "" => true,
        other => return Err(Error::Refused(format!("{other} is an invalid volume type"))),
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
