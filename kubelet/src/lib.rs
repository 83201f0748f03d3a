//! The kubelet: runs the pods of its node.
//!
//! ```text
//! API pods ─▶ pods ─▶ worker (one per pod): observe ─▶ plan ─▶ actions ─▶ runtime (CRI)
//!                       ▲      │ status ─▶ status_writer ─▶ API
//!                       └──────┴─ containerd's events, probes, changed ConfigMaps and Secrets wake it
//! node, serving, network, server, gc: the node's own affairs
//! ```
//! Invariants: nothing is remembered that the runtime cannot tell again; the plan is pure; one worker per pod uid; a status
//! is written only when it changed; whoever asks at our port is checked by the API server.
//! Absent: static pods, device plugins, in-place resize, CSI.
//! Upstream: `pkg/kubelet`, v1.33.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod actions;
mod apparmor;
mod backoff;
mod cgroups;
mod container;
mod cri;
mod dns;
mod env;
mod fields;
mod gc;
mod handlers;
mod http_get;
mod images;
mod keyring;
mod kubelet;
mod leftovers;
mod logs;
mod machine;
mod network;
mod node;
mod objects;
mod observed;
mod plan;
mod pod;
mod pods;
mod probes;
mod resources;
mod sandbox;
mod server;
mod serving;
mod status;
mod status_writer;
mod sysctls;
mod thresholds;
mod tokens;
mod volumes;
mod worker;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use machinery::events::Recorder;
use machinery::{CancellationToken, Informer, Informers, shell};

pub use gc::Limits;
pub use kubelet::Config;
use kubelet::{Kubelet, Wakes};
pub use thresholds::Thresholds;

/// Runs the kubelet until `token` is cancelled. Containers outlive it.
pub async fn run(config: Config, kubeconfig: Option<&Path>, token: CancellationToken) -> Result<()> {
    let client = shell::client(kubeconfig, "kubelet").await?;
    std::fs::create_dir_all(config.root_dir.join("pods")).with_context(|| format!("create {}", config.root_dir.display()))?;
    let kubelet = Arc::new(assemble(config, client, &token));
    kubelet.cgroups.ensure_classes().context("create the cgroups of the pods' classes")?;
    let serving = serving::Serving::self_signed(vec![kubelet.config.node_name.clone()])?;
    let reporter = node::NodeReporter::new(kubelet.clone());
    let pods = pods::Pods::new(kubelet.clone());
    let network = network::run(kubelet.clone(), reporter.changed.clone());
    let own_certificate = kubelet.config.tls_files.is_none();
    let certificate = async {
        if own_certificate {
            serving.run(&kubelet).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = token.cancelled() => Ok(()),
        result = server::run(kubelet.clone(), serving.clone()) => result,
        () = reporter.run() => Ok(()),
        () = network => Ok(()),
        () = pods.run() => Ok(()),
        () = certificate => Ok(()),
        () = gc::run(kubelet.clone()) => Ok(()),
        () = volumes::directory::run(kubelet.clone()) => Ok(()),
    }
}

fn assemble(config: Config, client: kube::Client, token: &CancellationToken) -> Kubelet {
    let cri = cri::Cri::new(&config.runtime_endpoint);
    let informers = Informers::new(client.clone(), token.clone());
    let recorder = Recorder::new(client.clone(), "kubelet", Some(&config.node_name));
    let wakes = Arc::new(Wakes::default());
    let waker = wakes.clone();
    Kubelet {
        objects: objects::Objects::new(client.clone(), token.clone(), move |uid| waker.wake(uid)),
        tokens: tokens::Tokens::new(client.clone()),
        images: images::Images::new(cri.clone(), recorder.clone()),
        cgroups: cgroups::Cgroups::new(&config.cgroup_root),
        services: informers.of(),
        nodes: informers.of(),
        pods: Informer::with_fields(client.clone(), token.clone(), &format!("spec.nodeName={}", config.node_name)),
        dns: dns::ClusterDns { servers: config.cluster_dns.clone(), domain: config.cluster_domain.clone() },
        machine: machine::Machine::read(&config.root_dir),
        host_ips: vec![config.node_ip.to_string()],
        owners: Default::default(),
        token: token.clone(),
        wakes,
        recorder,
        cri,
        client,
        config,
    }
}
