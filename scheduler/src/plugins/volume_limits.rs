//! NodeVolumeLimits: a CSI driver attaches only so many volumes to a node. Upstream: plugins/nodevolumelimits/csi.go, v1.33.

use std::collections::{HashMap, HashSet};

use api::Key;

use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject};
use crate::hints::ClusterEvent;
use crate::world::World;

pub struct NodeVolumeLimits;

/// Driver and the volume's own name there.
type Handle = (String, String);

#[derive(Clone)]
struct Limits<'c> {
    world: &'c dyn World,
    wanted: HashSet<Handle>,
}

/// The CSI volumes behind a pod's claims. A claim that is not bound yet counts under its own name.
fn handles(world: &dyn World, pod: &PodInfo) -> HashSet<Handle> {
    let handle = |name: &String| {
        let key = Key::new(pod.key.namespace.clone(), name.clone());
        let claim = world.claim(&key)?;
        let spec = claim.spec.as_ref()?;
        match spec.volume_name.as_deref().filter(|v| !v.is_empty()) {
            Some(volume) => {
                let csi = world.volume(volume)?.spec.as_ref()?.csi.clone()?;
                Some((csi.driver, csi.volume_handle))
            }
            None => Some((world.storage_class(spec.storage_class_name.as_deref()?)?.provisioner.clone(), key.to_string())),
        }
    };
    pod.claims.iter().filter_map(handle).collect()
}

impl<'c> Filter<'c> for Limits<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let Some(csi_node) = self.world.csi_node(&node.name) else { return Ok(()) };
        let drivers = csi_node.spec.drivers.iter();
        let limits: HashMap<&str, usize> =
            drivers.filter_map(|d| Some((d.name.as_str(), usize::try_from(d.allocatable.as_ref()?.count?).ok()?))).collect();
        if limits.is_empty() {
            return Ok(());
        }
        let with_claims = node.pods.iter().filter(|e| !e.info.claims.is_empty());
        let mut attached: HashSet<Handle> = with_claims.flat_map(|e| handles(self.world, &e.info)).collect();
        attached.extend(self.wanted.iter().cloned());
        let exceeds = |(driver, limit): (&&str, &usize)| {
            let wanted = self.wanted.iter().any(|(d, _)| d == driver);
            wanted && attached.iter().filter(|(d, _)| d == driver).count() > *limit
        };
        match limits.iter().any(exceeds) {
            true => Err(Reject::unschedulable("node(s) exceed max volume count")),
            false => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        let wanted = handles(context.world, context.pod);
        Ok(if wanted.is_empty() { PreFilter::skip() } else { PreFilter::filter(Limits { world: context.world, wanted }) })
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::PodRemoved(_) | ClusterEvent::NodeAdded(_) | ClusterEvent::Storage)
    }
}
