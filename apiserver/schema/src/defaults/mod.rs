//! Defaults: what a field means when it is left out.
//!
//! One row per kind; each function reads like upstream's `SetDefaults_X`. They run after decoding, on creates and updates alike, so
//! they must be stable: defaulting twice changes nothing.
//! Upstream: `pkg/apis/*/v1/defaults.go` (v1.33), and the order in which `zz_generated.defaults.go` calls them.

mod cluster;
mod network;
mod pod;
mod storage;
mod workloads;

use api::key::Gvk;
use serde_json::{Map, Value};

type Defaulter = fn(&mut Value);

/// Group, kind, defaulter; versions that differ (autoscaling) have a row each.
const DEFAULTS: &[(&str, &str, &str, Defaulter)] = &[
    ("", "*", "Pod", pod::pod),
    ("", "*", "PodTemplate", |o| pod::template(at(o, "template"))),
    ("", "*", "ReplicationController", workloads::replication_controller),
    ("", "*", "Service", network::service),
    ("", "*", "Endpoints", network::endpoints),
    ("", "*", "Secret", |o| text(o, "type", "Opaque")),
    ("", "*", "Namespace", cluster::namespace),
    ("", "*", "Node", cluster::node),
    ("", "*", "LimitRange", cluster::limit_range),
    ("", "*", "PersistentVolume", storage::volume),
    ("", "*", "PersistentVolumeClaim", storage::claim),
    ("apps", "*", "Deployment", workloads::deployment),
    ("apps", "*", "ReplicaSet", workloads::replica_set),
    ("apps", "*", "StatefulSet", workloads::stateful_set),
    ("apps", "*", "DaemonSet", workloads::daemon_set),
    ("batch", "*", "Job", workloads::job),
    ("batch", "*", "CronJob", workloads::cron_job),
    ("autoscaling", "v1", "HorizontalPodAutoscaler", |o| number(at(o, "spec"), "minReplicas", 1)),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", workloads::autoscaler),
    ("discovery.k8s.io", "*", "EndpointSlice", network::endpoint_slice),
    ("networking.k8s.io", "*", "NetworkPolicy", network::policy),
    ("networking.k8s.io", "*", "IngressClass", network::ingress_class),
    ("storage.k8s.io", "*", "StorageClass", storage::class),
    ("storage.k8s.io", "*", "CSIDriver", storage::csi_driver),
    ("rbac.authorization.k8s.io", "*", "RoleBinding", cluster::binding),
    ("rbac.authorization.k8s.io", "*", "ClusterRoleBinding", cluster::binding),
    ("scheduling.k8s.io", "*", "PriorityClass", |o| set(o, "preemptionPolicy", "PreemptLowerPriority")),
    ("authentication.k8s.io", "*", "TokenRequest", |o| number(at(o, "spec"), "expirationSeconds", 3600)),
    ("admissionregistration.k8s.io", "*", "MutatingWebhookConfiguration", cluster::mutating_webhooks),
    ("admissionregistration.k8s.io", "*", "ValidatingWebhookConfiguration", cluster::validating_webhooks),
    ("admissionregistration.k8s.io", "*", "ValidatingAdmissionPolicy", cluster::admission_policy),
    ("admissionregistration.k8s.io", "*", "ValidatingAdmissionPolicyBinding", cluster::admission_policy_binding),
    ("apiextensions.k8s.io", "*", "CustomResourceDefinition", cluster::custom_resource_definition),
    ("apiregistration.k8s.io", "*", "APIService", cluster::api_service),
    ("flowcontrol.apiserver.k8s.io", "*", "FlowSchema", |o| filled_number(at(o, "spec"), "matchingPrecedence", 1000)),
    ("flowcontrol.apiserver.k8s.io", "*", "PriorityLevelConfiguration", cluster::priority_level),
];

/// Fills in what `object` leaves out. Kinds without defaults are left alone.
pub fn default(gvk: &Gvk, object: &mut Value) {
    let row = DEFAULTS
        .iter()
        .find(|(group, version, kind, _)| *group == gvk.group && *kind == gvk.kind && (*version == "*" || *version == gvk.version));
    if let Some((.., defaulter)) = row {
        defaulter(object);
    }
}

// The defaulters' words. Each takes the object that holds the field; what is no object is left alone (validation has refused it).

fn object(value: &mut Value) -> Option<&mut Map<String, Value>> {
    value.as_object_mut()
}

/// The struct at `key`, made if it is absent: for fields that Go holds by value.
fn at<'a>(value: &'a mut Value, key: &str) -> &'a mut Value {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => {
            let child = map.entry(key).or_insert(Value::Null);
            if child.is_null() {
                *child = Value::Object(Map::new());
            }
            child
        }
        other => other,
    }
}

/// The struct at `key` if it is there: for pointers.
fn given<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    value.get_mut(key).filter(|child| child.is_object())
}

/// The elements of the list at `key`.
fn each<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

fn is_absent(value: &Value, key: &str) -> bool {
    value.get(key).is_none_or(Value::is_null)
}

fn is_empty(value: &Value, key: &str) -> bool {
    match value.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

/// Sets a field that is absent.
fn set(value: &mut Value, key: &str, default: impl Into<Value>) {
    if is_absent(value, key)
        && let Some(map) = object(value)
    {
        map.insert(key.to_owned(), default.into());
    }
}

/// Sets a string that is absent or empty.
fn text(value: &mut Value, key: &str, default: &str) {
    if is_empty(value, key)
        && let Some(map) = object(value)
    {
        map.insert(key.to_owned(), default.into());
    }
}

fn number(value: &mut Value, key: &str, default: i64) {
    set(value, key, default);
}

/// Sets a number that Go holds by value: zero counts as left out.
fn filled_number(value: &mut Value, key: &str, default: i64) {
    if value.get(key).and_then(Value::as_i64) == Some(0)
        && let Some(map) = object(value)
    {
        map.remove(key);
    }
    set(value, key, default);
}

fn flag(value: &mut Value, key: &str, default: bool) {
    set(value, key, default);
}

fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn defaulted(api_version: &str, kind: &str, mut object: Value) -> Value {
        let gvk = Gvk::from_api_version(api_version, kind);
        default(&gvk, &mut object);
        let once = object.clone();
        default(&gvk, &mut object);
        assert_eq!(object, once, "{kind}: defaulting twice changes nothing");
        object
    }

    #[test]
    fn a_pod() {
        let pod = defaulted(
            "v1",
            "Pod",
            json!({"spec": {"containers": [
                {"name": "a", "image": "nginx", "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}},
                 "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}},
                {"name": "b", "image": "nginx:1.2"}, {"name": "c", "image": "r:5000/x@sha256:abc"}],
                "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}]}}),
        );
        assert_eq!(
            pod["spec"],
            json!({"containers": [
                {"name": "a", "image": "nginx", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                 "ports": [{"containerPort": 80, "protocol": "TCP"}],
                 "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                 "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}},
                {"name": "b", "image": "nginx:1.2", "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"},
                {"name": "c", "image": "r:5000/x@sha256:abc", "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
                "securityContext": {}, "enableServiceLinks": true})
        );
    }

    #[test]
    fn a_deployment() {
        let deployment = defaulted("apps/v1", "Deployment", json!({"spec": {"template": {"spec": {}}}}));
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(deployment["spec"]["template"]["spec"]["restartPolicy"], "Always");
        assert!(deployment["spec"]["template"]["spec"].get("enableServiceLinks").is_none(), "pods only");
        let recreate = defaulted("apps/v1", "Deployment", json!({"spec": {"strategy": {"type": "Recreate"}}}));
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn services() {
        let service =
            defaulted("v1", "Service", json!({"spec": {"ports": [{"port": 80}, {"port": 1, "targetPort": "x", "protocol": "UDP"}]}}));
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}, {"port": 1, "targetPort": "x", "protocol": "UDP"}]})
        );
        let node_port = defaulted("v1", "Service", json!({"spec": {"type": "NodePort", "sessionAffinity": "ClientIP"}}));
        assert_eq!(node_port["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(node_port["spec"]["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
    }

    #[test]
    fn what_is_reachable_from_outside_has_a_policy() {
        let service = defaulted("v1", "Service", json!({"spec": {"externalIPs": ["10.0.0.1"]}}));
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
        let balanced = defaulted(
            "v1",
            "Service",
            json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "x"}]}}}),
        );
        assert_eq!(balanced["status"]["loadBalancer"]["ingress"], json!([{"ip": "1.2.3.4", "ipMode": "VIP"}, {"hostname": "x"}]));
    }

    #[test]
    fn both_names_of_the_service_account() {
        for given in ["serviceAccount", "serviceAccountName"] {
            let spec =
                defaulted("apps/v1", "ReplicaSet", json!({"spec": {"template": {"spec": {given: "x"}}}}))["spec"]["template"]["spec"]
                    .clone();
            assert_eq!((&spec["serviceAccount"], &spec["serviceAccountName"]), (&json!("x"), &json!("x")));
        }
    }

    #[test]
    fn jobs_count_to_one_unless_told() {
        let job = |spec: Value| defaulted("batch/v1", "Job", json!({"spec": spec}))["spec"].clone();
        let plain = job(json!({}));
        assert_eq!((&plain["completions"], &plain["parallelism"], &plain["backoffLimit"]), (&json!(1), &json!(1), &json!(6)));
        let queue = job(json!({"parallelism": 3}));
        assert!(queue.get("completions").is_none());
        assert_eq!(job(json!({"completions": 3}))["parallelism"], 1);
    }
}
