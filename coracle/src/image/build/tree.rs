//! File systems of images: a stack of layers unpacked, and what a build added as a layer again.
//!
//! In a layer, an empty file `.wh.NAME` says that NAME of the layers below is gone, `.wh..wh..opq` that all of a folder is. Overlayfs says
//! the same with a device 0/0 and an attribute. Upstream: OCI image specification, layer.md; kernel, overlayfs.rst.

use std::collections::HashMap;
use std::fs::{self, File, FileType};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;

const GONE: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Unpacks a tar, plain or gzipped, with owners and modes, over what is in `into`. `whiteouts`: honour the marks of a layer.
pub fn unpack(archive: &Path, into: &Path, whiteouts: bool) -> Result<()> {
    let mut file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut magic = [0; 2];
    let gzipped = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.seek(SeekFrom::Start(0))?;
    let reader: Box<dyn Read> = if gzipped { Box::new(GzDecoder::new(BufReader::new(file))) } else { Box::new(BufReader::new(file)) };
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match name.strip_prefix(GONE).filter(|_| whiteouts) {
            Some(_) if name == OPAQUE => clear(&into.join(path.parent().unwrap_or(Path::new(""))))?,
            Some(gone) => remove(&into.join(path.with_file_name(gone)))?,
            None => {
                let target = into.join(&path);
                // A file where a folder was, or the other way round.
                if target.symlink_metadata().is_ok_and(|old| old.is_dir() != entry.header().entry_type().is_dir()) {
                    remove(&target)?;
                }
                entry.unpack_in(into).with_context(|| format!("unpack {}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn clear(folder: &Path) -> Result<()> {
    for child in fs::read_dir(folder).into_iter().flatten() {
        remove(&child?.path())?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => Ok(fs::remove_dir_all(path)?),
        Ok(_) => Ok(fs::remove_file(path)?),
        Err(_) => Ok(()),
    }
}

/// Copies a file, link or folder's content, all owned by `owner`. A folder's content goes into `to`.
pub fn copy(from: &Path, to: &Path, owner: (u32, u32)) -> Result<()> {
    let found = from.symlink_metadata().with_context(|| format!("read {}", from.display()))?;
    if found.is_dir() {
        let made = !to.is_dir();
        fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
        if made {
            fs::set_permissions(to, found.permissions())?;
            std::os::unix::fs::lchown(to, Some(owner.0), Some(owner.1))?;
        }
        for child in sorted(from)? {
            copy(&child, &to.join(child.file_name().unwrap_or_default()), owner)?;
        }
        return Ok(());
    }
    remove(to)?;
    if found.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else {
        fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(std::os::unix::fs::lchown(to, Some(owner.0), Some(owner.1))?)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder)?.map(|child| Ok(child?.path())).collect::<Result<_>>()?;
    all.sort();
    Ok(all)
}

/// Writes an overlay's upper folder as a layer. Deterministic: sorted, without times.
pub fn write_layer(upper: &Path, into: File) -> Result<File> {
    let mut writer = Writer { root: upper.into(), archive: tar::Builder::new(into), links: HashMap::new() };
    writer.folder(upper)?;
    Ok(writer.archive.into_inner()?)
}

struct Writer {
    root: PathBuf,
    archive: tar::Builder<File>,
    /// Inode → where it is in the archive already.
    links: HashMap<u64, PathBuf>,
}

impl Writer {
    fn folder(&mut self, folder: &Path) -> Result<()> {
        for path in sorted(folder)? {
            self.entry(&path).with_context(|| format!("pack {}", path.display()))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let found = path.symlink_metadata()?;
        let name = path.strip_prefix(&self.root)?.to_owned();
        let kind = found.file_type();
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(found.uid().into());
        header.set_gid(found.gid().into());
        header.set_mode(found.mode() & 0o7777);
        header.set_size(0);
        if kind.is_char_device() && found.rdev() == 0 {
            return self.mark(name.with_file_name(format!("{GONE}{}", name.file_name().unwrap_or_default().to_string_lossy())));
        }
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            self.archive.append_data(&mut header, name.join(""), std::io::empty())?;
            if is_opaque(path)? {
                self.mark(name.join(OPAQUE))?;
            }
            return self.folder(path);
        }
        if let Some(first) = self.links.get(&found.ino()) {
            header.set_entry_type(tar::EntryType::Link);
            return Ok(self.archive.append_link(&mut header, &name, first)?);
        }
        if found.nlink() > 1 {
            self.links.insert(found.ino(), name.clone());
        }
        self.leaf(path, &name, kind, header)
    }

    fn leaf(&mut self, path: &Path, name: &Path, kind: FileType, mut header: tar::Header) -> Result<()> {
        if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            self.archive.append_link(&mut header, name, fs::read_link(path)?)?;
        } else if kind.is_file() {
            header.set_size(path.metadata()?.len());
            self.archive.append_data(&mut header, name, File::open(path)?)?;
        }
        // Sockets, pipes and devices are no part of an image.
        Ok(())
    }

    fn mark(&mut self, name: PathBuf) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        Ok(self.archive.append_data(&mut header, name, std::io::empty())?)
    }
}

/// Overlayfs marks a folder that hides the one below.
fn is_opaque(folder: &Path) -> Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::lgetxattr(folder, "trusted.overlay.opaque", &mut value[..]) {
        Ok(_) => Ok(value == *b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &Path) -> Vec<String> {
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_layer_comes_back_as_it_went() {
        let dir = tempfile::tempdir().unwrap();
        let (from, layer, to) = (dir.path().join("from"), dir.path().join("layer.tar"), dir.path().join("to"));
        fs::create_dir_all(from.join("bin")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("bin/one"), "1").unwrap();
        fs::hard_link(from.join("bin/one"), from.join("bin/same")).unwrap();
        std::os::unix::fs::symlink("one", from.join("bin/link")).unwrap();
        write_layer(&from, File::create(&layer).unwrap()).unwrap();
        assert_eq!(names(&layer), ["bin/", "bin/link", "bin/one", "bin/same"]);
        unpack(&layer, &to, true).unwrap();
        assert_eq!(fs::read_to_string(to.join("bin/link")).unwrap(), "1");
        assert_eq!(to.join("bin/one").metadata().unwrap().ino(), to.join("bin/same").metadata().unwrap().ino());
    }

    #[test]
    fn marks_take_away_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let (marks, layer, to) = (dir.path().join("marks"), dir.path().join("layer.tar"), dir.path().join("to"));
        for folder in [marks.join("a"), marks.join("b"), to.join("a"), to.join("b")] {
            fs::create_dir_all(folder).unwrap();
        }
        for file in ["a/gone", "a/kept", "b/old"] {
            fs::write(to.join(file), "").unwrap();
        }
        for mark in ["a/.wh.gone", "b/.wh..wh..opq", "b/new"] {
            fs::write(marks.join(mark), "").unwrap();
        }
        write_layer(&marks, File::create(&layer).unwrap()).unwrap();
        unpack(&layer, &to, true).unwrap();
        let left = |folder: &str| {
            sorted(&to.join(folder)).unwrap().iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!((left("a"), left("b")), (vec!["kept".to_owned()], vec!["new".to_owned()]));
    }
}
