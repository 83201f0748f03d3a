//! The table of controllers: a new one is a file here and a row below.

pub mod clusterrole_aggregation;
pub mod csr;
pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod garbage_collector;
pub mod job;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replicaset;
pub mod replication;
pub mod root_ca;
pub mod serviceaccount;
pub mod taint_eviction;
pub mod ttl_after_finished;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::context::Context;

pub struct Controller {
    /// Upstream's name, as in `--controllers`.
    pub name: &'static str,
    pub by_default: bool,
    /// Runs until the context's token is cancelled.
    pub run: fn(Arc<Context>) -> BoxFuture<'static, anyhow::Result<()>>,
}

macro_rules! row {
    ($name:literal, $($controller:ident)::+) => {
        Controller { name: $name, by_default: true, run: |context| Box::pin($($controller)::+::run(context)) }
    };
}

pub const CONTROLLERS: &[Controller] = &[
    row!("certificatesigningrequest-approving-controller", csr::approving),
    row!("certificatesigningrequest-cleaner-controller", csr::cleaner),
    row!("certificatesigningrequest-signing-controller", csr::signing),
    row!("clusterrole-aggregation-controller", clusterrole_aggregation),
    row!("daemonset-controller", daemonset),
    row!("deployment-controller", deployment),
    row!("endpoints-controller", endpoints),
    row!("endpointslice-controller", endpointslice),
    row!("garbage-collector-controller", garbage_collector),
    row!("job-controller", job),
    row!("namespace-controller", namespace),
    row!("node-ipam-controller", node_ipam),
    row!("node-lifecycle-controller", node_lifecycle),
    row!("pod-garbage-collector-controller", pod_gc),
    row!("replicaset-controller", replicaset),
    row!("replicationcontroller-controller", replication),
    row!("root-ca-certificate-publisher-controller", root_ca),
    row!("serviceaccount-controller", serviceaccount),
    row!("taint-eviction-controller", taint_eviction),
    row!("ttl-after-finished-controller", ttl_after_finished),
];
