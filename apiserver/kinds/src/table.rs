//! The rows: every resource of v1.33's stable built-in groups, in discovery's group order.
//!
//! Names, verbs and subresources are those `kubectl api-resources -o wide` shows on a stock cluster.

use api::{GroupResource, Gvk, Gvr};

use crate::columns as c;
use crate::kind::{Kind, NameRule, ScalePaths, Selectable, Served, Storage, Subresource};
use crate::strategies as s;

const V1: &[&str] = &["v1"];

const READ_WRITE: &[&str] = &["get", "patch", "update"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];

const fn own(name: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, verbs, served: None }
}

const fn other(
    name: &'static str,
    verbs: &'static [&'static str],
    group: &'static str,
    version: &'static str,
    kind: &'static str,
) -> Subresource {
    Subresource { name, verbs, served: Some(Served { group, version, kind }) }
}

const STATUS_ONLY: Subresource = own("status", READ_WRITE);
const SCALE: Subresource = other("scale", READ_WRITE, "autoscaling", "v1", "Scale");
const STATUS: &[Subresource] = &[STATUS_ONLY];
const SCALE_STATUS: &[Subresource] = &[SCALE, STATUS_ONLY];

const POD_SUBRESOURCES: &[Subresource] = &[
    other("attach", STREAM, "", "v1", "PodAttachOptions"),
    other("binding", &["create"], "", "v1", "Binding"),
    own("ephemeralcontainers", READ_WRITE),
    other("eviction", &["create"], "policy", "v1", "Eviction"),
    other("exec", STREAM, "", "v1", "PodExecOptions"),
    own("log", &["get"]),
    other("portforward", STREAM, "", "v1", "PodPortForwardOptions"),
    other("proxy", PROXY, "", "v1", "PodProxyOptions"),
    own("resize", READ_WRITE),
    STATUS_ONLY,
];

const BY_SELECTOR: ScalePaths =
    ScalePaths { spec_replicas: "/spec/replicas", status_replicas: "/status/replicas", selector: "/spec/selector" };

const fn field(field: &'static str, paths: &'static [&'static str], absent: &'static str) -> Selectable {
    Selectable { field, paths, absent }
}

const POD_FIELDS: &[Selectable] = &[
    field("spec.nodeName", &["spec.nodeName"], ""),
    field("spec.restartPolicy", &["spec.restartPolicy"], ""),
    field("spec.schedulerName", &["spec.schedulerName"], ""),
    field("spec.serviceAccountName", &["spec.serviceAccountName"], ""),
    field("spec.hostNetwork", &["spec.hostNetwork"], "false"),
    field("status.phase", &["status.phase"], ""),
    field("status.podIP", &["status.podIP"], ""),
    field("status.podIPs", &["status.podIPs"], ""),
    field("status.nominatedNodeName", &["status.nominatedNodeName"], ""),
];
const EVENT_FIELDS: &[Selectable] = &[
    field("involvedObject.kind", &["involvedObject.kind"], ""),
    field("involvedObject.namespace", &["involvedObject.namespace"], ""),
    field("involvedObject.name", &["involvedObject.name"], ""),
    field("involvedObject.uid", &["involvedObject.uid"], ""),
    field("involvedObject.apiVersion", &["involvedObject.apiVersion"], ""),
    field("involvedObject.resourceVersion", &["involvedObject.resourceVersion"], ""),
    field("involvedObject.fieldPath", &["involvedObject.fieldPath"], ""),
    field("reason", &["reason"], ""),
    field("reportingComponent", &["reportingComponent"], ""),
    field("source", &["source.component", "reportingComponent"], ""),
    field("type", &["type"], ""),
];
/// The same, in events.k8s.io's words; paths are those of the stored core Event.
const NEW_EVENT_FIELDS: &[Selectable] = &[
    field("regarding.kind", &["involvedObject.kind"], ""),
    field("regarding.namespace", &["involvedObject.namespace"], ""),
    field("regarding.name", &["involvedObject.name"], ""),
    field("regarding.uid", &["involvedObject.uid"], ""),
    field("regarding.apiVersion", &["involvedObject.apiVersion"], ""),
    field("regarding.resourceVersion", &["involvedObject.resourceVersion"], ""),
    field("regarding.fieldPath", &["involvedObject.fieldPath"], ""),
    field("reason", &["reason"], ""),
    field("reportingController", &["reportingComponent"], ""),
    field("type", &["type"], ""),
];

const CORE_EVENTS: Storage = Storage::SharedWith { group: "", plural: "events" };

const APPS: &str = "apps";
const AUTHN: &str = "authentication.k8s.io";
const AUTHZ: &str = "authorization.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOWCONTROL: &str = "flowcontrol.apiserver.k8s.io";

/// Every resource, once.
#[rustfmt::skip]
pub static KINDS: &[Kind] = &[
    // core
    Kind::namespaced("", V1, "Binding", "binding", "bindings").answered().strategy(&s::pod::Binding),
    Kind::cluster("", V1, "ComponentStatus", "componentstatus", "componentstatuses").short(&["cs"]).verbs(&["get", "list"]).stored(Storage::Virtual).columns(c::core::COMPONENT_STATUS),
    Kind::namespaced("", V1, "ConfigMap", "configmap", "configmaps").short(&["cm"]).columns(c::core::CONFIG_MAP).strategy(&s::config::ConfigMap),
    Kind::namespaced("", V1, "Endpoints", "endpoints", "endpoints").short(&["ep"]).columns(c::network::ENDPOINTS).create_on_update().strategy(&s::endpoints::Endpoints),
    Kind::namespaced("", V1, "Event", "event", "events").short(&["ev"]).columns(c::core::EVENT).fields(EVENT_FIELDS).create_on_update().strategy(&s::event::Event),
    Kind::namespaced("", V1, "LimitRange", "limitrange", "limitranges").short(&["limits"]).columns(c::core::LIMIT_RANGE).create_on_update().strategy(&s::quota::LimitRange),
    Kind::cluster("", V1, "Namespace", "namespace", "namespaces").short(&["ns"]).columns(c::core::NAMESPACE).names(NameRule::Dns1123Label).strategy(&s::cluster::Namespace)
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"]).sub(&[own("finalize", &["update"]), STATUS_ONLY])
        .fields(&[field("status.phase", &["status.phase"], ""), field("name", &["metadata.name"], "")]),
    Kind::cluster("", V1, "Node", "node", "nodes").short(&["no"]).columns(c::core::NODE).strategy(&s::cluster::Node)
        .sub(&[other("proxy", PROXY, "", "v1", "NodeProxyOptions"), STATUS_ONLY]).fields(&[field("spec.unschedulable", &["spec.unschedulable"], "false")]),
    Kind::namespaced("", V1, "PersistentVolumeClaim", "persistentvolumeclaim", "persistentvolumeclaims").short(&["pvc"]).columns(c::storage::CLAIM).sub(STATUS).strategy(&s::volume::Claim),
    Kind::cluster("", V1, "PersistentVolume", "persistentvolume", "persistentvolumes").short(&["pv"]).columns(c::storage::VOLUME).sub(STATUS).strategy(&s::volume::Volume),
    Kind::namespaced("", V1, "Pod", "pod", "pods").short(&["po"]).category(&["all"]).columns(c::pod::POD).sub(POD_SUBRESOURCES).fields(POD_FIELDS).generation().strategy(&s::pod::Pod),
    Kind::namespaced("", V1, "PodTemplate", "podtemplate", "podtemplates").columns(c::workload::POD_TEMPLATE).strategy(&s::pod::PodTemplate),
    Kind::namespaced("", V1, "ReplicationController", "replicationcontroller", "replicationcontrollers").short(&["rc"]).category(&["all"]).columns(c::workload::REPLICATION_CONTROLLER).sub(SCALE_STATUS)
        .fields(&[field("status.replicas", &["status.replicas"], "0")]).generation().orphans().scaled(&BY_SELECTOR).strategy(&s::workload::ReplicationController),
    Kind::namespaced("", V1, "ResourceQuota", "resourcequota", "resourcequotas").short(&["quota"]).columns(c::core::RESOURCE_QUOTA).sub(STATUS).strategy(&s::quota::ResourceQuota),
    Kind::namespaced("", V1, "Secret", "secret", "secrets").columns(c::core::SECRET).fields(&[field("type", &["type"], "")]).strategy(&s::config::Secret),
    Kind::namespaced("", V1, "ServiceAccount", "serviceaccount", "serviceaccounts").short(&["sa"]).columns(c::core::SERVICE_ACCOUNT)
        .sub(&[other("token", &["create"], AUTHN, "v1", "TokenRequest")]).strategy(&s::config::ServiceAccount),
    Kind::namespaced("", V1, "Service", "service", "services").short(&["svc"]).category(&["all"]).columns(c::network::SERVICE).names(NameRule::Dns1035Label).create_on_update()
        .sub(&[other("proxy", PROXY, "", "v1", "ServiceProxyOptions"), STATUS_ONLY])
        .fields(&[field("spec.clusterIP", &["spec.clusterIP"], ""), field("spec.type", &["spec.type"], "")]).strategy(&s::service::Service),

    // apiregistration.k8s.io
    Kind::cluster("apiregistration.k8s.io", V1, "APIService", "apiservice", "apiservices").category(&["api-extensions"]).sub(STATUS).columns(c::policy::API_SERVICE)
        .names(NameRule::PathSegment).conditional_update().strategy(&s::extension::ApiService),

    // apps
    Kind::namespaced(APPS, V1, "ControllerRevision", "controllerrevision", "controllerrevisions").columns(c::workload::CONTROLLER_REVISION).strategy(&s::workload::ControllerRevision),
    Kind::namespaced(APPS, V1, "DaemonSet", "daemonset", "daemonsets").short(&["ds"]).category(&["all"]).columns(c::workload::DAEMON_SET).sub(STATUS).generation().strategy(&s::workload::DaemonSet),
    Kind::namespaced(APPS, V1, "Deployment", "deployment", "deployments").short(&["deploy"]).category(&["all"]).columns(c::workload::DEPLOYMENT).sub(SCALE_STATUS).generation().scaled(&BY_SELECTOR).strategy(&s::workload::Deployment),
    Kind::namespaced(APPS, V1, "ReplicaSet", "replicaset", "replicasets").short(&["rs"]).category(&["all"]).columns(c::workload::REPLICA_SET).sub(SCALE_STATUS).generation().scaled(&BY_SELECTOR)
        .fields(&[field("status.replicas", &["status.replicas"], "0")]).strategy(&s::workload::ReplicaSet),
    Kind::namespaced(APPS, V1, "StatefulSet", "statefulset", "statefulsets").short(&["sts"]).category(&["all"]).columns(c::workload::STATEFUL_SET).sub(SCALE_STATUS).generation().scaled(&BY_SELECTOR).strategy(&s::workload::StatefulSet),

    // events.k8s.io: the core group's events in newer words
    Kind::namespaced("events.k8s.io", V1, "Event", "event", "events").short(&["ev"]).columns(c::core::EVENT).fields(NEW_EVENT_FIELDS).stored(CORE_EVENTS).create_on_update().strategy(&s::event::NewEvent),

    // authentication.k8s.io, authorization.k8s.io: questions
    Kind::cluster(AUTHN, V1, "SelfSubjectReview", "selfsubjectreview", "selfsubjectreviews").answered(),
    Kind::cluster(AUTHN, V1, "TokenReview", "tokenreview", "tokenreviews").answered(),
    Kind::namespaced(AUTHZ, V1, "LocalSubjectAccessReview", "localsubjectaccessreview", "localsubjectaccessreviews").answered().strategy(&s::rbac::LocalAccessReview),
    Kind::cluster(AUTHZ, V1, "SelfSubjectAccessReview", "selfsubjectaccessreview", "selfsubjectaccessreviews").answered().strategy(&s::rbac::SelfAccessReview),
    Kind::cluster(AUTHZ, V1, "SelfSubjectRulesReview", "selfsubjectrulesreview", "selfsubjectrulesreviews").answered(),
    Kind::cluster(AUTHZ, V1, "SubjectAccessReview", "subjectaccessreview", "subjectaccessreviews").answered().strategy(&s::rbac::AccessReview),

    // autoscaling
    Kind::namespaced("autoscaling", &["v2", "v1"], "HorizontalPodAutoscaler", "horizontalpodautoscaler", "horizontalpodautoscalers").short(&["hpa"]).category(&["all"]).columns(c::policy::AUTOSCALER).sub(STATUS).strategy(&s::policy::Autoscaler),

    // batch
    Kind::namespaced("batch", V1, "CronJob", "cronjob", "cronjobs").short(&["cj"]).category(&["all"]).columns(c::workload::CRON_JOB).sub(STATUS).generation().strategy(&s::batch::CronJob),
    Kind::namespaced("batch", V1, "Job", "job", "jobs").category(&["all"]).columns(c::workload::JOB).sub(STATUS).generation().orphans()
        .fields(&[field("status.successful", &["status.succeeded"], "0")]).strategy(&s::batch::Job),

    // certificates.k8s.io
    Kind::cluster("certificates.k8s.io", V1, "CertificateSigningRequest", "certificatesigningrequest", "certificatesigningrequests").short(&["csr"]).names(NameRule::Any).columns(c::policy::SIGNING_REQUEST)
        .sub(&[own("approval", READ_WRITE), STATUS_ONLY]).fields(&[field("spec.signerName", &["spec.signerName"], "")]).strategy(&s::certificate::SigningRequest),

    // networking.k8s.io
    Kind::cluster(NETWORKING, V1, "IngressClass", "ingressclass", "ingressclasses").columns(c::network::INGRESS_CLASS).generation().strategy(&s::network::IngressClass),
    Kind::namespaced(NETWORKING, V1, "Ingress", "ingress", "ingresses").short(&["ing"]).columns(c::network::INGRESS).sub(STATUS).generation().strategy(&s::network::Ingress),
    Kind::cluster(NETWORKING, V1, "IPAddress", "ipaddress", "ipaddresses").short(&["ip"]).columns(c::network::IP_ADDRESS).names(NameRule::Ip).fields(&[field("spec.parentRef.name", &["spec.parentRef.name"], "")]).strategy(&s::network::IpAddress),
    Kind::namespaced(NETWORKING, V1, "NetworkPolicy", "networkpolicy", "networkpolicies").short(&["netpol"]).columns(c::network::NETWORK_POLICY).generation().strategy(&s::network::NetworkPolicy),
    Kind::cluster(NETWORKING, V1, "ServiceCIDR", "servicecidr", "servicecidrs").columns(c::network::SERVICE_CIDR).sub(STATUS).strategy(&s::network::ServiceCidr),

    // policy
    Kind::namespaced("policy", V1, "PodDisruptionBudget", "poddisruptionbudget", "poddisruptionbudgets").short(&["pdb"]).names(NameRule::PathSegment).columns(c::policy::DISRUPTION_BUDGET).sub(STATUS).generation().conditional_update().strategy(&s::policy::DisruptionBudget),

    // rbac.authorization.k8s.io
    Kind::cluster(RBAC, V1, "ClusterRoleBinding", "clusterrolebinding", "clusterrolebindings").columns(c::policy::ROLE_BINDING).names(NameRule::PathSegment).create_on_update().strategy(&s::rbac::ClusterRoleBinding),
    Kind::cluster(RBAC, V1, "ClusterRole", "clusterrole", "clusterroles").columns(c::policy::CREATED_AT).names(NameRule::PathSegment).create_on_update().strategy(&s::rbac::ClusterRole),
    Kind::namespaced(RBAC, V1, "RoleBinding", "rolebinding", "rolebindings").columns(c::policy::ROLE_BINDING).names(NameRule::PathSegment).create_on_update().strategy(&s::rbac::RoleBinding),
    Kind::namespaced(RBAC, V1, "Role", "role", "roles").columns(c::policy::CREATED_AT).names(NameRule::PathSegment).create_on_update().strategy(&s::rbac::Role),

    // storage.k8s.io
    Kind::cluster(STORAGE, V1, "CSIDriver", "csidriver", "csidrivers").columns(c::storage::CSI_DRIVER).conditional_update().strategy(&s::volume::CsiDriver),
    Kind::cluster(STORAGE, V1, "CSINode", "csinode", "csinodes").columns(c::storage::CSI_NODE).conditional_update().strategy(&s::volume::CsiNode),
    Kind::namespaced(STORAGE, V1, "CSIStorageCapacity", "csistoragecapacity", "csistoragecapacities").columns(c::storage::CAPACITY).conditional_update().strategy(&s::volume::StorageCapacity),
    Kind::cluster(STORAGE, V1, "StorageClass", "storageclass", "storageclasses").short(&["sc"]).columns(c::storage::CLASS).strategy(&s::volume::StorageClass),
    Kind::cluster(STORAGE, V1, "VolumeAttachment", "volumeattachment", "volumeattachments").columns(c::storage::ATTACHMENT).sub(STATUS).conditional_update().strategy(&s::volume::Attachment),

    // admissionregistration.k8s.io
    Kind::cluster(ADMISSION, V1, "MutatingWebhookConfiguration", "mutatingwebhookconfiguration", "mutatingwebhookconfigurations").category(&["api-extensions"]).columns(c::policy::WEBHOOKS).generation().conditional_update().strategy(&s::extension::Webhooks),
    Kind::cluster(ADMISSION, V1, "ValidatingAdmissionPolicy", "validatingadmissionpolicy", "validatingadmissionpolicies").category(&["api-extensions"]).sub(STATUS).columns(c::policy::ADMISSION_POLICY).generation().conditional_update(),
    Kind::cluster(ADMISSION, V1, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybinding", "validatingadmissionpolicybindings").category(&["api-extensions"]).columns(c::policy::ADMISSION_BINDING).generation().conditional_update(),
    Kind::cluster(ADMISSION, V1, "ValidatingWebhookConfiguration", "validatingwebhookconfiguration", "validatingwebhookconfigurations").category(&["api-extensions"]).columns(c::policy::WEBHOOKS).generation().conditional_update().strategy(&s::extension::Webhooks),

    // apiextensions.k8s.io
    Kind::cluster("apiextensions.k8s.io", V1, "CustomResourceDefinition", "customresourcedefinition", "customresourcedefinitions").short(&["crd", "crds"]).category(&["api-extensions"]).sub(STATUS)
        .columns(c::policy::CREATED_AT).generation().conditional_update().strategy(&s::definition::ResourceDefinition),

    // scheduling.k8s.io, coordination.k8s.io, node.k8s.io, discovery.k8s.io
    Kind::cluster("scheduling.k8s.io", V1, "PriorityClass", "priorityclass", "priorityclasses").short(&["pc"]).columns(c::policy::PRIORITY_CLASS).generation().strategy(&s::policy::PriorityClass),
    Kind::namespaced("coordination.k8s.io", V1, "Lease", "lease", "leases").columns(c::core::LEASE).create_on_update().conditional_update().strategy(&s::cluster::Lease),
    Kind::cluster("node.k8s.io", V1, "RuntimeClass", "runtimeclass", "runtimeclasses").columns(c::core::RUNTIME_CLASS).conditional_update().strategy(&s::cluster::RuntimeClass),
    Kind::namespaced("discovery.k8s.io", V1, "EndpointSlice", "endpointslice", "endpointslices").columns(c::network::ENDPOINT_SLICE).generation().strategy(&s::endpoints::EndpointSlice),

    // flowcontrol.apiserver.k8s.io
    Kind::cluster(FLOWCONTROL, V1, "FlowSchema", "flowschema", "flowschemas").sub(STATUS).columns(c::policy::FLOW_SCHEMA).generation().strategy(&s::flow::FlowSchema),
    Kind::cluster(FLOWCONTROL, V1, "PriorityLevelConfiguration", "prioritylevelconfiguration", "prioritylevelconfigurations").sub(STATUS).columns(c::policy::PRIORITY_LEVEL).generation().strategy(&s::flow::PriorityLevel),
];

pub fn by_gvr(gvr: &Gvr) -> Option<&'static Kind> {
    by_resource(&gvr.group, &gvr.resource).filter(|kind| kind.versions.contains(&gvr.version.as_str()))
}

pub fn by_gvk(gvk: &Gvk) -> Option<&'static Kind> {
    by_kind(&gvk.group, &gvk.kind).filter(|kind| kind.versions.contains(&gvk.version.as_str()))
}

/// Whatever the version.
pub fn by_resource(group: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.plural == plural)
}

/// Whatever the version.
pub fn by_kind(group: &str, name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.kind == name)
}

impl Kind {
    /// The row whose objects these are.
    pub fn storage_kind(&'static self) -> &'static Kind {
        let GroupResource { group, resource } = self.storage_resource();
        by_resource(&group, &resource).unwrap_or(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::kind::ALL_VERBS;

    use super::*;

    #[test]
    fn rows_are_distinct_and_regular() {
        let mut seen = BTreeSet::new();
        for kind in KINDS {
            assert!(seen.insert((kind.group, kind.plural)), "{} twice", kind.plural);
            assert_eq!(kind.singular, kind.kind.to_lowercase());
            assert!(kind.versions.contains(&kind.storage_version));
            assert!(kind.verbs.iter().all(|verb| ALL_VERBS.contains(verb)));
            assert!(kind.subresources.is_sorted_by_key(|s| s.name));
            assert_eq!(kind.scale.is_some(), kind.subresource("scale").is_some());
        }
    }

    #[test]
    fn finds_by_resource_and_kind() {
        let kind = by_gvr(&Gvr::new("autoscaling", "v1", "horizontalpodautoscalers")).unwrap();
        assert_eq!(kind.storage_gvk(), Gvk::new("autoscaling", "v2", "HorizontalPodAutoscaler"));
        assert!(by_gvk(&Gvk::new("autoscaling", "v2beta1", "HorizontalPodAutoscaler")).is_none());
        let event = by_gvk(&Gvk::new("events.k8s.io", "v1", "Event")).unwrap();
        assert_eq!(event.storage_kind().group, "");
    }
}
