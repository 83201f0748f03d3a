//! SchedulingGates: a pod with gates is not even queued. Upstream: plugins/schedulinggates/scheduling_gates.go, v1.33.

use crate::cache::PodInfo;
use crate::framework::{Plugin, Reject};

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Reject> {
        let gates: Vec<&str> = pod.spec().scheduling_gates.iter().flatten().map(|g| g.name.as_str()).collect();
        match gates.is_empty() {
            true => Ok(()),
            false => Err(Reject::unresolvable(format!("waiting for scheduling gates: [{}]", gates.join(" ")))),
        }
    }
}
