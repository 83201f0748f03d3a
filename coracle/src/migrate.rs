//! `coracle migrate`: moves a cluster's state to another store.
//!
//! ```text
//! etcd runs ── API server stops ── kube-apiserver copy-store ── cluster.json names the new store ── API server starts ── old store removed
//!                                                             ▲ until here the old store is the cluster's, after it the new one
//! ```
//! Interrupted anywhere, nothing is lost: the record names one whole store, and [`settle`] (which `migrate` and `up` begin with) starts
//! the API server on it. Only `kube-apiserver` knows how a store looks; this file knows when it may be copied.

use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, ETCD_PORT, Store};
use crate::machine::control::{self, Request};
use crate::machine::{self, files, processes};
use crate::up::{self, Progress};
use crate::{doctor, pki, tls};

const API_SERVER: &str = "kube-apiserver";

pub async fn migrate(name: &str, to: Store) -> Result<()> {
    let progress = Progress(Instant::now());
    let _lock = up::lock(name)?;
    let mut cluster = Cluster::existing(name)?;
    settle(&mut cluster)?;
    let from = cluster.options.store;
    if from == to {
        println!("cluster {name} keeps its state in {to} already");
        return Ok(());
    }
    if to == Store::Etcd {
        doctor::require_etcd()?;
    }
    if let Err(e) = prepare_and_copy(&mut cluster, to, &progress).await {
        settle(&mut cluster)?;
        return Err(e.context(format!("the state stays in {from}")));
    }
    cluster.options.store = to;
    cluster.options.moving_to = None;
    cluster.save()?;
    machine::configure(&cluster, cluster.master())?;
    tell(&cluster, Request::Start)?;
    up::await_ready(&cluster, &progress).await?;
    remove(&cluster, from).with_context(|| format!("remove what {from} held"))?;
    progress.say(&format!("cluster {name} keeps its state in {to}"));
    Ok(())
}

/// Undoes a move that was interrupted: the API server runs on the store the record names.
pub fn settle(cluster: &mut Cluster) -> Result<()> {
    if cluster.options.moving_to.take().is_none() {
        return Ok(());
    }
    if machine::is_running(cluster, cluster.master()) {
        machine::configure(cluster, cluster.master())?;
        tell(cluster, Request::Start)?;
    }
    cluster.save()
}

async fn prepare_and_copy(cluster: &mut Cluster, to: Store, progress: &Progress) -> Result<()> {
    cluster.options.moving_to = Some(to);
    cluster.save()?;
    pki::ensure(cluster)?;
    files::write(cluster, cluster.master())?;
    machine::configure(cluster, cluster.master())?;
    await_etcd(cluster).await?;
    tell(cluster, Request::Stop)?;
    progress.say("API server stopped");
    progress.say(copy(cluster, to)?.trim());
    Ok(())
}

async fn await_etcd(cluster: &Cluster) -> Result<()> {
    let (config, address) = (tls::etcd(cluster)?, cluster.address(cluster.master()));
    up::wait_for(Duration::from_secs(30), || async {
        match tls::get(Some(config.clone()), address, ETCD_PORT, "/health").await? {
            (200, _) => Ok(()),
            (code, text) => bail!("/health: {code} {text}"),
        }
    })
    .await
    .with_context(|| format!("etcd is not healthy; see `coracle logs etcd --name {}`", cluster.name))
}

fn copy(cluster: &Cluster, to: Store) -> Result<String> {
    let program = up::programs()?.join(API_SERVER).to_string_lossy().into_owned();
    let target = if to == Store::Etcd { "etcd" } else { "embedded" };
    let mut command = vec![program, "copy-store".into(), "--to".into(), target.into()];
    command.extend(processes::store_flags(true));
    machine::run(cluster, cluster.master(), &command)
}

fn tell(cluster: &Cluster, request: impl Fn(String) -> Request) -> Result<()> {
    control::ask(&cluster.socket(cluster.master()), &request(API_SERVER.into())).map(drop)
}

/// Nobody may take the old state for the present one later.
fn remove(cluster: &Cluster, store: Store) -> Result<()> {
    let lib = cluster.machine_dir(cluster.master()).join("lib");
    let removed = match store {
        Store::Etcd => fs::remove_dir_all(lib.join("etcd")),
        Store::Embedded => fs::remove_file(lib.join("kube-apiserver/state.redb")),
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
