//! The images we make ourselves: pause, cluster DNS, and the quick start's web server. None has a distribution beneath it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::pack::{Config, Content, Entry, pack};
use super::reference::Reference;
use super::store::Store;
use crate::cluster::PAUSE_IMAGE;
use crate::run::tool;

pub const DNS_IMAGE: &str = "coracle/dns:1";
pub const WEB_IMAGE: &str = "coracle/web:1";

/// Packs and tags all of them. `bin` is the folder of our programs; those for images lie in its `images/`.
pub fn ensure(store: &Store, bin: &Path) -> Result<()> {
    let program = |name: &str| -> Result<PathBuf> {
        let path = bin.join("images").join(name);
        if !path.exists() {
            bail!("{} is missing: `make build` makes it", path.display());
        }
        Ok(path)
    };
    let run = |name: &str, user: &str| Config {
        entrypoint: vec![format!("/{name}")],
        user: user.into(),
        env: default_env(),
        ..Config::default()
    };

    let pause = pack(store, &with_libraries("pause", program("pause")?)?, &run("pause", "65535:65535"))?;
    store.tag(&Reference::parse(PAUSE_IMAGE)?, &pause)?;
    let dns = pack(store, &with_libraries("dns", program("dns")?)?, &run("dns", ""))?;
    store.tag(&Reference::parse(DNS_IMAGE)?, &dns)?;
    let web = pack(store, &web_entries()?, &web_config())?;
    store.tag(&Reference::parse(WEB_IMAGE)?, &web)
}

/// A program, and the libraries that this host's loader would give it, at the same paths. A static program has none.
fn with_libraries(name: &str, program: PathBuf) -> Result<Vec<Entry>> {
    let needed = match tool("ldd", &[&program]) {
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => String::new(),
        needed => needed?,
    };
    let libraries = needed.split_whitespace().filter_map(|word| Some((word.strip_prefix('/')?.to_owned(), PathBuf::from(word))));
    let files = std::iter::once((name.to_owned(), program)).chain(libraries);
    Ok(files.map(|(path, file)| Entry::File { path, mode: 0o755, content: Content::Host(file) }).collect())
}

/// The environment of an image that names none.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn default_env() -> Vec<String> {
    vec![PATH.into()]
}

/// Debian's static busybox with all its tools, so that `kubectl exec -it … -- sh` finds a shell.
fn web_entries() -> Result<Vec<Entry>> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("busybox is missing: install Debian's busybox-static")?;
    let tools = tool(&busybox.to_string_lossy(), &["--list"])?;
    let folder = |path: &str, mode| Entry::Folder { path: path.into(), mode };
    let file = |path: &str, content: &str| Entry::File { path: path.into(), mode: 0o644, content: Content::Bytes(content.into()) };
    let mut entries = vec![
        folder("bin", 0o755),
        folder("etc", 0o755),
        folder("home", 0o755),
        folder("root", 0o700),
        folder("tmp", 0o1777),
        folder("var", 0o755),
        folder("www", 0o755),
        file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
        file("etc/group", "root:x:0:\nnobody:x:65534:\n"),
        // Without it glibc's static resolver looks for modules that are not in the image.
        file("etc/nsswitch.conf", "hosts: files dns\n"),
        file("www/index.html", "<h1>Coracle</h1>\n"),
        Entry::File { path: "bin/busybox".into(), mode: 0o755, content: Content::Host(busybox) },
    ];
    entries.extend(
        tools.lines().filter(|name| *name != "busybox").map(|name| Entry::Link { path: format!("bin/{name}"), target: "busybox".into() }),
    );
    Ok(entries)
}

/// A process with number 1 ignores signals it has no handler for: the shell in front ends on SIGTERM at once.
fn web_config() -> Config {
    let serve = "trap 'exit 0' TERM INT; httpd -f -p 8080 -h /www & wait";
    Config {
        command: ["/bin/sh", "-c", serve].map(String::from).to_vec(),
        env: default_env(),
        ports: ["8080/tcp".into()].into(),
        ..Config::default()
    }
}
