//! ClusterRole aggregation: a role with an aggregation rule has the rules of all roles it selects.
//!
//! Upstream: `pkg/controller/clusterroleaggregation`.

use std::sync::Arc;

use api::key::Key;
use api::selector::LabelSelector;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::{meta, write};

const NAME: &str = "clusterrole-aggregation-controller";

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let roles = context.informers.of::<ClusterRole>();
    // Any role may be selected by any other: all that aggregate are looked at (a handful, and cheaply).
    let (all, enqueue) = (roles.clone(), queue.clone());
    roles.on_change(move |change| {
        for role in all.list().iter().filter(|role| role.aggregation_rule.is_some()) {
            enqueue.add_caused(meta::key(&**role), change.cause());
        }
    });
    roles.synced().await;
    let client = context.client.clone();
    context
        .run(NAME, queue, move |key| {
            let (client, roles) = (client.clone(), roles.clone());
            async move { sync(&client, &roles, &key).await }
        })
        .await
}

async fn sync(client: &kube::Client, roles: &Informer<ClusterRole>, key: &Key) -> anyhow::Result<Next> {
    let Some(role) = roles.get(key) else { return Ok(Next::Done) };
    let Some(rules) = plan(&role, &roles.list()) else { return Ok(Next::Done) };
    if role.rules.as_deref().unwrap_or_default() != rules {
        let updated = ClusterRole { rules: Some(rules), ..(*role).clone() };
        write::unless_gone(write::update(client, &updated).await)?;
    }
    Ok(Next::Done)
}

/// The rules the role is to have; none if it does not aggregate.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors.iter().filter_map(|selector| LabelSelector::from_k8s(Some(selector)).ok()) {
        // The informer lists by name, so the result is stable.
        let selected =
            all.iter().filter(|other| meta::name(&***other) != meta::name(role) && selector.matches_opt(other.metadata.labels.as_ref()));
        for rule in selected.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::meta::Labels;
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sLabelSelector;

    #[test]
    fn rules_are_joined_without_repeats() {
        let labels = Labels::from([("to-view".into(), "true".into())]);
        let part = |name: &str, verb: &str| {
            let mut role = ClusterRole::default();
            role.metadata.name = Some(name.into());
            role.metadata.labels = Some(labels.clone());
            role.rules = Some(vec![PolicyRule { verbs: vec![verb.into()], ..PolicyRule::default() }]);
            Arc::new(role)
        };
        let selector = K8sLabelSelector { match_labels: Some(labels.clone()), match_expressions: None };
        let mut view = (*part("view", "old")).clone();
        view.aggregation_rule = Some(AggregationRule { cluster_role_selectors: Some(vec![selector]) });
        let all = [part("a", "get"), part("b", "list"), part("c", "get"), Arc::new(view.clone())];
        let verbs: Vec<_> = plan(&view, &all).unwrap().into_iter().map(|rule| rule.verbs[0].clone()).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert_eq!(plan(&all[0], &all), None);
    }
}
