//! VolumeRestrictions: a claim of access mode ReadWriteOncePod serves one pod; a raw disk serves one node's pod at a time.
//!
//! Upstream: plugins/volumerestrictions/volume_restrictions.go, v1.33.

use api::Key;
use api::k8s_openapi::api::core::v1::Volume;

use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject};
use crate::hints::ClusterEvent;

pub struct VolumeRestrictions;

#[derive(Clone)]
struct Restrictions<'c> {
    disks: Vec<&'c Volume>,
    namespace: &'c str,
    /// Claims that no other pod may use, and by how many it is used anywhere.
    exclusive: Vec<&'c str>,
    users: i64,
}

/// Whether two pods must not share this disk on a node. Disks that both only read may be shared.
fn clash(a: &Volume, b: &Volume) -> bool {
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk) {
        return a.pd_name == b.pd_name && !(a.read_only == Some(true) && b.read_only == Some(true));
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store) {
        return a.volume_id == b.volume_id;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi) {
        return a.iqn == b.iqn && !(a.read_only == Some(true) && b.read_only == Some(true));
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        let shared_monitor = a.monitors.iter().any(|m| b.monitors.contains(m));
        let both_read = a.read_only == Some(true) && b.read_only == Some(true);
        return shared_monitor && a.pool == b.pool && a.image == b.image && !both_read;
    }
    false
}

fn is_disk(volume: &&Volume) -> bool {
    volume.gce_persistent_disk.is_some() || volume.aws_elastic_block_store.is_some() || volume.iscsi.is_some() || volume.rbd.is_some()
}

impl<'c> Restrictions<'c> {
    fn new(context: Context<'c>) -> Self {
        let pod = context.pod;
        let exclusive = |name: &&String| {
            let claim = context.world.claim(&Key::new(pod.key.namespace.clone(), (*name).clone()));
            claim.is_some_and(|c| c.spec.as_ref().is_some_and(|s| s.access_modes.iter().flatten().any(|m| m == "ReadWriteOncePod")))
        };
        let exclusive: Vec<&str> = pod.claims.iter().filter(exclusive).map(String::as_str).collect();
        let disks = pod.spec().volumes.iter().flatten().filter(is_disk).collect();
        let mut restrictions = Restrictions { disks, namespace: &pod.key.namespace, exclusive, users: 0 };
        if !restrictions.exclusive.is_empty() {
            let running = context.cache.nodes().iter().flat_map(|node| &node.pods);
            restrictions.users = running.map(|entry| restrictions.uses(&entry.info)).sum();
        }
        restrictions
    }

    fn uses(&self, pod: &PodInfo) -> i64 {
        i64::from(pod.key.namespace == self.namespace && pod.claims.iter().any(|c| self.exclusive.contains(&c.as_str())))
    }
}

impl<'c> Filter<'c> for Restrictions<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let running = || node.pods.iter().flat_map(|e| e.info.spec().volumes.iter().flatten());
        if self.disks.iter().any(|disk| running().any(|other| clash(disk, other))) {
            return Err(Reject::unschedulable("node(s) had no available disk"));
        }
        if self.users > 0 {
            let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return Err(Reject::unschedulable(reason));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, _node: &NodeInfo) {
        self.users += self.uses(pod);
    }

    fn remove_pod(&mut self, pod: &PodInfo, _node: &NodeInfo) {
        self.users -= self.uses(pod);
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        let restrictions = Restrictions::new(context);
        let nothing = restrictions.disks.is_empty() && restrictions.exclusive.is_empty();
        Ok(if nothing { PreFilter::skip() } else { PreFilter::filter(restrictions) })
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::PodRemoved(_) | ClusterEvent::NodeAdded(_) | ClusterEvent::Storage)
    }
}
