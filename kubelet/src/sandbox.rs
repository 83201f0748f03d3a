//! From a pod to the CRI's sandbox configuration. Pure.
//!
//! Upstream: `pkg/kubelet/kuberuntime/{kuberuntime_sandbox,util/util,security_context}.go`, v1.33.

use std::path::{Path, PathBuf};

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    DnsConfig, Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PortMapping, Protocol, SecurityProfile,
};
use k8s_openapi::api::core::v1::{AppArmorProfile, Pod, SeccompProfile};

use crate::pod::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID, PodExt};

pub const LOG_ROOT: &str = "/var/log/pods";

/// `/var/log/pods/<namespace>_<name>_<uid>`
pub fn log_directory(pod: &Pod) -> PathBuf {
    Path::new(LOG_ROOT).join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
}

pub fn config(pod: &Pod, attempt: u32, hostname: String, dns: DnsConfig, cgroup_parent: &Path) -> PodSandboxConfig {
    let mut labels: std::collections::HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.insert(LABEL_POD_NAME.into(), pod.name().to_owned());
    labels.insert(LABEL_POD_NAMESPACE.into(), pod.namespace().to_owned());
    labels.insert(LABEL_POD_UID.into(), pod.uid().to_owned());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            namespace: pod.namespace().to_owned(),
            attempt,
        }),
        hostname: if pod.host_network() { String::new() } else { hostname },
        log_directory: log_directory(pod).to_string_lossy().into_owned(),
        dns_config: Some(dns),
        port_mappings: port_mappings(pod),
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_string_lossy().into_owned(),
            security_context: Some(security(pod)),
            sysctls: sysctls(pod),
            ..LinuxPodSandboxConfig::default()
        }),
        windows: None,
    }
}

fn sysctls(pod: &Pod) -> std::collections::HashMap<String, String> {
    let context = pod.spec().security_context.as_ref();
    context.and_then(|s| s.sysctls.as_ref()).into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect()
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod.host_network() {
        return Vec::new();
    }
    let ports = pod.all_containers().into_iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = port.host_port.filter(|p| *p > 0)?;
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let host_ip = port.host_ip.clone().unwrap_or_default();
            Some(PortMapping { protocol: protocol.into(), container_port: port.container_port, host_port, host_ip })
        })
        .collect()
}

/// Which of the node's namespaces the pod shares.
pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod.spec();
    let node = |shared: Option<bool>, otherwise| if shared == Some(true) { NamespaceMode::Node } else { otherwise };
    let pid = if spec.share_process_namespace == Some(true) { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceOption {
        network: node(spec.host_network, NamespaceMode::Pod).into(),
        pid: node(spec.host_pid, pid).into(),
        ipc: node(spec.host_ipc, NamespaceMode::Pod).into(),
        ..NamespaceOption::default()
    }
}

/// The pod's supplemental groups and its fsGroup.
pub fn groups(pod: &Pod) -> Vec<i64> {
    let context = pod.spec().security_context.clone().unwrap_or_default();
    context.supplemental_groups.unwrap_or_default().into_iter().chain(context.fs_group).collect()
}

fn security(pod: &Pod) -> LinuxSandboxSecurityContext {
    let context = pod.spec().security_context.clone().unwrap_or_default();
    let privileged = |c: &&k8s_openapi::api::core::v1::Container| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: context.run_as_user.map(|value| Int64Value { value }),
        run_as_group: context.run_as_group.filter(|_| context.run_as_user.is_some()).map(|value| Int64Value { value }),
        supplemental_groups: groups(pod),
        privileged: pod.all_containers().iter().any(privileged),
        // The pause process needs no more than the runtime's default, whatever its pod may do.
        seccomp: Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), localhost_ref: String::new() }),
        ..LinuxSandboxSecurityContext::default()
    }
}

/// Localhost profiles are known to the kernel by name. Without a profile the runtime takes its own, if the kernel has AppArmor.
pub fn app_armor(profile: &AppArmorProfile) -> SecurityProfile {
    let kind = match profile.type_.as_str() {
        "Localhost" => ProfileType::Localhost,
        "Unconfined" => ProfileType::Unconfined,
        _ => ProfileType::RuntimeDefault,
    };
    SecurityProfile { profile_type: kind.into(), localhost_ref: profile.localhost_profile.clone().unwrap_or_default() }
}

/// Localhost profiles lie below the kubelet's root.
pub fn seccomp(profile: Option<&SeccompProfile>, root: &Path) -> SecurityProfile {
    let plain = |kind: ProfileType| SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() };
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => plain(ProfileType::RuntimeDefault),
        Some(("Localhost", Some(file))) => {
            let path = root.join("seccomp").join(file);
            SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: path.to_string_lossy().into_owned() }
        }
        _ => plain(ProfileType::Unconfined),
    }
}
