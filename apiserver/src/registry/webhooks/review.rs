//! `AdmissionReview`: the question a webhook is asked, and its answer. Pure.
//!
//! Upstream: `apiserver/pkg/admission/plugin/webhook/{request/admissionreview.go,errors/statuserror.go}` (v1.33).

use api::Status;
use api::status::Reason;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::registry::tree::{items, text};

/// What the webhook said.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub denied: Option<Status>,
    /// RFC 6902, as bytes.
    pub patch: Option<Vec<u8>>,
    pub warnings: Vec<String>,
}

/// The newest version of the review that both sides know.
pub fn version(hook: &Value) -> Result<String, String> {
    let accepted = items(hook, "/admissionReviewVersions");
    let known = accepted.iter().filter_map(Value::as_str).find(|version| matches!(*version, "v1" | "v1beta1"));
    known
        .map(|version| format!("admission.k8s.io/{version}"))
        .ok_or_else(|| "webhook does not accept known AdmissionReview versions (v1, v1beta1)".to_owned())
}

pub fn read(name: &str, api_version: &str, uid: &str, bytes: &[u8]) -> Result<Answer, String> {
    let review: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let said = (text(&review, "/apiVersion"), text(&review, "/kind"));
    if said != (api_version, "AdmissionReview") {
        return Err(format!("expected webhook response of {api_version}, Kind=AdmissionReview, got {}, Kind={}", said.0, said.1));
    }
    let response = review.get("response").filter(|response| response.is_object()).ok_or("webhook response was absent")?;
    let answered = text(response, "/uid");
    if answered != uid && api_version.ends_with("/v1") {
        return Err(format!("expected response.uid={uid:?}, got {answered:?}"));
    }
    let warnings = items(response, "/warnings").iter().filter_map(|warning| Some(warning.as_str()?.to_owned())).collect();
    let denied = (response["allowed"] != json!(true)).then(|| refusal(name, response.get("status")));
    Ok(Answer { denied, patch: patch(response, api_version)?, warnings })
}

fn patch(response: &Value, api_version: &str) -> Result<Option<Vec<u8>>, String> {
    let encoded = text(response, "/patch");
    if encoded.is_empty() {
        return Ok(None);
    }
    match text(response, "/patchType") {
        "JSONPatch" => {}
        "" if api_version.ends_with("/v1beta1") => {}
        "" => return Err("webhook returned response.patch but not response.patchType".to_owned()),
        other => return Err(format!("invalid response.patchType {other:?}")),
    }
    STANDARD.decode(encoded).map(Some).map_err(|error| format!("response.patch: {error}"))
}

fn refusal(name: &str, said: Option<&Value>) -> Status {
    let said = said.cloned().unwrap_or_default();
    let by = format!("admission webhook {name:?} denied the request");
    let message = match (text(&said, "/message"), text(&said, "/reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let read = |field: &str| said.get(field).cloned().unwrap_or_default();
    Status {
        // A refusal is never a success, whatever the webhook says.
        code: said["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400).unwrap_or(400),
        reason: serde_json::from_value(read("reason")).unwrap_or(Reason::Unknown),
        message,
        details: serde_json::from_value(read("details")).ok(),
        continue_token: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Result<Answer, String> {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        read("w.example.com", "admission.k8s.io/v1", "u", review.to_string().as_bytes())
    }

    #[test]
    fn refusals_have_upstreams_words() {
        let cases = [
            (json!({"uid": "u"}), 400, "admission webhook \"w.example.com\" denied the request without explanation"),
            (
                json!({"uid": "u", "allowed": false, "status": {"code": 200, "reason": "Odd"}}),
                400,
                "admission webhook \"w.example.com\" denied the request: Odd",
            ),
            (
                json!({"uid": "u", "status": {"code": 403, "message": "no"}}),
                403,
                "admission webhook \"w.example.com\" denied the request: no",
            ),
        ];
        for (response, code, message) in cases {
            let status = answer(response).unwrap().denied.unwrap();
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }

    #[test]
    fn answers_are_checked() {
        assert_eq!(answer(json!({"uid": "u", "allowed": true, "warnings": ["hm"]})).unwrap().warnings, ["hm"]);
        assert_eq!(answer(json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"})).unwrap().patch.unwrap(), b"[]");
        assert!(answer(json!({"uid": "u", "allowed": true, "patch": "W10="})).is_err());
        assert!(answer(json!({"uid": "other", "allowed": true})).is_err());
        assert!(answer(Value::Null).is_err());
    }
}
