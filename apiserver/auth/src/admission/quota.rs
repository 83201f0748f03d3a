//! ResourceQuota: what a namespace may hold, counted before the write.
//!
//! Pure: it compares and adds, and returns the quotas' new statuses as [`Charge`]s. The API server writes those by
//! compare-and-swap first; when one is lost it validates again with the quotas as they then are, as upstream does.
//!
//! Upstream: `apiserver/pkg/admission/plugin/resourcequota/controller.go`, `pkg/quota/v1/evaluator/core` (v1.33).

use api::{GroupResource, Quantity};
use serde_json::{Value, json};

use super::resources::{Amounts, add, amounts, of_pod};
use super::{Charge, Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::{items, meta_entry, text};

pub struct ResourceQuota;

/// What is counted of one kind of object.
struct Counted<'a> {
    resource: &'a GroupResource,
}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate(&self, request: &Request<'_>, object: &Value, outcome: &mut Outcome) -> Result<(), Refusal> {
        let counted = Counted { resource: request.resource };
        if request.namespace.is_empty() || !counted.handles(request) {
            return Ok(());
        }
        let quotas = request.lookup.list(&GroupResource::new("", "resourcequotas"), Some(request.namespace));
        let mut interesting = Vec::new();
        for quota in quotas {
            let hard = amounts(&quota, "/status/hard");
            let restricted: Vec<&String> = hard.keys().filter(|name| counted.counts(name)).collect();
            if restricted.is_empty() || !scopes(&quota).iter().all(|scope| counted.in_scope(scope, object)) {
                continue;
            }
            let name = text(&quota, "/metadata/name");
            counted.check_required(&restricted, object).map_err(|why| request.forbidden(object, format!("failed quota: {name}: {why}")))?;
            let used = amounts(&quota, "/status/used");
            if restricted.iter().any(|resource| !used.contains_key(*resource)) {
                let list = restricted.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(",");
                return Err(request.forbidden(object, format!("status unknown for quota: {name}, resources: {list}")));
            }
            interesting.push((quota.clone(), hard, used));
        }
        let delta = counted.delta(request, object)?;
        for (quota, hard, used) in interesting {
            let asked: Amounts = delta.iter().filter(|(r, _)| hard.contains_key(*r)).map(|(r, q)| (r.clone(), *q)).collect();
            let new = fit(request, object, text(&quota, "/metadata/name"), &asked, &used, &hard)?;
            if !asked.is_empty() && !request.dry_run {
                let mut quota = (*quota).clone();
                quota["status"]["used"] = new.iter().map(|(r, q)| (r.clone(), json!(q.to_string()))).collect();
                outcome.charges.push(Charge { quota });
            }
        }
        Ok(())
    }
}

/// The quota's new usage, or why it does not fit.
fn fit(request: &Request<'_>, object: &Value, name: &str, asked: &Amounts, used: &Amounts, hard: &Amounts) -> Result<Amounts, Refusal> {
    let mut new = used.clone();
    add(&mut new, asked);
    let exceeded: Vec<&String> = asked.keys().filter(|r| new.get(*r) > hard.get(*r)).collect();
    if exceeded.is_empty() {
        return Ok(new);
    }
    let print = |amounts: &Amounts| {
        let parts: Vec<String> = exceeded.iter().map(|r| format!("{r}={}", amounts.get(*r).copied().unwrap_or(Quantity::ZERO))).collect();
        parts.join(",")
    };
    let why = format!("exceeded quota: {name}, requested: {}, used: {}, limited: {}", print(asked), print(used), print(hard));
    Err(request.forbidden(object, why))
}

/// `spec.scopes` and `spec.scopeSelector`, as requirements.
fn scopes(quota: &Value) -> Vec<Value> {
    let plain = items(quota, "/spec/scopes").iter().map(|name| json!({"scopeName": name, "operator": "Exists"}));
    plain.chain(items(quota, "/spec/scopeSelector/matchExpressions").iter().cloned()).collect()
}

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Of these every container must state an amount once a quota counts them: upstream's old mistake, kept.
const MUST_BE_STATED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

impl Counted<'_> {
    fn is(&self, resource: &str) -> bool {
        self.resource.group.is_empty() && self.resource.resource == resource
    }

    /// Only writes that can raise a count.
    fn handles(&self, request: &Request<'_>) -> bool {
        let ignored = matches!(self.resource.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
            || self.is("events")
            || self.is("bindings");
        let updates = self.is("services") || self.is("persistentvolumeclaims");
        match (request.operation, request.subresource) {
            (Operation::Create, "") => !ignored,
            (Operation::Update, "") => updates,
            (Operation::Update, "resize") => self.is("pods"),
            _ => false,
        }
    }

    fn count_name(&self) -> String {
        format!("count/{}", self.resource)
    }

    /// Whether a quota's resource name is about this kind of object.
    fn counts(&self, name: &str) -> bool {
        if name == self.count_name() {
            return true;
        }
        match self.resource.resource.as_str() {
            _ if !self.resource.group.is_empty() => false,
            "pods" => {
                let native = matches!(name, "pods" | "cpu" | "memory" | "ephemeral-storage")
                    || matches!(
                        name.strip_prefix("requests.").or(name.strip_prefix("limits.")),
                        Some("cpu" | "memory" | "ephemeral-storage")
                    );
                let extended = name.strip_prefix("requests.").is_some_and(is_extended);
                native || extended || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
            }
            "services" => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
            "persistentvolumeclaims" => {
                let plain = name.split_once(STORAGE_CLASS).map_or(name, |(_, rest)| rest);
                matches!(plain, "persistentvolumeclaims" | "requests.storage")
            }
            "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => name == self.resource.resource,
            _ => false,
        }
    }

    fn check_required(&self, restricted: &[&String], object: &Value) -> Result<(), String> {
        if !self.is("pods") {
            return Ok(());
        }
        let mut missing: Vec<&str> = Vec::new();
        for container in items(object, "/spec/containers").iter().chain(items(object, "/spec/initContainers")) {
            let stated = compute(&amounts(container, "/resources/requests"), &amounts(container, "/resources/limits"));
            let required = restricted.iter().map(|r| r.as_str()).filter(|r| MUST_BE_STATED.contains(r));
            missing.extend(required.filter(|r| !stated.contains_key(*r)));
        }
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() { Ok(()) } else { Err(format!("must specify {}", missing.join(","))) }
    }

    fn in_scope(&self, scope: &Value, object: &Value) -> bool {
        if !self.is("pods") {
            return false;
        }
        let terminating = object.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|s| s >= 0);
        match text(scope, "/scopeName") {
            "Terminating" => terminating,
            "NotTerminating" => !terminating,
            "BestEffort" => is_best_effort(object),
            "NotBestEffort" => !is_best_effort(object),
            "PriorityClass" => matches_priority_class(scope, text(object, "/spec/priorityClassName")),
            "CrossNamespacePodAffinity" => crosses_namespaces(object),
            _ => false,
        }
    }

    fn usage(&self, object: &Value) -> Amounts {
        let one = || Quantity::from_value(1);
        let mut usage = Amounts::from([(self.count_name(), one())]);
        match self.resource.resource.as_str() {
            _ if !self.resource.group.is_empty() => {}
            "pods" if matches!(text(object, "/status/phase"), "Failed" | "Succeeded") => {}
            "pods" => add(&mut usage, &pod_usage(object)),
            "services" => usage.extend(service_usage(object)),
            "persistentvolumeclaims" => usage.extend(claim_usage(object)),
            name @ ("configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => drop(usage.insert(name.to_owned(), one())),
            _ => {}
        }
        usage
    }

    /// What the write adds: all of a new object, the growth of an old one.
    fn delta(&self, request: &Request<'_>, object: &Value) -> Result<Amounts, Refusal> {
        let mut usage = self.usage(object);
        let negative: Vec<&str> = usage.iter().filter(|(_, q)| q.is_negative()).map(|(r, _)| r.as_str()).collect();
        if !negative.is_empty() {
            return Err(request.forbidden(object, format!("quota usage is negative for resource(s): {}", negative.join(","))));
        }
        if let (Operation::Update, Some(old)) = (request.operation, request.old) {
            let before = self.usage(old);
            for (resource, amount) in &mut usage {
                if let Some(before) = before.get(resource) {
                    *amount = if *before < *amount { *amount - *before } else { Quantity::ZERO };
                }
            }
        }
        usage.retain(|_, amount| !amount.is_zero());
        Ok(usage)
    }
}

fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}

/// A pod's or container's amounts under the names quotas use.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut out = Amounts::from([("pods".to_owned(), Quantity::from_value(1))]);
    for (resource, amount) in requests {
        match resource.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                out.insert(resource.clone(), *amount);
                out.insert(format!("requests.{resource}"), *amount);
            }
            name if name.starts_with("hugepages-") => {
                out.insert(resource.clone(), *amount);
                out.insert(format!("requests.{resource}"), *amount);
            }
            name if is_extended(name) => drop(out.insert(format!("requests.{resource}"), *amount)),
            _ => {}
        }
    }
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(resource) {
            out.insert(format!("limits.{resource}"), *amount);
        }
    }
    out
}

fn pod_usage(pod: &Value) -> Amounts {
    let (mut requests, mut limits) = (of_pod(pod, "requests"), of_pod(pod, "limits"));
    let overhead = amounts(pod, "/spec/overhead");
    add(&mut requests, &overhead);
    let limited: Amounts = overhead.into_iter().filter(|(resource, _)| limits.contains_key(resource)).collect();
    add(&mut limits, &limited);
    compute(&requests, &limits)
}

fn service_usage(service: &Value) -> Amounts {
    let ports = items(service, "/spec/ports");
    let with_node_port = ports.iter().filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0).count();
    let allocates = service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    let (node_ports, balancers) = match text(service, "/spec/type") {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" if allocates => (ports.len(), 1),
        "LoadBalancer" => (with_node_port, 1),
        _ => (0, 0),
    };
    let amount = |n: usize| Quantity::from_value(n as i64);
    [("services", 1), ("services.nodeports", node_ports), ("services.loadbalancers", balancers)]
        .map(|(name, n)| (name.to_owned(), amount(n)))
        .into()
}

fn claim_usage(claim: &Value) -> Amounts {
    let class = meta_entry(claim, "annotations", "volume.beta.kubernetes.io/storage-class")
        .unwrap_or_else(|| text(claim, "/spec/storageClassName"));
    let mut out = Amounts::from([("persistentvolumeclaims".to_owned(), Quantity::from_value(1))]);
    if let Some(storage) = amounts(claim, "/spec/resources/requests").get("storage") {
        let whole = if storage.is_integer() { *storage } else { Quantity::from_value(storage.value()) };
        out.insert("requests.storage".to_owned(), whole);
    }
    if !class.is_empty() {
        let by_class: Amounts = out.iter().map(|(name, amount)| (format!("{class}{STORAGE_CLASS}{name}"), *amount)).collect();
        out.extend(by_class);
    }
    out
}

fn is_best_effort(pod: &Value) -> bool {
    let asks = |container: &Value| {
        ["/resources/requests", "/resources/limits"]
            .iter()
            .flat_map(|pointer| amounts(container, pointer))
            .any(|(resource, amount)| matches!(resource.as_str(), "cpu" | "memory") && !amount.is_zero())
    };
    !items(pod, "/spec/containers").iter().chain(items(pod, "/spec/initContainers")).any(asks)
}

fn matches_priority_class(scope: &Value, class: &str) -> bool {
    let listed = items(scope, "/values").iter().any(|value| value == class);
    match text(scope, "/operator") {
        "In" => !class.is_empty() && listed,
        "NotIn" => !listed,
        "Exists" => !class.is_empty(),
        "DoesNotExist" => class.is_empty(),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| !items(term, "/namespaces").is_empty() || term.get("namespaceSelector").is_some_and(|s| !s.is_null());
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let base = format!("/spec/affinity/{kind}");
        items(pod, &format!("{base}/requiredDuringSchedulingIgnoredDuringExecution")).iter().any(crosses)
            || items(pod, &format!("{base}/preferredDuringSchedulingIgnoredDuringExecution"))
                .iter()
                .filter_map(|weighted| weighted.get("podAffinityTerm"))
                .any(crosses)
    })
}
