//! Housekeeping: log rotation, and images that nobody uses when the disk fills.
//!
//! Dead containers and sandboxes are pruned by each pod's plan, those of pods that are gone by `pods`.
//! Upstream: `pkg/kubelet/images/image_gc_manager.go`, `pkg/kubelet/logs/container_log_manager.go`, v1.33.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1::{ContainerState, Image};

use crate::kubelet::Kubelet;
use crate::logs;

const ROTATE_EVERY: Duration = Duration::from_secs(10);
const COLLECT_EVERY: Duration = Duration::from_secs(300);
/// Percent of the image file system: above the high mark images go until the low mark is reached.
const HIGH_MARK: u64 = 85;
const LOW_MARK: u64 = 80;
/// An image younger than this (as we first saw it) stays.
const MIN_AGE: Duration = Duration::from_secs(120);

pub async fn run(kubelet: Arc<Kubelet>) {
    let mut rotate = tokio::time::interval(ROTATE_EVERY);
    let mut collect = tokio::time::interval(COLLECT_EVERY);
    let mut seen: HashMap<String, Instant> = HashMap::new();
    loop {
        let result = tokio::select! {
            _ = rotate.tick() => rotate_logs(&kubelet).await,
            _ = collect.tick() => collect_images(&kubelet, &mut seen).await,
        };
        if let Err(error) = result {
            tracing::warn!(error = format!("{error:#}"), "housekeeping");
        }
    }
}

async fn rotate_logs(kubelet: &Kubelet) -> anyhow::Result<()> {
    let mut large = Vec::new();
    for pod in kubelet.pods.list() {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
        for status in statuses.filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some())) {
            let log = logs::path(&pod, &status.name, status.restart_count);
            if logs::rotate(&log).unwrap_or_else(|error| {
                tracing::debug!(%error, ?log, "not rotated");
                false
            }) {
                large.extend(status.container_id.as_ref().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned()));
            }
        }
    }
    for id in large {
        kubelet.cri.reopen_log(&id).await?;
    }
    Ok(())
}

async fn collect_images(kubelet: &Kubelet, seen: &mut HashMap<String, Instant>) -> anyhow::Result<()> {
    let images = kubelet.cri.list_images().await?;
    seen.retain(|id, _| images.iter().any(|i| i.id == *id));
    for image in &images {
        seen.entry(image.id.clone()).or_insert_with(Instant::now);
    }
    let Some((mount_point, _)) = kubelet.cri.image_fs().await? else { return Ok(()) };
    let Some((used, size)) = usage(&mount_point) else { return Ok(()) };
    if used * 100 < size * HIGH_MARK {
        return Ok(());
    }
    let goal = used.saturating_sub(size * LOW_MARK / 100);
    let needed = in_use(kubelet).await?;
    let mut freed = 0;
    for image in unused(images, &needed, &kubelet.config.pause_image, seen) {
        if freed >= goal {
            break;
        }
        kubelet.cri.remove_image(&image.id).await?;
        tracing::info!(image = image.id, bytes = image.size, "image removed");
        freed += image.size;
    }
    Ok(())
}

/// Oldest first.
fn unused(images: Vec<Image>, needed: &HashSet<String>, pause: &str, seen: &HashMap<String, Instant>) -> Vec<Image> {
    let names = |image: &Image| [image.id.clone()].into_iter().chain(image.repo_tags.clone()).chain(image.repo_digests.clone()).collect::<Vec<_>>();
    let old = |image: &Image| seen.get(&image.id).is_some_and(|since| since.elapsed() >= MIN_AGE);
    let mut unused: Vec<Image> = images
        .into_iter()
        .filter(|image| !image.pinned && old(image) && !names(image).iter().any(|name| needed.contains(name) || name == pause))
        .collect();
    unused.sort_by_key(|image| seen.get(&image.id).copied());
    unused
}

async fn in_use(kubelet: &Kubelet) -> Result<HashSet<String>, crate::cri::Error> {
    let containers = kubelet.cri.list_containers(HashMap::new()).await?;
    let alive = |state: i32| state != ContainerState::ContainerExited as i32;
    let ids = containers.into_iter().filter(|c| alive(c.state)).flat_map(|c| [c.image_ref, c.image.map(|i| i.image).unwrap_or_default()]);
    Ok(ids.collect())
}

fn usage(path: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let size = stat.blocks() * stat.fragment_size();
    Some((size.saturating_sub(stat.blocks_available() * stat.fragment_size()), size))
}

