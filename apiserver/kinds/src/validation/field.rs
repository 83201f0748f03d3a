//! Checks many kinds share.

use std::collections::BTreeMap;

use api::Quantity;
use api::field::{Error, ErrorList, Path};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use api::names;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::meta::IMMUTABLE;
use crate::value::typed;

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const POSITIVE: &str = "must be greater than 0";

/// Checks the typed form of an object. Types were checked when it was decoded, so a failure here is our fault.
pub fn with<T: DeserializeOwned>(object: &Value, check: impl FnOnce(&T) -> ErrorList) -> ErrorList {
    match typed(object) {
        Ok(object) => check(&object),
        Err(error) => vec![Error::internal(&Path::nil(), error)],
    }
}

/// Checks the typed forms of a replacement and what it replaces.
pub fn with_both<T: DeserializeOwned>(new: &Value, old: &Value, check: impl FnOnce(&T, &T) -> ErrorList) -> ErrorList {
    with(new, |new: &T| with(old, |old: &T| check(new, old)))
}

pub fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// One error per message.
pub fn invalid(path: &Path, value: &str, messages: Vec<String>) -> ErrorList {
    messages.into_iter().map(|message| Error::invalid(path, value, message)).collect()
}

pub fn non_negative(path: &Path, value: i64) -> ErrorList {
    if value < 0 { vec![Error::invalid(path, value, NOT_NEGATIVE)] } else { Vec::new() }
}

pub fn non_negative_opt(path: &Path, value: Option<impl Into<i64>>) -> ErrorList {
    value.map_or(Vec::new(), |value| non_negative(path, value.into()))
}

pub fn immutable<T: Serialize + PartialEq>(path: &Path, new: &T, old: &T) -> ErrorList {
    if new == old { Vec::new() } else { vec![Error::invalid(path, json(new), IMMUTABLE)] }
}

/// `Required` if empty, `Unsupported` if not one of `supported`.
pub fn one_of(path: &Path, value: Option<&str>, supported: &[&str]) -> ErrorList {
    match value.unwrap_or("") {
        "" => vec![Error::required(path, "")],
        value if supported.contains(&value) => Vec::new(),
        value => vec![Error::not_supported(path, value, supported)],
    }
}

/// The same, where absence is fine.
pub fn optional_one_of(path: &Path, value: Option<&str>, supported: &[&str]) -> ErrorList {
    value.map_or(Vec::new(), |value| match supported.contains(&value) {
        true => Vec::new(),
        false => vec![Error::not_supported(path, value, supported)],
    })
}

pub fn required(path: &Path, value: &str) -> ErrorList {
    if value.is_empty() { vec![Error::required(path, "")] } else { Vec::new() }
}

pub fn port(path: &Path, port: i64) -> ErrorList {
    names::is_valid_port_num(port).into_iter().map(|message| Error::invalid(path, port, message)).collect()
}

pub fn port_or_name(path: &Path, port: &IntOrString) -> ErrorList {
    match port {
        IntOrString::Int(number) => self::port(path, i64::from(*number)),
        IntOrString::String(name) => invalid(path, name, names::is_valid_port_name(name)),
    }
}

pub fn labels(path: &Path, labels: Option<&BTreeMap<String, String>>) -> ErrorList {
    let mut errors = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        errors.extend(invalid(path, key, names::is_qualified_name(key)));
        errors.extend(invalid(path, value, names::is_valid_label_value(value)));
    }
    errors
}

pub fn label_selector(path: &Path, selector: Option<&LabelSelector>) -> ErrorList {
    let Some(selector) = selector else { return Vec::new() };
    let mut errors = labels(&path.child("matchLabels"), selector.match_labels.as_ref());
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(Error::required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(Error::forbidden(&path.child("values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
        errors.extend(invalid(&path.child("key"), &requirement.key, names::is_qualified_name(&requirement.key)));
        for (index, value) in values.iter().enumerate() {
            errors.extend(invalid(&path.child("values").index(index), value, names::is_valid_label_value(value)));
        }
    }
    errors
}

/// The selector in working order; `None` if there is something wrong with it.
pub fn parsed_selector(selector: Option<&LabelSelector>) -> Option<api::LabelSelector> {
    let valid = label_selector(&Path::nil(), selector).is_empty();
    if valid { api::LabelSelector::from_k8s(selector).ok() } else { None }
}

pub fn is_empty_selector(selector: Option<&LabelSelector>) -> bool {
    selector.is_none_or(|selector| {
        selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty) && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
    })
}

/// Quantities are canonical by now; one that does not parse was refused by the decoder.
pub fn quantity(quantity: &K8sQuantity) -> Quantity {
    Quantity::parse(&quantity.0).unwrap_or_else(|_| Quantity::from_value(0))
}

/// A count, or a percentage written as a string.
pub fn positive_int_or_percent(path: &Path, value: &IntOrString) -> ErrorList {
    match value {
        IntOrString::String(text) => invalid(path, text, names::is_valid_percent(text)),
        IntOrString::Int(number) => non_negative(path, i64::from(*number)),
    }
}

pub fn not_over_100_percent(path: &Path, value: &IntOrString) -> ErrorList {
    match percent(value) {
        Some(percent) if percent > 100 => vec![Error::invalid(path, json(value), "must not be greater than 100%")],
        _ => Vec::new(),
    }
}

pub fn percent(value: &IntOrString) -> Option<i64> {
    match value {
        IntOrString::String(text) => text.strip_suffix('%')?.parse().ok(),
        IntOrString::Int(_) => None,
    }
}

/// A number, or a percentage's number.
pub fn int_or_percent_value(value: &IntOrString) -> i64 {
    match value {
        IntOrString::Int(number) => i64::from(*number),
        text => percent(text).unwrap_or(0),
    }
}
