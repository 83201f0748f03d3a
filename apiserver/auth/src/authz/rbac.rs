//! Role-based access control over a compiled index: subject → grants, in the order upstream visits bindings.
//!
//! Upstream: `plugin/pkg/auth/authorizer/rbac/rbac.go`, `pkg/registry/rbac/validation/rule.go` (v1.33).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::{GroupResource, Key};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use parking_lot::RwLock;
use serde::Deserialize;

use super::attributes::{Attributes, Decision};
use super::rules::{Rule, RulesReview, nullable};
use crate::Lookup;
use crate::lookup::LookupExt;
use crate::user::{User, service_account_name};

pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) fn resource(name: &str) -> GroupResource {
    GroupResource::new(RBAC_GROUP, name)
}

#[derive(Default)]
pub struct Rbac {
    /// Counts invalidations, so that an index compiled while objects changed is not kept.
    version: AtomicU64,
    compiled: RwLock<Option<(u64, Arc<Index>)>>,
}

/// The rules a binding gives, or why it gives none.
type Rules = Result<Arc<[Rule]>, String>;

struct Grant {
    /// Position among all bindings: cluster-wide ones first, then by name.
    order: usize,
    /// Position of the subject within its binding.
    subject: usize,
    /// `ClusterRoleBinding "x" of ClusterRole "y" to User "z"`
    source: String,
    rules: Rules,
}

#[derive(Default)]
struct Subjects {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

#[derive(Default)]
struct Index {
    cluster: Subjects,
    namespaces: HashMap<String, Subjects>,
}

impl Rbac {
    pub fn invalidate(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn index(&self, lookup: &dyn Lookup) -> Arc<Index> {
        let version = self.version.load(Ordering::SeqCst);
        if let Some((at, index)) = &*self.compiled.read()
            && *at == version
        {
            return index.clone();
        }
        let mut compiled = self.compiled.write();
        // Another thread may have compiled it while this one waited.
        if let Some((at, index)) = &*compiled
            && *at >= version
        {
            return index.clone();
        }
        let index = Arc::new(Index::compile(lookup));
        *compiled = Some((version, index.clone()));
        index
    }

    pub fn authorize(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Decision {
        let index = self.index(lookup);
        let mut errors = Vec::new();
        for grant in index.grants(&attributes.user, &attributes.namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(attributes)) => {
                    return Decision::Allow(format!("RBAC: allowed by {}", grant.source));
                }
                Ok(_) => {}
                Err(error) if !errors.contains(error) => errors.push(error.clone()),
                Err(_) => {}
            }
        }
        Decision::NoOpinion(match errors.as_slice() {
            [] => String::new(),
            errors => format!("RBAC: {}", aggregate(errors)),
        })
    }

    /// Everything a user may do in a namespace ("" = cluster-wide), and what could not be resolved.
    pub fn rules(&self, user: &User, namespace: &str, lookup: &dyn Lookup) -> (Vec<Rule>, Vec<String>) {
        let index = self.index(lookup);
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for grant in index.grants(user, namespace) {
            match &grant.rules {
                Ok(granted) => rules.extend(granted.iter().cloned()),
                Err(error) => errors.push(error.clone()),
            }
        }
        (rules, errors)
    }

    pub fn rules_for(&self, user: &User, namespace: &str, lookup: &dyn Lookup) -> RulesReview {
        let (rules, mut errors) = self.rules(user, namespace, lookup);
        let (resource_rules, non_resource_rules) = rules.into_iter().partition(|rule| !rule.resources.is_empty());
        let incomplete = user.node_name().is_some();
        if incomplete {
            errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        errors.dedup();
        let error = if errors.is_empty() { String::new() } else { aggregate(&errors) };
        RulesReview { resource_rules, non_resource_rules, incomplete, error }
    }
}

/// Upstream's error aggregate.
pub(crate) fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[derive(Deserialize, Default)]
struct Role {
    #[serde(default, deserialize_with = "nullable")]
    rules: Vec<Rule>,
}

/// The rules behind a reference; the error is upstream's `… not found`.
pub(crate) fn referenced_rules(role: &RoleRef, namespace: &str, lookup: &dyn Lookup) -> Rules {
    let (resource, key) = match role.kind.as_str() {
        "Role" => (resource("roles"), Key::new(namespace, role.name.clone())),
        "ClusterRole" => (resource("clusterroles"), Key::cluster(role.name.clone())),
        kind => return Err(format!("unsupported role reference kind: {kind:?}")),
    };
    let kind = role.kind.to_lowercase();
    let found: Role = lookup.typed(&resource, &key).ok_or_else(|| format!("{kind}.{RBAC_GROUP} {:?} not found", role.name))?;
    Ok(found.rules.into())
}

impl Index {
    fn compile(lookup: &dyn Lookup) -> Self {
        let mut index = Index::default();
        // Many bindings name the same few roles.
        let mut roles: HashMap<(String, String, String), Rules> = HashMap::new();
        let mut rules_of = |role: &RoleRef, namespace: &str| {
            let place = if role.kind == "Role" { namespace } else { "" };
            let key = (role.kind.clone(), place.to_owned(), role.name.clone());
            roles.entry(key).or_insert_with(|| referenced_rules(role, namespace, lookup)).clone()
        };
        let mut order = 0;
        for binding in lookup.typed_list::<ClusterRoleBinding>(&resource("clusterrolebindings"), None) {
            let name = binding.metadata.name.unwrap_or_default();
            let source = format!("ClusterRoleBinding {name:?} of {} {:?}", binding.role_ref.kind, binding.role_ref.name);
            let rules = rules_of(&binding.role_ref, "");
            index.cluster.add(&binding.subjects.unwrap_or_default(), "", order, &source, &rules);
            order += 1;
        }
        for binding in lookup.typed_list::<RoleBinding>(&resource("rolebindings"), None) {
            let namespace = binding.metadata.namespace.unwrap_or_default();
            let name = format!("{}/{namespace}", binding.metadata.name.unwrap_or_default());
            let source = format!("RoleBinding {name:?} of {} {:?}", binding.role_ref.kind, binding.role_ref.name);
            let rules = rules_of(&binding.role_ref, &namespace);
            let subjects = index.namespaces.entry(namespace.clone()).or_default();
            subjects.add(&binding.subjects.unwrap_or_default(), &namespace, order, &source, &rules);
            order += 1;
        }
        index
    }

    /// What applies to a user in a namespace, each binding once, in order.
    fn grants<'a>(&'a self, user: &User, namespace: &str) -> Vec<&'a Grant> {
        let scopes = [Some(&self.cluster), (!namespace.is_empty()).then(|| self.namespaces.get(namespace)).flatten()];
        let mut found: Vec<&Grant> = Vec::new();
        for scope in scopes.into_iter().flatten() {
            found.extend(scope.users.get(&user.name).into_iter().flatten());
            found.extend(user.groups.iter().filter_map(|group| scope.groups.get(group)).flatten());
        }
        found.sort_by_key(|grant| (grant.order, grant.subject));
        found.dedup_by_key(|grant| grant.order);
        found
    }
}

impl Subjects {
    fn add(&mut self, subjects: &[Subject], namespace: &str, order: usize, source: &str, rules: &Rules) {
        for (position, subject) in subjects.iter().enumerate() {
            let home = subject.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
            let (map, key, shown) = match subject.kind.as_str() {
                "User" => (&mut self.users, subject.name.clone(), subject.name.clone()),
                "Group" => (&mut self.groups, subject.name.clone(), subject.name.clone()),
                "ServiceAccount" if !home.is_empty() => {
                    (&mut self.users, service_account_name(home, &subject.name), format!("{}/{home}", subject.name))
                }
                _ => continue,
            };
            let source = format!("{source} to {} {shown:?}", subject.kind);
            map.entry(key).or_default().push(Grant { order, subject: position, source, rules: rules.clone() });
        }
    }
}
