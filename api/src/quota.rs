//! What a ResourceQuota counts of an object: one arithmetic for the API server, which charges a write before it is made, and
//! for the controller, which counts what is there.
//!
//! Upstream: `pkg/quota/v1/evaluator/core`, `apiserver/pkg/quota/v1/generic` (v1.33).

use serde_json::{Value, json};

use crate::amounts::{Amounts, add, amounts, of_pod};
use crate::tree::{items, meta_entry, text};
use crate::{GroupResource, Quantity};

/// The counting of one resource's objects.
#[derive(Clone, Copy)]
pub struct Evaluator<'a> {
    pub resource: &'a GroupResource,
}

/// `spec.scopes` and `spec.scopeSelector`, as requirements.
pub fn scopes(quota: &Value) -> Vec<Value> {
    let plain = items(quota, "/spec/scopes").iter().map(|name| json!({"scopeName": name, "operator": "Exists"}));
    plain.chain(items(quota, "/spec/scopeSelector/matchExpressions").iter().cloned()).collect()
}

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Of these every container must state an amount once a quota counts them: upstream's old mistake, kept.
const MUST_BE_STATED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

impl Evaluator<'_> {
    pub fn is(&self, resource: &str) -> bool {
        self.resource.group.is_empty() && self.resource.resource == resource
    }

    fn count_name(&self) -> String {
        format!("count/{}", self.resource)
    }

    /// Whether a quota's resource name is about this kind of object.
    pub fn counts(&self, name: &str) -> bool {
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

    /// Errors: the words for what the object must state and does not.
    pub fn check_required(&self, restricted: &[&String], object: &Value) -> Result<(), String> {
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

    /// Whether an object is in all scopes of a quota. Only pods can be in any.
    pub fn in_scopes(&self, scopes: &[Value], object: &Value) -> bool {
        scopes.iter().all(|scope| self.in_scope(scope, object))
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

    /// Whether objects differ in what they count for; if not, it is enough to know how many there are.
    pub fn needs_objects(&self) -> bool {
        ["pods", "services", "persistentvolumeclaims"].iter().any(|resource| self.is(resource))
    }

    pub fn usage(&self, object: &Value) -> Amounts {
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
