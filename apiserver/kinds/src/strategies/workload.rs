//! Controllers of pods: what they must say, and what of it may change.
//!
//! Upstream: `pkg/apis/apps/validation/validation.go`, `pkg/registry/apps/*/strategy.go` (v1.33).

use std::collections::BTreeMap;

use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::apps::v1 as apps;
use api::k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController as Rc};
use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::meta::validate_object_meta_update;
use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{
    immutable, int_or_percent_value, is_empty_selector, json as to_json, label_selector, non_negative, non_negative_opt,
    not_over_100_percent, parsed_selector, positive_int_or_percent, with,
};
use crate::validation::pod;
use crate::value::{child, int, set};
use crate::{Kind, Strategy};

const MISMATCH: &str = "`selector` does not match template `labels`";

/// Which selectors a kind refuses, and in which words. `spec.selector` itself, as it came.
struct SelectorRules<'a> {
    raw: &'a Value,
    /// The kind demands a selector.
    required: bool,
    empty: &'a str,
    /// What to say of one that can't be worked with; `None`: nothing.
    invalid: Option<&'a str>,
}

/// The selector, and that it selects the template's pods.
fn selected(path: &Path, selector: &LabelSelector, template: &PodTemplateSpec, rules: &SelectorRules) -> ErrorList {
    let selector_path = path.child("selector");
    let given = Some(selector).filter(|_| !rules.raw.is_null());
    let mut errors = Vec::new();
    if given.is_none() && rules.required {
        errors.push(Error::required(&selector_path, ""));
    }
    errors.extend(label_selector(&selector_path, given));
    if given.is_some() && is_empty_selector(given) {
        errors.push(Error::invalid(&selector_path, to_json(&selector), rules.empty));
    }
    let template_labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    match (parsed_selector(given), rules.invalid) {
        (Some(parsed), _) if !parsed.matches(template_labels.as_ref().unwrap_or(&BTreeMap::new())) => {
            let labels_path = path.child("template").child("metadata").child("labels");
            errors.push(Error::invalid(&labels_path, to_json(&template_labels), MISMATCH));
        }
        (None, Some(words)) => errors.push(Error::invalid(&selector_path, to_json(&selector), words)),
        _ => {}
    }
    errors
}

/// A template whose pods are to run forever. One that could not be told to belong to the kind is not looked into.
fn long_running(path: &Path, template: &PodTemplateSpec, kind: &str) -> ErrorList {
    let mut errors = pod::template(path, template);
    errors.extend(runs_always(path, template, kind));
    errors
}

fn runs_always(path: &Path, template: &PodTemplateSpec, kind: &str) -> ErrorList {
    let Some(spec) = &template.spec else { return Vec::new() };
    let path = path.child("spec");
    let mut errors = Vec::new();
    if let Some(policy) = spec.restart_policy.as_deref().filter(|policy| *policy != "Always") {
        errors.push(Error::not_supported(&path.child("restartPolicy"), policy, &["Always"]));
    }
    if spec.active_deadline_seconds.is_some() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(Error::forbidden(&path.child("activeDeadlineSeconds"), detail));
    }
    errors
}

/// A Deployment's or ReplicaSet's.
fn replicated(path: &Path, object: &Value, selector: &LabelSelector, template: &PodTemplateSpec) -> ErrorList {
    let rules = SelectorRules {
        raw: &object["spec"]["selector"],
        required: true,
        empty: "empty selector is invalid for deployment",
        invalid: Some("invalid label selector"),
    };
    let mut errors = selected(path, selector, template, &rules);
    if rules.raw.is_null() || parsed_selector(Some(selector)).is_some() {
        errors.extend(long_running(&path.child("template"), template, "ReplicaSet"));
    }
    errors
}

pub struct Deployment;

impl Strategy for Deployment {
    /// Annotations count as substance here: the controller copies them to its ReplicaSets.
    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        let generation = int(old, "/metadata/generation");
        if new["metadata"]["annotations"] != old["metadata"]["annotations"] && int(new, "/metadata/generation") == generation {
            set(child(new, "metadata"), "generation", json!(generation + 1));
        }
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |deployment: &apps::Deployment| {
            deployment.spec.as_ref().map_or(Vec::new(), |spec| deployment_spec(&Path::new("spec"), object, spec))
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(self.validate(kind, new));
        errors.extend(immutable_selector(new, old));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"];
        errors.extend(status_counts(new, &counts));
        errors.extend(within(new, &["updatedReplicas", "readyReplicas", "availableReplicas"]));
        errors.extend(available_within_ready(new));
        errors.extend(collisions(new, old));
        errors
    }
}

fn deployment_spec(path: &Path, object: &Value, spec: &apps::DeploymentSpec) -> ErrorList {
    let mut errors = non_negative_opt(&path.child("replicas"), spec.replicas);
    errors.extend(replicated(path, object, &spec.selector, &spec.template));
    if let Some(strategy) = &spec.strategy {
        errors.extend(deployment_strategy(&path.child("strategy"), strategy));
    }
    errors.extend(non_negative_opt(&path.child("minReadySeconds"), spec.min_ready_seconds));
    errors.extend(non_negative_opt(&path.child("revisionHistoryLimit"), spec.revision_history_limit));
    if let Some(deadline) = spec.progress_deadline_seconds {
        errors.extend(non_negative(&path.child("progressDeadlineSeconds"), i64::from(deadline)));
        if deadline <= spec.min_ready_seconds.unwrap_or(0) {
            let detail = "must be greater than minReadySeconds";
            errors.push(Error::invalid(&path.child("progressDeadlineSeconds"), deadline, detail));
        }
    }
    errors
}

fn deployment_strategy(path: &Path, strategy: &apps::DeploymentStrategy) -> ErrorList {
    let rolling_path = path.child("rollingUpdate");
    match (strategy.type_.as_deref().unwrap_or(""), &strategy.rolling_update) {
        ("Recreate", Some(_)) => {
            vec![Error::forbidden(&rolling_path, "may not be specified when strategy `type` is 'Recreate'")]
        }
        ("Recreate", None) => Vec::new(),
        ("RollingUpdate", None) => {
            vec![Error::required(&rolling_path, "this should be defaulted and never be nil")]
        }
        ("RollingUpdate", Some(rolling)) => {
            rolling_update(&rolling_path, rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref(), false)
        }
        _ => vec![Error::not_supported(path, to_json(strategy), &["Recreate", "RollingUpdate"])],
    }
}

fn rolling_update(path: &Path, unavailable: Option<&IntOrString>, surge: Option<&IntOrString>, surge_capped: bool) -> ErrorList {
    let zero = IntOrString::Int(0);
    let (unavailable, surge) = (unavailable.unwrap_or(&zero), surge.unwrap_or(&zero));
    let (unavailable_path, surge_path) = (path.child("maxUnavailable"), path.child("maxSurge"));
    let mut errors = positive_int_or_percent(&unavailable_path, unavailable);
    errors.extend(positive_int_or_percent(&surge_path, surge));
    let (unavailable_value, surge_value) = (int_or_percent_value(unavailable), int_or_percent_value(surge));
    if !surge_capped && unavailable_value == 0 && surge_value == 0 {
        errors.push(Error::invalid(&unavailable_path, to_json(unavailable), "may not be 0 when `maxSurge` is 0"));
    }
    errors.extend(not_over_100_percent(&unavailable_path, unavailable));
    if surge_capped {
        errors.extend(not_over_100_percent(&surge_path, surge));
        match (unavailable_value != 0, surge_value != 0) {
            (true, true) => {
                errors.push(Error::invalid(&surge_path, to_json(surge), "may not be set when maxUnavailable is non-zero"));
            }
            (false, false) => {
                errors.push(Error::required(&unavailable_path, "cannot be 0 when maxSurge is 0"));
            }
            _ => {}
        }
    }
    errors
}

fn immutable_selector(new: &Value, old: &Value) -> ErrorList {
    immutable(&Path::new("spec").child("selector"), &new["spec"]["selector"], &old["spec"]["selector"])
}

pub struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |set: &apps::ReplicaSet| {
            let path = Path::new("spec");
            let Some(spec) = &set.spec else { return Vec::new() };
            let mut errors = non_negative_opt(&path.child("replicas"), spec.replicas);
            errors.extend(non_negative_opt(&path.child("minReadySeconds"), spec.min_ready_seconds));
            let template = spec.template.clone().unwrap_or_default();
            errors.extend(replicated(&path, object, &spec.selector, &template));
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(self.validate(kind, new));
        errors.extend(immutable_selector(new, old));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        replica_counts(kind, new, old)
    }
}

/// None negative, and none more than there are.
fn replica_counts(kind: &Kind, new: &Value, old: &Value) -> ErrorList {
    let mut errors = validate_object_meta_update(kind, new, old);
    errors.extend(status_counts(new, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"]));
    errors.extend(within(new, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"]));
    errors.extend(available_within_ready(new));
    errors
}

fn count(object: &Value, name: &str) -> i64 {
    int(object, &format!("/status/{name}"))
}

/// Counts of a status, and its observed generation: not negative.
fn status_counts(object: &Value, names: &[&str]) -> ErrorList {
    let path = Path::new("status");
    names
        .iter()
        .chain(&["observedGeneration", "collisionCount"])
        .flat_map(|name| non_negative(&path.child(name), count(object, name)))
        .collect()
}

fn within(object: &Value, names: &[&str]) -> ErrorList {
    let (path, all) = (Path::new("status"), count(object, "replicas"));
    let over = names.iter().filter(|name| count(object, name) > all);
    over.map(|name| Error::invalid(&path.child(name), count(object, name), "cannot be greater than status.replicas")).collect()
}

fn available_within_ready(object: &Value) -> ErrorList {
    let available = count(object, "availableReplicas");
    if available <= count(object, "readyReplicas") {
        return Vec::new();
    }
    vec![Error::invalid(&Path::new("status").child("availableReplicas"), available, "cannot be greater than readyReplicas")]
}

fn collisions(new: &Value, old: &Value) -> ErrorList {
    let (now, was) = (count(new, "collisionCount"), count(old, "collisionCount"));
    if now >= was { Vec::new() } else { vec![Error::invalid(&Path::new("status").child("collisionCount"), now, "cannot be decremented")] }
}

pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |controller: &Rc| {
            let path = Path::new("spec");
            let Some(spec) = &controller.spec else { return Vec::new() };
            let mut errors = non_negative_opt(&path.child("minReadySeconds"), spec.min_ready_seconds);
            let selector = spec.selector.clone().unwrap_or_default();
            if selector.is_empty() {
                errors.push(Error::required(&path.child("selector"), ""));
            }
            errors.extend(non_negative_opt(&path.child("replicas"), spec.replicas));
            let template_path = path.child("template");
            let Some(template) = &spec.template else {
                errors.push(Error::required(&template_path, ""));
                return errors;
            };
            let given: BTreeMap<String, String> = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
            if selector.iter().any(|(name, value)| given.get(name) != Some(value)) {
                let labels_path = template_path.child("metadata").child("labels");
                errors.push(Error::invalid(&labels_path, to_json(&given), MISMATCH));
            }
            errors.extend(long_running(&template_path, template, "ReplicationController"));
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(self.validate(kind, new));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        replica_counts(kind, new, old)
    }
}

pub struct StatefulSet;

impl Strategy for StatefulSet {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |set: &apps::StatefulSet| {
            set.spec.as_ref().map_or(Vec::new(), |spec| stateful_set_spec(&Path::new("spec"), object, spec))
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        const FREE: [&str; 7] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        let fixed = |object: &Value| -> Vec<(String, Value)> {
            let fields = object["spec"].as_object().into_iter().flatten();
            fields.filter(|(name, _)| !FREE.contains(&name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
        };
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        if fixed(new) != fixed(old) {
            let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.push(Error::forbidden(&Path::new("spec"), detail));
        }
        errors.extend(non_negative(&Path::new("spec").child("replicas"), int(new, "/spec/replicas")));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = status_counts(new, &["replicas", "readyReplicas", "currentReplicas", "updatedReplicas"]);
        errors.extend(within(new, &["readyReplicas", "currentReplicas", "updatedReplicas"]));
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(collisions(new, old));
        errors
    }
}

/// The template is not looked into: its containers may mount volumes that only the claim templates will make.
fn stateful_set_spec(path: &Path, object: &Value, spec: &apps::StatefulSetSpec) -> ErrorList {
    let mut errors = Vec::new();
    match spec.pod_management_policy.as_deref().unwrap_or("") {
        "" => errors.push(Error::required(&path.child("podManagementPolicy"), "")),
        "OrderedReady" | "Parallel" => {}
        other => {
            let detail = "must be 'OrderedReady' or 'Parallel'";
            errors.push(Error::invalid(&path.child("podManagementPolicy"), other, detail));
        }
    }
    let strategy_path = path.child("updateStrategy");
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    let rolling_path = strategy_path.child("rollingUpdate");
    match (strategy.type_.as_deref().unwrap_or(""), &strategy.rolling_update) {
        ("", _) => errors.push(Error::required(&strategy_path, "")),
        ("OnDelete", Some(_)) => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(Error::invalid(&rolling_path, to_json(&strategy.rolling_update), detail));
        }
        ("OnDelete", None) | ("RollingUpdate", None) => {}
        ("RollingUpdate", Some(rolling)) => {
            errors.extend(non_negative(&rolling_path.child("partition"), i64::from(rolling.partition.unwrap_or(0))));
        }
        _ => errors.push(Error::invalid(&strategy_path, to_json(&strategy), "must be 'RollingUpdate' or 'OnDelete'")),
    }
    errors.extend(non_negative_opt(&path.child("replicas"), spec.replicas));
    errors.extend(non_negative_opt(&path.child("minReadySeconds"), spec.min_ready_seconds));
    let rules = SelectorRules {
        raw: &object["spec"]["selector"],
        required: true,
        empty: "empty selector is invalid for statefulset",
        invalid: Some(""),
    };
    errors.extend(selected(path, &spec.selector, &spec.template, &rules));
    if rules.raw.is_null() || parsed_selector(Some(&spec.selector)).is_some() {
        errors.extend(pod::template_meta(&path.child("template"), &spec.template));
    }
    errors.extend(runs_always(&path.child("template"), &spec.template, "StatefulSet"));
    errors
}

pub struct DaemonSet;

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

impl Strategy for DaemonSet {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        note_template_generation(object, 1);
    }

    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        let noted = old["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().unwrap_or("");
        let generation: i64 = noted.parse().unwrap_or(1);
        let changed = new["spec"]["template"] != old["spec"]["template"];
        note_template_generation(new, generation + i64::from(changed));
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |set: &apps::DaemonSet| {
            let path = Path::new("spec");
            let Some(spec) = &set.spec else { return Vec::new() };
            let rules = SelectorRules {
                raw: &object["spec"]["selector"],
                required: false,
                empty: "empty selector is invalid for daemonset",
                invalid: None,
            };
            let mut errors = selected(&path, &spec.selector, &spec.template, &rules);
            errors.extend(long_running(&path.child("template"), &spec.template, "DaemonSet"));
            errors.extend(non_negative_opt(&path.child("minReadySeconds"), spec.min_ready_seconds));
            errors.extend(daemon_set_strategy(&path.child("updateStrategy"), spec.update_strategy.as_ref()));
            errors.extend(non_negative_opt(&path.child("revisionHistoryLimit"), spec.revision_history_limit));
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(self.validate(kind, new));
        errors.extend(immutable_selector(new, old));
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        let counts = [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ];
        errors.extend(status_counts(new, &counts));
        errors.extend(collisions(new, old));
        errors
    }
}

fn note_template_generation(object: &mut Value, generation: i64) {
    set(child(child(object, "metadata"), "annotations"), TEMPLATE_GENERATION, json!(generation.to_string()));
}

fn daemon_set_strategy(path: &Path, strategy: Option<&apps::DaemonSetUpdateStrategy>) -> ErrorList {
    let Some(strategy) = strategy else { return Vec::new() };
    match (strategy.type_.as_deref().unwrap_or(""), &strategy.rolling_update) {
        ("OnDelete", _) => Vec::new(),
        ("RollingUpdate", None) => vec![Error::required(&path.child("rollingUpdate"), "")],
        ("RollingUpdate", Some(rolling)) => {
            let path = path.child("rollingUpdate");
            rolling_update(&path, rolling.max_unavailable.as_ref(), rolling.max_surge.as_ref(), true)
        }
        _ => vec![Error::not_supported(path, to_json(strategy), &["RollingUpdate", "OnDelete"])],
    }
}

pub struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = Vec::new();
        if object.get("data").is_none_or(Value::is_null) {
            errors.push(Error::required(&Path::new("data"), "data is mandatory"));
        }
        errors.extend(non_negative(&Path::new("revision"), int(object, "/revision")));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(self.validate_whole(kind, new));
        errors.extend(immutable(&Path::new("data"), &new["data"], &old["data"]));
        errors
    }
}
