//! Volumes: one table, [`PLUGINS`], with a row per volume type; a pod's volumes are mounted before its sandbox is made.
//!
//! Mounting is idempotent and runs with every sync, so that a changed ConfigMap, Secret, label or a token near its end is
//! written anew by the same code that wrote it first. Whatever lies below a pod's directory is unmounted before it is
//! removed, and nothing is removed while a mount is left: another's data may be behind it.
//! To add a volume type: a file with its [`VolumePlugin`], and a row in the table.
//! Upstream: `pkg/volume/*`, `pkg/kubelet/volumemanager`, v1.33.

mod atomic;
mod claim;
pub mod directory;
pub mod limits;
mod payload;
mod plain;
pub mod subpath;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod, Volume};
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
    /// What the volume is could not be found out.
    #[error("{0}")]
    Unprocessed(String),
    /// A PersistentVolume of another node.
    #[error("no matching NodeSelectorTerms")]
    Misplaced(String),
}

impl Error {
    /// The text of the FailedMount event. `left`: the volumes that are not mounted yet.
    fn event(&self, volume: &str, left: &[&str]) -> String {
        match self {
            Error::Unprocessed(why) => format!(
                "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process volumes=[{volume}]: {why}",
                left.join(" ")
            ),
            Error::Misplaced(name) => format!("MountVolume.NodeAffinity check failed for volume {name:?} : {self}"),
            _ => format!("MountVolume.SetUp failed for volume {volume:?} : {self}"),
        }
    }
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
    pub node: Option<&'a Node>,
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
    /// Once mounted it stays as it is until the pod ends, so there is nothing to look at again.
    fn lasts(&self) -> bool {
        false
    }
    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error>;
}

pub static PLUGINS: &[&dyn VolumePlugin] = &[
    &plain::EmptyDir,
    &plain::HostPath,
    &claim::PersistentClaim,
    &payload::ConfigMaps,
    &payload::Secrets,
    &payload::DownwardApi,
    &payload::Projected,
];

/// A pod's directory tree below the kubelet's root.
pub fn pod_directory(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// What mounting needs besides the pod.
pub struct Tools<'a> {
    pub root: &'a Path,
    pub objects: &'a Objects,
    pub tokens: &'a Tokens,
    pub client: &'a Client,
    pub node: Option<&'a Node>,
}

/// When a volume is looked at again that could not be brought up to date.
const RETRY: Duration = Duration::from_secs(60);

/// Mounts every volume that a container uses; `before`: what was mounted by the last call. Errors read as upstream's FailedMount event.
/// What was mounted stays so, whatever became of its source (a ConfigMap may be deleted under its pod); `complain` hears of it.
pub async fn mount_all(
    tools: &Tools<'_>,
    fields: &fields::Context<'_>,
    before: &BTreeMap<String, Mounted>,
    complain: impl Fn(String),
) -> Result<BTreeMap<String, Mounted>, String> {
    let pod = fields.pod;
    let used = used(pod);
    let volumes: Vec<&Volume> = pod.spec().volumes.iter().flatten().filter(|volume| used.contains(volume.name.as_str())).collect();
    let mut mounted = BTreeMap::new();
    for (index, volume) in volumes.iter().enumerate() {
        let result = match PLUGINS.iter().find(|p| p.handles(volume)) {
            Some(plugin) => match before.get(&volume.name).filter(|_| plugin.lasts()) {
                Some(known) => Ok(known.clone()),
                None => {
                    let directory = pod_directory(tools.root, pod.uid()).join("volumes").join(plugin.name()).join(&volume.name);
                    let Tools { objects, tokens, client, node, .. } = *tools;
                    plugin.mount(&Context { pod, fields, objects, tokens, client, node, directory }, volume).await
                }
            },
            None => Err(Error::Refused("no volume plugin matched".into())),
        };
        let left: Vec<&str> = volumes[index..].iter().map(|volume| volume.name.as_str()).collect();
        let current = match (result.map_err(|error| error.event(&volume.name, &left)), before.get(&volume.name)) {
            (Err(message), Some(known)) => {
                complain(message);
                Mounted { refresh: Some(RETRY), ..known.clone() }
            }
            (result, _) => result?,
        };
        mounted.insert(volume.name.clone(), current);
    }
    Ok(mounted)
}

/// Names of the volumes that some container mounts; the others concern nobody.
fn used(pod: &Pod) -> BTreeSet<&str> {
    let containers = pod.all_containers();
    let mounts = containers.iter().flat_map(|c| c.volume_mounts.iter().flatten()).map(|m| m.name.as_str());
    let devices = containers.iter().flat_map(|c| c.volume_devices.iter().flatten()).map(|d| d.name.as_str());
    let ephemeral = pod.ephemeral_containers().iter().flat_map(|c| c.volume_mounts.iter().flatten()).map(|m| m.name.as_str());
    mounts.chain(devices).chain(ephemeral).collect()
}

/// Unmounts and removes a pod's volumes; logs, termination messages and the like stay.
pub fn remove_volumes(directory: &Path) -> io::Result<()> {
    for part in ["volume-subpaths", "volumes"].map(|name| directory.join(name)) {
        if part.exists() {
            unmount_below(&part)?;
            std::fs::remove_dir_all(part)?;
        }
    }
    Ok(())
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

/// Whether another file system begins here. (Not so for a bind of the same one, which no volume of ours is.)
pub fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

/// Gives a volume that outlives its pod to the pod's group, if it has one. With the policy OnRootMismatch a volume whose top is right is left alone.
/// Upstream: `pkg/volume/volume_linux.go` (SetVolumeOwnership, skipPermissionChange).
pub fn own_volume(pod: &Pod, path: &Path, writable: bool) -> io::Result<()> {
    let security = pod.spec().security_context.clone().unwrap_or_default();
    let Some(group) = security.fs_group else { return Ok(()) };
    if security.fs_group_change_policy.as_deref() == Some("OnRootMismatch") && is_owned(path, group, writable)? {
        return Ok(());
    }
    own_by_group(path, group, writable)
}

fn is_owned(path: &Path, group: i64, writable: bool) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)?;
    let wanted = 0o2110 | if writable { 0o660 } else { 0o440 };
    Ok(i64::from(metadata.gid()) == group && metadata.mode() & wanted == wanted)
}

/// Gives a volume to the pod's group: group read (and write), and new files inherit the group.
/// Upstream: `pkg/volume/volume_linux.go` (SetVolumeOwnership).
pub fn own_by_group(path: &Path, group: i64, writable: bool) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
    let metadata = match std::fs::symlink_metadata(path) {
        // Its writer may be another pod, and faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn the_group_gets_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, file) = (dir.path().join("v"), dir.path().join("v/f"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", volume.join("link")).unwrap();
        let group = std::fs::metadata(&volume).unwrap().gid();
        let pod = |policy: &str| -> Pod {
            serde_json::from_value(
                json!({"spec": {"containers": [], "securityContext": {"fsGroup": group, "fsGroupChangePolicy": policy}}}),
            )
            .unwrap()
        };
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        own_volume(&pod("Always"), &volume, true).unwrap();
        assert_eq!((mode(&volume) & 0o2770, mode(&file)), (0o2770, 0o660));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        own_volume(&pod("OnRootMismatch"), &volume, true).unwrap();
        assert_eq!(mode(&file), 0o600, "the top is right, so nothing below is looked at");
        own_volume(&pod("Always"), &volume, true).unwrap();
        assert_eq!(mode(&file), 0o660);
    }

    #[test]
    fn events_read_as_upstream() {
        let unbound = Error::Unprocessed("error processing PVC n/c: PVC is not bound".into());
        assert_eq!(
            unbound.event("data", &["data", "tmp"]),
            "Unable to attach or mount volumes: unmounted volumes=[data tmp], unattached volumes=[], failed to process volumes=[data]: error processing PVC n/c: PVC is not bound"
        );
        let elsewhere = Error::Misplaced("pv".into());
        assert_eq!(elsewhere.event("data", &[]), "MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms");
    }
}
