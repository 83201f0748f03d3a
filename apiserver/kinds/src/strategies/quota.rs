//! Limits of a namespace.
//!
//! Upstream: `pkg/apis/core/validation/validation.go` (v1.33).

use std::collections::{BTreeMap, BTreeSet};

use api::Quantity;
use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::api::core::v1::{LimitRange as CoreLimitRange, LimitRangeItem, ResourceQuota as CoreQuota};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use api::names;
use serde_json::Value;

use crate::validation::container::resource_amount;
use crate::validation::field::{invalid, json, quantity, with};
use crate::{Kind, Strategy};

const QUALIFIED: &str = "must be a standard resource type or fully qualified";
const STANDARD: &[&str] = &[
    "configmaps", "cpu", "ephemeral-storage", "limits.cpu", "limits.ephemeral-storage", "limits.memory", "memory",
    "persistentvolumeclaims", "pods", "replicationcontrollers", "requests.cpu", "requests.ephemeral-storage",
    "requests.memory", "requests.storage", "resourcequotas", "secrets", "services", "services.loadbalancers",
    "services.nodeports", "storage",
];
const COUNTED: &[&str] = &[
    "configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services",
    "services.loadbalancers", "services.nodeports",
];
const SCOPES: &[&str] =
    &["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating"];

/// A resource name: qualified, and standard unless it has a domain.
fn resource_name(path: &Path, name: &str, detail: &str) -> ErrorList {
    let errors = invalid(path, name, names::is_qualified_name(name));
    let huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
    if errors.is_empty() && !name.contains('/') && !huge && !STANDARD.contains(&name) {
        return vec![Error::invalid(path, name, detail)];
    }
    errors
}

pub struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        with(object, |quota: &CoreQuota| {
            let path = Path::new("spec");
            let Some(spec) = &quota.spec else { return Vec::new() };
            let mut errors = Vec::new();
            for (name, amount) in spec.hard.iter().flatten() {
                let path = path.child("hard").key(name);
                let counted = name.starts_with("count/") || name.contains(".storageclass.storage.k8s.io/");
                if !counted {
                    let named = resource_name(&path, name, QUALIFIED);
                    let unknown = named.iter().any(|error| error.detail == QUALIFIED);
                    errors.extend(named);
                    if unknown {
                        errors.push(Error::invalid(&path, name.as_str(), "must be a standard resource for quota"));
                    }
                }
                errors.extend(resource_amount(&path, name, amount));
                if COUNTED.contains(&name.as_str()) && !quantity(amount).is_integer() {
                    errors.push(Error::invalid(&path, amount.0.as_str(), "must be an integer"));
                }
            }
            for _ in spec.scopes.iter().flatten().filter(|scope| !SCOPES.contains(&scope.as_str())) {
                errors.push(Error::invalid(&path.child("scopes"), json(&spec.scopes), "unsupported scope"));
            }
            errors
        })
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(kind, new);
        let path = Path::new("spec").child("scopes");
        errors.extend(crate::validation::field::immutable(&path, &new["spec"]["scopes"], &old["spec"]["scopes"]));
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
        if pod && side.starts_with("default") && !amounts.is_empty() {
            errors.push(Error::forbidden(&path.child(side), "may not be specified when `type` is 'Pod'"));
            continue;
        }
        for name in amounts.keys() {
            let detail = "must be a standard resource for containers";
            errors.extend(resource_name(&path.child(side).key(name), name, detail));
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

/// min ≤ defaultRequest ≤ default ≤ max.
fn limit_order(path: &Path, limit: &LimitRangeItem) -> ErrorList {
    let sides = [("min", &limit.min), ("defaultRequest", &limit.default_request), ("default", &limit.default), ("max", &limit.max)];
    let names: BTreeSet<&String> = sides.iter().flat_map(|(_, amounts)| amounts.iter().flat_map(|a| a.keys())).collect();
    let words = |side: &str| match side {
        "defaultRequest" => "default request value".to_owned(),
        side => format!("{side} value"),
    };
    let mut errors = Vec::new();
    for name in names {
        let of = |index: usize| -> Option<(&str, Quantity, &str)> {
            let (side, amounts) = sides[index];
            amounts.as_ref()?.get(name).map(|amount| (side, quantity(amount), amount.0.as_str()))
        };
        // Upstream names the lower side's path, except against the minimum, where it names the default's.
        for (low, high, at) in [(0, 3, 0), (0, 1, 1), (0, 2, 2), (1, 3, 1), (1, 2, 1), (2, 3, 2)] {
            let (Some(low_side), Some(high_side)) = (of(low), of(high)) else { continue };
            if low_side.1 <= high_side.1 {
                continue;
            }
            let detail = format!("{} {} is greater than {} {}", words(low_side.0), low_side.2, words(high_side.0), high_side.2);
            let shown = if at == low { low_side.2 } else { high_side.2 };
            errors.push(Error::invalid(&path.child(sides[at].0).key(name), shown, detail));
        }
    }
    errors
}
