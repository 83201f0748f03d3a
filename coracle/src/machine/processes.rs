//! The processes of a machine: a master's and a worker's, with the flags they are started with. Pure: the supervisor reads this table.

use std::path::Path;

use crate::cluster::{API_PORT, CLUSTER_DNS, CLUSTER_DOMAIN, Cluster, IMAGE_PORT, Machine, PAUSE_IMAGE, POD_CIDR, Role, SERVICE_CIDR};
use crate::machine::files::PKI;

/// How `status` asks a process how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// GET over TLS at the machine's address, with the administrator's certificate.
    Https { port: u16, path: &'static str },
    /// The socket accepts connections; a path on the machine.
    Socket(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub name: &'static str,
    pub argv: Vec<String>,
    pub health: Health,
}

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// The machine's processes in starting order. `bin` is the folder of our own programs.
pub fn of(cluster: &Cluster, machine: &Machine, bin: &Path) -> Vec<Process> {
    let mut processes = vec![containerd()];
    if machine.role == Role::Master {
        processes.extend([image_server(cluster), api_server(cluster), controller_manager(cluster), scheduler(cluster)]);
    }
    processes.extend([kubelet(cluster, machine), kube_proxy(machine)]);
    for process in &mut processes {
        let extra = cluster.options.flags.iter().filter(|(program, _)| program == process.name).map(|(_, flag)| flag.clone());
        process.argv.extend(extra);
        if process.name != "containerd" {
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
        "--data-dir=/var/lib/kube-apiserver".into(),
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
    program("kube-apiserver", Health::Https { port: API_PORT, path: "/readyz" }, flags.to_vec())
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
    fn extra_flags_reach_their_program_only() {
        let options = Options { flags: vec![("kubelet".into(), "--v=4".into())] };
        let cluster = Cluster::new("c", 0, 0, options);
        for process in of(&cluster, &cluster.machines[0], Path::new("/bin")) {
            assert_eq!(process.argv.contains(&"--v=4".to_string()), process.name == "kubelet", "{}", process.name);
        }
    }
}
