//! `subPath` mounts: a part of a volume, resolved so that no symbolic link leads out of the volume.
//!
//! A container may write links into its volume while we look, so paths are walked by the kernel, beneath the volume
//! (`openat2` with RESOLVE_BENEATH), and what was opened is what is bound: by descriptor, never again by name.
//! Upstream: `pkg/volume/util/subpath/subpath_linux.go`, v1.33.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};

fn open_beneath(root: &impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Opens `sub_path` beneath `volume`, making directories that are missing.
fn open(volume: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    if sub_path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("must not contain '..': {}", sub_path.display())));
    }
    let root = File::open(volume)?;
    // As the volume itself: open to a user that is no root, handing its group down, and sticky if the volume is.
    let mode = root.metadata()?.mode() & 0o7777;
    match open_beneath(&root, sub_path) {
        Ok(found) => return Ok(found),
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(escape(error, sub_path)),
    }
    let mut current: OwnedFd = root.into();
    for part in sub_path.components().filter(|c| matches!(c, Component::Normal(_))) {
        let part = Path::new(part.as_os_str());
        current = match open_beneath(&current, part) {
            Err(Errno::ENOENT) => {
                let made = mkdirat(&current, part, Mode::from_bits_truncate(mode));
                if let Err(error) = made
                    && error != Errno::EEXIST
                {
                    return Err(error.into());
                }
                let next = open_beneath(&current, part).map_err(|e| escape(e, sub_path))?;
                if made.is_ok() {
                    // Past the umask; by descriptor, so that it is the directory just opened.
                    fs::set_permissions(format!("/proc/self/fd/{}", next.as_raw_fd()), fs::Permissions::from_mode(mode))?;
                }
                next
            }
            found => found.map_err(|e| escape(e, sub_path))?,
        };
    }
    Ok(current)
}

fn escape(error: Errno, path: &Path) -> io::Error {
    match error {
        Errno::EXDEV | Errno::ELOOP => {
            io::Error::new(io::ErrorKind::PermissionDenied, format!("subpath {:?} leads out of its volume", path.display().to_string()))
        }
        error => error.into(),
    }
}

/// Binds the sub-path to `target` (made anew with every start of a container) and returns that.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> io::Result<PathBuf> {
    let source = open(volume, Path::new(sub_path))?;
    let source_path = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    super::unmount_below(target)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let is_dir = fs::metadata(&source_path)?.is_dir();
    match (is_dir, fs::symlink_metadata(target)) {
        (true, Ok(found)) if !found.is_dir() => fs::remove_file(target)?,
        (false, Ok(found)) if found.is_dir() => fs::remove_dir(target)?,
        _ => {}
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else if !target.exists() {
        File::create(target)?;
    }
    mount(Some(&source_path), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("in")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("in", volume.join("good")).unwrap();
        symlink("../secret", volume.join("bad")).unwrap();
        symlink("/etc", volume.join("worse")).unwrap();
        assert!(open(&volume, Path::new("good")).is_ok());
        assert!(open(&volume, Path::new("new/deep")).is_ok());
        assert!(volume.join("new/deep").is_dir());
        for path in ["bad", "worse", "worse/passwd", "in/../../secret", "worse/new"] {
            assert!(open(&volume, Path::new(path)).is_err(), "{path}");
        }
        assert!(!Path::new("/etc/new").exists());
    }

    #[test]
    fn new_directories_are_as_open_as_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o3777)).unwrap();
        open(dir.path(), Path::new("a/b")).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o7777, 0o3777);
    }

    /// A container that swaps a directory for a link, again and again, never gets outside.
    #[test]
    fn an_attacker_who_swaps_links_gains_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("in/target")).unwrap();
        fs::create_dir_all(outside.join("target")).unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (attacked, stopped) = (volume.clone(), stop.clone());
        let attacker = std::thread::spawn(move || {
            let (real, link, name) = (attacked.join("real"), attacked.join("link"), attacked.join("in"));
            symlink("../outside", &link).unwrap();
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                // In the gap the other side may make a directory of that name: it goes, and the game goes on.
                drop(fs::rename(&name, &real).and_then(|()| fs::rename(&link, &name)).and_then(|()| fs::rename(&name, &link)));
                while fs::rename(&real, &name).is_err() {
                    drop(fs::remove_dir_all(&name));
                }
            }
        });
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let forbidden = [inode(&outside), inode(&outside.join("target"))];
        for _ in 0..2000 {
            for path in ["in", "in/target", "in/new"] {
                let Ok(found) = open(&volume, Path::new(path)) else { continue };
                assert!(!forbidden.contains(&inode(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())))));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        attacker.join().unwrap();
        assert!(!outside.join("new").exists());
    }
}
