//! ConfigMaps, Secrets and ServiceAccounts.
//!
//! Upstream: `pkg/apis/core/validation/validation.go`, `pkg/registry/core/{configmap,secret}/strategy.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::names;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::meta::validate_object_meta_update;
use crate::strategy::{prepare_for_create, prepare_for_update};
use crate::validation::field::{immutable, invalid};
use crate::value::{child, flag, map, remove, set, text};
use crate::{Kind, Strategy};

const MAX_SIZE: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

/// Once `immutable` is set neither it nor the named fields may change.
fn frozen(new: &Value, old: &Value, fields: &[&str]) -> ErrorList {
    if !flag(old, "/immutable") {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if !flag(new, "/immutable") {
        errors.push(Error::forbidden(&Path::new("immutable"), FROZEN));
    }
    let empty = Value::Object(Map::new());
    for name in fields {
        let entries = |object: &Value| object.get(name).filter(|v| !v.is_null()).unwrap_or(&empty).clone();
        if entries(new) != entries(old) {
            errors.push(Error::forbidden(&Path::new(name), FROZEN));
        }
    }
    errors
}

/// Bytes a base64 string stands for.
fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or("").trim_end_matches('=');
    text.len() * 3 / 4
}

pub struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let (data, binary) = (map(object, "/data"), map(object, "/binaryData"));
        let mut errors = Vec::new();
        let mut size = 0;
        for (key, value) in data.into_iter().flatten() {
            let path = Path::new("data").key(key);
            errors.extend(invalid(&path, key, names::is_config_map_key(key)));
            if binary.is_some_and(|binary| binary.contains_key(key)) {
                errors.push(Error::invalid(&path, key.as_str(), "duplicate of key present in binaryData"));
            }
            size += value.as_str().map_or(0, str::len);
        }
        for (key, value) in binary.into_iter().flatten() {
            errors.extend(invalid(&Path::new("binaryData").key(key), key, names::is_config_map_key(key)));
            size += decoded_len(value);
        }
        if size > MAX_SIZE {
            errors.push(Error::too_long(&Path::new("[]"), "", MAX_SIZE));
        }
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(frozen(new, old, &["data", "binaryData"]));
        errors.extend(self.validate_whole(kind, new));
        errors
    }
}

pub struct Secret;

impl Strategy for Secret {
    fn prepare_for_create(&self, kind: &Kind, object: &mut Value) {
        prepare_for_create(kind, object);
        fold_string_data(object);
    }

    fn prepare_for_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        prepare_for_update(kind, new, old);
        fold_string_data(new);
        // A client that knows no types keeps the stored one.
        if text(new, "/type").is_empty() {
            set(new, "type", old["type"].clone());
        }
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let data = map(object, "/data");
        let path = Path::new("data");
        let mut errors = Vec::new();
        let mut size = 0;
        for (key, value) in data.into_iter().flatten() {
            errors.extend(invalid(&path.key(key), key, names::is_config_map_key(key)));
            size += decoded_len(value);
        }
        if size > MAX_SIZE {
            errors.push(Error::too_long(&path, "", MAX_SIZE));
        }
        errors.extend(secret_type(object, data));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(immutable(&Path::new("type"), &new["type"], &old["type"]));
        errors.extend(frozen(new, old, &["data"]));
        errors.extend(self.validate_whole(kind, new));
        errors
    }
}

/// `stringData` is write-only: it overrides `data`.
fn fold_string_data(object: &mut Value) {
    let Some(Value::Object(plain)) = object.get("stringData").cloned() else { return remove(object, "stringData") };
    remove(object, "stringData");
    for (key, value) in plain {
        let encoded = STANDARD.encode(value.as_str().unwrap_or(""));
        set(child(object, "data"), &key, json!(encoded));
    }
}

/// What a typed secret must hold.
fn secret_type(object: &Value, data: Option<&Map<String, Value>>) -> ErrorList {
    let path = Path::new("data");
    let has = |key: &str| data.is_some_and(|data| data.contains_key(key));
    // Upstream forgets to format these paths; clients see them so.
    let unformatted = Path::new("data[%s]");
    let need = |path: &Path, keys: &[&str]| -> ErrorList {
        keys.iter().filter(|key| !has(key)).map(|key| Error::required(&path.key(key), "")).collect()
    };
    match text(object, "/type") {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            let named = object["metadata"]["annotations"].get(ACCOUNT).and_then(Value::as_str).unwrap_or("");
            let path = Path::new("metadata").child("annotations").key(ACCOUNT);
            if named.is_empty() { vec![Error::required(&path, "")] } else { Vec::new() }
        }
        "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => need(&unformatted, &["username", "password"]),
        "kubernetes.io/ssh-auth" => need(&unformatted, &["ssh-privatekey"]),
        "kubernetes.io/tls" => need(&path, &["tls.crt", "tls.key"]),
        _ => Vec::new(),
    }
}

/// What Go says of bytes that are no JSON object.
fn not_json(bytes: &[u8]) -> String {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => "unexpected end of JSON input".to_owned(),
        Some(b'{') => "invalid JSON object".to_owned(),
        Some(byte) => format!("invalid character '{}' looking for beginning of value", *byte as char),
    }
}

fn docker_config(data: Option<&Map<String, Value>>, key: &str) -> ErrorList {
    let path = Path::new("data").key(key);
    let Some(value) = data.and_then(|data| data.get(key)) else { return vec![Error::required(&path, "")] };
    let bytes = STANDARD.decode(value.as_str().unwrap_or("")).unwrap_or_default();
    match serde_json::from_slice::<Map<String, Value>>(&bytes) {
        Ok(_) => Vec::new(),
        Err(_) => vec![Error::invalid(&path, "<secret contents redacted>", not_json(&bytes))],
    }
}

pub struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_object_meta_update(kind, new, old);
        errors.extend(self.validate_whole(kind, new));
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::by_kind;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        Secret.prepare_for_create(by_kind("", "Secret").unwrap(), &mut secret);
        assert_eq!(secret, json!({"data": {"a": "eQ==", "b": "eg=="}}));
    }

    #[test]
    fn says_what_is_wrong() {
        let kind = by_kind("", "ConfigMap").unwrap();
        let text = |errors: ErrorList| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let meta = json!({"name": "a", "namespace": "default"});
        let frozen = json!({"metadata": meta, "immutable": true, "data": {"a": "1"}});
        let changed = json!({"metadata": meta, "immutable": true, "data": {"a": "2"}});
        let cases = [
            (
                ConfigMap.validate(kind, &json!({"data": {"a": "1"}, "binaryData": {"a": "eA=="}})),
                "data[a]: Invalid value: \"a\": duplicate of key present in binaryData",
            ),
            (ConfigMap.validate_update(kind, &changed, &frozen), "data: Forbidden: field is immutable when `immutable` is set"),
            (Secret.validate(kind, &json!({"type": "kubernetes.io/tls"})), "data[tls.crt]: Required value; data[tls.key]: Required value"),
        ];
        for (errors, expected) in cases {
            assert_eq!(text(errors), expected);
        }
    }
}
