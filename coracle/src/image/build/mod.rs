//! `coracle image build`: an image from a folder with a Dockerfile.
//!
//! ```text
//! FROM's layers ─unpack─▶ lower ┐
//!                               ├─ overlay at root: COPY writes there, RUN runs there (chroot) ─▶ upper ─▶ one new layer
//!                         upper ┘
//! ```
//! One layer per build, over the layers of FROM, which images share. Everything is mounted in a mount namespace of this process: when it
//! ends, however it ends, nothing stays mounted. RUN has the host's network and the rights of this process (root): run what you trust.

pub mod recipe;
mod tree;
mod users;

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::pack::{Config, document};
use super::reference::Reference;
use super::store::{CONFIG, Descriptor, Index, LAYER, Manifest, Store};
use recipe::{Instruction, Line};

/// The image a build starts from.
#[derive(Default)]
struct Base {
    layers: Vec<Descriptor>,
    /// Its configuration as it stands there; null for none.
    document: Value,
}

struct Build<'a> {
    context: &'a Path,
    root: PathBuf,
    config: Config,
}

/// Builds the image and lets `name` stand for it. Call it before any thread exists.
pub fn build(store: &Store, context: &Path, file: &Path, name: &Reference, scratch: &Path) -> Result<Descriptor> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let lines = recipe::parse(&text).with_context(|| file.display().to_string())?;
    let base = base(store, &lines)?;
    let dir = tempfile::Builder::new().prefix("build-").tempdir_in(scratch).context("a folder to build in")?;
    for part in ["lower", "upper", "work", "root"] {
        fs::create_dir(dir.path().join(part))?;
    }
    for layer in &base.layers {
        let blob = store.blob_path(&layer.digest).context("a layer without digest")?;
        tree::unpack(&blob, &dir.path().join("lower"), true)?;
    }
    let mounts = Mounts::make(dir.path())?;
    let context = fs::canonicalize(context).with_context(|| format!("open {}", context.display()))?;
    let mut build = Build { context: &context, root: dir.path().join("root"), config: Config::of(&base.document) };
    for line in &lines {
        println!("{}", line.text);
        build.apply(line).with_context(|| format!("line {}: {}", line.number, line.text))?;
    }
    drop(mounts);
    let layer = tree::write_layer(&dir.path().join("upper"), File::create(dir.path().join("layer.tar"))?)?;
    drop(layer);
    let image = commit(store, base, &build.config, &dir.path().join("layer.tar"))?;
    store.tag(name, &image)?;
    Ok(image)
}

fn commit(store: &Store, base: Base, config: &Config, layer: &Path) -> Result<Descriptor> {
    let layer = store.write_blob(LAYER, &mut File::open(layer)?)?;
    // An uncompressed layer's digest is its diff id.
    let config = store.write_json(CONFIG, &document(config, &base.document, &layer.digest))?;
    let mut layers = base.layers;
    layers.push(layer);
    store.write_manifest(config, layers)
}

fn base(store: &Store, lines: &[Line]) -> Result<Base> {
    let Some(Instruction::From(Some(name))) = lines.first().map(|line| &line.instruction) else { return Ok(Base::default()) };
    let reference = Reference::parse(name)?;
    let Some(found) = store.find(&reference)? else {
        bail!(
            "{reference} is not in the cluster's image store: `coracle image load` puts an archive there, `coracle image ls` lists what is"
        );
    };
    let manifest = manifest(store, &found.digest)?;
    let document = serde_json::from_slice(&store.read_blob(&manifest.config.digest)?).context("the image's configuration")?;
    Ok(Base { layers: manifest.layers, document })
}

/// An index of platforms leads to this one's manifest.
fn manifest(store: &Store, digest: &str) -> Result<Manifest> {
    let bytes = store.read_blob(digest)?;
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
        return Ok(manifest);
    }
    let index: Index = serde_json::from_slice(&bytes).context("neither a manifest nor an index")?;
    let here = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_none_or(|p| p["os"] == "linux" && p["architecture"] == super::pack::architecture())
    };
    let chosen = index.manifests.iter().find(here).context("the image has no manifest for this machine's architecture")?;
    serde_json::from_slice(&store.read_blob(&chosen.digest)?).context("the image's manifest")
}

/// The overlay and what a program expects to find; gone with the value, or with the process.
struct Mounts {
    root: PathBuf,
}

impl Mounts {
    fn make(dir: &Path) -> Result<Mounts> {
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace; root may")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
        let at = |part: &str| dir.join(part).display().to_string();
        // Without redirects, what was moved is whole in the upper folder.
        let layers =
            format!("lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off", at("lower"), at("upper"), at("work"));
        let root = dir.join("root");
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str())).context("mount the image's file system")?;
        Ok(Mounts { root })
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.root, MntFlags::MNT_DETACH) {
            eprintln!("coracle: unmount {}: {error}", self.root.display());
        }
    }
}

impl Build<'_> {
    fn apply(&mut self, line: &Line) -> Result<()> {
        match &line.instruction {
            Instruction::From(_) => {}
            Instruction::Copy { sources, target, owner } => self.copy(sources, target, *owner)?,
            Instruction::Add { archive, target } => {
                let into = self.inside(&self.expand(target))?;
                fs::create_dir_all(&into)?;
                tree::unpack(&self.source(archive)?, &into, false)?;
            }
            Instruction::Run(words) => self.run(words)?,
            Instruction::Env(pairs) => {
                for (name, value) in pairs {
                    let value = self.expand(value);
                    self.config.set_env(name, &value);
                }
            }
            Instruction::Label(pairs) => {
                for (name, value) in pairs {
                    let value = self.expand(value);
                    self.config.labels.insert(name.clone(), value);
                }
            }
            Instruction::Workdir(path) => {
                self.config.working_dir = self.absolute(&self.expand(path));
                fs::create_dir_all(self.inside(&self.config.working_dir)?)?;
            }
            Instruction::User(user) => self.config.user = self.expand(user),
            Instruction::Expose(ports) => self.config.ports.extend(ports.iter().cloned()),
            Instruction::Entrypoint(words) => {
                self.config.entrypoint = words.clone();
                self.config.command.clear();
            }
            Instruction::Cmd(words) => self.config.command = words.clone(),
        }
        Ok(())
    }

    fn copy(&self, sources: &[String], target: &str, owner: (u32, u32)) -> Result<()> {
        let target = self.expand(target);
        let into = self.inside(&target)?;
        for source in sources {
            let from = self.source(source)?;
            let to = if from.is_dir() {
                into.clone()
            } else if target.ends_with('/') || target == "." || into.is_dir() {
                into.join(from.file_name().unwrap_or_default())
            } else if sources.len() > 1 {
                bail!("several files go into a folder: end {target} with /");
            } else {
                into.clone()
            };
            fs::create_dir_all(to.parent().unwrap_or(&self.root))?;
            tree::copy(&from, &to, owner)?;
        }
        Ok(())
    }

    /// A path of the build's folder, which it may not leave.
    fn source(&self, path: &str) -> Result<PathBuf> {
        let real = fs::canonicalize(self.context.join(path.trim_start_matches('/')))
            .with_context(|| format!("{path} is not in {}", self.context.display()))?;
        if !real.starts_with(self.context) {
            bail!("{path} is outside of {}", self.context.display());
        }
        Ok(real)
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.config.working_dir.trim_end_matches('/')) }
    }

    /// Where a path of the image is on this host. A link in the image leads to where it leads inside the image, and never out of it.
    fn inside(&self, path: &str) -> Result<PathBuf> {
        let mut real = self.root.clone();
        let mut left: Vec<Component<'_>> = Vec::new();
        let absolute = PathBuf::from(self.absolute(path));
        left.extend(absolute.components().rev());
        let mut owned: Vec<PathBuf> = left.iter().map(|part| PathBuf::from(part.as_os_str())).collect();
        let mut links = 0;
        while let Some(part) = owned.pop() {
            match part.components().next() {
                Some(Component::Normal(name)) => {
                    let next = real.join(name);
                    if !next.is_symlink() {
                        real = next;
                        continue;
                    }
                    links += 1;
                    if links > 40 {
                        bail!("{path}: too many links");
                    }
                    let target = fs::read_link(&next)?;
                    if target.is_absolute() {
                        real = self.root.clone();
                    }
                    owned.extend(target.components().rev().map(|part| PathBuf::from(part.as_os_str())));
                }
                Some(Component::ParentDir) if real != self.root => drop(real.pop()),
                _ => {}
            }
        }
        Ok(real)
    }

    /// In the image's file system, with its environment, working directory and user, and the host's network. What it leaves running ends with it.
    fn run(&self, words: &[String]) -> Result<()> {
        for (part, source) in [("dev", "/dev"), ("sys", "/sys")] {
            let target = self.root.join(part);
            fs::create_dir_all(&target)?;
            mount(Some(source), &target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .with_context(|| format!("show {source}"))?;
        }
        fs::create_dir_all(self.root.join("proc"))?;
        let resolver = self.lend("/etc/resolv.conf")?;
        let mut command = Command::new("/usr/bin/unshare");
        let dir = if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir };
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc=/proc",
            &format!("--root={}", self.root.display()),
            &format!("--wd={dir}"),
        ]);
        if !self.config.user.is_empty() {
            let (user, group) = users::find(&self.root, &self.config.user)?;
            command.args([format!("--setuid={user}"), format!("--setgid={group}")]);
        }
        command.arg("--").args(words).env_clear().stdin(Stdio::null());
        command.envs(self.config.env.iter().filter_map(|pair| pair.split_once('=')));
        let status = command.status().context("run unshare");
        drop(resolver);
        for part in ["dev", "sys"] {
            umount2(&self.root.join(part), MntFlags::MNT_DETACH)?;
        }
        let status = status?;
        if status.success() { Ok(()) } else { bail!("ended with {status}") }
    }

    /// Shows a file of the host in the image while the value lives, without a trace afterwards.
    fn lend(&self, path: &str) -> Result<Lent> {
        let target = self.inside(path)?;
        fs::create_dir_all(target.parent().unwrap_or(&self.root))?;
        let made = !target.exists();
        if made {
            File::create(&target)?;
        }
        let real = fs::canonicalize(path).with_context(|| format!("find {path}"))?;
        mount(Some(&real), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).with_context(|| format!("show {path}"))?;
        Ok(Lent { target, made })
    }

    /// `$NAME` and `${NAME}` from the image's environment.
    fn expand(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            let (name, left) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some(found) => found,
                None => after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len())),
            };
            let value = self.config.env.iter().filter_map(|pair| pair.split_once('=')).find(|(known, _)| *known == name);
            out.push_str(value.map_or("", |(_, value)| value));
            rest = left;
        }
        out + rest
    }
}

struct Lent {
    target: PathBuf,
    made: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let given_back = umount2(&self.target, MntFlags::MNT_DETACH).map_err(std::io::Error::from);
        let removed = given_back.and_then(|()| if self.made { fs::remove_file(&self.target) } else { Ok(()) });
        if let Err(error) = removed {
            eprintln!("coracle: take {} back: {error}", self.target.display());
        }
    }
}

impl Config {
    /// What an image's configuration document says.
    fn of(document: &Value) -> Config {
        let config = &document["config"];
        let strings = |name: &str| config[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let text = |name: &str| config[name].as_str().unwrap_or_default().to_owned();
        let env: Vec<String> = strings("Env");
        Config {
            entrypoint: strings("Entrypoint"),
            command: strings("Cmd"),
            env: if env.is_empty() { vec![super::own::PATH.into()] } else { env },
            user: text("User"),
            working_dir: text("WorkingDir"),
            ports: config["ExposedPorts"].as_object().into_iter().flatten().map(|(port, _)| port.clone()).collect(),
            labels: config["Labels"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                .collect(),
        }
    }

    fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|pair| pair.split_once('=').is_none_or(|(known, _)| known != name));
        self.env.push(format!("{name}={value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fresh<'a>(context: &'a Path, root: &Path) -> Build<'a> {
        Build { context, root: root.into(), config: Config::of(&json!({"config": {"Env": ["PATH=/bin", "A=1"]}})) }
    }

    #[test]
    fn variables() {
        let build = fresh(Path::new("/"), Path::new("/"));
        for (text, out) in [("$A/x", "1/x"), ("${A}b", "1b"), ("a$", "a"), ("$B!", "!"), ("plain", "plain")] {
            assert_eq!(build.expand(text), out, "{text}");
        }
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        for (target, link) in [("usr/bin", "bin"), ("/usr", "abs"), ("../../../etc", "out"), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        let build = fresh(dir.path(), &root);
        for (path, real) in [("/bin/x", "usr/bin/x"), ("/abs/y", "usr/y"), ("/out/passwd", "etc/passwd"), ("../../z", "z"), ("/", "")] {
            assert_eq!(build.inside(path).unwrap(), root.join(real), "{path}");
        }
        assert!(build.inside("/loop/x").is_err());
        assert!(build.source("../x").is_err());
    }

    #[test]
    fn an_entrypoint_takes_the_command_with_it() {
        let mut build = fresh(Path::new("/"), Path::new("/"));
        build.config.command = vec!["old".into()];
        let line = |instruction| Line { number: 1, text: String::new(), instruction };
        build.apply(&line(Instruction::Entrypoint(vec!["x".into()]))).unwrap();
        build.apply(&line(Instruction::Env(vec![("A".into(), "2$A".into())]))).unwrap();
        assert!(build.config.command.is_empty());
        assert_eq!(build.config.env, ["PATH=/bin", "A=21"]);
    }
}
