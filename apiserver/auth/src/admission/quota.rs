//! ResourceQuota: what a namespace may hold, counted before the write.
//!
//! Pure: it compares and adds, and returns the quotas' new statuses as [`Charge`]s. The API server writes those by
//! compare-and-swap before the object; when one is lost it reckons again with the quotas as they then are, as upstream does.
//!
//! Upstream: `apiserver/pkg/admission/plugin/resourcequota/controller.go` (v1.33); the counting is in [`api::quota`].

use api::amounts::{Amounts, add, amounts};
use api::quota::{Evaluator, scopes};
use api::{GroupResource, Quantity};
use serde_json::{Value, json};

use super::{Charge, Operation, Outcome, Plugin, Refusal, Request};
use crate::lookup::text;

pub struct ResourceQuota;

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate(&self, request: &Request<'_>, object: &Value, outcome: &mut Outcome) -> Result<(), Refusal> {
        let counted = Evaluator { resource: request.resource };
        if request.namespace.is_empty() || !can_raise(counted, request) {
            return Ok(());
        }
        let quotas = request.lookup.list(&GroupResource::new("", "resourcequotas"), Some(request.namespace));
        let mut interesting = Vec::new();
        for quota in quotas {
            let hard = amounts(&quota, "/status/hard");
            let restricted: Vec<&String> = hard.keys().filter(|name| counted.counts(name)).collect();
            if restricted.is_empty() || !counted.in_scopes(&scopes(&quota), object) {
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
        let delta = delta(counted, request, object)?;
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

/// Only writes that can raise a count.
fn can_raise(counted: Evaluator<'_>, request: &Request<'_>) -> bool {
    let ignored = matches!(counted.resource.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
        || counted.is("events")
        || counted.is("bindings");
    let updates = counted.is("services") || counted.is("persistentvolumeclaims");
    match (request.operation, request.subresource) {
        (Operation::Create, "") => !ignored,
        (Operation::Update, "") => updates,
        (Operation::Update, "resize") => counted.is("pods"),
        _ => false,
    }
}

/// What the write adds: all of a new object, the growth of an old one.
fn delta(counted: Evaluator<'_>, request: &Request<'_>, object: &Value) -> Result<Amounts, Refusal> {
    let mut usage = counted.usage(object);
    let negative: Vec<&str> = usage.iter().filter(|(_, q)| q.is_negative()).map(|(r, _)| r.as_str()).collect();
    if !negative.is_empty() {
        return Err(request.forbidden(object, format!("quota usage is negative for resource(s): {}", negative.join(","))));
    }
    if let (Operation::Update, Some(old)) = (request.operation, request.old) {
        let before = counted.usage(old);
        for (resource, amount) in &mut usage {
            if let Some(before) = before.get(resource) {
                *amount = if *before < *amount { *amount - *before } else { Quantity::ZERO };
            }
        }
    }
    usage.retain(|_, amount| !amount.is_zero());
    Ok(usage)
}
