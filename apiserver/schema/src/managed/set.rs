//! Sets of field paths, as `managedFields` keeps them (`fieldsV1`): a trie.
//!
//! Upstream: `structured-merge-diff/fieldpath`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value, json};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// `f:name`
    Field(String),
    /// `k:{"name":"web"}`, an item of a list that is a map by these keys.
    Key(BTreeMap<String, Scalar>),
    /// `v:"x"`, an item of a list that is a set.
    Item(Scalar),
    /// `i:0`
    Index(usize),
}

/// A JSON scalar with an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar(pub Value);

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0.as_i64(), other.0.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => self.0.to_string().cmp(&other.0.to_string()),
        }
    }
}

impl Step {
    fn parse(text: &str) -> Option<Step> {
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Step::Field(rest.to_owned()),
            "v" => Step::Item(Scalar(serde_json::from_str(rest).ok()?)),
            "i" => Step::Index(rest.parse().ok()?),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).ok()?;
                Step::Key(keys.into_iter().map(|(k, v)| (k, Scalar(v))).collect())
            }
            _ => return None,
        })
    }

    fn text(&self) -> String {
        match self {
            Step::Field(name) => format!("f:{name}"),
            Step::Item(value) => format!("v:{}", value.0),
            Step::Index(i) => format!("i:{i}"),
            Step::Key(keys) => format!("k:{}", Value::Object(keys.iter().map(|(k, v)| (k.clone(), v.0.clone())).collect())),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Field(name) => write!(f, ".{name}"),
            Step::Item(value) => write!(f, "[={}]", value.0),
            Step::Index(i) => write!(f, "[{i}]"),
            Step::Key(keys) => {
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={}", v.0)).collect();
                write!(f, "[{}]", pairs.join(","))
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub members: BTreeSet<Step>,
    pub children: BTreeMap<Step, Set>,
}

impl Set {
    /// Reads `fieldsV1`; what it can't read it leaves out.
    pub fn parse(fields: &Value) -> Set {
        let mut set = Set::default();
        for (key, inner) in fields.as_object().into_iter().flatten() {
            let Some(step) = Step::parse(key) else { continue };
            let child = Set::parse(inner);
            if child.is_empty() || inner.get(".").is_some() {
                set.members.insert(step.clone());
            }
            if !child.is_empty() {
                set.children.insert(step, child);
            }
        }
        set
    }

    pub fn to_fields(&self) -> Value {
        let mut map = Map::new();
        for step in self.members.iter().chain(self.children.keys()) {
            let mut inner = self.children.get(step).map_or_else(|| json!({}), Set::to_fields);
            if self.members.contains(step) && self.children.contains_key(step) {
                inner["."] = json!({});
            }
            map.insert(step.text(), inner);
        }
        Value::Object(map)
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    pub fn insert(&mut self, path: &[Step]) {
        match path {
            [] => {}
            [last] => drop(self.members.insert(last.clone())),
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Takes out one path with all below it.
    pub fn remove(&mut self, path: &[Step]) {
        match path {
            [] => {}
            [last] => {
                self.members.remove(last);
                self.children.remove(last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(first) {
                    child.remove(rest);
                    if child.is_empty() {
                        self.children.remove(first);
                    }
                }
            }
        }
    }

    #[must_use]
    pub fn union(mut self, other: &Set) -> Set {
        self.members.extend(other.members.iter().cloned());
        for (step, child) in &other.children {
            let mine = self.children.remove(step).unwrap_or_default();
            self.children.insert(step.clone(), mine.union(child));
        }
        self
    }

    /// What is in both, path by path.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let members = self.members.intersection(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(step, child)| {
            let both = child.intersection(other.children.get(step)?);
            (!both.is_empty()).then(|| (step.clone(), both))
        });
        Set { members, children: children.collect() }
    }

    /// What is not in the other, path by path.
    #[must_use]
    pub fn difference(&self, other: &Set) -> Set {
        let members = self.members.difference(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(step, child)| {
            let rest = other.children.get(step).map_or_else(|| child.clone(), |theirs| child.difference(theirs));
            (!rest.is_empty()).then(|| (step.clone(), rest))
        });
        Set { members, children: children.collect() }
    }

    /// `.spec.containers[name="web"].image`, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.collect_paths("", &mut all);
        all
    }

    fn collect_paths(&self, prefix: &str, all: &mut Vec<String>) {
        all.extend(self.members.iter().map(|step| format!("{prefix}{step}")));
        for (step, child) in &self.children {
            child.collect_paths(&format!("{prefix}{step}"), all);
        }
    }
}
