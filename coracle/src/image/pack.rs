//! Our own image packer: files and a start command → an image of one layer. Deterministic: the same input gives the same digest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::store::{CONFIG, Descriptor, LAYER, Store};

/// Something in the image's file system.
#[derive(Debug, Clone)]
pub enum Entry {
    Folder { path: String, mode: u32 },
    File { path: String, mode: u32, content: Content },
    Link { path: String, target: String },
}

#[derive(Debug, Clone)]
pub enum Content {
    Bytes(Vec<u8>),
    /// A file of this host.
    Host(PathBuf),
}

#[derive(Debug, Clone, Default)]
pub struct Config {
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    /// As "8080/tcp".
    pub ports: BTreeSet<String>,
    pub labels: BTreeMap<String, String>,
}

/// Packs an image into the store. The caller tags it.
pub fn pack(store: &Store, entries: &[Entry], config: &Config) -> Result<Descriptor> {
    let layer_bytes = layer(entries)?;
    let layer = store.write_blob(LAYER, &mut layer_bytes.as_slice())?;
    // An uncompressed layer's digest is its diff id.
    let config = store.write_json(CONFIG, &document(config, &Value::Null, &layer.digest))?;
    store.write_manifest(config, vec![layer])
}

fn layer(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::Folder { path, mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                archive.append_data(&mut header, path, std::io::empty())?;
            }
            Entry::File { path, mode, content } => {
                let bytes = content.read()?;
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, bytes.as_slice())?;
            }
            Entry::Link { path, target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                archive.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

impl Content {
    fn read(&self) -> Result<Vec<u8>> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.clone()),
            Content::Host(path) => {
                let mut bytes = Vec::new();
                std::fs::File::open(path)
                    .and_then(|mut file| file.read_to_end(&mut bytes))
                    .with_context(|| format!("read {}", path.display()))?;
                Ok(bytes)
            }
        }
    }
}

/// As OCI calls this machine's processor.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The configuration document of an image with this layer over those of `base` (null: none).
pub fn document(config: &Config, base: &Value, diff_id: &str) -> Value {
    let and = |list: &Value, one: Value| -> Vec<Value> { list.as_array().into_iter().flatten().cloned().chain([one]).collect() };
    let ports: serde_json::Map<String, Value> = config.ports.iter().map(|port| (port.clone(), json!({}))).collect();
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": config.user,
            "Env": config.env,
            "Entrypoint": config.entrypoint,
            "Cmd": config.command,
            "WorkingDir": config.working_dir,
            "ExposedPorts": ports,
            "Labels": config.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": and(&base["rootfs"]["diff_ids"], json!(diff_id))},
        "history": and(&base["history"], json!({"created": "1970-01-01T00:00:00Z", "created_by": "coracle"})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_gives_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let entries = [
            Entry::Folder { path: "bin".into(), mode: 0o755 },
            Entry::File { path: "bin/web".into(), mode: 0o755, content: Content::Bytes(b"elf".to_vec()) },
            Entry::Link { path: "bin/sh".into(), target: "web".into() },
        ];
        let config = Config { entrypoint: vec!["/bin/web".into()], ..Config::default() };
        let first = pack(&store, &entries, &config).unwrap();
        assert_eq!(first, pack(&store, &entries, &config).unwrap());
        let manifest: super::super::store::Manifest = serde_json::from_slice(&store.read_blob(&first.digest).unwrap()).unwrap();
        let config: Value = serde_json::from_slice(&store.read_blob(&manifest.config.digest).unwrap()).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([manifest.layers[0].digest]));
        let layer = store.read_blob(&manifest.layers[0].digest).unwrap();
        let names: Vec<String> = tar::Archive::new(layer.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["bin", "bin/web", "bin/sh"]);
    }
}
