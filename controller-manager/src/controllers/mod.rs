//! The table of controllers: a new one is a file here and a row below.

pub mod clusterrole_aggregation;
pub mod cronjob;
pub mod csr;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslice_mirroring;
pub mod ephemeral_volume;
pub mod garbage_collector;
pub mod job;
pub mod load_balancer;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod node_ttl;
pub mod persistent_volume;
pub mod pod_gc;
pub mod replicaset;
pub mod replication;
pub mod resource_quota;
pub mod root_ca;
pub mod serviceaccount;
pub mod statefulset;
pub mod taint_eviction;
pub mod token_secrets;
pub mod ttl_after_finished;
pub mod volume_expansion;
pub mod volume_protection;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::context::Context;

pub struct Controller {
    /// Upstream's name, as in `--controllers`.
    pub name: &'static str,
    /// Runs until the context's token is cancelled.
    pub run: fn(Arc<Context>) -> BoxFuture<'static, anyhow::Result<()>>,
}

macro_rules! row {
    ($name:literal, $run:path) => {
        Controller { name: $name, run: |context| Box::pin($run(context)) }
    };
}

pub const CONTROLLERS: &[Controller] = &[
    row!("certificatesigningrequest-approving-controller", csr::approving::run),
    row!("certificatesigningrequest-cleaner-controller", csr::cleaner::run),
    row!("certificatesigningrequest-signing-controller", csr::signing::run),
    row!("clusterrole-aggregation-controller", clusterrole_aggregation::run),
    row!("cronjob-controller", cronjob::run),
    row!("daemonset-controller", daemonset::run),
    row!("deployment-controller", deployment::run),
    row!("disruption-controller", disruption::run),
    row!("endpoints-controller", endpoints::run),
    row!("endpointslice-controller", endpointslice::run),
    row!("endpointslice-mirroring-controller", endpointslice_mirroring::run),
    row!("ephemeral-volume-controller", ephemeral_volume::run),
    row!("garbage-collector-controller", garbage_collector::run),
    row!("job-controller", job::run),
    row!("namespace-controller", namespace::run),
    row!("node-ipam-controller", node_ipam::run),
    row!("node-lifecycle-controller", node_lifecycle::run),
    row!("persistentvolume-binder-controller", persistent_volume::run),
    row!("persistentvolume-expander-controller", volume_expansion::run),
    row!("persistentvolume-protection-controller", volume_protection::run_volumes),
    row!("persistentvolumeclaim-protection-controller", volume_protection::run_claims),
    row!("pod-garbage-collector-controller", pod_gc::run),
    row!("replicaset-controller", replicaset::run),
    row!("replicationcontroller-controller", replication::run),
    row!("resourcequota-controller", resource_quota::run),
    row!("root-ca-certificate-publisher-controller", root_ca::run),
    row!("service-lb-controller", load_balancer::run),
    row!("serviceaccount-controller", serviceaccount::run),
    row!("serviceaccount-token-controller", token_secrets::run),
    row!("statefulset-controller", statefulset::run),
    row!("taint-eviction-controller", taint_eviction::run),
    row!("ttl-after-finished-controller", ttl_after_finished::run),
    row!("ttl-controller", node_ttl::run),
];
