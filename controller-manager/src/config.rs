//! Flags, with upstream's names and defaults.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use machinery::shell::CommonArgs;

use crate::controllers::load_balancer::Range;

#[derive(clap::Parser, Debug, Clone)]
#[command(name = "kube-controller-manager", about = "Runs the control loops that move the cluster to the state wished for")]
pub struct Config {
    #[command(flatten)]
    pub common: CommonArgs,

    /// Port of health and metrics, over HTTPS
    #[arg(long, default_value_t = 10257)]
    pub secure_port: u16,
    /// Addresses for pods; each node gets a part of it
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// Size of a node's part (IPv4; IPv6 nodes get /64)
    #[arg(long, default_value_t = 24)]
    pub node_cidr_mask_size: u8,
    /// Addresses of services, which no node may get
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<IpNet>,

    /// Addresses for Services of type LoadBalancer, as 192.0.2.10-192.0.2.19 or 192.0.2.16/28, which the network routes to the nodes;
    /// without it they get the nodes' own
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    pub load_balancer_pool: Vec<Range>,

    /// CA published to every namespace as kube-root-ca.crt, so that pods can trust the API server
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs the tokens of Secrets, PEM; the API server's `--service-account-key-file` must have its public half
    #[arg(long, value_name = "FILE")]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Give every service account a Secret with a token that never ends, listed in its `.secrets`, as Kubernetes did up to v1.23
    #[arg(long, requires = "service_account_private_key_file")]
    pub legacy_service_account_token_secrets: bool,
    /// CA certificate with which CertificateSigningRequests are signed
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Longest life of a signed certificate
    #[arg(long, default_value = "8760h", value_parser = duration)]
    pub cluster_signing_duration: Duration,
    /// How long a silent node stays trusted
    #[arg(long, default_value = "50s", value_parser = duration)]
    pub node_monitor_grace_period: Duration,
    /// Accepted for upstream's sake: a node is looked at when its lease runs out, not in intervals
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub node_monitor_period: Duration,
    /// Finished pods kept before the oldest are deleted; 0 keeps all
    #[arg(long, default_value_t = 12500)]
    pub terminated_pod_gc_threshold: usize,

    /// Lead only while holding the lease kube-system/kube-controller-manager
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
    /// `*` for all, `foo` for one, `-foo` to leave one out of all
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    pub controllers: Vec<String>,
}

/// Go's notation: `1h30m`, `40s`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("invalid duration {text:?}, write for example 40s or 1h30m");
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let number: f64 = rest[..digits].parse().map_err(|_| error())?;
        total += number
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(error()),
            };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| error())
}

impl Config {
    /// Is this controller asked for?
    pub fn enables(&self, name: &str) -> bool {
        let listed = |entry: &str| self.controllers.iter().any(|wanted| wanted == entry);
        listed(name) || (listed("*") && !listed(&format!("-{name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn durations_read_as_go_writes_them() {
        for (text, millis) in [("40s", 40_000), ("1h30m", 5_400_000), ("500ms", 500), ("1.5s", 1500)] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in ["40", "s", "1d", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn controllers_are_chosen_as_upstream() {
        let config = Config::parse_from(["x", "--controllers=*,-job-controller"]);
        assert!(config.enables("deployment-controller") && !config.enables("job-controller"));
        let config = Config::parse_from(["x", "--controllers=extra"]);
        assert!(config.enables("extra") && !config.enables("other"));
        assert!(config.leader_elect && !Config::parse_from(["x", "--leader-elect=false"]).leader_elect);
    }
}
