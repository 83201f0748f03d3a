//! `go-types.txt`, read.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

#[derive(Clone, Debug, Default)]
pub struct Field {
    /// Empty for an inlined struct.
    pub json: String,
    /// Go type with packages as `core/v1.Container`, without a leading `*`.
    pub go: String,
    pub pointer: bool,
    pub omitempty: bool,
    pub inline: bool,
    pub tag: u32,
    pub strategy: String,
    pub merge_key: String,
    // From the comments:
    pub list_type: String,
    pub map_keys: Vec<String>,
    pub default: Option<String>,
    pub optional: bool,
    pub description: String,
    /// `+structType=atomic` or `+mapType=atomic`.
    pub atomic: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Type {
    /// Has TypeMeta.
    pub kind: bool,
    /// `+structType=atomic` on the type.
    pub atomic: bool,
    pub description: String,
    pub fields: Vec<Field>,
}

/// By Go name, `core/v1.Pod`.
pub type Types = BTreeMap<String, Type>;

pub fn parse(text: &str) -> Result<Types> {
    let mut types = Types::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut cells = line.split('\t');
        let first = cells.next().unwrap_or_default();
        if !first.is_empty() {
            current = first.to_owned();
            types.insert(current.clone(), Type { kind: cells.next() == Some("kind"), ..Type::default() });
            continue;
        }
        let mut next = || cells.next().unwrap_or_default().to_owned();
        let (json, go, options, tag, strategy, merge_key) = (next(), next(), next(), next(), next(), next());
        let field = Field {
            json,
            pointer: go.starts_with('*'),
            go: go.trim_start_matches('*').to_owned(),
            omitempty: options.contains('o'),
            inline: options.contains('i'),
            tag: tag.parse().with_context(|| format!("tag in {line:?}"))?,
            strategy,
            merge_key,
            ..Field::default()
        };
        types.get_mut(&current).context("a field before any type")?.fields.push(field);
    }
    Ok(types)
}

/// The element of `[]x` and `map[k]x`, or the type itself.
pub fn element(go: &str) -> &str {
    let go = go.trim_start_matches('*');
    if let Some(rest) = go.strip_prefix("[]") {
        return element(rest);
    }
    match go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        Some((_, value)) => element(value),
        None => go,
    }
}

/// The group of a Go package: `core/v1` is "", `rbac/v1` is `rbac.authorization.k8s.io`.
pub fn group_version(package: &str) -> (String, String) {
    let (group, version) = package.split_once('/').unwrap_or((package, ""));
    let full = match group {
        "core" | "meta" => "",
        "apps" | "autoscaling" | "batch" | "policy" => group,
        "admission" | "admissionregistration" | "apidiscovery" | "apiextensions" | "apiregistration" | "certificates" | "coordination" | "discovery"
        | "events" | "networking" | "node" | "scheduling" | "storage" => return (format!("{group}.k8s.io"), version.to_owned()),
        "authentication" | "authorization" | "rbac" => {
            let stem = if group == "rbac" { "rbac.authorization" } else { group };
            return (format!("{stem}.k8s.io"), version.to_owned());
        }
        "flowcontrol" => "flowcontrol.apiserver.k8s.io",
        other => other,
    };
    (full.to_owned(), version.to_owned())
}
