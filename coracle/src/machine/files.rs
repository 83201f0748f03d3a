//! What a machine has on its disk before it starts: identity, certificates, kubeconfigs, containerd's configuration.
//! All of it is written below the machine's folder; the namespaces show it at the paths a VM would have.

use std::fs;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, IMAGE_PORT, Machine, PAUSE_IMAGE, Role, write_file};
use crate::image::registries;
use crate::{kubeconfig, pki};

pub const PKI: &str = "/etc/kubernetes/pki";

/// One file: path on the machine (all of them below /etc), content, mode.
#[derive(Debug)]
pub struct File {
    pub path: String,
    pub content: String,
    pub mode: u32,
}

/// The machine's own files, beside the certificates. `resolv_conf` is the host's; `resource_capability` whether CAP_SYS_RESOURCE is held.
pub fn plan(cluster: &Cluster, machine: &Machine, resolv_conf: &str, resource_capability: bool) -> Vec<File> {
    let file = |path: &str, content: String| File { path: path.into(), content, mode: 0o644 };
    let mut files = vec![
        file("hostname", format!("{}\n", machine.name)),
        file("hosts", hosts(cluster)),
        file("resolv.conf", resolv(resolv_conf, &cluster.gateway().to_string())),
        file("containerd/config.toml", containerd(resource_capability)),
        file("containerd/certs.d/_default/hosts.toml", mirror(cluster)),
        file("kubernetes/kubelet.conf", kubeconfig::of_program(&cluster.server(), PKI, "kubelet")),
        file("kubernetes/kube-proxy.conf", kubeconfig::of_program(&cluster.server(), PKI, "kube-proxy")),
    ];
    if machine.role == Role::Master {
        for program in ["kube-controller-manager", "kube-scheduler"] {
            files.push(file(&format!("kubernetes/{program}.conf"), kubeconfig::of_program(&cluster.server(), PKI, program)));
        }
    }
    files
}

/// Writes the planned files, the certificates and the empty folders.
pub fn write(cluster: &Cluster, machine: &Machine) -> Result<()> {
    let dir = cluster.machine_dir(machine);
    for folder in [
        "etc/cni/net.d",
        "etc/kubernetes/pki/etcd",
        "overlay",
        "log/coracle",
        "lib/containerd",
        "lib/kubelet",
        "lib/cni",
        "lib/coracle/images",
    ] {
        fs::create_dir_all(dir.join(folder)).with_context(|| format!("make {folder} of {}", machine.name))?;
    }
    fs::create_dir_all(cluster.image_dir())?;
    let host_resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let usable = usable_resolver(&host_resolver);
    for file in plan(cluster, machine, &usable, has_resource_capability()).into_iter().chain(registries::files(cluster)?) {
        write_file(&dir.join("etc").join(&file.path), file.content.as_bytes(), file.mode)?;
    }
    let mut certificates = pki::files_of(machine.role, &machine.name);
    if machine.role == Role::Master && cluster.runs_etcd() {
        certificates.extend(pki::ETCD_FILES.map(|file| (file.to_string(), file.to_string())));
    }
    for (from, to) in certificates {
        let mode = if to.ends_with(".key") { 0o600 } else { 0o644 };
        write_file(&dir.join("etc/kubernetes/pki").join(&to), &fs::read(cluster.pki_dir().join(&from))?, mode)?;
    }
    Ok(())
}

fn hosts(cluster: &Cluster) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    for machine in &cluster.machines {
        text += &format!("{} {}\n", cluster.address(machine), machine.name);
    }
    text
}

/// systemd-resolved listens on the host's loopback, which a machine cannot reach; its real servers are in another file.
fn usable_resolver(host: &str) -> String {
    let loopback = |text: &str| text.lines().any(|line| line.trim().starts_with("nameserver 127."));
    if loopback(host) {
        return fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or_else(|_| host.to_string());
    }
    host.to_string()
}

/// The host's resolver file without servers on its loopback; the gateway if no other is left (a resolver may listen there).
fn resolv(host: &str, gateway: &str) -> String {
    let on_loopback = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next().is_some_and(|address| address.starts_with("127.") || address == "::1")
    };
    let mut lines: Vec<&str> = host.lines().filter(|line| !on_loopback(line)).collect();
    let fallback = format!("nameserver {gateway}");
    if !lines.iter().any(|line| line.trim_start().starts_with("nameserver")) {
        lines.push(&fallback);
    }
    lines.join("\n") + "\n"
}

/// containerd 1.6 and 1.7 configuration. Without CAP_SYS_RESOURCE no process may lower its OOM score, and every sandbox would die.
fn containerd(resource_capability: bool) -> String {
    let restrict = !resource_capability;
    format!(
        r#"version = 2

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = {restrict}
  stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
"#
    )
}

/// Every registry's first mirror is the cluster's image store; without a `server` line containerd falls back to the registry itself.
pub fn mirror(cluster: &Cluster) -> String {
    let address = cluster.address(cluster.master());
    format!(
        r#"[host."https://{address}:{IMAGE_PORT}"]
  capabilities = ["pull", "resolve"]
  ca = "{PKI}/ca.crt"
  client = [["{PKI}/kubelet.crt", "{PKI}/kubelet.key"]]
"#
    )
}

/// Bit 24 of the effective set.
pub fn has_resource_capability() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << CAP_SYS_RESOURCE) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Options;

    #[test]
    fn no_machine_gets_a_resolver_on_the_hosts_loopback() {
        for (host, machine) in [
            ("nameserver 127.0.0.53\noptions edns0\n", "options edns0\nnameserver 10.88.0.1\n"),
            ("nameserver 127.0.0.53\nnameserver 9.9.9.9\n", "nameserver 9.9.9.9\n"),
            ("search lan\nnameserver 192.0.2.1\n", "search lan\nnameserver 192.0.2.1\n"),
            ("", "nameserver 10.88.0.1\n"),
        ] {
            assert_eq!(resolv(host, "10.88.0.1"), machine);
        }
    }

    #[test]
    fn the_oom_score_is_restricted_only_without_the_capability() {
        assert!(containerd(false).contains("restrict_oom_score_adj = true"));
        assert!(containerd(true).contains("restrict_oom_score_adj = false"));
    }

    #[test]
    fn a_worker_has_no_control_plane_kubeconfig() {
        let cluster = Cluster::new("c", 0, 1, Options::default());
        let paths: Vec<String> = plan(&cluster, &cluster.machines[1], "", true).into_iter().map(|file| file.path).collect();
        assert!(paths.contains(&"kubernetes/kubelet.conf".to_string()));
        assert!(!paths.iter().any(|path| path.contains("scheduler")));
    }
}
