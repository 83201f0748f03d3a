//! The table of plugins: one row each, in the order in which they filter.
//!
//! A new plugin is one file here and one row. Weights are upstream's defaults.
//! Upstream: pkg/scheduler/apis/config/v1/default_plugins.go, v1.33.

use crate::framework::Plugin;

mod balanced;
mod binder;
mod fit;
mod gates;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_unschedulable;
mod preemption;
mod taints;
mod topology_spread;
mod volume_binding;
mod volume_limits;
mod volume_restrictions;
mod volume_zone;

pub use taints::untolerated;

pub struct Row {
    pub plugin: &'static dyn Plugin,
    /// Multiplies the plugin's score; 0 for plugins that do not score.
    pub weight: i64,
}

const fn row(plugin: &'static dyn Plugin, weight: i64) -> Row {
    Row { plugin, weight }
}

/// The one plugin with a memory: volumes that are promised.
static VOLUME_BINDING: volume_binding::VolumeBinding = volume_binding::VolumeBinding::new();

pub static PLUGINS: &[Row] = &[
    row(&gates::SchedulingGates, 0),
    row(&node_unschedulable::NodeUnschedulable, 0),
    row(&node_name::NodeName, 0),
    row(&taints::TaintToleration, 3),
    row(&node_affinity::NodeAffinity, 2),
    row(&node_ports::NodePorts, 0),
    row(&fit::NodeResourcesFit, 1),
    row(&volume_restrictions::VolumeRestrictions, 0),
    row(&volume_limits::NodeVolumeLimits, 0),
    row(&VOLUME_BINDING, 0),
    row(&volume_zone::VolumeZone, 0),
    row(&topology_spread::PodTopologySpread, 2),
    row(&inter_pod_affinity::InterPodAffinity, 2),
    row(&preemption::DefaultPreemption, 0),
    row(&balanced::NodeResourcesBalancedAllocation, 1),
    row(&image_locality::ImageLocality, 1),
    row(&binder::DefaultBinder, 0),
];
