//! VolumeZone: a volume with a zone label is usable in that zone only. Upstream: plugins/volumezone/volume_zone.go, v1.33.

use api::Key;

use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject};
use crate::hints::{self, ClusterEvent};

pub struct VolumeZone;

const TOPOLOGY_LABELS: &[&str] = &[
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// (label key, values allowed)
#[derive(Clone)]
struct Zones(Vec<(&'static str, Vec<String>)>);

/// The same fact under its old name.
fn legacy(key: &str) -> Option<&'static str> {
    match key {
        "topology.kubernetes.io/zone" => Some("failure-domain.beta.kubernetes.io/zone"),
        "topology.kubernetes.io/region" => Some("failure-domain.beta.kubernetes.io/region"),
        "failure-domain.beta.kubernetes.io/zone" => Some("topology.kubernetes.io/zone"),
        "failure-domain.beta.kubernetes.io/region" => Some("topology.kubernetes.io/region"),
        _ => None,
    }
}

impl<'c> Filter<'c> for Zones {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        // A node that knows no zones is in a cluster of one.
        if TOPOLOGY_LABELS.iter().all(|key| node.label(key).is_none()) {
            return Ok(());
        }
        let fits = |(key, values): &(&'static str, Vec<String>)| {
            let value = node.label(key).or_else(|| node.label(legacy(key)?));
            value.is_some_and(|value| values.iter().any(|v| v == value))
        };
        match self.0.iter().all(fits) {
            true => Ok(()),
            false => Err(Reject::unresolvable("node(s) had no available volume zone")),
        }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        let mut zones = Vec::new();
        for name in &context.pod.claims {
            let claim = context.world.claim(&Key::new(context.pod.key.namespace.clone(), name.clone()));
            let Some(volume) = claim.and_then(|c| c.spec.as_ref()?.volume_name.clone()).and_then(|v| context.world.volume(&v)) else {
                continue;
            };
            let labels = volume.metadata.labels.clone().unwrap_or_default();
            // One volume may span zones, written a__b.
            let values = |key: &&'static str| Some((*key, labels.get(*key)?.split("__").map(str::to_owned).collect()));
            zones.extend(TOPOLOGY_LABELS.iter().filter_map(values));
        }
        Ok(if zones.is_empty() { PreFilter::skip() } else { PreFilter::filter(Zones(zones)) })
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) | ClusterEvent::Storage => true,
            ClusterEvent::NodeUpdated { old, new } => hints::labels_changed(old, new),
            _ => false,
        }
    }
}
