//! Volumes: one table, [`PLUGINS`], with a row per volume type; a pod's volumes are mounted before its sandbox is made.
//!
//! Mounting is idempotent and runs with every sync, so that a changed ConfigMap, Secret, label or a token near its end is
//! written anew by the same code that wrote it first. Whatever lies below a pod's directory is unmounted before it is
//! removed, and nothing is removed while a mount is left: another's data may be behind it.
//! To add a volume type: a file with its [`VolumePlugin`], and a row in the table.
//! Upstream: `pkg/volume/*`, `pkg/kubelet/volumemanager`, v1.33.

mod atomic;
mod payload;
mod plain;
pub mod subpath;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Volume};
use kube::Client;

use crate::fields;
use crate::objects::{self, Objects};
use crate::pod::PodExt;
use crate::tokens::Tokens;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Object(#[from] objects::Error),
    #[error(transparent)]
    Field(#[from] fields::Error),
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Refused(String),
}

pub fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Io(what.into(), error)
}

/// All that a plugin may use.
pub struct Context<'a> {
    pub pod: &'a Pod,
    pub fields: &'a fields::Context<'a>,
    pub objects: &'a Objects,
    pub tokens: &'a Tokens,
    pub client: &'a Client,
    /// Where this volume's data goes, if it is of the pod's own: `…/volumes/kubernetes.io~configmap/<name>`.
    pub directory: PathBuf,
}

impl Context<'_> {
    pub fn fs_group(&self) -> Option<i64> {
        self.pod.spec().security_context.as_ref()?.fs_group
    }
}

/// A volume that is ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq)]
pub struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
    /// When to look again although nothing changed: a token ages.
    pub refresh: Option<Duration>,
}

impl Mounted {
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Mounted { path: path.into(), read_only: false, refresh: None }
    }
}

#[async_trait]
pub trait VolumePlugin: Sync {
    /// The directory's name on disk, upstream's: `kubernetes.io~empty-dir`.
    fn name(&self) -> &'static str;
    fn handles(&self, volume: &Volume) -> bool;
    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error>;
}

pub static PLUGINS: &[&dyn VolumePlugin] = &[
    &plain::EmptyDir,
    &plain::HostPath,
    &plain::PersistentClaim,
    &payload::ConfigMaps,
    &payload::Secrets,
    &payload::DownwardApi,
    &payload::Projected,
];

/// A pod's directory tree below the kubelet's root.
pub fn pod_directory(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// Mounts every volume of the pod; errors read as upstream's FailedMount event.
pub async fn mount_all(
    root: &Path,
    fields: &fields::Context<'_>,
    objects: &Objects,
    tokens: &Tokens,
    client: &Client,
) -> Result<BTreeMap<String, Mounted>, String> {
    let pod = fields.pod;
    let mut mounted = BTreeMap::new();
    for volume in pod.spec().volumes.iter().flatten() {
        let Some(plugin) = PLUGINS.iter().find(|p| p.handles(volume)) else {
            return Err(format!("MountVolume.SetUp failed for volume {:?} : no volume plugin matched", volume.name));
        };
        let directory = pod_directory(root, pod.uid()).join("volumes").join(plugin.name()).join(&volume.name);
        let context = Context { pod, fields, objects, tokens, client, directory };
        let result = plugin.mount(&context, volume).await;
        mounted.insert(volume.name.clone(), result.map_err(|e| format!("MountVolume.SetUp failed for volume {:?} : {e}", volume.name))?);
    }
    Ok(mounted)
}

/// Unmounts and removes all that the pod had on disk.
pub fn remove_pod_directory(root: &Path, uid: &str) -> io::Result<()> {
    let directory = pod_directory(root, uid);
    if !directory.exists() {
        return Ok(());
    }
    unmount_below(&directory)?;
    std::fs::remove_dir_all(&directory)
}

/// Mount points at or below a path, innermost first.
fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescape(point)));
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(path)).collect();
    below.reverse();
    Ok(below)
}

/// The kernel writes blanks in paths as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

pub fn unmount_below(path: &Path) -> io::Result<()> {
    for point in mounts_below(path)? {
        nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH)?;
    }
    match mounts_below(path)?.first() {
        None => Ok(()),
        Some(left) => Err(io::Error::other(format!("{} is still mounted", left.display()))),
    }
}

pub fn is_mount_point(path: &Path) -> bool {
    mounts_below(path).is_ok_and(|points| points.iter().any(|p| p == path))
}

/// Gives a volume to the pod's group: group read (and write), and new files inherit the group.
/// Upstream: `pkg/volume/volume_linux.go` (SetVolumeOwnership).
pub fn own_by_group(path: &Path, group: i64, writable: bool) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
    let metadata = std::fs::symlink_metadata(path)?;
    let gid = u32::try_from(group).map_err(io::Error::other)?;
    lchown(path, Some(metadata.uid()), Some(gid))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mut mode = metadata.mode() & 0o7777 | if writable { 0o660 } else { 0o440 };
    if metadata.is_dir() {
        mode |= 0o2110;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            own_by_group(&entry?.path(), group, writable)?;
        }
    }
    Ok(())
}
