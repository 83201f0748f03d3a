//! One RBAC rule and what it covers.
//!
//! Upstream: `pkg/apis/rbac/v1/evaluation_helpers.go`, `component-helpers/auth/rbac/validation/{rule,policy_comparator}.go`.

use serde::{Deserialize, Serialize};

use super::attributes::Attributes;

/// `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub verbs: Vec<String>,
}

/// Go writes an empty list as null.
pub(crate) fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

fn has_or_star(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted || item == "*")
}

impl Rule {
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has_or_star(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.resource_request {
            return self.covers_url(&attributes.path);
        }
        has_or_star(&self.api_groups, &attributes.api_group)
            && self.covers_resource(&attributes.resource, &attributes.subresource)
            && (self.resource_names.is_empty() || has(&self.resource_names, &attributes.name))
    }

    /// `*` is everything, `pods` only itself, `pods/exec` that subresource, `*/scale` the subresource of anything.
    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            if rule == "*" {
                return true;
            }
            match (rule.split_once('/'), subresource) {
                (None, "") => rule == resource,
                (Some((r, s)), sub) if !sub.is_empty() => s == sub && (r == resource || r == "*"),
                _ => false,
            }
        })
    }

    /// `/healthz/*` covers what begins with `/healthz/`.
    pub fn covers_url(&self, path: &str) -> bool {
        self.non_resource_urls
            .iter()
            .any(|rule| rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix)))
    }

    /// Whether everything `other` grants, this grants. Both name one thing at most (see [`Rule::break_down`]).
    pub fn covers(&self, other: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| has(mine, "*") || theirs.iter().all(|t| has(mine, t));
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty() && other.resource_names.iter().all(|n| has(&self.resource_names, n)));
        let resources = has(&self.resources, "*")
            || other.resources.iter().all(|r| {
                has(&self.resources, r)
                    || r.split_once('/').is_some_and(|(_, sub)| self.resources.iter().any(|mine| mine.strip_prefix("*/") == Some(sub)))
            });
        let urls = other.non_resource_urls.iter().all(|url| self.covers_url(url));
        all(&self.verbs, &other.verbs) && all(&self.api_groups, &other.api_groups) && resources && urls && names
    }

    /// One rule per (group, resource, verb, name) and (URL, verb).
    pub fn break_down(&self) -> Vec<Rule> {
        let one = |item: &String| vec![item.clone()];
        let mut out = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let base = Rule { api_groups: one(group), resources: one(resource), verbs: one(verb), ..Rule::default() };
                    if self.resource_names.is_empty() {
                        out.push(base.clone());
                    }
                    out.extend(self.resource_names.iter().map(|n| Rule { resource_names: one(n), ..base.clone() }));
                }
            }
        }
        for url in &self.non_resource_urls {
            out.extend(self.verbs.iter().map(|v| Rule { non_resource_urls: one(url), verbs: one(v), ..Rule::default() }));
        }
        out
    }

    /// As refusals print it: `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`.
    pub fn compact(&self) -> String {
        let parts: Vec<String> = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:[{}]", list.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>().join(" ")))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// The answer to SelfSubjectRulesReview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesReview {
    pub resource_rules: Vec<Rule>,
    pub non_resource_rules: Vec<Rule>,
    pub incomplete: bool,
    pub error: String,
}
