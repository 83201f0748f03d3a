//! Which webhooks a write concerns. Pure.
//!
//! Upstream: `apiserver/pkg/admission/plugin/webhook/{generic,rules,namespace,object}` (v1.33).

use api::Status;
use api::selector::LabelSelector;
use kinds::{KINDS, Kind};
use serde_json::Value;

use crate::registry::Target;
use crate::registry::tree::{items, text};

const ADMISSION_GROUP: &str = "admissionregistration.k8s.io";

/// What a rule is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    pub operation: &'static str,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    /// "" for what lives in no namespace.
    pub namespace: String,
}

/// A kind's form in which a webhook wants its objects.
#[derive(Clone, Copy)]
pub struct Form {
    pub kind: &'static Kind,
    pub version: &'static str,
}

impl Form {
    pub fn of(target: &Target) -> Self {
        Form { kind: target.kind, version: target.version }
    }

    pub fn api_version(&self) -> String {
        self.kind.api_version(self.version)
    }
}

/// Webhook configurations can't stop their own repair.
pub fn is_exempt(kind: &Kind) -> bool {
    kind.group == ADMISSION_GROUP
}

/// The form in which the hook gets this object; none if no rule is about it.
pub fn form(hook: &Value, target: &Target, subject: &Subject) -> Option<Form> {
    let asked = Form::of(target);
    if matches(hook, subject) {
        return Some(asked);
    }
    if text(hook, "/matchPolicy") == "Exact" {
        return None;
    }
    // The same objects, in other versions or in another group's words.
    let stored = target.kind.storage_resource();
    let same = KINDS.iter().filter(|kind| kind.storage_resource() == stored);
    same.flat_map(|kind| kind.versions.iter().map(move |version| Form { kind, version })).find(|form| {
        let subject = Subject {
            group: form.kind.group.to_owned(),
            version: form.version.to_owned(),
            resource: form.kind.plural.to_owned(),
            ..subject.clone()
        };
        matches(hook, &subject)
    })
}

fn matches(hook: &Value, subject: &Subject) -> bool {
    items(hook, "/rules").iter().any(|rule| {
        one_of(rule, "/operations", subject.operation)
            && one_of(rule, "/apiGroups", &subject.group)
            && one_of(rule, "/apiVersions", &subject.version)
            && in_scope(text(rule, "/scope"), subject)
            && items(rule, "/resources").iter().filter_map(Value::as_str).any(|resource| is_resource(resource, subject))
    })
}

fn one_of(rule: &Value, pointer: &str, wanted: &str) -> bool {
    items(rule, pointer).iter().any(|item| item == "*" || item == wanted)
}

/// `pods`, `pods/exec`, `pods/*`, `*/scale`, `*` (no subresources), `*/*`.
fn is_resource(pattern: &str, subject: &Subject) -> bool {
    let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
    (resource == "*" || resource == subject.resource) && (subresource == "*" || subresource == subject.subresource)
}

fn in_scope(scope: &str, subject: &Subject) -> bool {
    let clustered = subject.namespace.is_empty() || is_namespace(subject);
    match scope {
        "Cluster" => clustered,
        "Namespaced" => !clustered,
        _ => true,
    }
}

pub fn is_namespace(subject: &Subject) -> bool {
    subject.group.is_empty() && subject.resource == "namespaces"
}

/// `namespaceSelector`, on the labels of the object's namespace, or its own if it is one.
pub fn selects_namespace(hook: &Value, labels: impl FnOnce() -> Result<Option<Value>, Status>) -> Result<bool, Status> {
    let selector = selector(hook, "namespaceSelector")?;
    if selector.is_everything() {
        return Ok(true);
    }
    // What lives in no namespace passes every selector.
    Ok(labels()?.is_none_or(|labels| selects(&selector, &labels)))
}

/// `objectSelector`, on the new or the old object.
pub fn selects_object(hook: &Value, object: &Value, old: Option<&Value>) -> Result<bool, Status> {
    let selector = selector(hook, "objectSelector")?;
    let labels = |object: &Value| object.get("metadata").map(|metadata| metadata["labels"].clone());
    let known = [labels(object), old.and_then(labels)];
    Ok(selector.is_everything() || known.iter().flatten().any(|labels| selects(&selector, labels)))
}

fn selector(hook: &Value, field: &str) -> Result<LabelSelector, Status> {
    let Some(selector) = hook.get(field).filter(|selector| selector.is_object()) else { return Ok(LabelSelector::everything()) };
    let selector = serde_json::from_value(selector.clone()).map_err(Status::internal)?;
    LabelSelector::from_k8s(Some(&selector)).map_err(Status::internal)
}

fn selects(selector: &LabelSelector, labels: &Value) -> bool {
    let labels = labels.as_object().into_iter().flatten();
    selector.matches(&labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn subject(operation: &'static str, resource: &str, namespace: &str) -> Subject {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Subject {
            operation,
            group: String::new(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
        }
    }

    #[test]
    fn rules_as_upstream() {
        let cases = [
            (json!({"resources": ["pods"]}), subject("CREATE", "pods", "ns"), true),
            (json!({"resources": ["pods"]}), subject("CREATE", "pods/exec", "ns"), false),
            (json!({"resources": ["*"]}), subject("CREATE", "pods", "ns"), true),
            (json!({"resources": ["*"]}), subject("CREATE", "pods/exec", "ns"), false),
            (json!({"resources": ["pods/*"]}), subject("CREATE", "pods", "ns"), true),
            (json!({"resources": ["*/*"]}), subject("CREATE", "pods/exec", "ns"), true),
            (json!({"resources": ["*/exec"]}), subject("CREATE", "pods/exec", "ns"), true),
            (json!({"resources": ["*"], "operations": ["UPDATE"]}), subject("CREATE", "pods", "ns"), false),
            (json!({"resources": ["*"], "apiGroups": ["apps"]}), subject("CREATE", "pods", "ns"), false),
            (json!({"resources": ["*"], "scope": "Namespaced"}), subject("CREATE", "namespaces", "ns"), false),
            (json!({"resources": ["*"], "scope": "Cluster"}), subject("CREATE", "namespaces", "ns"), true),
            (json!({"resources": ["*"], "scope": "Cluster"}), subject("CREATE", "pods", "ns"), false),
        ];
        for (mut rule, subject, expected) in cases {
            for field in ["operations", "apiGroups", "apiVersions"] {
                if rule.get(field).is_none() {
                    rule[field] = json!(["*"]);
                }
            }
            assert_eq!(matches(&json!({"rules": [rule]}), &subject), expected, "{rule} {subject:?}");
        }
    }

    #[test]
    fn selectors_look_at_the_namespace_and_at_either_object() {
        let hook = json!({"namespaceSelector": {"matchLabels": {"team": "red"}}, "objectSelector": {"matchLabels": {"a": "b"}}});
        let namespace = |labels: Option<Value>| selects_namespace(&hook, || Ok(labels)).unwrap();
        assert!(namespace(Some(json!({"team": "red"}))) && namespace(None));
        assert!(!namespace(Some(json!({"team": "blue"}))));
        let (with, without) = (json!({"metadata": {"labels": {"a": "b"}}}), json!({"metadata": {}}));
        let object = |new: &Value, old: Option<&Value>| selects_object(&hook, new, old).unwrap();
        assert!(object(&with, None) && object(&without, Some(&with)) && object(&Value::Null, Some(&with)));
        assert!(!object(&without, Some(&without)) && !object(&Value::Null, None));
    }
}
