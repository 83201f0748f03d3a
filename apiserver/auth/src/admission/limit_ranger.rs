//! LimitRanger: a namespace's defaults and bounds for what containers, pods and claims ask for.
//!
//! Upstream: `plugin/pkg/admission/limitranger/admission.go` (v1.33).

use api::amounts::{Amounts, amounts, of_pod};
use api::{GroupResource, Quantity};
use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use serde_json::Value;
use std::collections::BTreeMap;

use super::object::{map, slot};
use super::{Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::{LookupExt, is_being_deleted, items, text};

pub struct LimitRanger;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Refusal> {
        if request.is("pods") && request.operation == Operation::Create {
            for limit_range in limit_ranges(request) {
                set_defaults(&limit_range, pod);
            }
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: &Value, _: &mut Outcome) -> Result<(), Refusal> {
        let check: fn(&LimitRangeItem, &Value) -> Vec<String> = match request.operation {
            Operation::Create if request.is("pods") => check_pod,
            Operation::Create | Operation::Update if request.is("persistentvolumeclaims") => check_claim,
            _ => return Ok(()),
        };
        if request.old.is_some_and(is_being_deleted) {
            return Ok(());
        }
        for limit_range in limit_ranges(request) {
            let errors: Vec<String> = limits(&limit_range).iter().flat_map(|limit| check(limit, object)).collect();
            if !errors.is_empty() {
                return Err(request.forbidden(object, crate::authz::aggregate(&errors)));
            }
        }
        Ok(())
    }
}

fn limit_ranges(request: &Request<'_>) -> Vec<LimitRange> {
    request.lookup.typed_list(&GroupResource::new("", "limitranges"), Some(request.namespace))
}

fn limits(limit_range: &LimitRange) -> &[LimitRangeItem] {
    limit_range.spec.as_ref().map_or(&[], |spec| &spec.limits)
}

/// Fills in what containers leave out, and says so in an annotation.
fn set_defaults(limit_range: &LimitRange, pod: &mut Value) {
    let mut notes = Vec::new();
    for (field, kind) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut("/spec").and_then(|spec| spec.get_mut(field)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = text(container, "/name").to_owned();
            for (which, word) in [("requests", "request"), ("limits", "limit")] {
                let mut set = Vec::new();
                for limit in limits(limit_range).iter().filter(|limit| limit.type_ == "Container") {
                    let defaults = if which == "requests" { &limit.default_request } else { &limit.default };
                    for (resource, amount) in defaults.iter().flatten() {
                        let held = map(slot(container, "resources"), which);
                        if !held.contains_key(resource) {
                            held.insert(resource.clone(), amount.0.clone().into());
                            set.push(resource.clone());
                        }
                    }
                }
                set.sort();
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        map(slot(pod, "metadata"), "annotations").insert(ANNOTATION.to_owned(), note.into());
    }
}

fn check_claim(limit: &LimitRangeItem, claim: &Value) -> Vec<String> {
    if limit.type_ != "PersistentVolumeClaim" {
        return Vec::new();
    }
    let asked = Asked { kind: &limit.type_, requests: amounts(claim, "/spec/resources/requests"), limits: Amounts::new() };
    let min = each(&limit.min).filter_map(|(resource, bound)| asked.below(resource, bound));
    min.chain(each(&limit.max).filter_map(|(resource, bound)| asked.request_above(resource, bound))).collect()
}

fn check_pod(limit: &LimitRangeItem, pod: &Value) -> Vec<String> {
    match limit.type_.as_str() {
        "Container" => items(pod, "/spec/containers")
            .iter()
            .chain(items(pod, "/spec/initContainers"))
            .flat_map(|container| {
                let (requests, limits) = (amounts(container, "/resources/requests"), amounts(container, "/resources/limits"));
                Asked { kind: &limit.type_, requests, limits }.check(limit)
            })
            .collect(),
        "Pod" => Asked { kind: &limit.type_, requests: of_pod(pod, "requests"), limits: of_pod(pod, "limits") }.check(limit),
        _ => Vec::new(),
    }
}

type Bounds = Option<BTreeMap<String, K8sQuantity>>;

fn each(bounds: &Bounds) -> impl Iterator<Item = (&str, Quantity)> {
    bounds.iter().flatten().filter_map(|(resource, bound)| Some((resource.as_str(), Quantity::parse(&bound.0).ok()?)))
}

struct Asked<'a> {
    kind: &'a str,
    requests: Amounts,
    limits: Amounts,
}

impl Asked<'_> {
    fn check(&self, limit: &LimitRangeItem) -> Vec<String> {
        let min = each(&limit.min).filter_map(|(resource, bound)| self.below(resource, bound));
        let max = each(&limit.max).filter_map(|(resource, bound)| self.above(resource, bound));
        let ratio = each(&limit.max_limit_request_ratio).filter_map(|(resource, bound)| self.too_stretched(resource, bound));
        min.chain(max).chain(ratio).collect()
    }

    fn below(&self, resource: &str, bound: Quantity) -> Option<String> {
        let head = format!("minimum {resource} usage per {} is {bound}", self.kind);
        match (self.requests.get(resource), self.limits.get(resource)) {
            (None, _) => Some(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < bound => Some(format!("{head}, but request is {request}")),
            (_, Some(limit)) if *limit < bound => Some(format!("{head}, but limit is {limit}")),
            _ => None,
        }
    }

    fn above(&self, resource: &str, bound: Quantity) -> Option<String> {
        let head = format!("maximum {resource} usage per {} is {bound}", self.kind);
        match (self.requests.get(resource), self.limits.get(resource)) {
            (_, None) => Some(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if *limit > bound => Some(format!("{head}, but limit is {limit}")),
            (Some(request), _) if *request > bound => Some(format!("{head}, but request is {request}")),
            _ => None,
        }
    }

    fn request_above(&self, resource: &str, bound: Quantity) -> Option<String> {
        let head = format!("maximum {resource} usage per {} is {bound}", self.kind);
        match self.requests.get(resource) {
            None => Some(format!("{head}.  No request is specified")),
            Some(request) if *request > bound => Some(format!("{head}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn too_stretched(&self, resource: &str, bound: Quantity) -> Option<String> {
        let head = format!("{resource} max limit to request ratio per {} is {bound}", self.kind);
        let given = |amounts: &Amounts| amounts.get(resource).copied().filter(|amount| !amount.is_zero());
        let Some(request) = given(&self.requests) else {
            return Some(format!("{head}, but no request is specified or request is 0"));
        };
        let Some(limit) = given(&self.limits) else { return Some(format!("{head}, but no limit is specified or limit is 0")) };
        let ratio = limit.milli() as f64 / request.milli() as f64;
        (ratio * 1000.0 > bound.milli() as f64).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
    }
}
