//! One revision of one object: an index to select by, and the bytes to send.
//!
//! The stored JSON has no `metadata.resourceVersion`; it is spliced in once, when the revision is known, and from then on GET, LIST
//! and WATCH send the same bytes. Other forms (another served version, metadata only, protobuf) are made when asked for; those of a
//! change are kept for a while, so that one encoding serves all who watch it.
//! A record never changes. Upstream counterpart: `apiserver/pkg/storage/cacher` keeps decoded objects and encodes per client.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow};
use api::key::{Gvk, Key, api_version};

use bytes::Bytes;
use kinds::Kind;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What of an object a client asked for, in which group and version, and how encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub group: &'static str,
    pub version: &'static str,
    /// Metadata only, as `PartialObjectMetadata` of this version of `meta.k8s.io`.
    pub metadata: Option<&'static str>,
    pub protobuf: bool,
}

impl Form {
    /// The form in which objects of `kind` are stored.
    pub fn stored(kind: &Kind) -> Self {
        Form { group: kind.group, version: kind.storage_version, metadata: None, protobuf: false }
    }
}

pub struct Record {
    pub kind: &'static Kind,
    pub key: Key,
    pub revision: u64,
    pub uid: Box<str>,
    /// By key. A map would take half a kilobyte for the first of them.
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the table's order.
    fields: Box<[String]>,
    json: Bytes,
    /// Where the revision's digits stand in `json`.
    digits: Range<usize>,
    forms: Mutex<Vec<(Form, Bytes)>>,
    tree: OnceLock<Arc<Value>>,
}

impl Record {
    /// Index `stored` as what was written at `revision`. Errors: not JSON, or not an object with metadata.
    pub fn new(kind: &'static Kind, key: Key, revision: u64, stored: &[u8]) -> anyhow::Result<Self> {
        let tree: Value = serde_json::from_slice(stored).with_context(|| format!("decoding {} {key}", kind.plural))?;
        Record::of_tree(kind, key, revision, stored, &tree)
    }

    /// The same, for bytes that are already parsed. Revision 0 (a dry run) leaves `resourceVersion` out.
    pub fn of_tree(kind: &'static Kind, key: Key, revision: u64, stored: &[u8], tree: &Value) -> anyhow::Result<Self> {
        let (json, digits) = splice(stored, revision)?;
        let meta = &tree["metadata"];
        let labels = meta["labels"]
            .as_object()
            .map(|labels| labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().unwrap_or_default().into())).collect());
        Ok(Record {
            kind,
            key,
            revision,
            uid: meta["uid"].as_str().unwrap_or_default().into(),
            labels: labels.unwrap_or_default(),
            fields: kind.fields.iter().map(|field| field.value(tree).into_owned()).collect(),
            json,
            digits,
            forms: Mutex::default(),
            tree: OnceLock::new(),
        })
    }

    /// The same object's bytes under another revision: what a DELETED event carries.
    pub fn at_revision(&self, revision: u64) -> Self {
        let (head, tail) = (&self.json[..self.digits.start], &self.json[self.digits.end..]);
        let digits = revision.to_string();
        let json = Bytes::from([head, digits.as_bytes(), tail].concat());
        Record {
            kind: self.kind,
            key: self.key.clone(),
            revision,
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            json,
            digits: self.digits.start..self.digits.start + digits.len(),
            forms: Mutex::default(),
            tree: OnceLock::new(),
        }
    }

    /// The object in the storage version, `resourceVersion` included.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// A fresh tree to work on.
    pub fn value(&self) -> Value {
        // The bytes were parsed when the record was made, so they parse again.
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }

    /// A shared tree, kept for the few kinds that every request consults (roles, namespaces …).
    pub fn shared_value(&self) -> Arc<Value> {
        if !kept_as_tree(self.kind) {
            return Arc::new(self.value());
        }
        self.tree.get_or_init(|| Arc::new(self.value())).clone()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, value)| &**value)
    }

    pub fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.key.name),
            "metadata.namespace" => Some(&self.key.namespace),
            _ => {
                let at = self.kind.fields.iter().position(|field| field.field == path)?;
                Some(&self.fields[at])
            }
        }
    }

    /// The bytes of a form, for this answer only.
    pub fn form(&self, form: Form) -> Bytes {
        if form == Form::stored(self.kind) {
            return self.json.clone();
        }
        let kept = self.forms.lock().iter().find(|(f, _)| *f == form).map(|(_, bytes)| bytes.clone());
        kept.unwrap_or_else(|| self.make(form))
    }

    /// The bytes of a form that others will ask for at once: made by the first, and kept until [`Record::forget_forms`].
    pub fn shared_form(&self, form: Form) -> Bytes {
        if form == Form::stored(self.kind) {
            return self.json.clone();
        }
        let mut forms = self.forms.lock();
        if let Some((_, bytes)) = forms.iter().find(|(f, _)| *f == form) {
            return bytes.clone();
        }
        let bytes = self.make(form);
        forms.push((form, bytes.clone()));
        bytes
    }

    pub fn forget_forms(&self) {
        *self.forms.lock() = Vec::new();
    }

    fn make(&self, form: Form) -> Bytes {
        let tree = project(self.value(), form);
        Bytes::from(if form.protobuf { encode_protobuf(&tree) } else { encode(&tree) })
    }
}

/// Kinds that authorization and admission read on nearly every request.
fn kept_as_tree(kind: &Kind) -> bool {
    const HOT: [&str; 5] = ["namespaces", "serviceaccounts", "priorityclasses", "storageclasses", "runtimeclasses"];
    kind.group == "rbac.authorization.k8s.io" || HOT.contains(&kind.plural)
}

/// A storage-version tree in the asked form.
pub fn project(tree: Value, form: Form) -> Value {
    match form.metadata {
        Some(version) => partial_metadata(&tree, version),
        None => kinds::convert(tree, &api_version(form.group, form.version)),
    }
}

/// `PartialObjectMetadata` of an object. `version`: of `meta.k8s.io`.
pub fn partial_metadata(tree: &Value, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": tree["metadata"]})
}

/// A tree that says its kind, in protobuf with its envelope.
pub fn encode_protobuf(tree: &Value) -> Vec<u8> {
    let gvk = Gvk::from_api_version(tree["apiVersion"].as_str().unwrap_or_default(), tree["kind"].as_str().unwrap_or_default());
    schema::encode_protobuf(&gvk, tree)
}

pub fn encode(tree: &Value) -> Vec<u8> {
    // A `Value` has string keys only, so serializing it to memory can't fail.
    serde_json::to_vec(tree).unwrap_or_default()
}

/// `stored` with `"resourceVersion":"<revision>"` as the first member of `metadata`, and where the digits stand.
pub fn splice(stored: &[u8], revision: u64) -> anyhow::Result<(Bytes, Range<usize>)> {
    let open = metadata_start(stored).ok_or_else(|| anyhow!("no metadata in the stored object"))?;
    if revision == 0 {
        return Ok((Bytes::copy_from_slice(stored), open..open));
    }
    let digits = revision.to_string();
    let head = b"\"resourceVersion\":\"";
    let empty = stored.get(open) == Some(&b'}');
    let mut out = Vec::with_capacity(stored.len() + head.len() + digits.len() + 2);
    out.extend_from_slice(&stored[..open]);
    out.extend_from_slice(head);
    let start = out.len();
    out.extend_from_slice(digits.as_bytes());
    out.extend_from_slice(if empty { b"\"" } else { b"\"," });
    out.extend_from_slice(&stored[open..]);
    Ok((Bytes::from(out), start..start + digits.len()))
}

/// The offset just behind the `{` of the top-level `metadata` of compact JSON.
fn metadata_start(json: &[u8]) -> Option<usize> {
    const NEEDLE: &[u8] = b"\"metadata\":{";
    let (mut depth, mut at) = (0usize, 0usize);
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                if depth == 1 && json[at..].starts_with(NEEDLE) {
                    return Some(at + NEEDLE.len());
                }
                at = end_of_string(json, at)?;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The offset of the quote that closes the string opened at `at`.
fn end_of_string(json: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match json.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at),
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_goes_into_the_objects_own_metadata() {
        let cases = [
            (
                r#"{"a":{"metadata":{"x":1}},"metadata":{"name":"n"}}"#,
                r#"{"a":{"metadata":{"x":1}},"metadata":{"resourceVersion":"7","name":"n"}}"#,
            ),
            (r#"{"data":{"k":"\"metadata\":{"},"metadata":{}}"#, r#"{"data":{"k":"\"metadata\":{"},"metadata":{"resourceVersion":"7"}}"#),
        ];
        for (stored, expected) in cases {
            let (json, digits) = splice(stored.as_bytes(), 7).unwrap();
            assert_eq!(json, expected.as_bytes());
            assert_eq!(&json[digits], b"7");
        }
        assert!(splice(b"[]", 7).is_err());
    }
}
