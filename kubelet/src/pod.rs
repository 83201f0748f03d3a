//! What the kubelet asks of a Pod again and again, and upstream's names for what it writes on sandboxes and containers.
//!
//! Upstream: `pkg/kubelet/types/{labels,pod_update}.go`, `pkg/kubelet/kuberuntime/labels.go`, v1.33.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use api::container::of_ephemeral;
use api::key::Key;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, PodStatus, Probe};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sha2::{Digest, Sha256};

pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const ANNOTATION_TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const ANNOTATION_TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const ANNOTATION_POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
static NO_STATUS: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);

/// What stands in front of `spec.terminationGracePeriodSeconds` when nothing is said.
const DEFAULT_GRACE: i64 = 30;

pub trait PodExt {
    fn uid(&self) -> &str;
    fn key(&self) -> Key;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn spec(&self) -> &PodSpec;
    fn status(&self) -> &PodStatus;
    fn revision(&self) -> u64;
    fn host_network(&self) -> bool;
    fn phase(&self) -> &str;
    /// `name_namespace(uid)`, as upstream's messages name a pod.
    fn full_name(&self) -> String;
    fn restart_policy(&self) -> &str;
    fn deletion(&self) -> Option<&Time>;
    /// Seconds to end in: the deletion's, else the spec's.
    fn grace_period(&self) -> i64;
    fn init_containers(&self) -> &[Container];
    /// Init containers, then containers.
    fn all_containers(&self) -> Vec<&Container>;
    fn ephemeral_containers(&self) -> &[EphemeralContainer];
    /// Of any sort.
    fn container(&self, name: &str) -> Option<Cow<'_, Container>>;
    fn is_init(&self, name: &str) -> bool;
}

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn key(&self) -> Key {
        Key::of(self)
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&NO_SPEC)
    }

    fn status(&self) -> &PodStatus {
        self.status.as_ref().unwrap_or(&NO_STATUS)
    }

    fn revision(&self) -> u64 {
        self.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
    }

    fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }

    fn phase(&self) -> &str {
        self.status().phase.as_deref().unwrap_or_default()
    }

    fn full_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    fn restart_policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    fn deletion(&self) -> Option<&Time> {
        self.metadata.deletion_timestamp.as_ref()
    }

    fn grace_period(&self) -> i64 {
        let spec = self.spec().termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE);
        match (self.deletion(), self.metadata.deletion_grace_period_seconds) {
            (Some(_), Some(seconds)) => seconds,
            _ => spec,
        }
    }

    fn init_containers(&self) -> &[Container] {
        self.spec().init_containers.as_deref().unwrap_or_default()
    }

    fn all_containers(&self) -> Vec<&Container> {
        self.init_containers().iter().chain(&self.spec().containers).collect()
    }

    fn ephemeral_containers(&self) -> &[EphemeralContainer] {
        self.spec().ephemeral_containers.as_deref().unwrap_or_default()
    }

    fn container(&self, name: &str) -> Option<Cow<'_, Container>> {
        let lasting = self.all_containers().into_iter().find(|c| c.name == name).map(Cow::Borrowed);
        lasting.or_else(|| self.ephemeral_containers().iter().find(|c| c.name == name).map(|c| Cow::Owned(of_ephemeral(c))))
    }

    fn is_init(&self, name: &str) -> bool {
        self.init_containers().iter().any(|c| c.name == name)
    }
}

pub trait ContainerExt {
    /// An init container with `restartPolicy: Always`: a native sidecar.
    fn is_sidecar(&self) -> bool;
    fn image(&self) -> &str;
    fn request(&self, resource: &str) -> Option<&Quantity>;
    fn limit(&self, resource: &str) -> Option<&Quantity>;
    /// Changes when the container must be made anew; upstream hashes name and image too.
    fn hash(&self) -> String;
    fn probe(&self, kind: ProbeKind) -> Option<&Probe>;
}

impl ContainerExt for Container {
    fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }

    fn image(&self) -> &str {
        self.image.as_deref().unwrap_or_default()
    }

    fn request(&self, resource: &str) -> Option<&Quantity> {
        quantity(self.resources.as_ref().and_then(|r| r.requests.as_ref()), resource)
    }

    fn limit(&self, resource: &str) -> Option<&Quantity> {
        quantity(self.resources.as_ref().and_then(|r| r.limits.as_ref()), resource)
    }

    fn hash(&self) -> String {
        let digest = Sha256::digest(format!("{}\0{}", self.name, self.image()));
        hex::encode(&digest[..4])
    }

    fn probe(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup_probe.as_ref(),
            ProbeKind::Liveness => self.liveness_probe.as_ref(),
            ProbeKind::Readiness => self.readiness_probe.as_ref(),
        }
    }
}

fn quantity<'a>(map: Option<&'a BTreeMap<String, Quantity>>, resource: &str) -> Option<&'a Quantity> {
    map.and_then(|m| m.get(resource))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// As in upstream's event texts: `Readiness probe failed: …`.
    pub fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }

    /// Upstream: `pkg/apis/core/v1/helper/qos/qos.go`.
    pub fn of(pod: &Pod) -> Qos {
        let containers = pod.all_containers();
        let positive = |q: Option<&Quantity>| q.is_some_and(|q| milli(q) > 0);
        let resources = ["cpu", "memory"];
        let any = containers.iter().any(|c| resources.iter().any(|r| positive(c.request(r)) || positive(c.limit(r))));
        if !any {
            return Qos::BestEffort;
        }
        let guaranteed = containers.iter().all(|c| {
            resources.iter().all(|r| {
                let limit = c.limit(r);
                positive(limit) && c.request(r).is_none_or(|request| limit.is_some_and(|l| milli(l) == milli(request)))
            })
        });
        if guaranteed { Qos::Guaranteed } else { Qos::Burstable }
    }
}

/// Thousandths; a quantity that does not parse counts as nothing (the API server lets none through).
pub fn milli(quantity: &Quantity) -> i128 {
    api::quantity::Quantity::parse(&quantity.0).map(|q| q.milli()).unwrap_or(0)
}

/// Whole units, rounded up.
pub fn value(quantity: &Quantity) -> i64 {
    i64::try_from((milli(quantity) + 999) / 1000).unwrap_or(i64::MAX)
}
