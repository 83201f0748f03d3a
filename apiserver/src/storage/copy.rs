//! Moving the state from one store to the other: `kube-apiserver copy-store --to etcd|embedded`.
//!
//! The target is emptied, then gets every key in the order of the source's revisions. All its revisions are greater than the source's,
//! so a client that comes back with an old one is told 410 and lists again; none takes new state for old.
//!
//! Invariants: the source is only read; an embedded target appears under its name when it is whole; who starts the server on the target
//! does so only after this has ended well. So a copy that was cut short is repeated from the start, and loses nothing.

use std::fmt;
use std::fs::File;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use futures::{StreamExt, TryStreamExt, stream};

use super::embedded::{self, Embedded};
use super::etcd::Etcd;
use super::{Entry, Expect, Revision, Storage};
use crate::config::StoreFlags;
use crate::registry::layout;

/// Entries read at once.
const PAGE: usize = 500;
/// Writes handed to the embedded store at once: it queues them in order and commits them together. etcd promises no such order.
const EMBEDDED_QUEUE: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    Embedded,
    Etcd,
}

/// Copy the state from the embedded store to etcd, or back.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube-apiserver copy-store")]
pub struct CopyFlags {
    /// The store to fill; what it holds is lost. The other one stays as it is.
    #[arg(long)]
    pub to: Target,
    #[command(flatten)]
    pub store: StoreFlags,
}

/// What was done.
#[derive(Debug)]
pub struct Copied {
    objects: usize,
    from: Revision,
    to: Revision,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copied {} objects; the store's revision was {} and is {}", self.objects, self.from, self.to)
    }
}

/// Copy as `flags` say. Errors: a store that can't be opened (the server still runs), a full disk, an etcd that goes away.
pub async fn run(flags: &CopyFlags) -> anyhow::Result<Copied> {
    let StoreFlags { data_dir, etcd_servers, .. } = &flags.store;
    ensure!(!etcd_servers.is_empty(), "say where etcd is: --etcd-servers");
    if flags.to == Target::Etcd {
        let source = Embedded::open(data_dir).with_context(|| format!("opening the store in {}", data_dir.display()))?;
        let target = Etcd::emptied(&flags.store.etcd(), source.revision().await?).await?;
        return copy(&source, &target, 1).await;
    }
    let source = Etcd::connect(&flags.store.etcd()).await?;
    let incoming = data_dir.join("incoming");
    let target = Embedded::emptied(&incoming, source.revision().await?)?;
    let copied = copy(&source, &target, EMBEDDED_QUEUE).await?;
    std::fs::rename(incoming.join(embedded::FILE), data_dir.join(embedded::FILE)).context("putting the new store in place")?;
    std::fs::remove_dir(&incoming)?;
    File::open(data_dir)?.sync_all()?;
    Ok(copied)
}

/// `window` writes are under way at a time.
async fn copy(source: &dyn Storage, target: &dyn Storage, window: usize) -> anyhow::Result<Copied> {
    let (mut entries, from) = everything(source).await.context("reading the source")?;
    entries.sort_by_key(|entry| entry.revision);
    let objects = entries.len();
    let writes = entries.into_iter().map(|entry| async move {
        let written = target.put(&entry.key, entry.value, Expect::Absent, layout::ttl(&entry.key)).await;
        written.with_context(|| format!("writing {}", entry.key))
    });
    let last = stream::iter(writes).buffered(window).try_fold(0, |_, revision| async move { Ok(revision) }).await?;
    let to = target.revision().await?;
    ensure!(objects == 0 || last > from && to >= last, "the target stands at revision {to}, the source at {from}");
    Ok(Copied { objects, from, to })
}

/// Every object, at one revision.
async fn everything(source: &dyn Storage) -> super::Result<(Vec<Entry>, Revision)> {
    let (mut entries, mut at) = (Vec::<Entry>::new(), None);
    loop {
        let after = entries.last().map(|entry| entry.key.clone());
        let page = source.list(layout::ROOT, after.as_deref(), PAGE, at).await?;
        at = Some(page.revision);
        entries.extend(page.entries);
        if !page.more {
            return Ok((entries, page.revision));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_keeps_order_and_never_goes_back() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = Embedded::open(old.path()).unwrap();
        for key in ["/registry/pods/a/2", "/registry/pods/a/1", "/registry/events/a/3", "/registry/pods/a/0"] {
            source.put(key, "x".into(), Expect::Absent, None).await.unwrap();
        }
        let gone = source.get("/registry/pods/a/1").await.unwrap().unwrap();
        source.delete(&gone.key, gone.revision).await.unwrap();
        let above = source.revision().await.unwrap();
        let target = Embedded::emptied(new.path(), above).unwrap();
        copy(&source, &target, EMBEDDED_QUEUE).await.unwrap();
        let (mut copied, _) = everything(&target).await.unwrap();
        copied.sort_by_key(|entry| entry.revision);
        let seen: Vec<(&str, Revision)> = copied.iter().map(|entry| (entry.key.as_str(), entry.revision - above)).collect();
        assert_eq!(seen, [("/registry/pods/a/2", 1), ("/registry/events/a/3", 2), ("/registry/pods/a/0", 3)]);
        assert!(target.watch(above - 1).await.is_err(), "an old watcher must list again");
    }
}
