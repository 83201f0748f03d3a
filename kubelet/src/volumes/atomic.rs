//! Writes a directory of small files so that a reader sees all of the old or all of the new, never a mix.
//!
//! ```text
//! volume/..2026_11_21_04_40_46.123456789/key     the data
//! volume/..data -> ..2026_11_21_04_40_46.123456789   renamed into place: the one atomic step
//! volume/key -> ..data/key                       what containers open
//! ```
//! Upstream: `pkg/volume/util/atomic_writer.go`, v1.33.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    pub owner: Option<u32>,
}

/// Relative path → file.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether anything had to be written.
pub fn write(volume: &Path, payload: &Payload, group: Option<i64>) -> io::Result<bool> {
    fs::create_dir_all(volume)?;
    fs::set_permissions(volume, Permissions::from_mode(0o777))?;
    let old = fs::read_link(volume.join(DATA)).ok();
    if old.as_deref().is_some_and(|old| same(&volume.join(old), payload).unwrap_or(false)) {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = volume.join(&stamp);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&fresh.join(path), file)?;
    }
    if let Some(group) = group {
        super::own_by_group(&fresh, group, false)?;
    }
    let temporary = volume.join(NEW_DATA);
    if temporary.is_symlink() {
        fs::remove_file(&temporary)?;
    }
    symlink(&stamp, &temporary)?;
    fs::rename(&temporary, volume.join(DATA))?;
    link_names(volume, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(true)
}

fn write_file(path: &Path, file: &File) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, &file.data)?;
    // Past the umask.
    fs::set_permissions(path, Permissions::from_mode(file.mode))?;
    if file.owner.is_some() {
        chown(path, file.owner, None)?;
    }
    Ok(())
}

/// The names that containers see: one link per first part of a path; links of names that are gone go too.
fn link_names(volume: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &names {
        if !volume.join(name).is_symlink() {
            symlink(Path::new(DATA).join(name), volume.join(name))?;
        }
    }
    for entry in fs::read_dir(volume)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(&*name) {
            fs::remove_file(volume.join(&*name))?;
        }
    }
    Ok(())
}

fn same(directory: &Path, payload: &Payload) -> io::Result<bool> {
    let mut left: BTreeSet<String> = payload.keys().cloned().collect();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path.strip_prefix(directory).map_err(io::Error::other)?.to_string_lossy().into_owned();
            let Some(file) = payload.get(&name) else { return Ok(false) };
            // The group may have widened the mode, so only the asked bits count.
            if fs::metadata(&path)?.mode() & file.mode != file.mode || fs::read(&path)? != file.data {
                return Ok(false);
            }
            left.remove(&name);
        }
    }
    Ok(left.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(k, v)| ((*k).to_owned(), File { data: v.as_bytes().to_vec(), mode: 0o644, owner: None })).collect()
    }

    #[test]
    fn writes_once_and_replaces_whole() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap());
        assert!(!write(&volume, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("d/e")).unwrap(), "2");
        let first = fs::read_link(volume.join(DATA)).unwrap();
        assert!(write(&volume, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join("d").exists());
        assert!(!volume.join(first).exists());
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
    }
}
