//! Namespaces, nodes, permissions, extensions, flow control.

use serde_json::{Map, Value};

use super::{at, each, filled_number, given, is_empty, number, set, text, text_of};

/// Every namespace carries its name as a label, for selectors.
pub fn namespace(namespace: &mut Value) {
    let name = namespace.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !name.is_empty()
        && let Some(labels) = at(at(namespace, "metadata"), "labels").as_object_mut()
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

/// A node offers all it has, unless it says otherwise.
pub fn node(node: &mut Value) {
    pod_range(at(node, "spec"));
    let status = at(node, "status");
    let capacity = status.get("capacity").filter(|c| c.is_object()).cloned();
    if let Some(capacity) = capacity {
        set(status, "allocatable", capacity);
    }
}

/// `podCIDR` and the first of `podCIDRs` say the same; the old field has the last word.
fn pod_range(spec: &mut Value) {
    let (one, first) =
        (text_of(spec, "podCIDR").to_owned(), spec.pointer("/podCIDRs/0").and_then(Value::as_str).unwrap_or_default().to_owned());
    let Some(fields) = spec.as_object_mut() else { return };
    if !one.is_empty() && one != first {
        fields.insert("podCIDRs".to_owned(), vec![one].into());
    } else if one.is_empty() && !first.is_empty() {
        fields.insert("podCIDR".to_owned(), first.into());
    }
}

pub fn limit_range(range: &mut Value) {
    for item in each(at(range, "spec"), "limits").filter(|item| text_of(item, "type") == "Container") {
        fill(item, "default", "max");
        fill(item, "defaultRequest", "default");
        fill(item, "defaultRequest", "min");
    }
}

/// Entries of the map `from` become entries of the map `to` where it has none.
fn fill(item: &mut Value, to: &str, from: &str) {
    let Some(source) = item.get(from).and_then(Value::as_object).cloned() else { return };
    let target = at(item, to);
    source.into_iter().for_each(|(name, amount)| set(target, &name, amount));
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub fn binding(binding: &mut Value) {
    text(at(binding, "roleRef"), "apiGroup", RBAC);
    for subject in each(binding, "subjects") {
        if matches!(text_of(subject, "kind"), "User" | "Group") {
            text(subject, "apiGroup", RBAC);
        }
    }
}

pub fn mutating_webhooks(configuration: &mut Value) {
    each(configuration, "webhooks").for_each(|webhook| {
        self::webhook(webhook);
        set(webhook, "reinvocationPolicy", "Never");
    });
}

pub fn validating_webhooks(configuration: &mut Value) {
    each(configuration, "webhooks").for_each(webhook);
}

fn webhook(webhook: &mut Value) {
    set(webhook, "failurePolicy", "Fail");
    number(webhook, "timeoutSeconds", 10);
    matching(webhook);
    each(webhook, "rules").for_each(|rule| set(rule, "scope", "*"));
    client_config(webhook);
}

fn client_config(holder: &mut Value) {
    if let Some(service) = given(holder, "clientConfig").and_then(|config| given(config, "service")) {
        number(service, "port", 443);
    }
}

fn matching(holder: &mut Value) {
    set(holder, "matchPolicy", "Equivalent");
    set(holder, "namespaceSelector", Map::new());
    set(holder, "objectSelector", Map::new());
}

pub fn admission_policy(policy: &mut Value) {
    let spec = at(policy, "spec");
    set(spec, "failurePolicy", "Fail");
    given(spec, "matchConstraints").into_iter().for_each(match_resources);
}

pub fn admission_policy_binding(binding: &mut Value) {
    given(at(binding, "spec"), "matchResources").into_iter().for_each(match_resources);
}

fn match_resources(resources: &mut Value) {
    matching(resources);
    for list in ["resourceRules", "excludeResourceRules"] {
        each(resources, list).for_each(|rule| set(rule, "scope", "*"));
    }
}

pub fn custom_resource_definition(definition: &mut Value) {
    let spec = at(definition, "spec");
    let names = at(spec, "names");
    let kind = text_of(names, "kind").to_owned();
    if !kind.is_empty() {
        text(names, "singular", &kind.to_lowercase());
        text(names, "listKind", &format!("{kind}List"));
    }
    if is_empty(spec, "conversion") {
        text(at(spec, "conversion"), "strategy", "None");
    }
    given(spec, "conversion").and_then(|conversion| given(conversion, "webhook")).into_iter().for_each(client_config);
}

pub fn api_service(service: &mut Value) {
    if let Some(backend) = given(at(service, "spec"), "service") {
        number(backend, "port", 443);
    }
}

pub fn priority_level(level: &mut Value) {
    let spec = at(level, "spec");
    if let Some(exempt) = given(spec, "exempt") {
        number(exempt, "nominalConcurrencyShares", 0);
        number(exempt, "lendablePercent", 0);
    }
    if let Some(limited) = given(spec, "limited") {
        number(limited, "nominalConcurrencyShares", 30);
        number(limited, "lendablePercent", 0);
        if let Some(queuing) = given(limited, "limitResponse").and_then(|response| given(response, "queuing")) {
            filled_number(queuing, "queues", 64);
            filled_number(queuing, "handSize", 8);
            filled_number(queuing, "queueLengthLimit", 50);
        }
    }
}
