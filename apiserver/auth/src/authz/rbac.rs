//! Role-based access control over a compiled index: subject → grants, in the order upstream visits bindings.
//!
//! Upstream: `plugin/pkg/auth/authorizer/rbac/rbac.go`, `pkg/registry/rbac/validation/rule.go` (v1.33).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::{GroupResource, Key};
use k8s_openapi::api::rbac::v1::{RoleRef, Subject};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;

use super::attributes::{Attributes, Decision};
use super::rules::{Rule, RulesReview, nullable};
use crate::user::{User, service_account_name};

pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) fn resource(name: &str) -> GroupResource {
    GroupResource::new(RBAC_GROUP, name)
}

/// Its own copy of the roles and bindings, in the order of the store's changes: rules compiled from a cache that is
/// filled at the same time could be stale and stay so.
#[derive(Default)]
pub struct Rbac(RwLock<State>);

#[derive(Default)]
struct State {
    /// Cluster roles have no namespace, roles always do.
    roles: HashMap<Key, Arc<[Rule]>>,
    /// In upstream's order: cluster-wide ones, then by namespace and name.
    bindings: BTreeMap<Key, Binding>,
    /// Gone after a change, made again for the next question.
    compiled: Option<Arc<Index>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    role_ref: RoleRef,
    #[serde(default, deserialize_with = "nullable")]
    subjects: Vec<Subject>,
}

#[derive(Deserialize)]
struct Role {
    #[serde(default, deserialize_with = "nullable")]
    rules: Vec<Rule>,
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

/// What an object decodes to. A broken one grants nothing, loudly.
fn decode<T: for<'a> Deserialize<'a>>(plural: &str, key: &Key, value: &Value) -> Option<T> {
    T::deserialize(value).map_err(|error| tracing::error!(plural, %key, %error, "RBAC object does not decode")).ok()
}

impl Rbac {
    pub fn observe(&self, plural: &str, key: &Key, new: Option<&Value>) {
        let mut state = self.0.write();
        match plural {
            "roles" | "clusterroles" => match new.and_then(|value| decode::<Role>(plural, key, value)) {
                Some(role) => drop(state.roles.insert(key.clone(), role.rules.into())),
                None => drop(state.roles.remove(key)),
            },
            _ => match new.and_then(|value| decode::<Binding>(plural, key, value)) {
                Some(binding) => drop(state.bindings.insert(key.clone(), binding)),
                None => drop(state.bindings.remove(key)),
            },
        }
        state.compiled = None;
    }

    fn index(&self) -> Arc<Index> {
        if let Some(index) = &self.0.read().compiled {
            return index.clone();
        }
        let mut state = self.0.write();
        let index = state.compiled.take().unwrap_or_else(|| Arc::new(Index::compile(&state)));
        state.compiled = Some(index.clone());
        index
    }

    /// The rules behind a reference; the error is upstream's `… not found`.
    pub(crate) fn referenced(&self, role: &RoleRef, namespace: &str) -> Rules {
        self.0.read().referenced(role, namespace)
    }

    pub fn authorize(&self, attributes: &Attributes) -> Decision {
        let index = self.index();
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
    pub fn rules(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let index = self.index();
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for grant in index.grants(user, namespace) {
            match &grant.rules {
                Ok(granted) => rules.extend(granted.iter().cloned()),
                Err(error) => errors.push(error.clone()),
            }
        }
        (rules, errors)
    }

    pub fn rules_for(&self, user: &User, namespace: &str) -> RulesReview {
        let (rules, mut errors) = self.rules(user, namespace);
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

impl State {
    fn referenced(&self, role: &RoleRef, namespace: &str) -> Rules {
        let key = match role.kind.as_str() {
            "Role" => Key::new(namespace, role.name.clone()),
            "ClusterRole" => Key::cluster(role.name.clone()),
            kind => return Err(format!("unsupported role reference kind: {kind:?}")),
        };
        let missing = || format!("{}.{RBAC_GROUP} {:?} not found", role.kind.to_lowercase(), role.name);
        self.roles.get(&key).cloned().ok_or_else(missing)
    }
}

impl Index {
    fn compile(state: &State) -> Self {
        let mut index = Index::default();
        for (order, (key, binding)) in state.bindings.iter().enumerate() {
            let Binding { role_ref, subjects } = binding;
            let (kind, name) = match key.namespace.as_str() {
                "" => ("ClusterRoleBinding", key.name.clone()),
                namespace => ("RoleBinding", format!("{}/{namespace}", key.name)),
            };
            let source = format!("{kind} {name:?} of {} {:?}", role_ref.kind, role_ref.name);
            let rules = state.referenced(role_ref, &key.namespace);
            let scope = match key.namespace.as_str() {
                "" => &mut index.cluster,
                namespace => index.namespaces.entry(namespace.to_owned()).or_default(),
            };
            scope.add(subjects, &key.namespace, order, &source, &rules);
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
