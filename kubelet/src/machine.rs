//! What this machine is: capacity, versions, identities.
//!
//! Upstream: cAdvisor's `machine` package, `pkg/kubelet/nodestatus/setters.go`, v1.33.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::thresholds::Thresholds;

/// The version of Kubernetes that this is.
pub const VERSION: &str = "v1.33.0";

#[derive(Clone, Debug)]
pub struct Machine {
    pub cpus: usize,
    /// Bytes.
    pub memory: i64,
    /// Bytes of the file system that holds the kubelet's root.
    pub disk: u64,
}

impl Machine {
    pub fn read(root: &Path) -> Self {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<i64>().ok());
        let disk = nix::sys::statvfs::statvfs(root).map(|s| s.blocks() * s.fragment_size()).unwrap_or_default();
        Machine { cpus: std::thread::available_parallelism().map_or(1, usize::from), memory: kib.unwrap_or_default() * 1024, disk }
    }

    pub fn capacity(&self, max_pods: u32) -> BTreeMap<String, Quantity> {
        self.amounts(max_pods, self.memory, format!("{}Ki", self.disk / 1024))
    }

    pub fn allocatable(&self, max_pods: u32, kept: Thresholds) -> BTreeMap<String, Quantity> {
        let disk = i64::try_from(self.disk).unwrap_or(i64::MAX);
        let disk = (disk - kept.kept_disk(disk)).max(0).to_string();
        self.amounts(max_pods, (self.memory - kept.kept_memory(self.memory)).max(0), disk)
    }

    fn amounts(&self, max_pods: u32, memory: i64, disk: String) -> BTreeMap<String, Quantity> {
        let pairs = [
            ("cpu", self.cpus.to_string()),
            ("memory", format!("{}Ki", memory / 1024)),
            ("ephemeral-storage", disk),
            ("hugepages-1Gi", "0".to_owned()),
            ("hugepages-2Mi", "0".to_owned()),
            ("pods", max_pods.to_string()),
        ];
        pairs.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(amount))).collect()
    }
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn line(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// `runtime`: as in `containerd://1.6.20`.
pub fn system_info(runtime: String) -> NodeSystemInfo {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map(|v| v.trim_matches('"').to_owned());
    let machine_id = line("/etc/machine-id");
    let uuid = line("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime,
        kernel_version: line("/proc/sys/kernel/osrelease"),
        // Deprecated and empty since 1.33's gate; the field itself is required.
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.to_owned(),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        operating_system: "linux".to_owned(),
        os_image: pretty.unwrap_or_default(),
        swap: None,
    }
}
