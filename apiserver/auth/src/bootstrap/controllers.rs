//! The roles of the controllers: `system:controller:NAME`, each bound to the service account NAME in kube-system.
//!
//! Upstream: `bootstrappolicy/controller_policy.go` (v1.33, default feature gates).

use super::{Binding, EVENTS, Line, Object, Role, named, on};

const PREFIX: &str = "system:controller:";

#[rustfmt::skip]
const CONTROLLERS: &[(&str, &[Line])] = &[
    ("attachdetach-controller", &[
        on("list watch", "core", "persistentvolumes persistentvolumeclaims"),
        on("get list watch", "core", "nodes"),
        on("patch update", "core", "nodes/status"),
        on("list watch", "core", "pods"),
        EVENTS,
        on("create delete get list patch update watch", "storage.k8s.io", "volumeattachments"),
        on("get list watch", "storage.k8s.io", "csidrivers"),
        on("get list watch", "storage.k8s.io", "csinodes"),
    ]),
    ("certificate-controller", &[
        on("delete get list watch", "certificates.k8s.io", "certificatesigningrequests"),
        on("update", "certificates.k8s.io", "certificatesigningrequests/approval certificatesigningrequests/status"),
        named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client-kubelet"),
        named(
            "sign", "certificates.k8s.io", "signers",
            "kubernetes.io/kube-apiserver-client kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving kubernetes.io/legacy-unknown",
        ),
        on("create", "authorization.k8s.io", "subjectaccessreviews"),
        EVENTS,
    ]),
    // Full power over cluster roles, to write whatever the aggregation says.
    ("clusterrole-aggregation-controller", &[on("escalate get list patch update watch", "rbac.authorization.k8s.io", "clusterroles")]),
    ("cronjob-controller", &[
        on("get list update watch", "batch", "cronjobs"),
        on("create delete get list patch update watch", "batch", "jobs"),
        on("update", "batch", "cronjobs/status"),
        on("update", "batch", "cronjobs/finalizers"),
        on("delete list", "core", "pods"),
        EVENTS,
    ]),
    ("daemon-set-controller", &[
        on("get list watch", "apps extensions", "daemonsets"),
        on("update", "apps extensions", "daemonsets/status"),
        on("update", "apps extensions", "daemonsets/finalizers"),
        on("list watch", "core", "nodes"),
        on("create delete list patch watch", "core", "pods"),
        on("create", "core", "pods/binding"),
        on("create delete get list patch update watch", "apps", "controllerrevisions"),
        EVENTS,
    ]),
    ("deployment-controller", &[
        on("get list update watch", "apps extensions", "deployments"),
        on("update", "apps extensions", "deployments/status"),
        on("update", "apps extensions", "deployments/finalizers"),
        on("create delete get list patch update watch", "apps extensions", "replicasets"),
        on("get list update watch", "core", "pods"),
        EVENTS,
    ]),
    ("disruption-controller", &[
        on("get list watch", "apps extensions", "deployments"),
        on("get list watch", "apps extensions", "replicasets"),
        on("get list watch", "core", "replicationcontrollers"),
        on("get list watch", "policy", "poddisruptionbudgets"),
        on("get list watch", "apps", "statefulsets"),
        on("update", "policy", "poddisruptionbudgets/status"),
        on("patch update", "core", "pods/status"),
        on("get", "*", "*/scale"),
        EVENTS,
    ]),
    ("endpoint-controller", &[
        on("get list watch", "core", "pods services"),
        on("create delete get list update", "core", "endpoints"),
        on("create", "core", "endpoints/restricted"),
        EVENTS,
    ]),
    ("endpointslice-controller", &[
        on("get list watch", "core", "nodes pods services"),
        // To own a slice by its service with blockOwnerDeletion.
        on("update", "core", "services/finalizers"),
        on("create delete get list update", "discovery.k8s.io", "endpointslices"),
        EVENTS,
    ]),
    ("endpointslicemirroring-controller", &[
        on("get list watch", "core", "endpoints services"),
        on("update", "core", "services/finalizers"),
        on("update", "core", "endpoints/finalizers"),
        on("create delete get list update", "discovery.k8s.io", "endpointslices"),
        EVENTS,
    ]),
    ("ephemeral-volume-controller", &[
        on("get list watch", "core", "pods"),
        on("update", "core", "pods/finalizers"),
        on("create get list watch", "core", "persistentvolumeclaims"),
        EVENTS,
    ]),
    ("expand-controller", &[
        on("get list patch update watch", "core", "persistentvolumes"),
        on("patch update", "core", "persistentvolumeclaims/status"),
        on("get list watch", "core", "persistentvolumeclaims"),
        on("get list watch", "storage.k8s.io", "storageclasses"),
        on("get", "core", "endpoints services"),
        on("get", "core", "secrets"),
        EVENTS,
    ]),
    ("generic-garbage-collector", &[on("delete get list patch update watch", "*", "*"), EVENTS]),
    ("horizontal-pod-autoscaler", &[
        on("get list watch", "autoscaling", "horizontalpodautoscalers"),
        on("update", "autoscaling", "horizontalpodautoscalers/status"),
        on("get update", "*", "*/scale"),
        on("list", "core", "pods"),
        on("list", "metrics.k8s.io", "pods"),
        on("get list", "custom.metrics.k8s.io", "*"),
        on("get list", "external.metrics.k8s.io", "*"),
        EVENTS,
    ]),
    ("job-controller", &[
        on("get list patch update watch", "batch", "jobs"),
        on("update", "batch", "jobs/status"),
        on("update", "batch", "jobs/finalizers"),
        on("create delete list patch watch", "core", "pods"),
        EVENTS,
    ]),
    ("legacy-service-account-token-cleaner", &[
        named("get", "core", "configmaps", "kube-apiserver-legacy-service-account-token-tracking"),
        on("delete patch", "core", "secrets"),
    ]),
    ("namespace-controller", &[
        on("delete get list watch", "core", "namespaces"),
        on("update", "core", "namespaces/finalize namespaces/status"),
        on("delete deletecollection get list", "*", "*"),
    ]),
    ("node-controller", &[
        on("delete get list patch update", "core", "nodes"),
        on("patch update", "core", "nodes/status"),
        on("patch update", "core", "pods/status"),
        on("delete get list", "core", "pods"),
        EVENTS,
    ]),
    ("persistent-volume-binder", &[
        on("create delete get list update watch", "core", "persistentvolumes"),
        on("update", "core", "persistentvolumes/status"),
        on("get list update watch", "core", "persistentvolumeclaims"),
        on("update", "core", "persistentvolumeclaims/status"),
        on("create delete get list watch", "core", "pods"),
        on("get list watch", "storage.k8s.io", "storageclasses"),
        on("create delete get update", "core", "endpoints"),
        on("create delete get", "core", "services"),
        on("get", "core", "secrets"),
        on("get list", "core", "nodes"),
        on("watch", "core", "events"),
        EVENTS,
    ]),
    ("pod-garbage-collector", &[
        on("delete list watch", "core", "pods"),
        on("get list", "core", "nodes"),
        on("patch", "core", "pods/status"),
    ]),
    ("pv-protection-controller", &[on("get list update watch", "core", "persistentvolumes"), EVENTS]),
    ("pvc-protection-controller", &[
        on("get list update watch", "core", "persistentvolumeclaims"),
        on("get list watch", "core", "pods"),
        EVENTS,
    ]),
    ("replicaset-controller", &[
        on("get list update watch", "apps extensions", "replicasets"),
        on("update", "apps extensions", "replicasets/status"),
        on("update", "apps extensions", "replicasets/finalizers"),
        on("create delete list patch watch", "core", "pods"),
        EVENTS,
    ]),
    ("replication-controller", &[
        on("get list update watch", "core", "replicationcontrollers"),
        on("update", "core", "replicationcontrollers/status"),
        on("update", "core", "replicationcontrollers/finalizers"),
        on("create delete list patch watch", "core", "pods"),
        EVENTS,
    ]),
    // A quota may count anything.
    ("resourcequota-controller", &[on("list watch", "*", "*"), on("update", "core", "resourcequotas/status"), EVENTS]),
    ("root-ca-cert-publisher", &[on("create update", "core", "configmaps"), EVENTS]),
    ("route-controller", &[on("list watch", "core", "nodes"), on("patch", "core", "nodes/status"), EVENTS]),
    ("selinux-warning-controller", &[
        on("get list watch", "core", "persistentvolumeclaims"),
        on("get list watch", "core", "persistentvolumes"),
        on("get list watch", "core", "pods"),
        on("get list watch", "storage.k8s.io", "csidrivers"),
        EVENTS,
    ]),
    ("service-account-controller", &[on("create", "core", "serviceaccounts"), EVENTS]),
    ("service-cidrs-controller", &[
        on("get list patch update watch", "networking.k8s.io", "servicecidrs"),
        on("patch update", "networking.k8s.io", "servicecidrs/finalizers"),
        on("patch update", "networking.k8s.io", "servicecidrs/status"),
        on("get list watch", "networking.k8s.io", "ipaddresses"),
        EVENTS,
    ]),
    ("service-controller", &[
        on("get list watch", "core", "services"),
        on("patch update", "core", "services/status"),
        on("list watch", "core", "nodes"),
        EVENTS,
    ]),
    ("statefulset-controller", &[
        on("list watch", "core", "pods"),
        on("get list watch", "apps", "statefulsets"),
        on("update", "apps", "statefulsets/status"),
        on("update", "apps", "statefulsets/finalizers"),
        on("create delete get patch update", "core", "pods"),
        on("create delete get list patch update watch", "apps", "controllerrevisions"),
        on("create get", "core", "persistentvolumeclaims"),
        EVENTS,
        on("delete update", "core", "persistentvolumeclaims"),
    ]),
    ("ttl-after-finished-controller", &[on("delete get list watch", "batch", "jobs"), EVENTS]),
    ("ttl-controller", &[on("list patch update watch", "core", "nodes"), EVENTS]),
    ("validatingadmissionpolicy-status-controller", &[
        on("get list watch", "admissionregistration.k8s.io", "validatingadmissionpolicies"),
        on("get patch update", "admissionregistration.k8s.io", "validatingadmissionpolicies/status"),
        EVENTS,
    ]),
];

/// Roles that live in a namespace; the account is always kube-system's.
#[rustfmt::skip]
const NAMESPACED: &[(&str, &str, &[Line])] = &[
    ("kube-system", "bootstrap-signer", &[on("get list watch", "core", "secrets")]),
    ("kube-system", "cloud-provider", &[on("create get list watch", "core", "configmaps")]),
    ("kube-system", "token-cleaner", &[on("delete get list watch", "core", "secrets"), EVENTS]),
    ("kube-public", "bootstrap-signer", &[
        on("get list watch", "core", "configmaps"),
        named("update", "core", "configmaps", "cluster-info"),
        EVENTS,
    ]),
];

pub fn objects() -> Vec<Object> {
    let cluster = CONTROLLERS.iter().map(|(name, rules)| ("", *name, *rules));
    let pairs = cluster.chain(NAMESPACED.iter().copied()).flat_map(|(namespace, name, rules)| pair(namespace, name, rules));
    pairs.chain([all_in_one()]).collect()
}

/// Our controllers run under one identity, which so needs the sum of their roles. (Upstream's
/// `--use-service-account-credentials` gives each controller its own account instead.)
fn all_in_one() -> Object {
    let mut rules: Vec<Line> = Vec::new();
    for line in CONTROLLERS.iter().flat_map(|(_, rules)| *rules) {
        if !rules.contains(line) {
            rules.push(*line);
        }
    }
    Role { namespace: "", name: "coracle:controllers", part_of: "", sum_of: "", rules: &rules }.object()
}

fn pair(namespace: &str, name: &str, rules: &[Line]) -> [Object; 2] {
    let full = format!("{PREFIX}{name}");
    let subject = format!("sa:{name}");
    [
        Role { namespace, name: &full, part_of: "", sum_of: "", rules }.object(),
        Binding { namespace, name: &full, role: &full, subjects: &subject }.object(),
    ]
}
