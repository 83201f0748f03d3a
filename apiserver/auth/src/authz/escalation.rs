//! Nobody grants what they do not hold: the check on writes of roles and bindings.
//!
//! Upstream: `pkg/registry/rbac/escalation_check.go`, `pkg/registry/rbac/*/policybased/storage.go`,
//! `pkg/registry/rbac/validation/{rule,policy_compact}.go` (v1.33).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Status;
use k8s_openapi::api::rbac::v1::RoleRef;
use serde::Deserialize;
use serde_json::Value;

use super::Authorizer;
use super::attributes::Attributes;
use super::rbac::{RBAC_GROUP, resource};
use super::rules::{Rule, nullable};
use crate::lookup::{items, text};
use crate::user::{PRIVILEGED_GROUP, User};

/// A write of a Role, ClusterRole, RoleBinding or ClusterRoleBinding.
pub struct Write<'a> {
    pub user: &'a Arc<User>,
    /// roles, clusterroles, rolebindings, clusterrolebindings
    pub resource: &'a str,
    pub namespace: &'a str,
    pub new: &'a Value,
    pub old: Option<&'a Value>,
}

/// 403 when the write would give away more than the writer has. Other resources pass.
pub fn check(write: &Write<'_>, authorizer: &Authorizer) -> Result<(), Status> {
    if write.user.in_group(PRIVILEGED_GROUP) || write.old.is_some_and(|old| only_bookkeeping(write.new, old)) {
        return Ok(());
    }
    match write.resource {
        "roles" | "clusterroles" => check_role(write, authorizer),
        "rolebindings" | "clusterrolebindings" => check_binding(write, authorizer),
        _ => Ok(()),
    }
}

const BOOKKEEPING: [&str; 6] = ["ownerReferences", "finalizers", "selfLink", "managedFields", "resourceVersion", "generation"];

/// Garbage collection may edit owners and finalizers of roles it could not write.
fn only_bookkeeping(new: &Value, old: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.retain(|field, _| !BOOKKEEPING.contains(&field.as_str()));
        }
        object
    };
    strip(new) == strip(old)
}

fn check_role(write: &Write<'_>, authorizer: &Authorizer) -> Result<(), Status> {
    #[derive(Deserialize)]
    struct Rules {
        #[serde(default, deserialize_with = "nullable")]
        rules: Vec<Rule>,
    }
    if may(write, "escalate", write.resource, text(write.new, "/metadata/name"), authorizer) {
        return Ok(());
    }
    let Rules { rules } = Rules::deserialize(write.new).map_err(|e| Status::bad_request(e.to_string()))?;
    confirm(write, &rules, authorizer)?;
    if has_aggregation(write.new) || write.old.is_some_and(has_aggregation) {
        check_aggregation(write, authorizer)?;
    }
    Ok(())
}

fn has_aggregation(role: &Value) -> bool {
    !items(role, "/aggregationRule/clusterRoleSelectors").is_empty()
}

/// An aggregation rule can collect anything and undo any tightening, so it takes everything.
fn check_aggregation(write: &Write<'_>, authorizer: &Authorizer) -> Result<(), Status> {
    let star = || vec!["*".to_owned()];
    let everything = [
        Rule { api_groups: star(), resources: star(), verbs: star(), ..Rule::default() },
        Rule { non_resource_urls: star(), verbs: star(), ..Rule::default() },
    ];
    let (held, _) = authorizer.rbac().rules(write.user, write.namespace);
    if missing(&held, &everything).is_empty() {
        return Ok(());
    }
    let why = "must have cluster-admin privileges to use the aggregationRule";
    Err(Status::forbidden(&resource(write.resource), text(write.new, "/metadata/name"), why))
}

fn check_binding(write: &Write<'_>, authorizer: &Authorizer) -> Result<(), Status> {
    let role = RoleRef {
        api_group: text(write.new, "/roleRef/apiGroup").to_owned(),
        kind: text(write.new, "/roleRef/kind").to_owned(),
        name: text(write.new, "/roleRef/name").to_owned(),
    };
    let plural = if role.kind == "Role" { "roles" } else { "clusterroles" };
    if may(write, "bind", plural, &role.name, authorizer) {
        return Ok(());
    }
    let rules = authorizer.rbac().referenced(&role, write.namespace).map_err(|_| Status::not_found(&resource(plural), &role.name))?;
    confirm(write, &rules, authorizer)
}

fn may(write: &Write<'_>, verb: &str, plural: &str, name: &str, authorizer: &Authorizer) -> bool {
    let attributes = Attributes {
        user: write.user.clone(),
        verb: verb.to_owned(),
        namespace: write.namespace.to_owned(),
        api_group: RBAC_GROUP.to_owned(),
        api_version: "*".to_owned(),
        resource: plural.to_owned(),
        name: name.to_owned(),
        resource_request: true,
        ..Attributes::default()
    };
    authorizer.authorize(&attributes).is_allowed()
}

fn confirm(write: &Write<'_>, wanted: &[Rule], authorizer: &Authorizer) -> Result<(), Status> {
    let (held, errors) = authorizer.rbac().rules(write.user, write.namespace);
    let missing = missing(&held, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> = compact(missing).iter().map(Rule::compact).collect();
    lines.sort();
    lines.dedup();
    let User { name, groups, .. } = &**write.user;
    let groups = groups.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(" ");
    let mut why =
        format!("user {name:?} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{}", lines.join("\n"));
    if !errors.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", super::rbac::aggregate(&errors)));
    }
    Err(Status::forbidden(&resource(write.resource), text(write.new, "/metadata/name"), why))
}

/// The single permissions in `wanted` that no rule in `held` covers.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(Rule::break_down).filter(|one| !held.iter().any(|rule| rule.covers(one))).collect()
}

/// Single permissions that differ only by verb become one rule.
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut out = Vec::new();
    let mut simple: BTreeMap<(String, String, Vec<String>), Rule> = BTreeMap::new();
    for rule in rules {
        match (rule.api_groups.as_slice(), rule.resources.as_slice()) {
            ([group], [resource]) => {
                let key = (group.clone(), resource.clone(), rule.resource_names.clone());
                match simple.get_mut(&key) {
                    Some(known) => known.verbs.extend(rule.verbs),
                    None => drop(simple.insert(key, rule)),
                }
            }
            _ => out.push(rule),
        }
    }
    out.extend(simple.into_values());
    out
}
