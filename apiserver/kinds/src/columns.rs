//! What `kubectl get` prints, by area: each column a name and a pure function of the object and the time.
//!
//! Upstream: `pkg/printers/internalversion/printers.go` (v1.33).

use jiff::Timestamp;
use serde_json::Value;

use crate::Column;
use crate::value::{int, list, map, text};

pub mod core;
pub mod network;
pub mod pod;
pub mod policy;
pub mod storage;
pub mod workload;

/// For kinds without columns of their own.
pub const PLAIN: &[Column] = &[NAME, CREATED_AT];

pub(crate) const NAME: Column = Column {
    format: "name",
    description: "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
    ..string("Name", |object, _| text(object, "/metadata/name").into())
};

const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

pub(crate) const AGE: Column =
    Column { description: CREATED, ..string("Age", |object, now| since(object, "/metadata/creationTimestamp", now).into()) };

/// The creation time itself, which kubectl turns into an age for kinds served by definition.
pub(crate) const CREATED_AT: Column =
    Column { kind: "date", description: CREATED, ..string("Created At", |object, _| text(object, "/metadata/creationTimestamp").into()) };

pub(crate) const fn string(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, kind: "string", format: "", description: "", priority: 0, cell }
}

pub(crate) const fn integer(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { kind: "integer", ..string(name, cell) }
}

pub(crate) const fn boolean(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    Column { kind: "boolean", ..string(name, cell) }
}

/// Shown with `-o wide` only.
pub(crate) const fn wide(column: Column) -> Column {
    Column { priority: 1, ..column }
}

/// The time since the timestamp at `pointer`, as an age; `<unknown>` if there is none.
pub(crate) fn since(object: &Value, pointer: &str, now: Timestamp) -> String {
    text(object, pointer).parse().map_or_else(|_| "<unknown>".to_owned(), |then: Timestamp| human(seconds(then, now)))
}

/// Whole seconds from `then` to `now`.
pub(crate) fn seconds(then: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(then).as_secs()
}

/// A duration in at most two units, coarser the longer: upstream's `duration.HumanDuration`.
pub fn human(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(hours / 24, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{}d", hours / 24),
        63_072_000..252_288_000 => pair(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// `a=b,c=d` in key order, `<none>` if empty: Go's `labels.FormatLabels`.
pub(crate) fn labels(object: &Value, pointer: &str) -> String {
    let joined = map(object, pointer)
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or("")))
        .collect::<Vec<_>>()
        .join(",");
    or_none(joined)
}

/// Go's `metav1.FormatLabelSelector`.
pub(crate) fn label_selector(object: &Value, pointer: &str) -> String {
    let selector = object.pointer(pointer).filter(|value| !value.is_null());
    let parsed = selector.map(crate::value::typed).transpose();
    match parsed.map(|selector| api::LabelSelector::from_k8s(selector.as_ref())) {
        Ok(Ok(selector)) => or_none(if selector.is_everything() { String::new() } else { selector.to_string() }),
        _ => "<error>".to_owned(),
    }
}

pub(crate) fn or_none(text: String) -> String {
    or(text, "<none>")
}

pub(crate) fn or(text: String, placeholder: &str) -> String {
    if text.is_empty() { placeholder.to_owned() } else { text }
}

/// `field` of every element at `pointer`, comma-separated.
pub(crate) fn join(object: &Value, pointer: &str, field: &str) -> String {
    list(object, pointer).iter().map(|item| text(item, field)).collect::<Vec<_>>().join(",")
}

/// The integer at `pointer`, `<unset>` if absent.
pub(crate) fn int_or_unset(object: &Value, pointer: &str) -> String {
    if crate::value::is_set(object, pointer) { int(object, pointer).to_string() } else { "<unset>".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_coarsen() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (130, "2m10s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
