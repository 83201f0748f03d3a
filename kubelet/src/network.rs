//! The node's part of the pod network: the CNI configuration once the node has its range, and routes to the other nodes' ranges.
//!
//! `ptp` gives each pod a /32 route and no bridge, so that traffic between pods of one node passes the kernel's IP layer
//! and with it kube-proxy's rules. Upstream leaves all of this to a network add-on.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::{Handle, RouteMessageBuilder};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Notify;

use crate::kubelet::{Config, Kubelet};

/// The network's name.
pub const NAME: &str = "coracle";
/// Where `host-local` notes who has which address, in a folder for each network; a reboot clears it.
pub const ADDRESSES: &str = "/run/cni-ipam-state";
const CONFIG: &str = "10-coracle.conflist";
/// Marks our routes, so that we remove no one else's. (The numbers up to 15 are well known ones.)
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x4b);

/// Follows the nodes until the kubelet stops; `changed` is told when the network's configuration is written.
pub async fn run(kubelet: Arc<Kubelet>, changed: Arc<Notify>) {
    let news = Arc::new(Notify::new());
    let wake = news.clone();
    kubelet.nodes.on_change(move |_| wake.notify_one());
    kubelet.nodes.synced().await;
    loop {
        let mut again = None;
        if let Err(error) = write_config(&kubelet, &changed) {
            tracing::warn!(error = format!("{error:#}"), "CNI configuration not written");
            again = Some(Duration::from_secs(5));
        }
        if let Err(error) = sync_routes(&kubelet).await {
            tracing::warn!(error = format!("{error:#}"), "routes to other nodes");
            again = Some(Duration::from_secs(5));
        }
        tokio::select! {
            () = news.notified() => {}
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

fn internal_ip(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse().ok())
}

/// The configuration for a node's range. `portmap` makes host ports; it is left out where the machine lacks it.
fn config(range: &Ipv4Net, portmap: bool) -> Value {
    let ptp = json!({
        "type": "ptp",
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "dataDir": ADDRESSES,
            "ranges": [[{"subnet": range.to_string()}]],
            "routes": [{"dst": "0.0.0.0/0"}]
        }
    });
    let mut plugins = vec![ptp];
    if portmap {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    json!({"cniVersion": "0.4.0", "name": NAME, "plugins": plugins})
}

fn write_config(kubelet: &Kubelet, changed: &Notify) -> Result<()> {
    let Some(range) = kubelet.node().and_then(|node| pod_cidr(&node)) else { return Ok(()) };
    // The plugin works through the iptables command.
    let iptables = ["/usr/sbin/iptables", "/sbin/iptables"].iter().any(|p| Path::new(p).exists());
    let portmap = iptables && kubelet.config.cni_bin_dir.join("portmap").exists();
    let text = format!("{:#}\n", config(&range, portmap));
    let file = kubelet.config.cni_conf_dir.join(CONFIG);
    if std::fs::read_to_string(&file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::create_dir_all(&kubelet.config.cni_conf_dir)?;
    let fresh = kubelet.config.cni_conf_dir.join(format!(".{CONFIG}.new"));
    std::fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
    std::fs::rename(&fresh, &file)?;
    tracing::info!(%range, "pod network configured");
    changed.notify_one();
    Ok(())
}

/// Has the plugins take back what they made for a sandbox, the last first, as the runtime would: its address, the rules of its host ports.
pub async fn release(config: &Config, sandbox: &str) -> Result<()> {
    let network: Value = serde_json::from_slice(&tokio::fs::read(config.cni_conf_dir.join(CONFIG)).await?)?;
    for plugin in network["plugins"].as_array().into_iter().flatten().rev() {
        let mut input = plugin.clone();
        for field in ["cniVersion", "name"] {
            input[field] = network[field].clone();
        }
        if plugin["capabilities"]["portMappings"] == true {
            // It finds its rules by the sandbox, but looks for them only if told of some port.
            input["runtimeConfig"] = json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}]});
        }
        let program = config.cni_bin_dir.join(plugin["type"].as_str().unwrap_or_default());
        run_plugin(&program, &input, sandbox, &config.cni_bin_dir).await.with_context(|| format!("{}: DEL", program.display()))?;
    }
    Ok(())
}

async fn run_plugin(program: &Path, input: &Value, sandbox: &str, path: &Path) -> Result<()> {
    let mut child = Command::new(program)
        .envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", sandbox), ("CNI_NETNS", ""), ("CNI_IFNAME", "eth0")])
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.to_string().as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(())
}

/// Makes the routes those of the other nodes' ranges, and no others of ours.
async fn sync_routes(kubelet: &Kubelet) -> Result<()> {
    let own = &kubelet.config.node_name;
    let others = kubelet.nodes.list();
    let mut wanted: HashMap<Ipv4Net, Ipv4Addr> = others
        .iter()
        .filter(|node| node.metadata.name.as_ref() != Some(own))
        .filter_map(|node| Some((pod_cidr(node)?, internal_ip(node)?)))
        .filter(|(_, gateway)| IpAddr::V4(*gateway) != kubelet.config.node_ip)
        .collect();
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let driver = tokio::spawn(connection);
    let result = apply_routes(&handle, &mut wanted).await;
    driver.abort();
    result
}

async fn apply_routes(handle: &Handle, wanted: &mut HashMap<Ipv4Net, Ipv4Addr>) -> Result<()> {
    use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await? {
        if route.header.protocol != PROTOCOL {
            continue;
        }
        let (mut destination, mut gateway) = (None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = Some(*ip),
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
                _ => {}
            }
        }
        let range = destination.and_then(|ip| Ipv4Net::new(ip, route.header.destination_prefix_length).ok());
        if range.is_some_and(|range| wanted.get(&range).copied() == gateway) {
            range.and_then(|range| wanted.remove(&range));
        } else {
            handle.route().del(route).execute().await?;
        }
    }
    for (range, gateway) in wanted.iter() {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .gateway(*gateway)
            .protocol(PROTOCOL)
            .build();
        handle.route().add(route).replace().execute().await.with_context(|| format!("route to {range} via {gateway}"))?;
        tracing::info!(%range, %gateway, "route to another node");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_range() {
        let text = config(&"10.244.1.0/24".parse().unwrap(), true).to_string();
        assert!(text.contains(r#""subnet":"10.244.1.0/24""#) && text.contains("portmap"), "{text}");
    }
}
