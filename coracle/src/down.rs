//! `coracle down`: ends a cluster and removes all of it, whatever state it is in. Nothing of it remains on the host.

use anyhow::{Context, Result};

use crate::cluster::{Cluster, ROOT, check_name};
use crate::{host, kubeconfig, machine, up};

pub fn down(name: &str) -> Result<()> {
    check_name(name)?;
    let _lock = up::lock(name)?;
    let Some(cluster) = Cluster::load(name)? else {
        println!("there is no cluster {name}");
        return Ok(());
    };
    let ends: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = cluster.machines.iter().map(|machine| scope.spawn(|| machine::destroy(&cluster, machine))).collect();
        threads.into_iter().map(|end| end.join().unwrap_or_else(|_| anyhow::bail!("the end of a machine panicked"))).collect()
    });
    for (machine, end) in cluster.machines.iter().zip(ends) {
        end.with_context(|| format!("end machine {}", machine.name))?;
    }
    let last = Cluster::names().iter().all(|other| other == name);
    host::remove(&cluster, last)?;
    kubeconfig::uninstall(&cluster)?;
    let dir = cluster.dir();
    // The record goes last but one: an interrupted `down` can be repeated.
    std::fs::remove_dir_all(dir.join("machines")).or_else(ignore_missing)?;
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    std::fs::remove_file(format!("{ROOT}/.{name}.lock")).or_else(ignore_missing)?;
    if last {
        // Fails, as it should, if something else was put there.
        let _kept = std::fs::remove_dir(ROOT);
    }
    println!("cluster {name} is gone");
    Ok(())
}

fn ignore_missing(e: std::io::Error) -> std::io::Result<()> {
    if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}
