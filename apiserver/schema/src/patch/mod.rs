//! The three kinds of patch.
//!
//! Upstream: `apiserver/pkg/endpoints/handlers/patch.go`; codes and messages are its own.

mod json;
pub mod strategic;

use api::key::{GroupKind, Gvk};
use api::status::{Details, Reason};
use api::{Status, field};
use serde_json::Value;

use crate::decode::{self, FieldValidation, Words};
use crate::types::{Kind, Type, lookup};
use strategic::{FieldShape, PatchError, Shape};

/// Operations that one JSON patch may have.
const MAX_OPERATIONS: usize = 10_000;

/// RFC 6902. Errors: 400 for what is no JSON patch, 413 for too many operations, 422 for one that does not apply.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), Status> {
    let operations = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(other) = operations.iter().find(|operation| !operation.is_object() && !operation.is_null()) {
        let why = format!("json: cannot unmarshal {} into Go value of type jsonpatch.Operation", decode::json_type(other));
        return Err(Status::bad_request(why));
    }
    let count = operations.len();
    if count > MAX_OPERATIONS {
        return Err(Status::too_large(format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}")));
    }
    json::apply(object, operations).ok_or_else(unprocessable)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

/// The patched object, checked against its type and normalized, and warnings.
///
/// Errors as upstream's for each type of patch: 400 for a patch that can't be read, 422 `Invalid` on `patch` for a result that is no `gvk`.
pub fn apply(
    gvk: &Gvk,
    object: &Value,
    patch_type: PatchType,
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let (patch, mut noted) = decode::free_form(body).and_then(|read| of_form(read, patch_type)).map_err(|why| match patch_type {
        PatchType::Strategic => Status::bad_request(why),
        _ => Status::bad_request(format!("error decoding patch: {why}")),
    })?;
    if patch_type == PatchType::Strategic {
        let patched = strategic(gvk, object, &patch)?;
        return decode::check_patched(patched, gvk, Words::Converter, noted, validation).map_err(|why| invalid(go_map(&patch), why));
    }
    let mut patched = object.clone();
    if patch_type == PatchType::Json {
        json(&mut patched, &patch)?;
        noted.iter_mut().for_each(|fault| *fault = format!("json patch {fault}"));
    } else {
        json_patch::merge(&mut patched, &patch);
    }
    // What kubectl shows as the bad value is the whole patched document.
    let document = patched.clone();
    decode::check_patched_kind(&patched, gvk).map_err(|why| invalid(document.to_string(), why))?;
    if patched["apiVersion"].as_str().is_none_or(|version| version.trim_matches('/').is_empty()) {
        // Upstream decodes what names no version as its own internal one, in which the metadata has no place.
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let why = format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return Err(Status::bad_request(why));
    }
    decode::check_patched(patched, gvk, Words::Json, noted, validation).map_err(|why| invalid(document.to_string(), why))
}

/// A JSON patch is a list, the others are objects.
fn of_form(read: (Value, Vec<String>), patch_type: PatchType) -> Result<(Value, Vec<String>), String> {
    let found = match (&read.0, patch_type) {
        (Value::Array(_), PatchType::Json) | (Value::Object(_) | Value::Null, PatchType::Merge | PatchType::Strategic) => return Ok(read),
        (other, _) => decode::json_type(other),
    };
    let go = if patch_type == PatchType::Json { "[]interface {}" } else { "map[string]interface {}" };
    Err(format!("json: cannot unmarshal {found} into Go value of type {go}"))
}

/// The document of a server-side apply, and what is wrong with it that may be overlooked. Errors: why it is no YAML.
pub fn document(body: &[u8]) -> Result<(Value, Option<String>), String> {
    decode::yaml_document(body)
}

fn invalid(value: String, why: String) -> Status {
    Status::invalid(&GroupKind::new("", ""), "", vec![field::Error::invalid(&field::Path::new("patch"), value, why)])
}

/// As Go's `%+v` prints it.
pub(crate) fn go_map(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_map).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            format!("map[{}]", map.iter().map(|(key, value)| format!("{key}:{}", go_map(value))).collect::<Vec<_>>().join(" "))
        }
        scalar => scalar.to_string(),
    }
}

/// Strategic merge patch, for built-in kinds. Errors: 400 for a malformed patch, 422 and 500 for one that does not fit, as upstream.
pub fn strategic(gvk: &Gvk, original: &Value, patch: &Value) -> Result<Value, Status> {
    let (Value::Object(original), Value::Object(changes)) = (original, patch) else {
        return Err(Status::bad_request("error decoding patch: Invalid JSON document"));
    };
    let merged = strategic::merge_map(original.clone(), changes.clone(), lookup(gvk))?;
    Ok(Value::Object(merged))
}

impl Shape for &'static Type {
    fn field(self, name: &str) -> FieldShape<Self> {
        let Some(field) = Type::field(self, name) else { return FieldShape::default() };
        let element = match field.kind {
            // The values of a map of structs are merged as the struct; of a map of scalars nothing more is known.
            Kind::Map(_) => None,
            kind => kind.innermost(),
        };
        let strategies = || field.patch_strategy.split(',');
        FieldShape {
            element,
            merge_key: field.merge_key,
            merge: strategies().any(|s| s == "merge"),
            replace: strategies().any(|s| s == "replace"),
        }
    }
}

/// Upstream's `NewGenericServerResponse(422)`: says nothing of what went wrong.
fn unprocessable() -> Status {
    let message = "the server rejected our request due to an error in our request";
    Status::new(422, Reason::Invalid, message).with_details(Details::default())
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Status {
        match error {
            PatchError::PrimitiveList | PatchError::RetainKeys | PatchError::ElementOrder => Status::bad_request(error.to_string()),
            PatchError::ListOfLists => unprocessable(),
            PatchError::NoMergeKey { .. } | PatchError::Other(_) => Status::unclassified(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(patch_type: PatchType, body: &str) -> (u16, String) {
        let gvk = Gvk::new("apps", "v1", "Deployment");
        let live = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 1}});
        let error = apply(&gvk, &live, patch_type, body.as_bytes(), FieldValidation::Strict).unwrap_err();
        (error.code, error.message)
    }

    #[test]
    fn refusals_read_as_upstreams() {
        let strategic = |body| refused(PatchType::Strategic, body);
        let head = r#" "" is invalid: patch: Invalid value: "#;
        let cases = [
            (
                strategic(r#"{"spec":{"foo":1}}"#),
                422,
                format!(r#"{head}"map[spec:map[foo:1]]": strict decoding error: unknown field "spec.foo""#),
            ),
            (
                strategic(r#"{"spec":{"replicas":"x"}}"#),
                422,
                format!(r#"{head}"map[spec:map[replicas:x]]": cannot convert string to int32"#),
            ),
            (
                strategic(r#"{"spec":{"template":[]}}"#),
                422,
                format!(r#"{head}"map[spec:map[template:[]]]": cannot restore struct from: slice"#),
            ),
            (
                strategic(r#"{"spec":{"paused":true,"paused":true}}"#),
                422,
                format!(r#"{head}"map[spec:map[paused:true]]": strict decoding error: duplicate field "spec.paused""#),
            ),
            (
                refused(PatchType::Merge, r#"{"spec":{"replicas":"x"}}"#),
                422,
                format!(
                    r#"{head}"{{\"apiVersion\":\"apps/v1\",\"kind\":\"Deployment\",\"metadata\":{{\"name\":\"web\"}},\"spec\":{{\"replicas\":\"x\"}}}}": json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#
                ),
            ),
            (
                refused(PatchType::Merge, r#"{"apiVersion":null}"#),
                400,
                "the name of the object (web based on URL) was undeterminable: name must be provided".to_owned(),
            ),
            (
                refused(PatchType::Json, r#"[{"op":"replace","path":"","value":{"apiVersion":"v1","kind":"Pod"}}]"#),
                422,
                format!(
                    r#"{head}"{{\"apiVersion\":\"v1\",\"kind\":\"Pod\"}}": converting (v1.Pod) to (apps.Deployment): unknown conversion"#
                ),
            ),
            (strategic("{"), 400, "unexpected end of JSON input".to_owned()),
            (refused(PatchType::Merge, "{"), 400, "error decoding patch: unexpected end of JSON input".to_owned()),
            (
                refused(PatchType::Merge, "[]"),
                400,
                "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}".to_owned(),
            ),
            (
                refused(PatchType::Json, "{}"),
                400,
                "error decoding patch: json: cannot unmarshal object into Go value of type []interface {}".to_owned(),
            ),
            (
                refused(PatchType::Json, r#"[{"op":"remove","path":"/nope"}]"#),
                422,
                "the server rejected our request due to an error in our request".to_owned(),
            ),
        ];
        for ((code, message), expected, text) in cases {
            assert_eq!((code, message.as_str()), (expected, text.as_str()));
        }
    }

    #[test]
    fn a_good_patch_gives_a_whole_object() {
        let gvk = Gvk::new("apps", "v1", "Deployment");
        let (object, warnings) = apply(
            &gvk,
            &json!({"apiVersion": "apps/v1", "spec": {}}),
            PatchType::Merge,
            br#"{"spec":{"paused":true,"x":1}}"#,
            FieldValidation::Warn,
        )
        .unwrap();
        assert_eq!(object["spec"]["paused"], true);
        assert_eq!(object["kind"], "Deployment");
        assert_eq!(warnings, [r#"unknown field "spec.x""#]);
    }
}
