//! A pod's resolver, host name and `/etc/hosts`.
//!
//! Upstream: `pkg/kubelet/network/dns/dns.go`, `pkg/kubelet/kubelet_pods.go` (nodeHostsFileContent, managedHostsFileContent), v1.33.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::pod::PodExt;

#[derive(Clone, Debug)]
pub struct ClusterDns {
    pub servers: Vec<String>,
    pub domain: String,
}

/// Upstream's limit on search domains.
const MAX_SEARCHES: usize = 32;
const MAX_SERVERS: usize = 3;

/// Reads a resolv.conf.
pub fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().take_while(|w| !w.starts_with(['#', ';']));
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => config.searches = words.map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_owned()).collect(),
            Some("options") => config.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    config
}

/// `host`: the node's own resolver.
pub fn config(pod: &Pod, cluster: &ClusterDns, host: DnsConfig) -> DnsConfig {
    let policy = match pod.spec().dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" if pod.host_network() => "Default",
        "ClusterFirstWithHostNet" => "ClusterFirst",
        policy => policy,
    };
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirst" if !cluster.servers.is_empty() => {
            let domain = &cluster.domain;
            let own = [format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
            DnsConfig {
                servers: cluster.servers.clone(),
                searches: unique(own.into_iter().chain(host.searches)),
                options: vec!["ndots:5".into()],
            }
        }
        _ => host,
    };
    if let Some(own) = &pod.spec().dns_config {
        config.servers = unique(config.servers.into_iter().chain(own.nameservers.clone().unwrap_or_default()));
        config.searches = unique(config.searches.into_iter().chain(own.searches.clone().unwrap_or_default()));
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            config.options.retain(|o| o.split(':').next() != Some(&name));
            config.options.push(option.value.as_ref().filter(|v| !v.is_empty()).map_or(name.clone(), |v| format!("{name}:{v}")));
        }
    }
    config.servers.truncate(MAX_SERVERS);
    config.searches.truncate(MAX_SEARCHES);
    config
}

fn unique(items: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

/// `(host name, domain)`; the domain is empty without a subdomain.
pub fn hostname(pod: &Pod, cluster: &ClusterDns) -> (String, String) {
    let spec = pod.spec();
    let mut name: String = spec.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod.name().to_owned());
    if name.len() > 63 {
        name.truncate(63);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    (name, subdomain.map(|s| format!("{s}.{}.svc.{}", pod.namespace(), cluster.domain)).unwrap_or_default())
}

/// What the pod's `hostname` prints: the whole name if it asks for that.
pub fn sandbox_hostname(pod: &Pod, cluster: &ClusterDns) -> String {
    match hostname(pod, cluster) {
        (name, domain) if pod.spec().set_hostname_as_fqdn == Some(true) && !domain.is_empty() => format!("{name}.{domain}"),
        (name, _) => name,
    }
}

const HOSTS: &str = "# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
";

/// `node_hosts`: the node's own file, for pods on its network.
pub fn hosts_file(pod: &Pod, cluster: &ClusterDns, pod_ips: &[String], node_hosts: &str) -> String {
    let mut text = if pod.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}")
    } else {
        let (name, domain) = hostname(pod, cluster);
        let names = if domain.is_empty() { name } else { format!("{name}.{domain}\t{name}") };
        let own: String = pod_ips.iter().map(|ip| format!("{ip}\t{names}\n")).collect();
        format!("{HOSTS}{own}")
    };
    let aliases: &[HostAlias] = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterDns {
        ClusterDns { servers: vec!["10.96.0.10".into()], domain: "cluster.local".into() }
    }

    #[test]
    fn policies() {
        let host = || parse("nameserver 1.1.1.1\nsearch corp.example. # x\noptions ndots:1\n");
        let pod =
            |spec| serde_json::from_value::<Pod>(serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap();
        let text = |pod: &Pod| {
            let c = config(pod, &cluster(), host());
            format!("{} | {} | {}", c.servers.join(" "), c.searches.join(" "), c.options.join(" "))
        };
        let first = "10.96.0.10 | n.svc.cluster.local svc.cluster.local cluster.local corp.example | ndots:5";
        assert_eq!(text(&pod(serde_json::json!({"containers": []}))), first);
        assert_eq!(text(&pod(serde_json::json!({"containers": [], "hostNetwork": true}))), "1.1.1.1 | corp.example | ndots:1");
        let with_host = serde_json::json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        assert_eq!(text(&pod(with_host)), first);
        let own = serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["8.8.8.8"], "options": [{"name": "ndots", "value": "2"}]}});
        assert_eq!(text(&pod(own)), "8.8.8.8 |  | ndots:2");
    }

    #[test]
    fn hosts() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let text = hosts_file(&pod, &cluster(), &["10.0.0.2".into()], "");
        assert!(text.ends_with("10.0.0.2\th.s.n.svc.cluster.local\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }
}
