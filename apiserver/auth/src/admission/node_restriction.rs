//! NodeRestriction: a kubelet writes only what is its own. What it may do at all is the Node authorizer's.
//!
//! Upstream: `plugin/pkg/admission/noderestriction/admission.go` (v1.33).

use std::collections::BTreeSet;
use std::sync::Arc;

use api::volume::directory;
use api::{GroupResource, Key, Status};
use serde_json::Value;

use super::object::is_unset;
use super::{Operation, Plugin, Refusal, Request, refers_to};
use crate::authz::ReferenceKind;
use crate::lookup::{LookupExt, items, meta_entry, text};
use crate::user::{NODE_USER_PREFIX, NODES_GROUP};

pub struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Refusal> {
        if request.operation == Operation::Connect
            || !request.user.in_group(NODES_GROUP)
            || !request.user.name.starts_with(NODE_USER_PREFIX)
        {
            return Ok(());
        }
        let node = request.user.node_name().unwrap_or_default();
        if node.is_empty() {
            return Err(request.forbidden(object, format!("could not determine node from user {:?}", request.user.name)));
        }
        let check = Check { node, request, object };
        match (request.resource.group.as_str(), request.resource.resource.as_str(), request.subresource) {
            ("", "pods", "") => check.pod(),
            ("", "pods", "status") => check.pod_status(),
            ("", "pods", "eviction") => check.pod_eviction(),
            ("", "pods", other) => check.refuse(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed")),
            ("", "nodes", _) => check.node(),
            ("", "persistentvolumeclaims", "status") => check.claim_status(),
            ("", "persistentvolumeclaims", _) => check.refuse("may only update PVC status"),
            ("", "persistentvolumes", _) => check.volume(),
            ("", "serviceaccounts", "token") if request.operation == Operation::Create => check.token(),
            ("coordination.k8s.io", "leases", _) => check.lease(),
            ("storage.k8s.io", "csinodes", _) => check.csi_node(),
            _ => Ok(()),
        }
    }
}

struct Check<'a> {
    node: &'a str,
    request: &'a Request<'a>,
    object: &'a Value,
}

type Verdict = Result<(), Refusal>;

impl Check<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> Verdict {
        Err(self.request.forbidden(self.object, why))
    }

    fn require(&self, good: bool, why: impl FnOnce() -> String) -> Verdict {
        if good { Ok(()) } else { self.refuse(why()) }
    }

    fn unexpected(&self) -> Verdict {
        self.refuse(format!("unexpected operation {:?}", operation_name(self.request.operation)))
    }

    fn stored_pod(&self, name: &str) -> Result<Arc<Value>, Refusal> {
        let found = self.request.lookup.core("pods", self.request.namespace, name);
        found.ok_or_else(|| Status::not_found(&GroupResource::new("", "pods"), name).into())
    }

    fn pod(&self) -> Verdict {
        let node = self.node;
        match self.request.operation {
            Operation::Create => self.mirror_pod(),
            Operation::Delete => {
                let pod = self.stored_pod(self.request.name)?;
                self.require(text(&pod, "/spec/nodeName") == node, || {
                    format!("node {node:?} can only delete pods with spec.nodeName set to itself")
                })
            }
            other => self
                .refuse(format!("unexpected operation {:?}, node {node:?} can only create and delete mirror pods", operation_name(other))),
        }
    }

    fn mirror_pod(&self) -> Verdict {
        let (node, pod) = (self.node, self.object);
        const MIRROR: &str = "kubernetes.io/config.mirror";
        self.require(meta_entry(pod, "annotations", MIRROR).is_some(), || {
            format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods")
        })?;
        self.require(text(pod, "/spec/nodeName") == node, || {
            format!("node {node:?} can only create pods with spec.nodeName set to itself")
        })?;
        self.mirror_pod_owner()?;
        self.require(text(pod, "/spec/serviceAccountName").is_empty(), || {
            format!("node {node:?} can not create pods that reference a service account")
        })?;
        let kinds = [
            (ReferenceKind::Secret, "secrets"),
            (ReferenceKind::ConfigMap, "configmaps"),
            (ReferenceKind::Claim, "persistentvolumeclaims"),
        ];
        for (kind, name) in kinds {
            self.require(!refers_to(pod, kind), || format!("node {node:?} can not create pods that reference {name}"))?;
        }
        Ok(())
    }

    /// Exactly one owner: the node itself, by name and uid.
    fn mirror_pod_owner(&self) -> Verdict {
        let node = self.node;
        let owner = match items(self.object, "/metadata/ownerReferences") {
            [owner] => owner,
            [] => return self.refuse(format!("node {node:?} can only create pods with an owner reference set to itself")),
            _ => return self.refuse(format!("node {node:?} can only create pods with a single owner reference set to itself")),
        };
        let is_node = text(owner, "/apiVersion") == "v1" && text(owner, "/kind") == "Node" && text(owner, "/name") == node;
        self.require(is_node, || format!("node {node:?} can only create pods with an owner reference set to itself"))?;
        let flag = |name: &str| owner.get(name).and_then(Value::as_bool).unwrap_or(false);
        self.require(flag("controller"), || format!("node {node:?} can only create pods with a controller owner reference set to itself"))?;
        self.require(!flag("blockOwnerDeletion"), || format!("node {node:?} must not set blockOwnerDeletion on an owner reference"))?;
        let Some(stored) = self.request.lookup.core("nodes", "", node) else {
            return Err(Status::not_found(&GroupResource::new("", "nodes"), node).into());
        };
        let (claimed, actual) = (text(owner, "/uid"), text(&stored, "/metadata/uid"));
        self.require(claimed == actual, || format!("node {node} UID mismatch: expected {claimed} got {actual}"))
    }

    fn pod_status(&self) -> Verdict {
        let (node, Operation::Update, Some(old)) = (self.node, self.request.operation, self.request.old) else {
            return self.unexpected();
        };
        self.require(text(old, "/spec/nodeName") == node, || {
            format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
        })?;
        self.require(labels(Some(old)) == labels(Some(self.object)), || format!("node {node:?} cannot update labels through pod status"))
    }

    fn pod_eviction(&self) -> Verdict {
        let node = self.node;
        if self.request.operation != Operation::Create {
            return self.refuse(format!("unexpected operation {}", operation_name(self.request.operation)));
        }
        let name = [self.request.name, text(self.object, "/metadata/name")].into_iter().find(|name| !name.is_empty());
        let Some(name) = name else { return self.refuse("could not determine pod from request data") };
        let pod = self.stored_pod(name)?;
        self.require(text(&pod, "/spec/nodeName") == node, || format!("node {node} can only evict pods with spec.nodeName set to itself"))
    }

    fn node(&self) -> Verdict {
        let (node, new) = (self.node, self.object);
        let name = if self.request.name.is_empty() { text(new, "/metadata/name") } else { self.request.name };
        self.require(name == node, || format!("node {node:?} is not allowed to modify node {name:?}"))?;
        match (self.request.operation, self.request.old) {
            (Operation::Create, _) => {
                self.require(is_unset(new.pointer("/spec/configSource")), || {
                    format!("node {node:?} is not allowed to create pods with a non-nil configSource")
                })?;
                let forbidden = forbidden_labels(None, new);
                self.require(forbidden.is_empty(), || {
                    format!("node {node:?} is not allowed to set the following labels: {}", forbidden.join(", "))
                })
            }
            (Operation::Update, Some(old)) => {
                let same = |pointer: &str| {
                    let (a, b) = (new.pointer(pointer), old.pointer(pointer));
                    a == b || (is_unset(a) && is_unset(b))
                };
                self.require(is_unset(new.pointer("/spec/configSource")) || same("/spec/configSource"), || {
                    format!("node {node:?} is not allowed to update configSource to a new non-nil configSource")
                })?;
                self.require(same("/spec/taints"), || format!("node {node:?} is not allowed to modify taints"))?;
                self.require(same("/metadata/ownerReferences"), || format!("node {node:?} is not allowed to modify ownerReferences"))?;
                let forbidden = forbidden_labels(Some(old), new);
                self.require(forbidden.is_empty(), || format!("is not allowed to modify labels: {}", forbidden.join(", ")))
            }
            _ => Ok(()),
        }
    }

    fn claim_status(&self) -> Verdict {
        let (node, Operation::Update, Some(old)) = (self.node, self.request.operation, self.request.old) else {
            return self.unexpected();
        };
        let rest = |claim: &Value| {
            let mut claim = claim.clone();
            let mut strip = |part: &str, fields: &[&str]| {
                if let Some(map) = claim.get_mut(part).and_then(Value::as_object_mut) {
                    map.retain(|field, _| !fields.contains(&field.as_str()));
                }
            };
            strip("metadata", &["resourceVersion", "managedFields"]);
            strip(
                "status",
                &[
                    "capacity",
                    "conditions",
                    "allocatedResources",
                    "allocatedResourceStatuses",
                    "modifyVolumeStatus",
                    "currentVolumeAttributesClassName",
                ],
            );
            claim
        };
        self.require(rest(old) == rest(self.object), || {
            format!("node {node:?} is not allowed to update fields other than status.quantity and status.conditions")
        })
    }

    /// All that a node ever writes of a volume: that the directory it had is gone.
    fn volume(&self) -> Verdict {
        let (node, Operation::Update, Some(old)) = (self.node, self.request.operation, self.request.old) else {
            return self.unexpected();
        };
        let rest = |volume: &Value| {
            let mut volume = volume.clone();
            if let Some(meta) = volume.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.retain(|field, _| !["resourceVersion", "managedFields", "finalizers"].contains(&field.as_str()));
            }
            volume
        };
        let holders = |volume: &Value| -> Vec<String> {
            let all = items(volume, "/metadata/finalizers").iter().filter_map(Value::as_str);
            all.filter(|finalizer| *finalizer != directory::FINALIZER).map(str::to_owned).collect()
        };
        let ends = !text(old, "/metadata/deletionTimestamp").is_empty() && meta_entry(old, "labels", directory::NODE) == Some(node);
        self.require(ends && rest(old) == rest(self.object) && holders(old) == holders(self.object), || {
            format!("node {node:?} may only let go of the finalizer {:?} of a volume that is being deleted", directory::FINALIZER)
        })
    }

    /// Tokens only for the node's own pods, and only for audiences those pods ask for.
    fn token(&self) -> Verdict {
        let reference = self.object.pointer("/spec/boundObjectRef").cloned().unwrap_or_default();
        let (name, uid) = (text(&reference, "/name"), text(&reference, "/uid"));
        let is_pod = text(&reference, "/apiVersion") == "v1" && text(&reference, "/kind") == "Pod" && !name.is_empty();
        self.require(is_pod, || "node requested token not bound to a pod".to_owned())?;
        self.require(!uid.is_empty(), || "node requested token with a pod binding without a uid".to_owned())?;
        let pod = self.stored_pod(name)?;
        let actual = text(&pod, "/metadata/uid");
        self.require(uid == actual, || {
            format!("the UID in the bound object reference ({uid}) does not match the UID in record ({actual}). The object might have been deleted and then recreated")
        })?;
        self.require(text(&pod, "/spec/nodeName") == self.node, || {
            "node requested token bound to a pod scheduled on a different node".to_owned()
        })?;
        let audience = match items(self.object, "/spec/audiences") {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return self.refuse("node may only request 0 or 1 audiences"),
        };
        let known = pod_audiences(&pod, self.request).contains(audience)
            || self.request.may(
                "request-serviceaccounts-token-audience",
                &GroupResource::new("", audience),
                self.request.namespace,
                self.request.name,
            );
        self.require(known, || {
            format!(
                "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
                self.request.user.name
            )
        })
    }

    fn named_after_node(&self, what: &str) -> Verdict {
        let name = if self.request.operation == Operation::Create { text(self.object, "/metadata/name") } else { self.request.name };
        self.require(name == self.node, || format!("can only access {what} with the same name as the requesting node"))
    }

    fn lease(&self) -> Verdict {
        self.require(self.request.namespace == "kube-node-lease", || {
            "can only access leases in the \"kube-node-lease\" system namespace".to_owned()
        })?;
        self.named_after_node("node lease")
    }

    fn csi_node(&self) -> Verdict {
        self.named_after_node("CSINode")
    }
}

fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn labels(object: Option<&Value>) -> Vec<(&str, &str)> {
    let labels = object.and_then(|object| object.pointer("/metadata/labels")).and_then(Value::as_object);
    labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())).collect()
}

/// Labels a node would set, change or remove that could draw workloads to it.
fn forbidden_labels(old: Option<&Value>, new: &Value) -> Vec<String> {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (labels(old).into_iter().collect(), labels(Some(new)).into_iter().collect());
    let changed: BTreeSet<&str> = old.symmetric_difference(&new).map(|(key, _)| *key).collect();
    changed.into_iter().filter(|key| is_forbidden_label(key)).map(str::to_owned).collect()
}

/// `node-restriction.kubernetes.io` never; of Kubernetes' own labels only those a kubelet has reason to set.
fn is_forbidden_label(key: &str) -> bool {
    const KUBELET_LABELS: [&str; 12] = [
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "node.kubernetes.io/windows-build",
    ];
    let Some((namespace, _)) = key.split_once('/') else { return false };
    let within = |domain: &str| namespace == domain || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let kubelets = within("kubelet.kubernetes.io") || within("node.kubernetes.io") || KUBELET_LABELS.contains(&key);
    (within("kubernetes.io") || within("k8s.io")) && !kubelets
}

/// Audiences of a pod's projected tokens and of the CSI drivers of its volumes; "" is the API server's own.
fn pod_audiences(pod: &Value, request: &Request<'_>) -> BTreeSet<String> {
    let mut audiences = BTreeSet::new();
    let namespace = request.namespace;
    for volume in items(pod, "/spec/volumes") {
        for source in items(volume, "/projected/sources") {
            if let Some(token) = source.get("serviceAccountToken") {
                audiences.insert(text(token, "/audience").to_owned());
            }
        }
        let mut driver = text(volume, "/csi/driver").to_owned();
        let claim = match text(volume, "/persistentVolumeClaim/claimName") {
            "" if volume.get("ephemeral").is_some() => format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name")),
            claim => claim.to_owned(),
        };
        if let Some(claim) = request.lookup.core("persistentvolumeclaims", namespace, &claim)
            && let Some(volume) = request.lookup.core("persistentvolumes", "", text(&claim, "/spec/volumeName"))
        {
            driver = text(&volume, "/spec/csi/driver").to_owned();
        }
        let drivers = GroupResource::new("storage.k8s.io", "csidrivers");
        if let Some(driver) = request.lookup.get(&drivers, &Key::cluster(driver)) {
            audiences.extend(items(&driver, "/spec/tokenRequests").iter().map(|r| text(r, "/audience").to_owned()));
        }
    }
    audiences
}
