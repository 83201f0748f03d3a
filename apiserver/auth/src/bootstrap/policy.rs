//! The roles of people, nodes and control-plane processes.
//!
//! Upstream: `bootstrappolicy/{policy,namespace_policy}.go` (v1.33, default feature gates). Ours are the roles
//! named `coracle:…`: routes between nodes, serving certificates and the cause journal have no upstream counterpart.

use super::{Binding, EVENTS, Line, Object, READ, READ_WRITE, Role, WRITE, bind, named, on, role, urls};

#[rustfmt::skip]
pub const NODE_RULES: &[Line] = &[
    on("create", "authentication.k8s.io", "tokenreviews"),
    on("create", "authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews"),
    on(READ, "core", "services"),
    on("create get list watch", "core", "nodes"),
    on("patch update", "core", "nodes/status"),
    on("patch update", "core", "nodes"),
    on("create patch update", "core", "events"),
    on(READ, "core", "pods"),
    on("create delete", "core", "pods"),
    on("patch update", "core", "pods/status"),
    on("create", "core", "pods/eviction"),
    on(READ, "core", "configmaps secrets"),
    on("get", "core", "persistentvolumeclaims persistentvolumes"),
    on("get", "core", "endpoints"),
    on("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    on("create delete get patch update", "coordination.k8s.io", "leases"),
    on("get", "storage.k8s.io", "volumeattachments"),
    on("create", "core", "serviceaccounts/token"),
    on("get patch update", "core", "persistentvolumeclaims/status"),
    on(READ, "storage.k8s.io", "csidrivers"),
    on("create delete get patch update", "storage.k8s.io", "csinodes"),
    on(READ, "node.k8s.io", "runtimeclasses"),
];

const fn sum(name: &'static str, sum_of: &'static str, part_of: &'static str) -> Role<'static> {
    Role { namespace: "", name, part_of, sum_of, rules: &[] }
}

const fn part(name: &'static str, part_of: &'static str, rules: &'static [Line]) -> Role<'static> {
    Role { namespace: "", name, part_of, sum_of: "", rules }
}

#[rustfmt::skip]
const CLUSTER_ROLES: &[Role<'static>] = &[
    role("cluster-admin", &[on("*", "*", "*"), urls("*", "*")]),
    role("system:discovery", &[urls("get", "/livez /readyz /healthz /version /version/ /openapi /openapi/* /api /api/* /apis /apis/*")]),
    role("system:monitoring", &[urls("get", "/metrics /metrics/slis /livez /readyz /healthz /livez/* /readyz/* /healthz/*")]),
    role("system:basic-user", &[
        on("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
        on("create", "authentication.k8s.io", "selfsubjectreviews"),
    ]),
    role("system:public-info-viewer", &[urls("get", "/livez /readyz /healthz /version /version/")]),
    // A namespace's admin is its editor who may also grant; its editor is its viewer who may also write.
    sum("admin", "admin", ""),
    sum("edit", "edit", "admin"),
    sum("view", "view", "edit"),
    part("system:aggregate-to-admin", "admin", &[
        on("create", "authorization.k8s.io", "localsubjectaccessreviews"),
        on(READ_WRITE, "rbac.authorization.k8s.io", "rolebindings roles"),
    ]),
    part("system:aggregate-to-edit", "edit", &[
        on(READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
        on("impersonate", "core", "serviceaccounts"),
        on(WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
        on("create", "core", "pods/eviction"),
        on(
            WRITE, "core",
            "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy",
        ),
        on("create", "core", "serviceaccounts/token"),
        on(
            WRITE, "apps",
            "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale",
        ),
        on(WRITE, "autoscaling", "horizontalpodautoscalers"),
        on(WRITE, "batch", "cronjobs jobs"),
        on(
            WRITE, "extensions",
            "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets replicasets/scale replicationcontrollers/scale",
        ),
        on(WRITE, "policy", "poddisruptionbudgets"),
        on(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
        on(READ_WRITE, "coordination.k8s.io", "leases"),
    ]),
    part("system:aggregate-to-view", "view", &[
        on(
            READ, "core",
            "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
        ),
        on(
            READ, "core",
            "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status",
        ),
        on(READ, "core", "namespaces"),
        on(READ, "discovery.k8s.io", "endpointslices"),
        on(
            READ, "apps",
            "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
        ),
        on(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
        on(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
        on(
            READ, "extensions",
            "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale",
        ),
        on(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
        on(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
    ]),
    role("system:heapster", &[on(READ, "core", "events namespaces nodes pods"), on(READ, "extensions", "deployments")]),
    role("system:node", NODE_RULES),
    role("system:node-problem-detector", &[on("get", "core", "nodes"), on("patch", "core", "nodes/status"), EVENTS]),
    role("system:kubelet-api-admin", &[
        on(READ, "core", "nodes"),
        on("proxy", "core", "nodes"),
        on("*", "core", "nodes/configz nodes/healthz nodes/log nodes/metrics nodes/pods nodes/proxy nodes/stats"),
    ]),
    role("system:node-bootstrapper", &[on("create get list watch", "certificates.k8s.io", "certificatesigningrequests")]),
    role("system:auth-delegator", &[
        on("create", "authentication.k8s.io", "tokenreviews"),
        on("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]),
    role("system:kube-aggregator", &[on(READ, "core", "endpoints services")]),
    role("system:kube-controller-manager", &[
        EVENTS,
        on("create", "coordination.k8s.io", "leases"),
        named("get update", "coordination.k8s.io", "leases", "kube-controller-manager"),
        on("create", "core", "secrets serviceaccounts"),
        on("delete", "core", "secrets"),
        on("get", "core", "configmaps namespaces secrets serviceaccounts"),
        on("update", "core", "secrets serviceaccounts"),
        on("create", "authentication.k8s.io", "tokenreviews"),
        on("create", "authorization.k8s.io", "subjectaccessreviews"),
        on("list watch", "*", "*"),
        on("create", "core", "serviceaccounts/token"),
    ]),
    role("system:kube-dns", &[on("list watch", "core", "endpoints services"), on("list watch", "discovery.k8s.io", "endpointslices")]),
    role("system:persistent-volume-provisioner", &[
        on("create delete get list watch", "core", "persistentvolumes"),
        on("get list update watch", "core", "persistentvolumeclaims"),
        on(READ, "storage.k8s.io", "storageclasses"),
        on("watch", "core", "events"),
        EVENTS,
    ]),
    role("system:certificates.k8s.io:certificatesigningrequests:nodeclient", &[on(
        "create", "certificates.k8s.io", "certificatesigningrequests/nodeclient",
    )]),
    role("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", &[on(
        "create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient",
    )]),
    role("system:volume-scheduler", &[
        on("get list patch update watch", "core", "persistentvolumes"),
        on(READ, "storage.k8s.io", "storageclasses"),
        on("get list patch update watch", "core", "persistentvolumeclaims"),
    ]),
    role("system:certificates.k8s.io:legacy-unknown-approver", &[named(
        "approve", "certificates.k8s.io", "signers", "kubernetes.io/legacy-unknown",
    )]),
    role("system:certificates.k8s.io:kubelet-serving-approver", &[named(
        "approve", "certificates.k8s.io", "signers", "kubernetes.io/kubelet-serving",
    )]),
    role("system:certificates.k8s.io:kube-apiserver-client-approver", &[named(
        "approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client",
    )]),
    role("system:certificates.k8s.io:kube-apiserver-client-kubelet-approver", &[named(
        "approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client-kubelet",
    )]),
    role("system:service-account-issuer-discovery", &[urls("get", "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/")]),
    role("system:node-proxier", &[
        on("list watch", "core", "endpoints services"),
        on(READ, "core", "nodes"),
        EVENTS,
        on("list watch", "discovery.k8s.io", "endpointslices"),
        on("list watch", "networking.k8s.io", "servicecidrs"),
    ]),
    role("system:kube-scheduler", &[
        EVENTS,
        on("create", "coordination.k8s.io", "leases"),
        named("get list update watch", "coordination.k8s.io", "leases", "kube-scheduler"),
        on("get list watch", "coordination.k8s.io", "leasecandidates"),
        on(READ, "core", "nodes"),
        on("delete get list watch", "core", "pods"),
        on("create", "core", "bindings pods/binding"),
        on("patch update", "core", "pods/status"),
        on(READ, "core", "replicationcontrollers services"),
        on(READ, "apps extensions", "replicasets"),
        on(READ, "apps", "statefulsets"),
        on(READ, "policy", "poddisruptionbudgets"),
        on(READ, "core", "persistentvolumeclaims persistentvolumes"),
        on("create", "authentication.k8s.io", "tokenreviews"),
        on("create", "authorization.k8s.io", "subjectaccessreviews"),
        on(READ, "storage.k8s.io", "csinodes"),
        on(READ, "core", "namespaces"),
        on(READ, "storage.k8s.io", "csidrivers"),
        on(READ, "storage.k8s.io", "csistoragecapacities"),
        on(READ, "storage.k8s.io", "volumeattachments"),
    ]),
    // A kubelet routes to the pod networks of the other nodes, so it reads them all; upstream leaves that to a network plugin.
    role("coracle:node-routes", &[on(READ, "core", "nodes")]),
    // The serving certificates nodes ask for, whose approval upstream leaves to the operator.
    role("coracle:serving-certificate-approver", &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kubelet-serving")]),
    role("coracle:journal-writer", &[urls("post", "/debug/journal")]),
    role("coracle:journal-reader", &[urls("get", "/debug/journal")]),
];

#[rustfmt::skip]
const CLUSTER_BINDINGS: &[Binding<'static>] = &[
    bind("cluster-admin", "group:system:masters"),
    bind("system:monitoring", "group:system:monitoring"),
    bind("system:discovery", "group:system:authenticated"),
    bind("system:basic-user", "group:system:authenticated"),
    bind("system:public-info-viewer", "group:system:authenticated group:system:unauthenticated"),
    bind("system:node-proxier", "user:system:kube-proxy"),
    bind("system:kube-controller-manager", "user:system:kube-controller-manager"),
    bind("system:kube-dns", "sa:kube-dns"),
    bind("system:kube-scheduler", "user:system:kube-scheduler"),
    bind("system:volume-scheduler", "user:system:kube-scheduler"),
    // Nodes are the Node authorizer's; the binding stays for those who add to it.
    bind("system:node", ""),
    bind("system:service-account-issuer-discovery", "group:system:serviceaccounts"),
    bind("coracle:node-routes", "group:system:nodes"),
    bind("coracle:controllers", "user:system:kube-controller-manager"),
    bind("coracle:serving-certificate-approver", "user:system:kube-controller-manager"),
    bind("coracle:journal-writer", "group:system:nodes user:system:kube-proxy"),
];

#[rustfmt::skip]
const ROLES: &[Role<'static>] = &[
    in_system("extension-apiserver-authentication-reader", &[named(
        READ, "core", "configmaps", "extension-apiserver-authentication",
    )]),
    in_system("system::leader-locking-kube-controller-manager", &[
        on("watch", "core", "configmaps"),
        named("get update", "core", "configmaps", "kube-controller-manager"),
    ]),
    in_system("system::leader-locking-kube-scheduler", &[
        on("watch", "core", "configmaps"),
        named("get update", "core", "configmaps", "kube-scheduler"),
    ]),
];

#[rustfmt::skip]
const BINDINGS: &[Binding<'static>] = &[
    Binding {
        namespace: "kube-system",
        name: "system::extension-apiserver-authentication-reader",
        role: "extension-apiserver-authentication-reader",
        subjects: "user:system:kube-controller-manager user:system:kube-scheduler",
    },
    Binding {
        namespace: "kube-system",
        name: "system::leader-locking-kube-controller-manager",
        role: "system::leader-locking-kube-controller-manager",
        subjects: "user:system:kube-controller-manager sa:kube-controller-manager",
    },
    Binding {
        namespace: "kube-system",
        name: "system::leader-locking-kube-scheduler",
        role: "system::leader-locking-kube-scheduler",
        subjects: "user:system:kube-scheduler sa:kube-scheduler",
    },
];

const fn in_system(name: &'static str, rules: &'static [Line]) -> Role<'static> {
    Role { namespace: "kube-system", name, part_of: "", sum_of: "", rules }
}

pub fn objects() -> Vec<Object> {
    let roles = CLUSTER_ROLES.iter().chain(ROLES).map(Role::object);
    roles.chain(CLUSTER_BINDINGS.iter().chain(BINDINGS).map(Binding::object)).collect()
}
