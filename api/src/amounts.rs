//! Sums of resource amounts: what LimitRanger bounds and ResourceQuota counts.
//!
//! Upstream: `component-helpers/resource/helpers.go`, `apiserver/pkg/quota/v1/resources.go` (v1.33).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Quantity;
use crate::tree::{items, text};

pub type Amounts = BTreeMap<String, Quantity>;

/// A ResourceList at a pointer. Amounts that do not parse were refused by validation before.
pub fn amounts(object: &Value, pointer: &str) -> Amounts {
    let map = object.pointer(pointer).and_then(Value::as_object);
    let parse = |(name, value): (&String, &Value)| Some((name.clone(), quantity(value)?));
    map.into_iter().flatten().filter_map(parse).collect()
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        match to.get_mut(name) {
            Some(held) => *held += *amount,
            None => drop(to.insert(name.clone(), *amount)),
        }
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if to.get(name).is_none_or(|held| held < amount) {
            to.insert(name.clone(), *amount);
        }
    }
}

/// What a pod needs of `requests` or `limits`: its containers together, or more if an init container needs more.
/// A restartable init container (sidecar) runs beside everything after it.
pub fn of_pod(pod: &Value, which: &str) -> Amounts {
    let of = |container: &Value| amounts(container, &format!("/resources/{which}"));
    let mut total = Amounts::new();
    items(pod, "/spec/containers").iter().for_each(|container| add(&mut total, &of(container)));
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in items(pod, "/spec/initContainers") {
        let own = of(container);
        let mut at_once = sidecars.clone();
        add(&mut at_once, &own);
        if text(container, "/restartPolicy") == "Always" {
            add(&mut total, &own);
            sidecars = at_once.clone();
        }
        raise(&mut peak, &at_once);
    }
    raise(&mut total, &peak);
    total
}
