use std::sync::Arc;

use api::{GroupKind, GroupResource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::lookup::{items, text};
use crate::testing::Cluster;
use crate::user::User;

/// A write, told as `write("pods").by_node("n1").update(old)`.
pub struct Write {
    resource: GroupResource,
    subresource: String,
    operation: Operation,
    namespace: String,
    name: String,
    user: Arc<User>,
    old: Option<Value>,
}

pub fn write(resource: &str) -> Write {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let Ok(resource) = resource.parse();
    Write {
        resource,
        subresource: subresource.to_owned(),
        operation: Operation::Create,
        namespace: "ns".to_owned(),
        name: String::new(),
        user: Arc::new(User::new("jane", ["system:authenticated"])),
        old: None,
    }
}

impl Write {
    pub fn by_node(mut self, node: &str) -> Self {
        self.user = Arc::new(User::new(&format!("system:node:{node}"), ["system:nodes", "system:authenticated"]));
        self
    }

    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub fn update(mut self, old: Value) -> Self {
        self.operation = Operation::Update;
        self.name = text(&old, "/metadata/name").to_owned();
        self.old = Some(old);
        self
    }

    pub fn delete(mut self, name: &str) -> Self {
        self.operation = Operation::Delete;
        self.name = name.to_owned();
        self
    }

    fn with<T>(&self, cluster: &Cluster, run: impl FnOnce(&Request<'_>) -> T) -> T {
        let (authorizer, kind) = (cluster.authorizer(), GroupKind::default());
        run(&Request {
            user: &self.user,
            operation: self.operation,
            kind: &kind,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            old: self.old.as_ref(),
            dry_run: false,
            now: Timestamp::UNIX_EPOCH,
            lookup: cluster,
            authorizer: &authorizer,
        })
    }

    /// The object as one plugin leaves it, or the refusal's message.
    pub fn mutated(&self, plugin: &dyn Plugin, cluster: &Cluster, mut object: Value) -> Result<Value, String> {
        let done = self.with(cluster, |request| plugin.mutate(request, &mut object));
        done.map(|()| object).map_err(|refusal| refusal.status().message)
    }

    pub fn validated(&self, plugin: &dyn Plugin, cluster: &Cluster, object: &Value) -> Result<Outcome, String> {
        let mut outcome = Outcome::default();
        let done = self.with(cluster, |request| plugin.validate(request, object, &mut outcome));
        done.map(|()| outcome).map_err(|refusal| refusal.status().message)
    }

    fn refusal(&self, plugin: &dyn Plugin, cluster: &Cluster, mut object: Value) -> Refusal {
        self.with(cluster, |request| plugin.mutate(request, &mut object)).unwrap_err()
    }
}

pub fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})
}

fn namespaces() -> Cluster {
    Cluster::default()
        .with("namespaces", json!({"metadata": {"name": "ns"}, "status": {"phase": "Active"}}))
        .with("namespaces", json!({"metadata": {"name": "old"}, "status": {"phase": "Terminating"}}))
}

#[test]
fn namespaces_must_be_there_and_stay() {
    let plugin = &namespace::NamespaceLifecycle;
    let config_map = json!({"metadata": {"name": "c"}});
    let try_in = |namespace: &str| write("configmaps").within(namespace).mutated(plugin, &namespaces(), config_map.clone()).map(drop);
    assert_eq!(try_in("ns"), Ok(()));
    assert_eq!(try_in("none"), Err("namespaces \"none\" not found".into()));
    let terminating = write("configmaps").within("old").refusal(plugin, &namespaces(), config_map.clone()).status();
    assert_eq!(
        terminating.message,
        "configmaps \"c\" is forbidden: unable to create new content in namespace old because it is being terminated"
    );
    let cause = &terminating.details.as_ref().unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("NamespaceTerminating", "metadata.namespace"));
    assert_eq!(
        write("configmaps").within("old").update(config_map.clone()).mutated(plugin, &namespaces(), config_map.clone()).map(drop),
        Ok(())
    );
    assert_eq!(write("configmaps").within("none").delete("c").mutated(plugin, &namespaces(), Value::Null).map(drop), Ok(()));
    for (name, message) in [("default", Some("namespaces \"default\" is forbidden: this namespace may not be deleted")), ("ns", None)] {
        let done = write("namespaces").within(name).delete(name).mutated(plugin, &namespaces(), Value::Null);
        assert_eq!(done.err().as_deref(), message);
    }
}

fn accounts() -> Cluster {
    Cluster::default()
        .with("serviceaccounts", json!({"metadata": {"namespace": "ns", "name": "default"}, "imagePullSecrets": [{"name": "reg"}]}))
        .with("serviceaccounts", json!({"metadata": {"namespace": "ns", "name": "quiet"}, "automountServiceAccountToken": false}))
        .with(
            "serviceaccounts",
            json!({"metadata": {
            "namespace": "ns", "name": "tight", "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"},
        }, "secrets": [{"name": "a"}]}),
        )
}

#[test]
fn pods_get_an_account_and_its_token() {
    let plugin = &service_account::ServiceAccount;
    let made = write("pods").mutated(plugin, &accounts(), pod(json!({
        "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
        "initContainers": [{"name": "i"}],
    }))).unwrap();
    let spec = &made["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["serviceAccount"]), (&json!("default"), &json!("default")));
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "reg"}]));
    let name = text(spec, "/volumes/0/name");
    assert!(name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5, "{name}");
    let mount = json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    assert_eq!((&spec["containers"][0]["volumeMounts"], &spec["initContainers"][0]["volumeMounts"]), (&mount, &mount));
    assert_eq!(items(spec, "/containers/1/volumeMounts").len(), 1);
    assert_eq!(
        spec["volumes"],
        json!([{"name": name, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}])
    );
    let again = write("pods").mutated(plugin, &accounts(), made.clone()).unwrap();
    assert_eq!(again, made);
}

#[test]
fn the_token_is_mounted_where_it_is_wanted() {
    let cases = [
        (json!({}), 1),
        (json!({"serviceAccountName": "quiet"}), 0),
        (json!({"automountServiceAccountToken": false}), 0),
        (json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true}), 1),
        (json!({"serviceAccount": "quiet"}), 0),
    ];
    for (mut spec, volumes) in cases {
        spec["containers"] = json!([{"name": "c"}]);
        let made = write("pods").mutated(&service_account::ServiceAccount, &accounts(), pod(spec.clone())).unwrap();
        assert_eq!(items(&made, "/spec/volumes").len(), volumes, "{spec}");
    }
}

#[test]
fn accounts_that_are_missing_or_strict() {
    let plugin = &service_account::ServiceAccount;
    let mut generated = pod(json!({}));
    generated["metadata"] = json!({"generateName": "web-abc-"});
    let refusal = write("pods").refusal(plugin, &Cluster::default(), generated);
    assert_eq!(refusal, Refusal::Transient(refusal.clone().status()));
    assert_eq!(
        refusal.status().message,
        "pods \"web-abc-\" is forbidden: error looking up service account ns/default: serviceaccount \"default\" not found"
    );
    let named = write("pods").refusal(plugin, &accounts(), pod(json!({"serviceAccountName": "x"})));
    assert!(matches!(named, Refusal::Denied(_)));
    let tight = |extra: Value| {
        let mut spec = json!({"serviceAccountName": "tight", "containers": [{"name": "c"}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        write("pods").validated(plugin, &accounts(), &pod(spec)).map(drop)
    };
    assert_eq!(tight(json!({"volumes": [{"name": "v", "secret": {"secretName": "a"}}]})), Ok(()));
    assert_eq!(
        tight(json!({"volumes": [{"name": "v", "secret": {"secretName": "b"}}]})).unwrap_err(),
        "pods \"web\" is forbidden: volume with secret.secretName=\"b\" is not allowed because service account tight does not reference that secret"
    );
    let env = json!([{"name": "E", "valueFrom": {"secretKeyRef": {"name": "b", "key": "k"}}}]);
    assert_eq!(
        tight(json!({"containers": [{"name": "c", "env": env}]})).unwrap_err(),
        "pods \"web\" is forbidden: container c with envVar E referencing secret.secretName=\"b\" is not allowed because service account tight does not reference that secret"
    );
}

#[test]
fn tolerations_and_taints() {
    let plugin = &nodes::DefaultTolerationSeconds;
    let cases = [
        (json!([]), vec!["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]),
        (
            json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]),
            vec!["node.kubernetes.io/unreachable"],
        ),
        (json!([{"operator": "Exists"}]), vec![]),
        (
            json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]),
            vec!["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"],
        ),
    ];
    for (given, added) in cases {
        let made = write("pods").mutated(plugin, &Cluster::default(), pod(json!({"tolerations": given}))).unwrap();
        let keys: Vec<&str> =
            items(&made, "/spec/tolerations")[given.as_array().unwrap().len()..].iter().map(|t| text(t, "/key")).collect();
        assert_eq!(keys, added);
    }
    let node = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}});
    let made = write("nodes").mutated(&nodes::TaintNodesByCondition, &Cluster::default(), node).unwrap();
    assert_eq!(made["spec"]["taints"][1], json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
}

#[test]
fn priorities() {
    let classes = "priorityclasses.scheduling.k8s.io";
    let cluster = Cluster::default()
        .with(classes, json!({"metadata": {"name": "high"}, "value": 1000}))
        .with(classes, json!({"metadata": {"name": "polite"}, "value": 7, "preemptionPolicy": "Never"}));
    let with_default = || Cluster::default().with(classes, json!({"metadata": {"name": "usual"}, "value": 5, "globalDefault": true}));
    let resolve =
        |cluster: &Cluster, spec: Value| write("pods").mutated(&priority::Priority, cluster, pod(spec)).map(|pod| pod["spec"].clone());
    assert_eq!(resolve(&cluster, json!({})), Ok(json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"})));
    assert_eq!(
        resolve(&cluster, json!({"priorityClassName": "polite"})),
        Ok(json!({"priorityClassName": "polite", "priority": 7, "preemptionPolicy": "Never"}))
    );
    assert_eq!(resolve(&with_default(), json!({})).unwrap()["priorityClassName"], "usual");
    assert_eq!(
        resolve(&cluster, json!({"priorityClassName": "x"})).unwrap_err(),
        "pods \"web\" is forbidden: no PriorityClass with name x was found"
    );
    assert_eq!(
        resolve(&cluster, json!({"priorityClassName": "high", "priority": 3})).unwrap_err(),
        "pods \"web\" is forbidden: the integer value of priority (3) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name"
    );
    let second = json!({"metadata": {"name": "b"}, "globalDefault": true});
    assert_eq!(
        write(classes).within("").validated(&priority::Priority, &with_default(), &second).unwrap_err(),
        "priorityclasses.scheduling.k8s.io \"b\" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"
    );
}

#[test]
fn storage() {
    let classes = "storageclasses.storage.k8s.io";
    let class = |name: &str, age: &str, default: &str| {
        json!({"metadata": {
        "name": name, "creationTimestamp": age, "annotations": {"storageclass.kubernetes.io/is-default-class": default},
    }, "allowVolumeExpansion": name == "new"})
    };
    let cluster = Cluster::default()
        .with(classes, class("old", "2020-01-01T00:00:00Z", "true"))
        .with(classes, class("new", "2021-01-01T00:00:00Z", "true"))
        .with(classes, class("newest", "2022-01-01T00:00:00Z", "false"));
    let default = |spec: Value| {
        let claim = json!({"metadata": {"name": "c"}, "spec": spec});
        write("persistentvolumeclaims").mutated(&storage::DefaultStorageClass, &cluster, claim).unwrap()["spec"]["storageClassName"].clone()
    };
    assert_eq!(
        (default(json!({})), default(json!({"storageClassName": ""})), default(json!({"storageClassName": "x"}))),
        (json!("new"), json!(""), json!("x"))
    );
    let protected =
        write("persistentvolumes").mutated(&storage::StorageObjectInUseProtection, &cluster, json!({"metadata": {"name": "v"}})).unwrap();
    assert_eq!(protected["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    let claim = |class: &str, size: &str| {
        json!({
            "metadata": {"name": "c"}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}, "status": {"phase": "Bound"},
        })
    };
    let resize = |class: &str| {
        write("persistentvolumeclaims").update(claim(class, "1Gi")).validated(
            &storage::PersistentVolumeClaimResize,
            &cluster,
            &claim(class, "2Gi"),
        )
    };
    assert!(resize("new").is_ok() && resize("old").unwrap_err().contains("only dynamically provisioned pvc can be resized"));
}

#[test]
fn runtime_classes() {
    let cluster = Cluster::default().with(
        "runtimeclasses.node.k8s.io",
        json!({
            "metadata": {"name": "kata"}, "overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"kata": "yes"}, "tolerations": [{"key": "kata"}]},
        }),
    );
    let admit = |spec: Value| write("pods").mutated(&runtime_class::RuntimeClass, &cluster, pod(spec)).map(|pod| pod["spec"].clone());
    let made = admit(json!({"runtimeClassName": "kata"})).unwrap();
    assert_eq!(
        made,
        json!({"runtimeClassName": "kata", "overhead": {"cpu": "250m"}, "nodeSelector": {"kata": "yes"}, "tolerations": [{"key": "kata"}]})
    );
    assert!(admit(json!({"runtimeClassName": "kata", "overhead": {"cpu": "0.25"}})).is_ok());
    assert_eq!(
        admit(json!({"runtimeClassName": "x"})).unwrap_err(),
        "pods \"web\" is forbidden: pod rejected: RuntimeClass \"x\" not found"
    );
    assert_eq!(
        admit(json!({"runtimeClassName": "kata", "nodeSelector": {"kata": "no"}})).unwrap_err(),
        "pods \"web\" is forbidden: conflict: runtimeClass.scheduling.nodeSelector[kata] = yes; pod.spec.nodeSelector[kata] = no"
    );
    let bare = pod(json!({"overhead": {"cpu": "1"}}));
    assert!(
        write("pods").validated(&runtime_class::RuntimeClass, &cluster, &bare).unwrap_err().contains("without corresponding RuntimeClass")
    );
}

#[test]
fn limit_ranges_default_and_bound() {
    let cluster = Cluster::default().with("limitranges", json!({"metadata": {"namespace": "ns", "name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}, "min": {"cpu": "50m"}, "maxLimitRequestRatio": {"cpu": "5"}},
        {"type": "Pod", "max": {"cpu": "2"}},
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}},
    ]}}));
    let plugin = &limit_ranger::LimitRanger;
    let made = write("pods").mutated(plugin, &cluster, pod(json!({"containers": [{"name": "c"}]}))).unwrap();
    assert_eq!(made["spec"]["containers"][0]["resources"], json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}}));
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    assert!(write("pods").validated(plugin, &cluster, &made).is_ok());
    let check = |request: &str, limit: &str, copies: usize| {
        let container = json!({"name": "c", "resources": {"requests": {"cpu": request}, "limits": {"cpu": limit}}});
        write("pods").validated(plugin, &cluster, &pod(json!({"containers": vec![container; copies]}))).map(drop)
    };
    let head = "pods \"web\" is forbidden: ";
    assert_eq!(check("1", "1500m", 1).unwrap_err(), format!("{head}maximum cpu usage per Container is 1, but limit is 1500m"));
    assert_eq!(check("20m", "50m", 1).unwrap_err(), format!("{head}minimum cpu usage per Container is 50m, but request is 20m"));
    assert_eq!(
        check("100m", "1", 1).unwrap_err(),
        format!("{head}cpu max limit to request ratio per Container is 5, but provided ratio is 10.000000")
    );
    assert_eq!(check("1", "1", 3).unwrap_err(), format!("{head}maximum cpu usage per Pod is 2, but limit is 3"));
    let claim = json!({"metadata": {"name": "d"}, "spec": {"resources": {"requests": {"storage": "1Mi"}}}});
    assert_eq!(
        write("persistentvolumeclaims").validated(plugin, &cluster, &claim).unwrap_err(),
        "persistentvolumeclaims \"d\" is forbidden: minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"
    );
}

#[test]
fn quotas_charge_or_refuse() {
    let quota = |hard: Value, used: Value| {
        Cluster::default().with(
            "resourcequotas",
            json!({
                "metadata": {"namespace": "ns", "name": "q", "resourceVersion": "5"}, "status": {"hard": hard, "used": used},
            }),
        )
    };
    let plugin = &quota::ResourceQuota;
    let one = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}}]}));
    let outcome = write("pods")
        .validated(plugin, &quota(json!({"pods": "2", "requests.cpu": "1"}), json!({"pods": "1", "requests.cpu": "250m"})), &one)
        .unwrap();
    assert_eq!(outcome.charges[0].quota["status"]["used"], json!({"pods": "2", "requests.cpu": "750m"}));
    assert_eq!(outcome.charges[0].quota["metadata"]["resourceVersion"], "5");
    let refuse = |hard: Value, used: Value, object: &Value| write("pods").validated(plugin, &quota(hard, used), object).unwrap_err();
    let head = "pods \"web\" is forbidden: ";
    assert_eq!(
        refuse(json!({"pods": "1", "requests.cpu": "1"}), json!({"pods": "1", "requests.cpu": "600m"}), &one),
        format!(
            "{head}exceeded quota: q, requested: pods=1,requests.cpu=500m, used: pods=1,requests.cpu=600m, limited: pods=1,requests.cpu=1"
        )
    );
    let silent = pod(json!({"containers": [{"name": "c"}]}));
    assert_eq!(
        refuse(json!({"limits.cpu": "1", "memory": "1"}), json!({}), &silent),
        format!("{head}failed quota: q: must specify limits.cpu,memory")
    );
    assert_eq!(refuse(json!({"pods": "1"}), json!({}), &silent), format!("{head}status unknown for quota: q, resources: pods"));
    let config_map = json!({"metadata": {"name": "c"}});
    let count =
        quota(json!({"count/configmaps": "1", "configmaps": "1", "pods": "0"}), json!({"count/configmaps": "0", "configmaps": "0"}));
    assert_eq!(write("configmaps").validated(plugin, &count, &config_map).unwrap().charges.len(), 1);
    assert_eq!(write("events").validated(plugin, &count, &config_map).unwrap().charges.len(), 0);
    let service = |kind: &str| json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": [{"port": 1}, {"port": 2}]}});
    let ports = quota(json!({"services.nodeports": "1", "services": "5"}), json!({"services.nodeports": "0", "services": "1"}));
    assert!(write("services").update(service("ClusterIP")).validated(plugin, &ports, &service("ClusterIP")).unwrap().charges.is_empty());
    assert_eq!(
        write("services").update(service("ClusterIP")).validated(plugin, &ports, &service("NodePort")).unwrap_err(),
        "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1"
    );
}

#[test]
fn default_ingress_class() {
    let class = |name: &str| json!({"metadata": {"name": name, "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}});
    let one = Cluster::default().with("ingressclasses.networking.k8s.io", class("nginx"));
    let made =
        write("ingresses.networking.k8s.io").mutated(&ingress::DefaultIngressClass, &one, json!({"metadata": {"name": "i"}})).unwrap();
    assert_eq!(made["spec"]["ingressClassName"], "nginx");
    let two = one.with("ingressclasses.networking.k8s.io", class("other"));
    assert!(write("ingresses.networking.k8s.io").mutated(&ingress::DefaultIngressClass, &two, json!({})).is_err());
}

#[test]
fn plugins_stand_in_upstreams_order() {
    let names: Vec<&str> = CHAIN.iter().map(|plugin| plugin.name()).collect();
    assert_eq!(
        names,
        [
            "NamespaceLifecycle",
            "LimitRanger",
            "ServiceAccount",
            "NodeRestriction",
            "TaintNodesByCondition",
            "PodSecurity",
            "Priority",
            "DefaultTolerationSeconds",
            "DefaultStorageClass",
            "StorageObjectInUseProtection",
            "PersistentVolumeClaimResize",
            "RuntimeClass",
            "CertificateApproval",
            "CertificateSigning",
            "CertificateSubjectRestriction",
            "DefaultIngressClass",
            "ResourceQuota",
        ]
    );
}
