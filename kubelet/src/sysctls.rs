//! Which kernel settings a pod may have: those that belong to its own namespaces and can harm no other pod, and what the flag adds.
//!
//! Upstream: `pkg/kubelet/sysctl/{allowlist,safe_sysctls}.go`, v1.33.

use k8s_openapi::api::core::v1::Pod;

use crate::pod::PodExt;

const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The namespace that holds a setting, by how its name begins.
const NAMESPACES: &[(&str, &str)] =
    &[("kernel.sem", "ipc"), ("kernel.shm", "ipc"), ("kernel.msg", "ipc"), ("fs.mqueue.", "ipc"), ("net.", "net")];

/// Why the pod may not run here. `allowed` are names, or beginnings of names that end in `*`.
pub fn forbidden(pod: &Pod, allowed: &[String]) -> Option<String> {
    let context = pod.spec().security_context.as_ref()?;
    context.sysctls.iter().flatten().find_map(|setting| {
        let name = dotted(&setting.name);
        let matches = |pattern: &String| pattern.strip_suffix('*').map_or(*pattern == name, |start| name.starts_with(start));
        if !SAFE.contains(&name.as_str()) && !allowed.iter().any(matches) {
            return Some(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        let namespace = NAMESPACES.iter().find(|(start, _)| name.starts_with(start)).map(|(_, namespace)| *namespace);
        let shared = (namespace == Some("net") && pod.host_network()) || (namespace == Some("ipc") && pod.spec().host_ipc == Some(true));
        shared.then(|| format!("forbidden sysctl: {name:?} not allowed with host {} enabled", namespace.unwrap_or_default()))
    })
}

/// `net/ipv4/conf/eth0.1/x` is another way to write `net.ipv4.conf.eth0/1.x`.
fn dotted(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    if name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/')) { name.chars().map(swap).collect() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_pods_own_settings() {
        let pod = |name: &str, host: &str| -> Pod {
            let sysctls = json!({"sysctls": [{"name": name, "value": "1"}]});
            serde_json::from_value(json!({"spec": {"containers": [], host: true, "securityContext": sysctls}})).unwrap()
        };
        let allowed = ["kernel.msg*".to_owned(), "kernel.sem".to_owned()];
        let cases = [
            ("kernel.shm_rmid_forced", "", None),
            ("kernel.shm_rmid_forced", "hostIPC", Some("\"kernel.shm_rmid_forced\" not allowed with host ipc enabled")),
            ("net.ipv4.tcp_syncookies", "hostIPC", None),
            ("net/ipv4/tcp_syncookies", "hostNetwork", Some("\"net.ipv4.tcp_syncookies\" not allowed with host net enabled")),
            ("kernel.msgmax", "", None),
            ("kernel.msgmax", "hostIPC", Some("\"kernel.msgmax\" not allowed with host ipc enabled")),
            ("kernel.sem", "", None),
            ("kernel.sems", "", Some("\"kernel.sems\" not allowlisted")),
            ("kernel.hostname", "", Some("\"kernel.hostname\" not allowlisted")),
        ];
        for (name, host, why) in cases {
            assert_eq!(forbidden(&pod(name, host), &allowed), why.map(|why| format!("forbidden sysctl: {why}")), "{name} {host}");
        }
    }
}
