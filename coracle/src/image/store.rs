//! An OCI image layout: `blobs/sha256/…` by content, `index.json` from full image name to manifest.
//!
//! Blobs are written whole before the index names them, the index is replaced in one rename under a lock: a reader, in another process
//! or after a crash, never sees half an image.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::reference::Reference;
use crate::cluster::write_file;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The annotation by which a layout's index names an image.
pub const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// An image manifest, as far as we write and read it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

impl Descriptor {
    pub fn name(&self) -> Option<&str> {
        self.annotations.get(NAME_ANNOTATION).map(String::as_str)
    }
}

#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    pub fn open(dir: &Path) -> Result<Store> {
        fs::create_dir_all(dir.join("blobs/sha256")).with_context(|| format!("open the image store {}", dir.display()))?;
        let layout = dir.join("oci-layout");
        if !layout.exists() {
            write_file(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        }
        Ok(Store { dir: dir.into() })
    }

    pub fn index(&self) -> Result<Index> {
        match fs::read(self.dir.join("index.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("the store's index.json"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index { schema_version: 2, manifests: Vec::new() }),
            Err(e) => Err(e).context("the store's index.json"),
        }
    }

    /// The manifest (or index of manifests) an image name stands for.
    pub fn find(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let name = reference.to_string();
        Ok(self.index()?.manifests.into_iter().find(|descriptor| descriptor.name() == Some(&name)))
    }

    /// Lets `reference` stand for a manifest that is already stored.
    pub fn tag(&self, reference: &Reference, descriptor: &Descriptor) -> Result<()> {
        let lock = File::create(self.dir.join(".lock"))?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).context("lock the image store")?;
        let mut index = self.index()?;
        let name = reference.to_string();
        let mut descriptor = descriptor.clone();
        descriptor.annotations = [(NAME_ANNOTATION.to_string(), name.clone())].into();
        index.manifests.retain(|old| old.name() != Some(&name));
        index.manifests.push(descriptor);
        index.manifests.sort_by(|a, b| a.name().cmp(&b.name()));
        write_file(&self.dir.join("index.json"), &serde_json::to_vec_pretty(&index)?, 0o644)
    }

    /// Path of a blob, if `digest` is one (`sha256:` and 64 hexadecimal digits), whether or not it is stored.
    pub fn blob_path(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:")?;
        (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| self.dir.join("blobs/sha256").join(hex))
    }

    pub fn read_blob(&self, digest: &str) -> Result<Vec<u8>> {
        let path = self.blob_path(digest).with_context(|| format!("not a digest: {digest:?}"))?;
        fs::read(&path).with_context(|| format!("blob {digest}"))
    }

    /// Stores a stream and returns its descriptor. Content that is there already costs only the reading.
    pub fn write_blob(&self, media_type: &str, content: &mut dyn Read) -> Result<Descriptor> {
        let mut file = tempfile::NamedTempFile::new_in(self.dir.join("blobs"))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut size = 0;
        loop {
            let read = content.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            file.write_all(&buffer[..read])?;
            size += read as u64;
        }
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        if let Some(path) = self.blob_path(&digest)
            && !path.exists()
        {
            file.persist(&path).with_context(|| format!("store {digest}"))?;
        }
        Ok(Descriptor { media_type: media_type.into(), digest, size, annotations: Default::default(), platform: None })
    }

    pub fn write_json(&self, media_type: &str, value: &impl Serialize) -> Result<Descriptor> {
        self.write_blob(media_type, &mut serde_json::to_vec(value)?.as_slice())
    }

    /// Stores a manifest of these parts.
    pub fn write_manifest(&self, config: Descriptor, layers: Vec<Descriptor>) -> Result<Descriptor> {
        self.write_json(MANIFEST, &Manifest { schema_version: 2, media_type: MANIFEST.into(), config, layers })
    }

    /// Bytes an image takes, by its manifest; None for an index of several platforms.
    pub fn image_size(&self, descriptor: &Descriptor) -> Option<u64> {
        let manifest: Manifest = serde_json::from_slice(&self.read_blob(&descriptor.digest).ok()?).ok()?;
        Some(manifest.config.size + manifest.layers.iter().map(|layer| layer.size).sum::<u64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_moved_not_doubled() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let name = Reference::parse("web:1").unwrap();
        let one = store.write_blob(MANIFEST, &mut b"one".as_slice()).unwrap();
        let two = store.write_blob(MANIFEST, &mut b"two".as_slice()).unwrap();
        store.tag(&name, &one).unwrap();
        store.tag(&name, &two).unwrap();
        assert_eq!(store.index().unwrap().manifests.len(), 1);
        assert_eq!(store.find(&name).unwrap().unwrap().digest, two.digest);
        assert_eq!(store.read_blob(&one.digest).unwrap(), b"one");
    }

    #[test]
    fn only_digests_are_paths() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for bad in ["sha256:../../x", "md5:00", "", &format!("sha256:{}", "g".repeat(64))] {
            assert!(store.blob_path(bad).is_none(), "{bad:?}");
        }
    }
}
