//! Housekeeping: log rotation, and images that nobody uses when the disk fills.
//!
//! Dead containers and sandboxes are pruned by each pod's plan, those of pods that are gone by `pods`.
//! Upstream: `pkg/kubelet/images/image_gc_manager.go`, `pkg/kubelet/logs/container_log_manager.go`, v1.33.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1::{ContainerState, Image};
use k8s_openapi::api::core::v1::ObjectReference;

use crate::kubelet::Kubelet;
use crate::logs;

const ROTATE_EVERY: Duration = Duration::from_secs(10);
const COLLECT_EVERY: Duration = Duration::from_secs(300);

/// When images go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Percent of the image file system at which unused images begin to go.
    pub high: u64,
    /// Percent down to which they go.
    pub low: u64,
    /// An image younger than this (as we first saw it) stays.
    pub min_age: Duration,
}

/// What we know of an image that the runtime does not.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Instant,
    last_used: Option<Instant>,
}

pub async fn run(kubelet: Arc<Kubelet>) {
    let mut rotate = tokio::time::interval(ROTATE_EVERY);
    let mut collect = tokio::time::interval(COLLECT_EVERY);
    let mut seen: HashMap<String, Seen> = HashMap::new();
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

async fn collect_images(kubelet: &Kubelet, seen: &mut HashMap<String, Seen>) -> anyhow::Result<()> {
    let (images, needed, now) = (kubelet.cri.list_images().await?, in_use(kubelet).await?, Instant::now());
    note(seen, &images, &needed, &kubelet.config.pause_image, now);
    let Some((mount_point, _)) = kubelet.cri.image_fs().await? else { return Ok(()) };
    let Some((available, size)) = space(&mount_point) else { return Ok(()) };
    let Some(goal) = to_free(available, size, &kubelet.config.image_limits) else { return Ok(()) };
    let mut freed = 0;
    for image in unused(images, seen, kubelet.config.image_limits.min_age, now) {
        if freed >= goal {
            break;
        }
        kubelet.cri.remove_image(&image.id).await?;
        tracing::info!(image = image.id, bytes = image.size, "image removed");
        freed += image.size;
    }
    if freed < goal {
        let name = kubelet.config.node_name.clone();
        let node = ObjectReference { kind: Some("Node".into()), uid: Some(name.clone()), name: Some(name), ..ObjectReference::default() };
        let text = format!(
            "Failed to garbage collect required amount of images. Attempted to free {goal} bytes, but only found {freed} bytes eligible to free."
        );
        kubelet.recorder.warning(&node, "FreeDiskSpaceFailed", text);
    }
    Ok(())
}

/// Bytes to free, if the file system is fuller than it may be.
fn to_free(available: u64, size: u64, limits: &Limits) -> Option<u64> {
    let full = size > 0 && 100 - available * 100 / size >= limits.high;
    full.then(|| (size * (100 - limits.low) / 100).saturating_sub(available))
}

fn note(seen: &mut HashMap<String, Seen>, images: &[Image], needed: &HashSet<String>, pause: &str, now: Instant) {
    seen.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in images {
        let entry = seen.entry(image.id.clone()).or_insert(Seen { first: now, last_used: None });
        let mut names = [&image.id].into_iter().chain(&image.repo_tags).chain(&image.repo_digests);
        if image.pinned || names.any(|name| needed.contains(name) || name == pause) {
            entry.last_used = Some(now);
        }
    }
}

/// What may go, in the order of going: longest unused first, then longest here.
fn unused(images: Vec<Image>, seen: &HashMap<String, Seen>, min_age: Duration, now: Instant) -> Vec<Image> {
    let free =
        |image: &Image| seen.get(&image.id).is_some_and(|seen| seen.last_used != Some(now) && now.duration_since(seen.first) >= min_age);
    let mut unused: Vec<Image> = images.into_iter().filter(free).collect();
    unused.sort_by_key(|image| seen.get(&image.id).map(|seen| (seen.last_used, seen.first)));
    unused
}

async fn in_use(kubelet: &Kubelet) -> Result<HashSet<String>, crate::cri::Error> {
    let containers = kubelet.cri.list_containers(HashMap::new()).await?;
    let alive = |state: i32| state != ContainerState::ContainerExited as i32;
    let ids = containers.into_iter().filter(|c| alive(c.state)).flat_map(|c| [c.image_ref, c.image.map(|i| i.image).unwrap_or_default()]);
    Ok(ids.collect())
}

/// Available and all bytes of the file system.
fn space(path: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some((stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { high: 85, low: 80, min_age: Duration::from_secs(120) };

    #[test]
    fn from_the_high_mark_down_to_the_low() {
        for (available, goal) in [(16, None), (15, Some(5)), (0, Some(20))] {
            assert_eq!(to_free(available, 100, &LIMITS), goal, "{available}");
        }
        assert_eq!(to_free(0, 0, &LIMITS), None);
    }

    #[test]
    fn unused_images_go_oldest_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let images = |names: &[&str]| -> Vec<Image> {
            names.iter().map(|name| Image { id: (*name).into(), repo_tags: vec![format!("{name}:1")], ..Image::default() }).collect()
        };
        let needed = |names: &[&str]| -> HashSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let mut seen = HashMap::new();
        note(&mut seen, &images(&["late", "never", "pause", "running"]), &needed(&["late"]), "pause:1", at(0));
        note(&mut seen, &images(&["early", "late", "never", "pause", "running"]), &needed(&["early", "running:1"]), "pause:1", at(10));
        let all = images(&["early", "late", "never", "pause", "running", "young"]);
        note(&mut seen, &all, &needed(&["running"]), "pause:1", at(200));
        let order: Vec<String> = unused(all, &seen, LIMITS.min_age, at(200)).into_iter().map(|image| image.id).collect();
        assert_eq!(order, ["never", "late", "early"]);
    }
}
