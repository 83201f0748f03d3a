//! Who a StatefulSet's pod is: its name, its place in the order, its claims.
//!
//! Upstream: `pkg/controller/statefulset/stateful_set_utils.go`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::shared::meta;
use crate::shared::pod_control::from_template;
use crate::shared::revisions::HASH_LABEL;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", meta::name(set))
}

/// The pod's place in the order, if its name is one of this set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let ordinal = meta::name(pod).strip_prefix(meta::name(set))?.strip_prefix('-')?;
    ordinal.parse().ok().filter(|number: &i32| number.to_string() == ordinal)
}

/// A revision's name stands in full in the pods' label.
pub fn revision_of(pod: &Pod) -> &str {
    meta::label(pod, HASH_LABEL).unwrap_or_default()
}

/// The template that a revision keeps.
pub fn template(revision: &ControllerRevision) -> serde_json::Result<PodTemplateSpec> {
    let mut data = revision.data.as_ref().map(|data| data.0["spec"]["template"].clone()).unwrap_or_default();
    if let Some(fields) = data.as_object_mut() {
        fields.remove("$patch");
    }
    serde_json::from_value(data)
}

pub fn pod(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32, revision: &ControllerRevision) -> serde_json::Result<Pod> {
    let name = pod_name(set, ordinal);
    let mut pod = from_template(set, &template(revision)?);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(HASH_LABEL.to_owned(), meta::name(revision).to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec.service_name.clone().filter(|name| !name.is_empty());
    let volumes = pod_spec.volumes.get_or_insert_default();
    for claim in spec.volume_claim_templates.iter().flatten() {
        let claim_name = claim_name(set, claim, ordinal);
        volumes.retain(|volume| volume.name != meta::name(claim));
        volumes.push(Volume {
            name: meta::name(claim).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Volume::default()
        });
    }
    Ok(pod)
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", meta::name(template), meta::name(set))
}

/// The claims of one pod. With the retention policy `whenDeleted: Delete` they go with the set.
pub fn claims(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let policy = spec.persistent_volume_claim_retention_policy.as_ref();
    let dies_with_set = policy.and_then(|policy| policy.when_deleted.as_deref()) == Some("Delete");
    let owner = OwnerReference { controller: None, block_owner_deletion: None, ..meta::controller_ref(set) };
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.status = None;
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.metadata.owner_references = dies_with_set.then(|| vec![owner.clone()]);
        claim
    };
    spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// With `whenScaled: Delete` the claims of a pod that is scaled away go with it.
pub fn dies_when_scaled(spec: &StatefulSetSpec) -> bool {
    let policy = spec.persistent_volume_claim_retention_policy.as_ref();
    policy.and_then(|policy| policy.when_scaled.as_deref()) == Some("Delete")
}

/// The set's pods with their ordinals, in order.
pub fn in_order(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<(i32, Arc<Pod>)> {
    let mut all: Vec<(i32, Arc<Pod>)> = pods.iter().filter_map(|pod| Some((ordinal(set, pod)?, pod.clone()))).collect();
    all.sort_by_key(|(ordinal, _)| *ordinal);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::revisions;
    use k8s_openapi::apimachinery::pkg::runtime::RawExtension;

    #[test]
    fn pods_have_names_and_claims_of_their_own() {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("db".into());
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.name = Some("data".into());
        let mut spec = StatefulSetSpec { service_name: Some("db".into()), ..StatefulSetSpec::default() };
        spec.volume_claim_templates = Some(vec![claim]);
        let mut revision = ControllerRevision::default();
        revision.metadata.name = Some("db-abc".into());
        revision.data = Some(RawExtension(revisions::data(&PodTemplateSpec::default()).unwrap()));
        let made = pod(&set, &spec, 2, &revision).unwrap();
        assert_eq!((meta::name(&made), ordinal(&set, &made), revision_of(&made)), ("db-2", Some(2), "db-abc"));
        let source = made.spec.unwrap().volumes.unwrap()[0].persistent_volume_claim.clone().unwrap();
        assert_eq!(source.claim_name, "data-db-2");
        assert_eq!(meta::name(&claims(&set, &spec, 2)[0]), "data-db-2");
    }
}
