//! TaintToleration: NoSchedule and NoExecute taints keep pods away, PreferNoSchedule ones make a node less liked.
//!
//! Upstream: plugins/tainttoleration/taint_toleration.go, v1.33.

use api::k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::cache::{NodeInfo, PodInfo};
use crate::framework::{Context, Filter, Plugin, PreFilter, Reject, Score, normalize_by_highest};
use crate::hints::{self, ClusterEvent};

pub struct TaintToleration;

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let unset = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let effect = unset(&toleration.effect) || toleration.effect.as_deref() == Some(taint.effect.as_str());
    let key = unset(&toleration.key) || toleration.key.as_deref() == Some(taint.key.as_str());
    let value = match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    };
    effect && key && value
}

/// The first taint with one of the effects that no toleration covers.
pub fn untolerated<'t>(taints: &'t [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'t Taint> {
    let matters = |taint: &&Taint| effects.contains(&taint.effect.as_str());
    taints.iter().filter(matters).find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

const HARD: &[&str] = &["NoSchedule", "NoExecute"];

#[derive(Clone)]
struct Tolerations<'c>(&'c [Toleration]);

impl<'c> Tolerations<'c> {
    fn of(pod: &'c PodInfo) -> Self {
        Tolerations(pod.spec().tolerations.as_deref().unwrap_or_default())
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn pre_filter<'c>(&self, context: Context<'c>) -> Result<PreFilter<'c>, Reject> {
        Ok(PreFilter::filter(Tolerations::of(context.pod)))
    }

    fn pre_score<'c>(&self, context: Context<'c>, nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        let soft = nodes.iter().any(|node| node.taints().iter().any(|taint| taint.effect == "PreferNoSchedule"));
        soft.then(|| Box::new(Tolerations::of(context.pod)) as Box<dyn Score<'c> + 'c>)
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let changed = match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => hints::taints_changed(old, new),
            _ => false,
        };
        let taints = event.node().and_then(|n| n.spec.as_ref()?.taints.as_deref()).unwrap_or_default();
        changed && untolerated(taints, Tolerations::of(pod).0, HARD).is_none()
    }
}

impl<'c> Filter<'c> for Tolerations<'c> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let Some(taint) = untolerated(node.taints(), self.0, HARD) else { return Ok(()) };
        let value = taint.value.as_deref().unwrap_or_default();
        Err(Reject::unresolvable(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)))
    }

    fn fork(&self) -> Box<dyn Filter<'c> + 'c> {
        Box::new(self.clone())
    }
}

impl<'c> Score<'c> for Tolerations<'c> {
    /// Untolerated soft taints: the fewer the better.
    fn score(&self, node: &NodeInfo) -> i64 {
        let soft = node.taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let untolerated = soft.filter(|taint| !self.0.iter().any(|t| tolerates(t, taint)));
        i64::try_from(untolerated.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize_by_highest(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_and_taints() {
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        let taint = Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), time_added: None };
        let cases = [
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Equal", "w", "NoSchedule"), false),
            (toleration("k", "Exists", "", "NoSchedule"), true),
            (toleration("k", "Exists", "", "NoExecute"), false),
            (toleration("", "Exists", "", ""), true),
            (toleration("other", "Exists", "", ""), false),
        ];
        for (toleration, expected) in cases {
            let verdict = untolerated(std::slice::from_ref(&taint), std::slice::from_ref(&toleration), HARD);
            assert_eq!(verdict.is_none(), expected, "{toleration:?}");
        }
        assert!(untolerated(&[Taint { effect: "PreferNoSchedule".into(), ..taint }], &[], HARD).is_none());
    }
}
