//! Reading image archives: `docker save` (docker-archive) and OCI layouts in a tar, plain or gzipped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;
use serde::Deserialize;

use super::reference::Reference;
use super::store::{CONFIG, Descriptor, Index, LAYER, LAYER_GZIP, Store};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Adds every image of the archive to the store. Returns their names. `name` names an image that carries none.
pub fn load(store: &Store, path: &Path, name: Option<&str>) -> Result<Vec<Reference>> {
    let dir = tempfile::tempdir().context("a folder to unpack into")?;
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    unpack(file, dir.path()).with_context(|| format!("{} is not a tar archive", path.display()))?;
    let names = if dir.path().join("manifest.json").exists() {
        load_docker(store, dir.path(), name)
    } else if dir.path().join("index.json").exists() {
        load_oci(store, dir.path(), name)
    } else {
        bail!("{} is neither a docker nor an OCI image archive: it has no manifest.json and no index.json", path.display())
    }?;
    if names.is_empty() {
        bail!("{} holds no named image: give one with --image", path.display());
    }
    Ok(names)
}

fn unpack(mut file: File, into: &Path) -> Result<()> {
    let mut magic = [0; 2];
    let gzipped = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.seek(SeekFrom::Start(0))?;
    let reader: Box<dyn Read> = if gzipped { Box::new(GzDecoder::new(BufReader::new(file))) } else { Box::new(BufReader::new(file)) };
    // `unpack` refuses entries that would leave the folder.
    Ok(tar::Archive::new(reader).unpack(into)?)
}

fn load_docker(store: &Store, dir: &Path, name: Option<&str>) -> Result<Vec<Reference>> {
    let images: Vec<DockerImage> = serde_json::from_slice(&fs::read(dir.join("manifest.json"))?).context("manifest.json")?;
    let mut names = Vec::new();
    for image in images {
        let config = store.write_blob(CONFIG, &mut open(dir, &image.config)?)?;
        let layers = image.layers.iter().map(|layer| add_layer(store, dir, layer)).collect::<Result<Vec<_>>>()?;
        let manifest = store.write_manifest(config, layers)?;
        let tags = image.repo_tags.unwrap_or_default();
        for tag in tags.iter().map(String::as_str).chain(name) {
            let reference = Reference::parse(tag)?;
            store.tag(&reference, &manifest)?;
            names.push(reference);
        }
    }
    Ok(names)
}

fn add_layer(store: &Store, dir: &Path, path: &str) -> Result<Descriptor> {
    let mut file = open(dir, path)?;
    let mut magic = [0; 2];
    let gzipped = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.seek(SeekFrom::Start(0))?;
    store.write_blob(if gzipped { LAYER_GZIP } else { LAYER }, &mut file)
}

fn load_oci(store: &Store, dir: &Path, name: Option<&str>) -> Result<Vec<Reference>> {
    let index: Index = serde_json::from_slice(&fs::read(dir.join("index.json"))?).context("index.json")?;
    for blob in fs::read_dir(dir.join("blobs/sha256")).context("blobs/sha256")? {
        let blob = blob?;
        let stored = store.write_blob("", &mut File::open(blob.path())?)?;
        let said = format!("sha256:{}", blob.file_name().to_string_lossy());
        if stored.digest != said {
            bail!("the archive is damaged: blob {said} has the content of {}", stored.digest);
        }
    }
    let mut names = Vec::new();
    for descriptor in &index.manifests {
        for reference in names_in(&descriptor.annotations, name)? {
            store.tag(&reference, descriptor)?;
            names.push(reference);
        }
    }
    Ok(names)
}

/// containerd writes the full name beside the tag; others only a tag or a name.
fn names_in(annotations: &BTreeMap<String, String>, given: Option<&str>) -> Result<Vec<Reference>> {
    let annotated = annotations.get("io.containerd.image.name").or_else(|| annotations.get(super::store::NAME_ANNOTATION));
    given.or(annotated.map(String::as_str)).map(Reference::parse).into_iter().collect()
}

/// Opens a file of the archive; legacy archives link a repeated layer to its first place.
fn open(dir: &Path, path: &str) -> Result<File> {
    let relative = PathBuf::from(path);
    if relative.components().any(|part| !matches!(part, Component::Normal(_))) {
        bail!("the archive names a path outside itself: {path:?}");
    }
    let real = fs::canonicalize(dir.join(&relative)).with_context(|| format!("the archive lacks {path}"))?;
    if !real.starts_with(fs::canonicalize(dir)?) {
        bail!("the archive links to a path outside itself: {path:?}");
    }
    File::open(real).with_context(|| format!("open {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn load_bytes(bytes: &[u8], name: Option<&str>) -> Result<(Store, Vec<Reference>, tempfile::TempDir)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        fs::write(&path, bytes).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let names = load(&store, &path, name)?;
        Ok((store, names, dir))
    }

    fn docker_archive() -> Vec<u8> {
        let layer = tar_of(&[("hello", b"hi")]);
        tar_of(&[
            ("manifest.json", br#"[{"Config":"c.json","RepoTags":["demo:1","demo:2"],"Layers":["l/layer.tar"]}]"#),
            ("c.json", br#"{"rootfs":{"diff_ids":[]}}"#),
            ("l/layer.tar", &layer),
        ])
    }

    #[test]
    fn a_docker_archive_plain_and_gzipped() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&docker_archive()).unwrap();
        for bytes in [docker_archive(), gzip.finish().unwrap()] {
            let (store, names, _dir) = load_bytes(&bytes, None).unwrap();
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            assert_eq!(names, ["docker.io/library/demo:1", "docker.io/library/demo:2"]);
            assert!(store.find(&Reference::parse("demo:1").unwrap()).unwrap().is_some());
        }
    }

    #[test]
    fn an_oci_archive_keeps_its_digests_and_damage_is_seen() {
        let digest = |bytes: &[u8]| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(bytes));
        let manifest = br#"{"schemaVersion":2}"#;
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":{}}}]}}"#,
            digest(manifest),
            manifest.len()
        );
        let path = format!("blobs/sha256/{}", digest(manifest));
        let good = tar_of(&[("index.json", index.as_bytes()), (&path, manifest)]);
        let (store, names, _dir) = load_bytes(&good, Some("demo")).unwrap();
        assert_eq!(store.find(&names[0]).unwrap().unwrap().digest, format!("sha256:{}", digest(manifest)));
        let bad = tar_of(&[("index.json", index.as_bytes()), (&path, b"other")]);
        assert!(load_bytes(&bad, Some("demo")).err().unwrap().to_string().contains("damaged"));
        assert!(load_bytes(&good, None).err().unwrap().to_string().contains("--image"));
    }

    #[test]
    fn anything_else_is_said_to_be_no_image() {
        assert!(load_bytes(&tar_of(&[("README", b"x")]), None).err().unwrap().to_string().contains("neither"));
        assert!(load_bytes(b"not a tar at all", None).is_err());
    }
}
