//! The images we make ourselves: pause, cluster DNS, and the quick start's web server. Static programs need no distribution beneath them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::pack::{Config, Content, Entry, pack};
use super::reference::Reference;
use super::store::Store;
use crate::cluster::PAUSE_IMAGE;
use crate::run::tool;

pub const DNS_IMAGE: &str = "coracle/dns:1";
pub const WEB_IMAGE: &str = "coracle/web:1";

/// Packs and tags all of them. `bin` is the folder of our programs; the static ones lie in its `static/`.
pub fn ensure(store: &Store, bin: &Path) -> Result<()> {
    let program = |name: &str| -> Result<PathBuf> {
        let path = bin.join("static").join(name);
        if !path.exists() {
            bail!("{} is missing: `make build` makes it", path.display());
        }
        Ok(path)
    };
    let single = |path: PathBuf, name: &str| vec![Entry::File { path: name.into(), mode: 0o755, content: Content::Host(path) }];
    let run = |name: &str, user: &str| Config {
        entrypoint: vec![format!("/{name}")],
        user: user.into(),
        env: default_env(),
        ..Config::default()
    };

    let pause = pack(store, &single(program("pause")?, "pause"), &run("pause", "65535:65535"))?;
    store.tag(&Reference::parse(PAUSE_IMAGE)?, &pause)?;
    let dns = pack(store, &single(program("dns")?, "dns"), &run("dns", ""))?;
    store.tag(&Reference::parse(DNS_IMAGE)?, &dns)?;
    let web = pack(store, &web_entries()?, &web_config())?;
    store.tag(&Reference::parse(WEB_IMAGE)?, &web)
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
