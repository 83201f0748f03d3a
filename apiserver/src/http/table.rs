//! `meta.k8s.io/v1 Table`: what `kubectl get` prints, computed from the kind's columns.
//!
//! Upstream counterpart: `apiserver/pkg/endpoints/handlers/response.go` (`asTable`), `printers/tablegenerator.go` (v1.33).

use bytes::Bytes;
use jiff::Timestamp;
use kinds::Kind;
use serde_json::{Value, json};

use super::negotiate::MetaVersion;
use crate::registry::record::{self, Record};

/// How much of the object comes with each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn parse(text: &str) -> Self {
        match text {
            "None" => Include::None,
            "Object" => Include::Object,
            _ => Include::Metadata,
        }
    }
}

/// `[{"name":"Name","type":"string",…},…]`
pub fn definitions(kind: &Kind) -> Value {
    let column = |c: &kinds::Column| json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority});
    kind.columns.iter().map(column).collect()
}

/// One row. Cells change with the clock (ages), so rows are not kept.
/// `version` is the table's, `api_version` the object's.
pub fn row(kind: &Kind, record: &Record, include: Include, version: MetaVersion, api_version: &str, now: Timestamp) -> Bytes {
    let tree = record.value();
    let cells: Vec<Value> = kind.columns.iter().map(|column| column.render(&tree, now)).collect();
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => record::partial_metadata(&tree, version),
        Include::Object => kinds::convert(tree, api_version),
    };
    Bytes::from(record::encode(&json!({"cells": cells, "object": object})))
}

/// A Table of one row, as a watch sends it; columns come with the first only.
pub fn single(kind: &Kind, version: MetaVersion, revision: u64, row: &Bytes, with_columns: bool) -> Bytes {
    let columns = if with_columns { definitions(kind) } else { Value::Null };
    let head = format!(
        r#"{{"kind":"Table","apiVersion":"{version}","metadata":{{"resourceVersion":"{revision}"}},"columnDefinitions":{columns},"rows":["#
    );
    Bytes::from([head.as_bytes(), row, b"]}"].concat())
}
