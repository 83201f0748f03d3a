//! The scheduler without the network: informer changes in, decisions out.
//!
//! Invariants: one task calls it, so a cycle sees a cache that nobody changes; an event is applied to the cache before
//! it wakes pods; a pod that is assumed is in no queue. Time is an argument.
//! Upstream: pkg/scheduler/{scheduler,eventhandlers,schedule_one}.go, v1.33.

use std::sync::Arc;
use std::time::Instant;

use api::k8s_openapi::api::core::v1::{Node, Pod};

use crate::cache::{Cache, PodInfo};
use crate::cycle::{Cycles, Unfit};
use crate::framework::{Context, PluginSet};
use crate::hints::{self, ClusterEvent};
use crate::metrics::Pending;
use crate::plugins::PLUGINS;
use crate::queue::{Queue, QueuedPod};
use crate::world::World;

/// What a cycle decided; carried out by [`crate::effects`].
pub enum Decision {
    /// The pod is assumed on the node: bind it, or give it back with [`Core::bind_failed`].
    Bind { pod: QueuedPod, node: String },
    /// The pod waits again; say so, and evict the victims of its nomination.
    Unschedulable { pod: Arc<PodInfo>, unfit: Box<Unfit> },
}

pub struct Core {
    scheduler_name: String,
    cache: Cache,
    queue: Queue,
    cycles: Cycles,
    world: Arc<dyn World>,
}

impl Core {
    pub fn new(scheduler_name: &str, world: Arc<dyn World>, seed: u64) -> Self {
        Core {
            scheduler_name: scheduler_name.to_owned(),
            cache: Cache::default(),
            queue: Queue::default(),
            cycles: Cycles::new(seed),
            world,
        }
    }

    pub fn pending(&self) -> Pending {
        self.queue.pending()
    }

    /// When [`next`](Self::next) may have work although no event came.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.queue.next_wakeup()
    }

    /// Runs cycles until one has a decision; `None` if no pod is ready.
    pub fn next(&mut self, now: Instant) -> Option<Decision> {
        loop {
            let mut pod = self.queue.pop(now)?;
            if pod.info.is_terminating() || self.cache.has_pod(&pod.info.uid) {
                continue;
            }
            let context = Context { pod: &pod.info, cache: &self.cache, world: &*self.world };
            match self.cycles.schedule(context).and_then(|node| reserve(context, &node).map(|()| node)) {
                Ok(node) => {
                    self.cache.nominate(&pod.info, None);
                    self.cache.assume(pod.info.clone(), &node);
                    return Some(Decision::Bind { pod, node });
                }
                Err(unfit) => {
                    let info = pod.info.clone();
                    pod.rejected_by = unfit.diagnosis.plugins;
                    let nomination = unfit.post_filter.as_ref().and_then(|p| p.nomination.as_ref());
                    let node = nomination.map(|n| n.node.as_str()).or(info.nominated_node());
                    self.cache.nominate(&info, node);
                    self.queue.unschedulable(pod, now);
                    return Some(Decision::Unschedulable { pod: info, unfit });
                }
            }
        }
    }

    /// The binding did not succeed. `latest`: the pod as it is now, if it still is and has no node.
    pub fn bind_failed(&mut self, mut pod: QueuedPod, node: &str, latest: Option<Arc<Pod>>, now: Instant) {
        PLUGINS.iter().for_each(|row| row.plugin.unreserve(&pod.info, node));
        if !self.cache.forget(&pod.info.uid) {
            return;
        }
        self.wake(&ClusterEvent::PodRemoved(pod.info.clone()), now);
        if let Some(latest) = latest.filter(|p| p.metadata.uid.as_deref() == Some(&pod.info.uid)) {
            pod.info = Arc::new(PodInfo::new(latest));
            self.queue.failed(pod, now);
        }
    }

    pub fn node_changed(&mut self, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>, now: Instant) {
        match (old, new) {
            (_, None) => {
                let name = old.and_then(|n| n.metadata.name.as_deref()).unwrap_or_default();
                self.cache.remove_node(name);
            }
            (None, Some(node)) => {
                self.cache.set_node(node.clone());
                self.wake(&ClusterEvent::NodeAdded(node.clone()), now);
            }
            (Some(old), Some(new)) => {
                self.cache.set_node(new.clone());
                if hints::node_update_matters(old, new) {
                    self.wake(&ClusterEvent::NodeUpdated { old: old.clone(), new: new.clone() }, now);
                }
            }
        }
    }

    pub fn pod_changed(&mut self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>, now: Instant) {
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.pod_gone(old, now);
        }
        let Some(new) = new else { return };
        let old = old.filter(|old| old.metadata.uid == new.metadata.uid);
        let info = Arc::new(PodInfo::new(new.clone()));
        if info.is_terminal() {
            self.pod_gone(new, now);
        } else if info.node_name().is_some() {
            self.assigned(info, now);
        } else {
            self.unassigned(old, info, now);
        }
    }

    fn pod_gone(&mut self, pod: &Arc<Pod>, now: Instant) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(queued) = self.queue.remove(uid) {
            self.cache.nominate(&queued.info, None);
        }
        if let Some(info) = self.cache.remove_pod(uid) {
            self.wake(&ClusterEvent::PodRemoved(info), now);
        }
    }

    fn assigned(&mut self, info: Arc<PodInfo>, now: Instant) {
        self.queue.remove(&info.uid);
        self.cache.nominate(&info, None);
        let known = !self.cache.is_assumed(&info.uid);
        let old = if known { self.cache.remove_pod(&info.uid) } else { None };
        self.cache.set_pod(info.clone());
        let event = match old {
            None => ClusterEvent::PodAssigned(info),
            Some(old) if pod_update_matters(&old, &info) => ClusterEvent::PodChanged { old, new: info },
            Some(_) => return,
        };
        self.wake(&event, now);
    }

    fn unassigned(&mut self, old: Option<&Arc<Pod>>, info: Arc<PodInfo>, now: Instant) {
        if info.spec().scheduler_name.as_deref().unwrap_or("default-scheduler") != self.scheduler_name {
            return;
        }
        if info.is_terminating() {
            self.queue.remove(&info.uid);
            return;
        }
        if self.cache.is_assumed(&info.uid) {
            return;
        }
        if info.nominated_node().is_some() {
            self.cache.nominate(&info, info.nominated_node());
        }
        // Our own status patches must not wake the pod.
        let relevant = old.is_none_or(|old| old.spec != info.pod.spec || old.metadata.labels != info.pod.metadata.labels);
        let gate = gate(&info);
        self.queue.update(info, gate, relevant, now);
    }

    /// Something besides nodes and pods changed.
    pub fn world_changed(&mut self, event: &ClusterEvent, now: Instant) {
        self.wake(event, now);
    }

    fn wake(&mut self, event: &ClusterEvent, now: Instant) {
        let helps = |pod: &QueuedPod| {
            let mut rows = PLUGINS.iter().enumerate();
            rows.any(|(index, row)| pod.rejected_by.contains(index) && row.plugin.helps(&pod.info, event))
        };
        self.queue.wake(now, helps);
    }
}

fn reserve(context: Context<'_>, node: &str) -> Result<(), Box<Unfit>> {
    let Some(node) = context.cache.node(node) else { return Ok(()) };
    for (index, row) in PLUGINS.iter().enumerate() {
        if let Err(reject) = row.plugin.reserve(context, node) {
            PLUGINS[..index].iter().for_each(|row| row.plugin.unreserve(context.pod, &node.name));
            let mut diagnosis = crate::framework::Diagnosis { rejected: vec![(node.index, reject)], ..Default::default() };
            diagnosis.plugins.insert(index);
            let message = diagnosis.message(context.cache.nodes().len(), None);
            return Err(Box::new(Unfit { message, diagnosis, post_filter: None }));
        }
    }
    Ok(())
}

fn gate(pod: &PodInfo) -> Option<PluginSet> {
    let index = PLUGINS.iter().position(|row| row.plugin.pre_enqueue(pod).is_err())?;
    Some(PluginSet(1 << index))
}

fn pod_update_matters(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels() != new.labels() || old.requests != new.requests || old.is_terminating() != new.is_terminating()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{PodFixture, TestWorld, node, pod};
    use std::time::Duration;

    fn core() -> Core {
        Core::new("default-scheduler", Arc::new(TestWorld::default()), 1)
    }

    fn add(core: &mut Core, pod: PodFixture, now: Instant) -> Arc<Pod> {
        let pod = Arc::new(pod.0);
        core.pod_changed(None, Some(&pod), now);
        pod
    }

    fn outcome(core: &mut Core, now: Instant) -> Option<String> {
        core.next(now).map(|decision| match decision {
            Decision::Bind { pod, node } => format!("{} on {node}", pod.info.key.name),
            Decision::Unschedulable { pod, unfit } => format!("{}: {}", pod.key.name, unfit.message),
        })
    }

    #[test]
    fn assumed_pods_take_their_room_at_once() {
        let (mut core, now) = (core(), Instant::now());
        core.node_changed(None, Some(&node("n1").cpu("1").build()), now);
        add(&mut core, pod("a").cpu("600m"), now);
        add(&mut core, pod("b").cpu("600m"), now);
        assert_eq!(outcome(&mut core, now).as_deref(), Some("a on n1"));
        assert_eq!(
            outcome(&mut core, now).as_deref(),
            Some(
                "b: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
            )
        );
        assert!(outcome(&mut core, now).is_none());
    }

    #[test]
    fn the_right_event_wakes_a_pod() {
        let (mut core, now) = (core(), Instant::now());
        let small = node("n1").cpu("1").build();
        core.node_changed(None, Some(&small), now);
        add(&mut core, pod("web").cpu("2"), now);
        assert!(outcome(&mut core, now).is_some());
        let labelled = node("n1").cpu("1").label("a", "b").build();
        core.node_changed(Some(&small), Some(&labelled), now);
        let later = now + Duration::from_secs(2);
        assert!(outcome(&mut core, later).is_none(), "a label does not help against too little CPU");
        core.node_changed(Some(&labelled), Some(&node("n1").cpu("4").build()), later);
        assert_eq!(outcome(&mut core, later).as_deref(), Some("web on n1"));
    }

    #[test]
    fn a_failed_binding_gives_the_room_back_and_retries() {
        let (mut core, now) = (core(), Instant::now());
        core.node_changed(None, Some(&node("n1").cpu("1").build()), now);
        let web = add(&mut core, pod("web").cpu("1"), now);
        let Some(Decision::Bind { pod, node }) = core.next(now) else { panic!("no binding") };
        core.bind_failed(pod, &node, Some(web), now);
        assert!(outcome(&mut core, now).is_none());
        assert_eq!(outcome(&mut core, now + Duration::from_secs(1)).as_deref(), Some("web on n1"));
    }

    #[test]
    fn pods_of_others_and_gated_pods_are_left_alone() {
        let (mut core, now) = (core(), Instant::now());
        core.node_changed(None, Some(&node("n1").build()), now);
        add(&mut core, pod("other").spec(|s| s.scheduler_name = Some("mine".into())), now);
        let gates = serde_json::from_value(serde_json::json!([{"name": "example.com/g"}])).unwrap();
        let gated = add(&mut core, pod("gated").spec(|s| s.scheduling_gates = Some(gates)), now);
        assert!(outcome(&mut core, now).is_none());
        core.pod_changed(Some(&gated), Some(&Arc::new(pod("gated").0)), now);
        assert_eq!(outcome(&mut core, now).as_deref(), Some("gated on n1"));
    }

    #[test]
    fn a_deleted_pod_frees_its_node() {
        let (mut core, now) = (core(), Instant::now());
        core.node_changed(None, Some(&node("n1").cpu("1").build()), now);
        let old = add(&mut core, pod("old").cpu("1").on("n1").priority(5), now);
        add(&mut core, pod("web").cpu("1"), now);
        assert!(outcome(&mut core, now).unwrap().contains("Insufficient cpu"));
        core.pod_changed(Some(&old), None, now);
        assert_eq!(outcome(&mut core, now + Duration::from_secs(1)).as_deref(), Some("web on n1"));
    }

    /// A thousand nodes, spread by a Service as real workloads are. Prints the time per pod.
    #[test]
    fn a_large_cluster_is_filled_evenly() {
        let service = serde_json::json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"selector": {"app": "web"}}});
        let world = TestWorld { services: vec![Arc::new(serde_json::from_value(service).unwrap())], ..TestWorld::default() };
        let (mut core, now) = (Core::new("default-scheduler", Arc::new(world), 1), Instant::now());
        for index in 0..1000 {
            let zone = ["a", "b", "c"][index % 3];
            core.node_changed(None, Some(&node(&format!("n{index}")).zone(zone).build()), now);
        }
        for index in 0..2000 {
            add(&mut core, pod(&format!("web-{index}")).cpu("100m").label("app", "web"), now);
        }
        let mut per_node = std::collections::HashMap::new();
        while let Some(Decision::Bind { node, .. }) = core.next(now) {
            *per_node.entry(node).or_insert(0) += 1;
        }
        assert_eq!(per_node.values().sum::<i32>(), 2000);
        assert!(per_node.values().all(|count| *count <= 4), "spread evenly");
    }
}
