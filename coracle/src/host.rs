//! What a cluster needs of the host: a bridge, one nftables table, forwarding, and a way through a firewall that drops forwarded packets.
//! Everything is named after the cluster and taken back by [`remove`].

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, Machine, POD_CIDR, ROOT, write_file};
use crate::run::{ip, succeeds, tool, tool_with_input};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Makes the bridge, the table and the forwarding rules, as far as they are missing.
pub fn ensure(cluster: &Cluster) -> Result<()> {
    let bridge = cluster.bridge();
    if !link_exists(&bridge) {
        ip(&format!("link add {bridge} type bridge"))?;
    }
    ip(&format!("addr replace {}/24 dev {bridge}", cluster.gateway()))?;
    ip(&format!("link set {bridge} up"))?;
    tool_with_input("nft", &["-f", "-"], &ruleset(cluster)).context("write the cluster's nftables table")?;
    record_forwarding()?;
    fs::write(IP_FORWARD, "1").context("forward packets")?;
    pass_firewall(cluster)
}

/// Takes all of it back, the cables with the bridge. Forwarding goes back to what it was when the last cluster leaves.
pub fn remove(cluster: &Cluster, last: bool) -> Result<()> {
    for machine in &cluster.machines {
        remove_link(&cluster.cable(machine))?;
    }
    remove_link(&cluster.bridge())?;
    if table_exists(cluster) {
        tool("nft", &["delete", "table", "ip", &cluster.table()])?;
    }
    for rule in firewall_rules(cluster) {
        if succeeds("iptables", &["-C", "FORWARD", "-i", &rule.0, "-o", &rule.1, "-j", "ACCEPT"]) {
            tool("iptables", &["-D", "FORWARD", "-i", &rule.0, "-o", &rule.1, "-j", "ACCEPT"])?;
        }
    }
    if last { restore_forwarding() } else { Ok(()) }
}

/// The whole table, replaced in one transaction. Packets of machines (and of pods that no machine masqueraded) leave the host under its address.
pub fn ruleset(cluster: &Cluster) -> String {
    let (table, bridge, subnet) = (cluster.table(), cluster.bridge(), cluster.subnet());
    format!(
        "table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
         ip saddr {subnet} oifname != \"{bridge}\" masquerade\n  }}\n}}\n"
    )
}

/// A machine's own table: pods that leave the cluster do so under their machine's address, so that answers find the way back.
pub fn machine_ruleset(cluster: &Cluster) -> String {
    format!(
        "table ip coracle-egress\ndelete table ip coracle-egress\ntable ip coracle-egress {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
         ip saddr {POD_CIDR} ip daddr != {{ {POD_CIDR}, {} }} oifname \"eth0\" masquerade\n  }}\n}}\n",
        cluster.subnet()
    )
}

/// Plugs the machine's cable in: a veth pair from the bridge to `eth0` of the namespace of `pid`.
pub fn plug(cluster: &Cluster, machine: &Machine, pid: u32) -> Result<()> {
    let (cable, bridge, address) = (cluster.cable(machine), cluster.bridge(), cluster.address(machine));
    remove_link(&cable)?;
    ip(&format!("link add {cable} type veth peer name eth0 netns {pid}"))?;
    ip(&format!("link set {cable} master {bridge} up"))?;
    let batch = format!("link set eth0 up\naddr add {address}/24 dev eth0\nroute replace default via {}\n", cluster.gateway());
    let target = pid.to_string();
    tool_with_input("nsenter", &["--target", &target, "--net", "ip", "-batch", "-"], &batch)?;
    tool_with_input("nsenter", &["--target", &target, "--net", "nft", "-f", "-"], &machine_ruleset(cluster))?;
    Ok(())
}

/// Pulls the cable (`cut`) or puts it back (`heal`): the host's end goes down or up.
pub fn set_cable(cluster: &Cluster, machine: &Machine, up: bool) -> Result<()> {
    ip(&format!("link set {} {}", cluster.cable(machine), if up { "up" } else { "down" })).map(drop)
}

pub fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// A cable also goes by itself, a moment after the namespace of its other end: then there is nothing to complain about.
fn remove_link(name: &str) -> Result<()> {
    if !link_exists(name) {
        return Ok(());
    }
    match ip(&format!("link del {name}")) {
        Err(e) if link_exists(name) => Err(e),
        _ => Ok(()),
    }
}

pub fn table_exists(cluster: &Cluster) -> bool {
    succeeds("nft", &["list", "table", "ip", &cluster.table()])
}

/// Routes of the host as text, to find a free network.
pub fn routes() -> Result<String> {
    ip("-4 route show table all")
}

/// Why packets between machines, or from them to the world, would be dropped; none if they pass.
pub fn firewall_drops() -> Option<String> {
    let rules = tool("iptables", &["-S", "FORWARD"]).ok()?;
    let bridged = fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").is_ok_and(|text| text.trim() == "1");
    let drops = rules.lines().any(|line| line == "-P FORWARD DROP" || line.ends_with("-j DROP") || line.ends_with("-j REJECT"));
    drops.then(|| format!("the host's firewall drops forwarded packets (bridge-nf-call-iptables {})", if bridged { "on" } else { "off" }))
}

/// The (in, out) pairs that must pass: within the bridge, to the world, and answers from it.
fn firewall_rules(cluster: &Cluster) -> [(String, String); 3] {
    let bridge = cluster.bridge();
    [(bridge.clone(), bridge.clone()), (bridge.clone(), "+".into()), ("+".into(), bridge)]
}

/// An `accept` in our own table cannot overrule another table's drop, so the way is opened in the firewall's own chain.
fn pass_firewall(cluster: &Cluster) -> Result<()> {
    if firewall_drops().is_none() {
        return Ok(());
    }
    for (from, to) in firewall_rules(cluster) {
        if !succeeds("iptables", &["-C", "FORWARD", "-i", &from, "-o", &to, "-j", "ACCEPT"]) {
            tool("iptables", &["-I", "FORWARD", "1", "-i", &from, "-o", &to, "-j", "ACCEPT"])?;
        }
    }
    Ok(())
}

fn forwarding_record() -> std::path::PathBuf {
    Path::new(ROOT).join("ip_forward")
}

/// Notes the host's setting before the first cluster changes it.
fn record_forwarding() -> Result<()> {
    if forwarding_record().exists() {
        return Ok(());
    }
    write_file(&forwarding_record(), &fs::read(IP_FORWARD)?, 0o644)
}

fn restore_forwarding() -> Result<()> {
    if let Ok(before) = fs::read(forwarding_record()) {
        fs::write(IP_FORWARD, before).context("restore ip_forward")?;
        fs::remove_file(forwarding_record())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Options;

    #[test]
    fn the_hosts_table_holds_only_masquerading() {
        let cluster = Cluster::new("lab", 7, 2, Options::default());
        assert_eq!(
            ruleset(&cluster),
            "table ip coracle-lab\ndelete table ip coracle-lab\ntable ip coracle-lab {\n  chain postrouting {\n    \
             type nat hook postrouting priority srcnat; policy accept;\n    ip saddr 10.88.7.0/24 oifname != \"coracle7\" masquerade\n  }\n}\n"
        );
    }
}
