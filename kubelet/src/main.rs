//! The program kubelet: flags, then [`kubelet::run`].

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use machinery::shell::{self, CommonArgs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the pods of this node
#[derive(Debug, Parser)]
#[command(name = "kubelet", version)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Port for logs, exec and the like
    #[arg(long, default_value_t = 10250)]
    port: u16,
    /// The node's name, where it is not the host's
    #[arg(long)]
    hostname_override: Option<String>,
    /// The node's address, where it is not the one that leads to the default gateway
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// Where the container runtime listens
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    container_runtime_endpoint: String,
    /// Addresses of the cluster's DNS
    #[arg(long, value_delimiter = ',')]
    cluster_dns: Vec<String>,
    /// The cluster's domain
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// The node's resolver, from which pods with dnsPolicy Default take theirs
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Where pods' volumes are kept
    #[arg(long, default_value = "/var/lib/kubelet")]
    root_dir: PathBuf,
    /// Where the network's configuration is written
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where network plugins are
    #[arg(long, default_value = "/usr/lib/cni")]
    cni_bin_dir: PathBuf,
    /// The image of sandboxes; it is never removed
    #[arg(long, default_value = "registry.k8s.io/pause:3.10")]
    pod_infra_container_image: String,
    /// The cgroup below which pods' cgroups are made
    #[arg(long, default_value = "/")]
    cgroup_root: String,
    /// Where the serving certificate is kept
    #[arg(long, default_value = "/var/lib/kubelet/pki")]
    cert_dir: PathBuf,
    /// How often the node's status is worked out; it is sent only when it says something new
    #[arg(long, default_value = "10s", value_parser = seconds)]
    node_status_update_frequency: Duration,
    /// Labels of the node: key=value,…
    #[arg(long, value_delimiter = ',')]
    node_labels: Vec<String>,
    /// Taints of a node that registers: key=value:Effect,…
    #[arg(long, value_delimiter = ',')]
    register_with_taints: Vec<String>,
    /// How many pods the node takes
    #[arg(long, default_value_t = 110)]
    max_pods: u32,
    /// What must be left of memory and disk: memory.available<100Mi,nodefs.available<10%
    #[arg(long, default_value = "")]
    eviction_hard: kubelet::Thresholds,
    /// Kernel settings that pods may have beside the safe ones; `*` ends a beginning: kernel.msg*,net.core.somaxconn
    #[arg(long, value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<String>,
    /// Percent of the disk in use at which unused images are removed, oldest first; 100 keeps them
    #[arg(long, default_value_t = 85, value_parser = clap::value_parser!(u64).range(0..=100))]
    image_gc_high_threshold: u64,
    /// Percent down to which they are removed
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(0..=100))]
    image_gc_low_threshold: u64,
    /// How long an unused image stays at least
    #[arg(long, default_value = "2m", value_parser = seconds)]
    minimum_image_ttl_duration: Duration,
}

/// `10s`, `500ms`, `1m`.
fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let number: f64 = text[..split].parse().map_err(|_| bad())?;
    match &text[split..] {
        "ms" => Ok(Duration::from_secs_f64(number / 1000.0)),
        "s" => Ok(Duration::from_secs_f64(number)),
        "m" => Ok(Duration::from_secs_f64(number * 60.0)),
        _ => Err(bad()),
    }
}

/// The address that the kernel would use to reach the world; nothing is sent.
fn default_ip() -> IpAddr {
    let local = UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").map(|()| s)).and_then(|s| s.local_addr());
    local.map_or(IpAddr::from([127, 0, 0, 1]), |a| a.ip())
}

fn config(args: &Args) -> kubelet::Config {
    let hostname = || nix::unistd::gethostname().map(|h| h.to_string_lossy().to_lowercase()).unwrap_or_else(|_| "localhost".into());
    kubelet::Config {
        node_name: args.hostname_override.clone().unwrap_or_else(hostname),
        node_ip: args.node_ip.unwrap_or_else(default_ip),
        bind_address: args.common.bind_address,
        port: args.port,
        runtime_endpoint: args.container_runtime_endpoint.clone(),
        root_dir: args.root_dir.clone(),
        cert_dir: args.cert_dir.clone(),
        client_ca: args.common.client_ca_file.clone(),
        tls_files: args.common.tls_cert_file.clone().zip(args.common.tls_private_key_file.clone()),
        cluster_dns: args.cluster_dns.clone(),
        cluster_domain: args.cluster_domain.clone(),
        resolv_conf: args.resolv_conf.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
        cni_bin_dir: args.cni_bin_dir.clone(),
        cgroup_root: args.cgroup_root.clone(),
        pause_image: args.pod_infra_container_image.clone(),
        status_frequency: args.node_status_update_frequency,
        labels: args.node_labels.iter().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        taints: args.register_with_taints.clone(),
        max_pods: args.max_pods,
        eviction_hard: args.eviction_hard,
        allowed_unsafe_sysctls: args.allowed_unsafe_sysctls.clone(),
        image_limits: kubelet::Limits {
            high: args.image_gc_high_threshold,
            low: args.image_gc_low_threshold,
            min_age: args.minimum_image_ttl_duration,
        },
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = config(&args);
    shell::run("kubelet", args.common.v, |token| async move { kubelet::run(config, args.common.kubeconfig.as_deref(), token).await })
}
