//! Walks over an object along its type: the set of its fields, the difference of two, their merge, and what to take out.
//!
//! Maps and structs are granular unless marked atomic; lists are atomic unless they are sets or maps by keys.
//! Upstream: `structured-merge-diff/typed` (`tofieldset.go`, `compare.go`, `merge.go`, `remove.go`).

use serde_json::{Map, Value};

use super::set::{Scalar, Set, Step};
use crate::types::{Kind, ListType, Type};

/// What is known of a value.
#[derive(Clone, Copy, Debug)]
pub enum Node {
    Of {
        kind: Kind,
        list: ListType,
        atomic: bool,
    },
    /// Custom resources: objects are granular, lists atomic.
    Untyped,
}

enum Shape {
    Leaf,
    Map,
    List,
}

impl Node {
    pub fn root(t: Option<&'static Type>) -> Node {
        let index = t.and_then(|t| crate::types::TYPES.iter().position(|known| std::ptr::eq(known, t)));
        index.map_or(Node::Untyped, |i| Node::of(Kind::Struct(i as u16)))
    }

    fn of(kind: Kind) -> Node {
        Node::Of { kind, list: ListType::Unset, atomic: false }
    }

    fn shape(self, value: &Value) -> Shape {
        match (self, value) {
            (Node::Untyped, Value::Object(_)) => Shape::Map,
            (Node::Untyped, _) | (Node::Of { atomic: true, .. }, _) => Shape::Leaf,
            (Node::Of { kind, .. }, Value::Object(_) | Value::Null) if kind.as_struct().is_some_and(|t| !t.atomic) => Shape::Map,
            (Node::Of { kind: Kind::Map(_), .. }, Value::Object(_) | Value::Null) => Shape::Map,
            (Node::Of { kind: Kind::List(_), list: ListType::Set | ListType::Map(_), .. }, Value::Array(_) | Value::Null) => Shape::List,
            _ => Shape::Leaf,
        }
    }

    /// The node of a field, and whether the type declares it (a struct's field, not a map's key).
    pub fn field(self, name: &str) -> (Node, bool) {
        match self {
            Node::Untyped => (Node::Untyped, false),
            Node::Of { kind: Kind::Map(element), .. } => (Node::of(*element), false),
            Node::Of { kind, .. } => match kind.as_struct().and_then(|t| t.field(name)) {
                Some(f) => (Node::Of { kind: f.kind, list: f.list, atomic: f.atomic }, true),
                None => (Node::of(Kind::String), true),
            },
        }
    }

    pub fn item(self) -> Node {
        match self {
            Node::Of { kind: Kind::List(element), .. } => Node::of(*element),
            other => other,
        }
    }

    /// Which item of the list this is.
    pub fn step(self, index: usize, item: &Value) -> Step {
        let Node::Of { kind, list: ListType::Map(keys), .. } = self else {
            return if matches!(self, Node::Of { list: ListType::Set, .. }) {
                Step::Item(Scalar(item.clone()))
            } else {
                Step::Index(index)
            };
        };
        let default = |key: &str| {
            let field = kind.innermost()?.field(key)?;
            serde_json::from_str(field.default?).ok()
        };
        let key = |key: &&str| Some(((*key).to_owned(), Scalar(item.get(*key).cloned().or_else(|| default(key))?)));
        Step::Key(keys.iter().filter_map(key).collect())
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn find<'a>(node: Node, list: &'a Value, step: &Step) -> Option<&'a Value> {
    items(list).iter().enumerate().find(|(i, item)| node.step(*i, item) == *step).map(|(_, item)| item)
}

/// The fields an applied configuration speaks of.
pub fn fields(node: Node, value: &Value) -> Set {
    let (mut set, mut path) = (Set::default(), Vec::new());
    collect(node, value, &mut path, &mut set);
    set
}

fn collect(node: Node, value: &Value, path: &mut Vec<Step>, set: &mut Set) {
    match node.shape(value) {
        Shape::Leaf => set.insert(path),
        Shape::Map => {
            for (name, value) in value.as_object().into_iter().flatten() {
                let (child, declared) = node.field(name);
                path.push(Step::Field(name.clone()));
                collect(child, value, path, set);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || (!declared && !matches!(node, Node::Untyped)) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Shape::List => {
            for (i, item) in items(value).iter().enumerate() {
                path.push(node.step(i, item));
                collect(node.item(), item, path, set);
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// What changed from one object to another.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Added or modified.
    pub changed: Set,
    pub removed: Set,
}

pub fn compare(node: Node, old: &Value, new: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    difference(node, Some(old), Some(new), &mut Vec::new(), &mut comparison);
    comparison
}

fn difference(node: Node, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<Step>, out: &mut Comparison) {
    match (old, new) {
        (Some(old), Some(new)) if old == new => return,
        (None, Some(Value::Null) | None) | (Some(Value::Null), None) => return,
        (None, Some(_)) => out.changed.insert(path),
        (Some(_), None) => out.removed.insert(path),
        (Some(_), Some(_)) => {}
    }
    let null = Value::Null;
    let (before, after) = (old.unwrap_or(&null), new.unwrap_or(&null));
    match (node.shape(before), node.shape(after)) {
        (Shape::Map, Shape::Map) => {
            let names = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
            for name in names(before).into_iter().chain(names(after).into_iter().filter(|name| before.get(name).is_none())) {
                let (old, new) = (before.get(&name), after.get(&name));
                let child = node.field(&name).0;
                path.push(Step::Field(name));
                difference(child, old, new, path, out);
                path.pop();
            }
        }
        (Shape::List, Shape::List) => {
            let steps = |value: &Value| items(value).iter().enumerate().map(|(i, item)| node.step(i, item)).collect::<Vec<_>>();
            let before_steps = steps(before);
            let added = steps(after).into_iter().filter(|step| !before_steps.contains(step)).collect::<Vec<_>>();
            for step in before_steps.iter().chain(&added) {
                path.push(step.clone());
                difference(node.item(), find(node, before, step), find(node, after, step), path, out);
                path.pop();
            }
        }
        _ if old.is_some() && new.is_some() => out.changed.insert(path),
        _ => {}
    }
}

/// The live object with the applied configuration laid over it.
pub fn merge(node: Node, live: Option<&Value>, applied: &Value) -> Value {
    let Some(live) = live.filter(|live| !live.is_null()) else { return applied.clone() };
    match (node.shape(live), node.shape(applied)) {
        (Shape::Map, Shape::Map) if applied.is_object() => {
            let mut merged = live.as_object().cloned().unwrap_or_default();
            for (name, value) in applied.as_object().into_iter().flatten() {
                let value = merge(node.field(name).0, live.get(name), value);
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::List, Shape::List) if applied.is_array() => merge_list(node, live, applied),
        _ => applied.clone(),
    }
}

/// Items of both, in the applied order where it says one; the live object's own keep their places.
fn merge_list(node: Node, live: &Value, applied: &Value) -> Value {
    let steps = |value: &Value| items(value).iter().enumerate().map(|(i, item)| node.step(i, item)).collect::<Vec<_>>();
    let (left, right) = (steps(live), steps(applied));
    let mut merged = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() {
            if !right.contains(&left[l]) {
                merged.push(items(live)[l].clone());
                l += 1;
                continue;
            }
            // Shared: it comes when the applied list reaches it.
            if r >= right.len() || left[l] != right[r] || right[..r].contains(&left[l]) {
                l += 1;
                continue;
            }
        }
        if r < right.len() {
            merged.push(merge(node.item(), find(node, live, &right[r]), &items(applied)[r]));
            l += usize::from(l < left.len() && left[l] == right[r]);
            r += 1;
        }
    }
    Value::Array(merged)
}

/// Takes out what was applied before (`last`) and that nobody (`owned`) speaks of any more.
pub fn prune(node: Node, value: &mut Value, last: &Set, owned: &Set) {
    let gone = |step: &Step| last.members.contains(step) && !owned.members.contains(step) && !owned.children.contains_key(step);
    let below = |step: &Step| last.children.get(step).map(|child| (child, owned.children.get(step).cloned().unwrap_or_default()));
    match value {
        Value::Object(map) => {
            let names: Vec<String> = map.keys().cloned().collect();
            for name in names {
                let step = Step::Field(name.clone());
                if gone(&step) {
                    map.remove(&name);
                } else if let (Some((last, owned)), Some(inner)) = (below(&step), map.get_mut(&name)) {
                    let held = !is_empty(inner);
                    prune(node.field(&name).0, inner, last, &owned);
                    if held && is_empty(inner) && owned.is_empty() {
                        map.remove(&name);
                    }
                }
            }
        }
        Value::Array(list) => {
            let steps: Vec<Step> = list.iter().enumerate().map(|(i, item)| node.step(i, item)).collect();
            let mut kept = Vec::with_capacity(list.len());
            for (step, mut item) in steps.into_iter().zip(std::mem::take(list)) {
                if gone(&step) {
                    continue;
                }
                if let Some((last, owned)) = below(&step) {
                    prune(node.item(), &mut item, last, &owned);
                }
                kept.push(item);
            }
            *list = kept;
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
