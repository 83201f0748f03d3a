//! Limits of a namespace.
//!
//! Upstream: `pkg/apis/core/validation/validation.go` (v1.33).

use std::collections::{BTreeMap, BTreeSet};

use api::Quantity;
use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{LimitRange as CoreLimitRange, LimitRangeItem, ResourceQuota as CoreQuota, ResourceQuotaSpec};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use api::names;
use serde_json::Value;

use crate::meta::{IMMUTABLE, validate_object_meta_update};
use crate::validation::container::{STANDARD_RESOURCES, container_resource_name, resource_amount};
use crate::validation::field::{invalid, json, quantity, with};
use crate::value::list;
use crate::{Kind, Strategy};

const QUALIFIED: &str = "must be a standard resource type or fully qualified";
const SCOPES: &[&str] = &["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating"];

/// What a scope may limit: pods and what they compute with.
const POD_RESOURCES: &[&str] = &["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];

/// A resource name: qualified, and standard unless it has a domain.
fn resource_name(path: &Path, name: &str) -> ErrorList {
    let errors = invalid(path, name, names::is_qualified_name(name));
    let huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
    if errors.is_empty() && !name.contains('/') && !huge && !STANDARD_RESOURCES.contains(&name) {
        return vec![Error::invalid(path, name, QUALIFIED)];
    }
    errors
}

/// The same, of something a quota can count.
fn quota_name(path: &Path, name: &str) -> ErrorList {
    let mut errors = resource_name(path, name);
    let huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !huge && (name == "storage" || !STANDARD_RESOURCES.contains(&name)) {
        errors.push(Error::invalid(path, name, "must be a standard resource for quota"));
    }
    errors
}

fn hard(path: &Path, amounts: &Option<BTreeMap<String, K8sQuantity>>) -> ErrorList {
    let mut errors = Vec::new();
    for (name, amount) in amounts.iter().flatten() {
        let path = path.key(name);
        errors.extend(quota_name(&path, name));
        errors.extend(resource_amount(&path, name, amount));
    }
    errors
}

/// Whether a scope can limit all of what is counted.
fn limits_pods(scope: &str, name: &str) -> bool {
    match scope {
        "BestEffort" => name == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => POD_RESOURCES.contains(&name),
        _ => true,
    }
}

fn unscopable<'a>(spec: &'a ResourceQuotaSpec, scope: &'a str) -> impl Iterator<Item = &'a String> {
    let names = spec.hard.iter().flat_map(|hard| hard.keys());
    names.filter(move |name| *name != "storage" && STANDARD_RESOURCES.contains(&name.as_str()) && !limits_pods(scope, name))
}

fn conflicting(scopes: &BTreeSet<&str>) -> usize {
    let pairs = [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")];
    pairs.iter().filter(|(one, other)| scopes.contains(one) && scopes.contains(other)).count()
}

fn scopes(path: &Path, spec: &ResourceQuotaSpec) -> ErrorList {
    let shown = json(&spec.scopes);
    let mut errors = Vec::new();
    for scope in spec.scopes.iter().flatten() {
        if !SCOPES.contains(&scope.as_str()) {
            errors.push(Error::invalid(path, shown.clone(), "unsupported scope"));
        }
        errors.extend(unscopable(spec, scope).map(|_| Error::invalid(path, shown.clone(), "unsupported scope applied to resource")));
    }
    let all = spec.scopes.iter().flatten().map(String::as_str).collect();
    errors.extend((0..conflicting(&all)).map(|_| Error::invalid(path, shown.clone(), "conflicting scopes")));
    errors
}

fn scope_selector(path: &Path, spec: &ResourceQuotaSpec) -> ErrorList {
    let Some(selector) = &spec.scope_selector else { return Vec::new() };
    let path = path.child("matchExpressions");
    let mut errors = Vec::new();
    for item in selector.match_expressions.iter().flatten() {
        let (scope, operator) = (item.scope_name.as_str(), item.operator.as_str());
        if !SCOPES.contains(&scope) {
            errors.push(Error::invalid(&path.child("scopeName"), scope, "unsupported scope"));
        }
        errors.extend(unscopable(spec, scope).map(|_| Error::invalid(&path, json(selector), "unsupported scope applied to resource")));
        if matches!(scope, "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity")
            && operator != "Exists"
        {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(Error::invalid(&path.child("operator"), operator, detail));
        }
        let values = item.values.as_deref().unwrap_or_default();
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(Error::required(&path.child("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(Error::invalid(&path.child("values"), json(&values), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
    }
    let all = selector.match_expressions.iter().flatten().map(|item| item.scope_name.as_str()).collect();
    errors.extend((0..conflicting(&all)).map(|_| Error::invalid(&path, json(&spec.scopes), "conflicting scopes")));
    errors
}

pub struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |quota: &CoreQuota| {
            let path = Path::new("spec");
            let Some(spec) = &quota.spec else { return Vec::new() };
            let mut errors = hard(&path.child("hard"), &spec.hard);
            errors.extend(scopes(&path.child("scopes"), spec));
            errors.extend(scope_selector(&path.child("scopeSelector"), spec));
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_whole(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors.extend(self.validate(kind, new));
        let scopes =
            |object: &Value| list(object, "/spec/scopes").iter().filter_map(Value::as_str).map(str::to_owned).collect::<BTreeSet<_>>();
        if scopes(new) != scopes(old) {
            errors.push(Error::invalid(&Path::new("spec").child("scopes"), new["spec"]["scopes"].clone(), IMMUTABLE));
        }
        errors
    }

    fn validate_status_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(with(new, |quota: &CoreQuota| {
            let Some(status) = &quota.status else { return Vec::new() };
            let path = Path::new("status");
            [hard(&path.child("hard"), &status.hard), hard(&path.child("used"), &status.used)].concat()
        }));
        errors
    }
}

pub struct LimitRange;

impl Strategy for LimitRange {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |range: &CoreLimitRange| {
            let path = Path::new("spec").child("limits");
            let mut errors = Vec::new();
            let mut seen = BTreeSet::new();
            for (index, limit) in range.spec.iter().flat_map(|spec| &spec.limits).enumerate() {
                let path = path.index(index);
                errors.extend(limit_type(&path.child("type"), &limit.type_));
                if !seen.insert(limit.type_.as_str()) {
                    errors.push(Error::duplicate(&path.child("type"), limit.type_.as_str()));
                }
                errors.extend(limit_item(&path, limit));
            }
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        self.validate_whole(kind, new)
    }
}

fn limit_type(path: &Path, name: &str) -> ErrorList {
    let errors = invalid(path, name, names::is_qualified_name(name));
    let standard = ["Pod", "Container", "PersistentVolumeClaim"].contains(&name);
    if errors.is_empty() && !name.contains('/') && !standard {
        return vec![Error::invalid(path, name, "must be a standard limit type or fully qualified")];
    }
    errors
}

fn limit_item(path: &Path, limit: &LimitRangeItem) -> ErrorList {
    let empty = BTreeMap::new();
    let pod = limit.type_ == "Pod";
    let mut errors = Vec::new();
    let sides = [
        ("max", limit.max.as_ref()),
        ("min", limit.min.as_ref()),
        ("default", limit.default.as_ref()),
        ("defaultRequest", limit.default_request.as_ref()),
        ("maxLimitRequestRatio", limit.max_limit_request_ratio.as_ref()),
    ];
    for (side, amounts) in sides {
        let amounts = amounts.unwrap_or(&empty);
        if pod && side.starts_with("default") {
            if !amounts.is_empty() {
                errors.push(Error::forbidden(&path.child(side), "may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for name in amounts.keys() {
            let path = path.child(side).key(name);
            let of_containers = matches!(limit.type_.as_str(), "Pod" | "Container");
            errors.extend(if of_containers { container_resource_name(&path, name) } else { resource_name(&path, name) });
        }
    }
    let storage = |amounts: &Option<BTreeMap<String, K8sQuantity>>| amounts.as_ref().is_some_and(|a| a.contains_key("storage"));
    if limit.type_ == "PersistentVolumeClaim" && !storage(&limit.min) && !storage(&limit.max) {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(Error::required(&path.child("limits"), detail));
    }
    errors.extend(limit_order(path, limit));
    errors
}

/// min ≤ defaultRequest ≤ default ≤ max, and a ratio that those leave room for.
fn limit_order(path: &Path, limit: &LimitRangeItem) -> ErrorList {
    let pod = limit.type_ == "Pod";
    let none = None;
    let sides = [
        ("min", "min", &limit.min),
        ("defaultRequest", "default request", if pod { &none } else { &limit.default_request }),
        ("default", "default", if pod { &none } else { &limit.default }),
        ("max", "max", &limit.max),
    ];
    let ratios = &limit.max_limit_request_ratio;
    let names: BTreeSet<&String> =
        sides.iter().map(|(.., amounts)| *amounts).chain([ratios]).flat_map(|amounts| amounts.iter().flat_map(|a| a.keys())).collect();
    let mut errors = Vec::new();
    for name in names {
        let of = |index: usize| sides[index].2.as_ref().and_then(|amounts| amounts.get(name));
        // Which two, the side whose path is named, and the one whose value is shown: upstream is not regular here.
        for (low, high, at, shown) in [(0, 3, 0, 0), (0, 1, 1, 1), (1, 3, 1, 1), (1, 2, 1, 1), (0, 2, 2, 0), (2, 3, 2, 3)] {
            let (Some(low_amount), Some(high_amount)) = (of(low), of(high)) else { continue };
            if quantity(low_amount) <= quantity(high_amount) {
                continue;
            }
            let high_words = if (low, high) == (1, 2) { "default limit" } else { sides[high].1 };
            let detail = format!("{} value {} is greater than {high_words} value {}", sides[low].1, low_amount.0, high_amount.0);
            errors.push(Error::invalid(&path.child(sides[at].0).key(name), of(shown).map_or("", |amount| &amount.0), detail));
        }
        if let Some(ratio) = ratios.as_ref().and_then(|ratios| ratios.get(name)) {
            errors.extend(limit_ratio(&path.child("maxLimitRequestRatio").key(name), ratio, of(0), of(3)));
        }
        let overcommits = !name.contains('/') && !name.starts_with("hugepages-");
        if let (Some(request), Some(default), false) = (of(1), of(2), overcommits)
            && quantity(request) != quantity(default)
        {
            let detail = format!("default value {} must equal to defaultRequest value {} in {name}", default.0, request.0);
            errors.push(Error::invalid(&path.child("defaultRequest").key(name), request.0.as_str(), detail));
        }
    }
    errors
}

fn limit_ratio(path: &Path, ratio: &K8sQuantity, min: Option<&K8sQuantity>, max: Option<&K8sQuantity>) -> ErrorList {
    let amount = quantity(ratio);
    let mut errors = Vec::new();
    if amount < Quantity::from_value(1) {
        errors.push(Error::invalid(path, ratio.0.as_str(), format!("ratio {} is less than 1", ratio.0)));
    }
    if let (Some(min), Some(max)) = (min, max) {
        let limit = quantity(max).milli() as f64 / quantity(min).milli() as f64;
        if amount.milli() as f64 / 1000.0 > limit {
            errors.push(Error::invalid(path, ratio.0.as_str(), format!("ratio {} is greater than max/min = {limit:.6}", ratio.0)));
        }
    }
    errors
}
