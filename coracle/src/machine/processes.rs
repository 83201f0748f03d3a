//! The processes of a machine: a master's and a worker's, with the flags they are started with. Pure: the supervisor reads this table.

use std::path::Path;

use crate::cluster::{
    API_PORT, CLUSTER_DNS, CLUSTER_DOMAIN, Cluster, ETCD_PORT, IMAGE_PORT, Machine, PAUSE_IMAGE, POD_CIDR, Role, SERVICE_CIDR, Store,
};
use crate::machine::control::Program;
use crate::machine::files::PKI;

/// How `status` asks a process how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// GET over TLS at the machine's address, with the administrator's certificate.
    Https { port: u16, path: &'static str },
    /// The same with etcd's own authority and certificate.
    Etcd,
    /// The socket accepts connections; a path on the machine.
    Socket(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub name: &'static str,
    pub argv: Vec<String>,
    pub health: Health,
}

impl Process {
    /// What the supervisor must know of it.
    pub fn program(&self) -> Program {
        Program { name: self.name.into(), argv: self.argv.clone() }
    }
}

/// Programs that are the host's, not ours.
pub const FROM_HOST: [&str; 2] = ["containerd", "etcd"];
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// The machine's processes in starting order. `bin` is the folder of our own programs.
pub fn of(cluster: &Cluster, machine: &Machine, bin: &Path) -> Vec<Process> {
    let mut processes = vec![containerd()];
    if machine.role == Role::Master {
        processes.extend(cluster.runs_etcd().then(|| etcd(cluster)));
        processes.extend([image_server(cluster), api_server(cluster), controller_manager(cluster), scheduler(cluster)]);
    }
    processes.extend([kubelet(cluster, machine), kube_proxy(machine)]);
    for process in &mut processes {
        // What was asked for replaces what we say by default.
        for (_, flag) in cluster.options.flags.iter().filter(|(program, _)| program == process.name) {
            let name = flag.split_once('=').map_or(flag.as_str(), |(name, _)| name);
            process.argv.retain(|word| word.split_once('=').is_none_or(|(known, _)| known != name));
            process.argv.push(flag.clone());
        }
        if !FROM_HOST.contains(&process.name) {
            process.argv[0] = bin.join(&process.argv[0]).to_string_lossy().into_owned();
        }
    }
    processes
}

fn process(name: &'static str, health: Health, argv: &[&str]) -> Process {
    Process { name, health, argv: argv.iter().map(|word| word.to_string()).collect() }
}

fn containerd() -> Process {
    process("containerd", Health::Socket(CONTAINERD_SOCKET), &["containerd", "--config", "/etc/containerd/config.toml"])
}

fn image_server(cluster: &Cluster) -> Process {
    let listen = format!("{}:{IMAGE_PORT}", cluster.address(cluster.master()));
    let (cert, key, ca) = (format!("{PKI}/image-server.crt"), format!("{PKI}/image-server.key"), format!("{PKI}/ca.crt"));
    process(
        "image-server",
        Health::Https { port: IMAGE_PORT, path: "/v2/" },
        &[
            "coracle",
            "image-server",
            "--store",
            "/var/lib/coracle/images",
            "--listen",
            &listen,
            "--tls-cert-file",
            &cert,
            "--tls-private-key-file",
            &key,
            "--client-ca-file",
            &ca,
        ],
    )
}

fn api_server(cluster: &Cluster) -> Process {
    let address = cluster.address(cluster.master());
    let flags = [
        format!("--secure-port={API_PORT}"),
        "--bind-address=0.0.0.0".into(),
        format!("--advertise-address={address}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--service-node-port-range=30000-32767".into(),
        format!("--tls-cert-file={PKI}/kube-apiserver.crt"),
        format!("--tls-private-key-file={PKI}/kube-apiserver.key"),
        format!("--client-ca-file={PKI}/ca.crt"),
        format!("--service-account-key-file={PKI}/sa.pub"),
        format!("--service-account-signing-key-file={PKI}/sa.key"),
        format!("--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
        format!("--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt"),
        format!("--kubelet-client-key={PKI}/apiserver-kubelet-client.key"),
        format!("--kubelet-certificate-authority={PKI}/ca.crt"),
    ];
    let mut all = store_flags(cluster.options.store == Store::Etcd);
    all.extend(flags);
    program("kube-apiserver", Health::Https { port: API_PORT, path: "/readyz" }, all)
}

/// How the API server's program finds the stores: the embedded one, and etcd if it is asked for.
pub fn store_flags(with_etcd: bool) -> Vec<String> {
    let mut flags = vec!["--data-dir=/var/lib/kube-apiserver".into()];
    if with_etcd {
        flags.extend([
            format!("--etcd-servers=https://127.0.0.1:{ETCD_PORT}"),
            format!("--etcd-cafile={PKI}/etcd/ca.crt"),
            format!("--etcd-certfile={PKI}/etcd/apiserver-etcd-client.crt"),
            format!("--etcd-keyfile={PKI}/etcd/apiserver-etcd-client.key"),
        ]);
    }
    flags
}

/// Flags as kubeadm's, with the one authority for clients and peers.
fn etcd(cluster: &Cluster) -> Process {
    let address = cluster.address(cluster.master());
    let (client, peer) = (format!("https://{address}:{ETCD_PORT}"), format!("https://{address}:2380"));
    let flags = [
        "--name=master".into(),
        "--data-dir=/var/lib/etcd".into(),
        format!("--listen-client-urls=https://127.0.0.1:{ETCD_PORT},{client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=master={peer}"),
        "--client-cert-auth=true".into(),
        format!("--trusted-ca-file={PKI}/etcd/ca.crt"),
        format!("--cert-file={PKI}/etcd/server.crt"),
        format!("--key-file={PKI}/etcd/server.key"),
        "--peer-client-cert-auth=true".into(),
        format!("--peer-trusted-ca-file={PKI}/etcd/ca.crt"),
        format!("--peer-cert-file={PKI}/etcd/server.crt"),
        format!("--peer-key-file={PKI}/etcd/server.key"),
        "--snapshot-count=10000".into(),
        "--logger=zap".into(),
        "--log-level=warn".into(),
    ];
    program("etcd", Health::Etcd, flags.to_vec())
}

/// What commands on the machine find in their environment: `etcdctl` then needs no flags.
pub fn environment(cluster: &Cluster, machine: &Machine) -> Vec<(&'static str, String)> {
    if machine.role != Role::Master || !cluster.runs_etcd() {
        return Vec::new();
    }
    vec![
        ("ETCDCTL_API", "3".into()),
        ("ETCDCTL_ENDPOINTS", format!("https://127.0.0.1:{ETCD_PORT}")),
        ("ETCDCTL_CACERT", format!("{PKI}/etcd/ca.crt")),
        ("ETCDCTL_CERT", format!("{PKI}/etcd/healthcheck-client.crt")),
        ("ETCDCTL_KEY", format!("{PKI}/etcd/healthcheck-client.key")),
    ]
}

fn controller_manager(cluster: &Cluster) -> Process {
    let mut flags = client_flags("kube-controller-manager", true);
    flags.extend([
        format!("--bind-address={}", cluster.address(cluster.master())),
        format!("--cluster-cidr={POD_CIDR}"),
        "--node-cidr-mask-size=24".into(),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        format!("--root-ca-file={PKI}/ca.crt"),
        format!("--service-account-private-key-file={PKI}/sa.key"),
        format!("--cluster-signing-cert-file={PKI}/ca.crt"),
        format!("--cluster-signing-key-file={PKI}/ca.key"),
        "--leader-elect=true".into(),
    ]);
    program("kube-controller-manager", Health::Https { port: 10257, path: "/healthz" }, flags)
}

fn scheduler(cluster: &Cluster) -> Process {
    let mut flags = client_flags("kube-scheduler", true);
    flags.extend([format!("--bind-address={}", cluster.address(cluster.master())), "--leader-elect=true".into()]);
    program("kube-scheduler", Health::Https { port: 10259, path: "/healthz" }, flags)
}

fn kubelet(cluster: &Cluster, machine: &Machine) -> Process {
    let mut flags = client_flags("kubelet", false);
    flags.extend([
        format!("--hostname-override={}", machine.name),
        format!("--node-ip={}", cluster.address(machine)),
        format!("--container-runtime-endpoint=unix://{CONTAINERD_SOCKET}"),
        format!("--cluster-dns={CLUSTER_DNS}"),
        format!("--cluster-domain={CLUSTER_DOMAIN}"),
        "--root-dir=/var/lib/kubelet".into(),
        "--cert-dir=/var/lib/kubelet/pki".into(),
        "--cni-conf-dir=/etc/cni/net.d".into(),
        "--cni-bin-dir=/usr/lib/cni".into(),
        format!("--pod-infra-container-image={PAUSE_IMAGE}"),
        format!("--client-ca-file={PKI}/ca.crt"),
        format!("--cgroup-root=/{}", cluster.cgroup(machine)),
        // The disk is the host's: how full it is says nothing of this machine, and no other would be better.
        "--eviction-hard=nodefs.available<100Mi".into(),
    ]);
    if machine.role == Role::Master {
        flags.push("--register-with-taints=node-role.kubernetes.io/control-plane=:NoSchedule".into());
    }
    program("kubelet", Health::Https { port: 10250, path: "/healthz" }, flags)
}

fn kube_proxy(machine: &Machine) -> Process {
    let mut flags = client_flags("kube-proxy", true);
    flags.extend([format!("--hostname-override={}", machine.name), format!("--cluster-cidr={POD_CIDR}")]);
    program("kube-proxy", Health::Https { port: 10256, path: "/healthz" }, flags)
}

fn client_flags(name: &str, serves: bool) -> Vec<String> {
    let mut flags = vec![format!("--kubeconfig=/etc/kubernetes/{name}.conf")];
    if serves {
        flags.extend([
            format!("--tls-cert-file={PKI}/{name}-server.crt"),
            format!("--tls-private-key-file={PKI}/{name}-server.key"),
            format!("--client-ca-file={PKI}/ca.crt"),
        ]);
    }
    flags
}

fn program(name: &'static str, health: Health, flags: Vec<String>) -> Process {
    let mut argv = vec![name.to_string()];
    argv.extend(flags);
    Process { name, argv, health }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Options;

    fn names(processes: &[Process]) -> Vec<&str> {
        processes.iter().map(|process| process.name).collect()
    }

    #[test]
    fn a_master_runs_the_control_plane_and_is_a_node_too() {
        let cluster = Cluster::new("c", 0, 1, Options::default());
        let bin = Path::new("/bin");
        assert_eq!(
            names(&of(&cluster, &cluster.machines[0], bin)),
            ["containerd", "image-server", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"]
        );
        assert_eq!(names(&of(&cluster, &cluster.machines[1], bin)), ["containerd", "kubelet", "kube-proxy"]);
    }

    #[test]
    fn etcd_runs_when_it_holds_the_state_or_will() {
        for (store, moving_to, runs, used) in [
            (Store::Embedded, None, false, false),
            (Store::Embedded, Some(Store::Etcd), true, false),
            (Store::Etcd, None, true, true),
            (Store::Etcd, Some(Store::Embedded), true, true),
        ] {
            let cluster = Cluster::new("c", 0, 0, Options { store, moving_to, ..Options::default() });
            let processes = of(&cluster, &cluster.machines[0], Path::new("/bin"));
            assert_eq!(names(&processes).contains(&"etcd"), runs);
            let server = processes.iter().find(|process| process.name == "kube-apiserver").unwrap();
            assert_eq!(server.argv.iter().any(|flag| flag.starts_with("--etcd-servers")), used);
        }
    }

    #[test]
    fn extra_flags_reach_their_program_only() {
        let options = Options { flags: vec![("kubelet".into(), "--v=4".into())], ..Options::default() };
        let cluster = Cluster::new("c", 0, 0, options);
        for process in of(&cluster, &cluster.machines[0], Path::new("/bin")) {
            assert_eq!(process.argv.contains(&"--v=4".to_string()), process.name == "kubelet", "{}", process.name);
        }
    }
}
