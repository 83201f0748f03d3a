//! One more Service among thousands: how long until it answers, and what that costs the proxy.
//!
//! Each proxy runs in a network namespace of its own, as node `n0`. It reaches its API server through a socket that listens inside the namespace
//! and is served from outside: a socket stays in the namespace where it was made. Stock's proxy is run twice: over legacy iptables
//! and over the same command's nftables-style chains, both without its delay between syncs.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tests::client::Client;
use tests::cluster::programs;

use crate::load::many;
use crate::sides::{Side, stock_programs};
use crate::{Row, milliseconds};

const SERVICES: usize = 5_000;
const ADDED: usize = 5;
const SERVICE_PATH: &str = "/api/v1/namespaces/default/services";
/// Of the namespace, where the added Services' server listens.
const NODE: &str = "10.250.0.2";

/// Where `iptables` leads for stock's proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Backend {
    Own,
    Legacy,
    Nft,
}

/// Rows for this side's proxy; stock's answers twice, and ours is put beside each.
pub async fn run(side: &Side, name: &str, stock: &Path, dir: &Path) -> Result<Vec<Row>> {
    fill(side).await?;
    let ours = name == "ours";
    let program = if ours { programs()? } else { stock_programs(stock)? }.join("kube-proxy");
    let mut rows = Vec::new();
    let mut own = None;
    for (backend, label) in [(Backend::Legacy, "legacy iptables"), (Backend::Nft, "iptables on nftables")] {
        let (latency, cpu) = match own {
            Some(measured) => measured,
            None => measure(side, &program, if ours { Backend::Own } else { backend }, dir).await?,
        };
        own = ours.then_some((latency, cpu));
        rows.push(Row::new(format!("add a Service, stock on {label}"), "ms", latency));
        rows.push(Row::new(format!("  its CPU, stock on {label}"), "ms", cpu));
    }
    Ok(rows)
}

async fn fill(side: &Side) -> Result<()> {
    println!("  {SERVICES} Services");
    let slices = slices_path(side).await?;
    let path = slices.clone();
    many(side, "", SERVICES, 8, move |n| (Method::POST, path.clone(), slice(&path, &format!("s{n}"), "10.244.0.9")), 201).await?;
    many(side, "", SERVICES, 8, |n| (Method::POST, SERVICE_PATH.into(), service(&format!("s{n}"))), 201).await?;
    Ok(())
}

/// Milliseconds until one more Service answers (median), and of CPU for each.
async fn measure(side: &Side, program: &Path, backend: Backend, dir: &Path) -> Result<(f64, f64)> {
    println!("  one more Service among {SERVICES}, {backend:?}");
    let netns = Namespace::new()?;
    let api = netns.forward(side.endpoint.address)?;
    netns.listen(format!("{NODE}:8080").parse()?)?;
    let proxy = Proxy::start(&netns, side, program, backend, dir, api)?;
    let slices = slices_path(side).await?;
    let name = |n: usize| format!("{backend:?}-{n}").to_lowercase();
    // The first waits until the proxy has everything.
    add(side, &netns, &slices, &name(0), Duration::from_secs(240)).await?;
    let cpu = proxy.cpu()?;
    let mut took = Vec::new();
    for n in 1..=ADDED {
        took.push(add(side, &netns, &slices, &name(n), Duration::from_secs(60)).await?);
    }
    took.sort();
    Ok((milliseconds(took[ADDED / 2]), milliseconds(proxy.cpu()? - cpu) / ADDED as f64))
}

async fn slices_path(side: &Side) -> Result<String> {
    let mut client = Client::new(&side.endpoint)?;
    let version = if client.get("/apis/discovery.k8s.io/v1").await?.status == 200 { "v1" } else { "v1beta1" };
    Ok(format!("/apis/discovery.k8s.io/{version}/namespaces/default/endpointslices"))
}

fn service(name: &str) -> hyper::body::Bytes {
    // Without a selector: its endpoints are ours to say.
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
        .to_string()
        .into()
}

fn slice(path: &str, name: &str, address: &str) -> hyper::body::Bytes {
    let version = if path.contains("v1beta1") { "v1beta1" } else { "v1" };
    json!({
        "apiVersion": format!("discovery.k8s.io/{version}"), "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
    .to_string()
    .into()
}

/// From the create of the Service to the first connection through its address; at most `limit`.
async fn add(side: &Side, netns: &Namespace, slices: &str, name: &str, limit: Duration) -> Result<Duration> {
    let mut client = Client::new(&side.endpoint)?;
    let answer = client.request(Method::POST, slices, slice(slices, name, NODE)).await?;
    if answer.status != 201 {
        bail!("{name}: {}", String::from_utf8_lossy(&answer.body));
    }
    let began = Instant::now();
    let answer = client.request(Method::POST, SERVICE_PATH, service(name)).await?;
    let created: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let address = created["spec"]["clusterIP"].as_str().with_context(|| format!("{created}"))?;
    let address: SocketAddr = format!("{address}:80").parse()?;
    if !netns.inside(move || connects(address, began + limit)).await?? {
        println!("  {name} does not answer after {} s, and is counted so", limit.as_secs());
    }
    Ok(began.elapsed())
}

/// Tries until it connects; each try waits briefly, since without a rule the packet goes nowhere. Whether it did in time.
fn connects(address: SocketAddr, deadline: Instant) -> Result<bool> {
    while Instant::now() < deadline {
        match std::net::TcpStream::connect_timeout(&address, Duration::from_millis(3)) {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == ErrorKind::TimedOut || e.kind() == ErrorKind::ConnectionRefused => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(e) => return Err(e).context("connect"),
        }
    }
    Ok(false)
}

struct Namespace {
    name: String,
}

impl Namespace {
    fn new() -> Result<Namespace> {
        let netns = Namespace { name: format!("coracle-bench-{}", std::process::id()) };
        let name = &netns.name;
        let script = format!(
            "ip netns add {name}; ip -n {name} link set lo up; ip -n {name} link add node type veth peer name wall
             ip -n {name} link set wall up; ip -n {name} link set node up
             ip -n {name} addr add {NODE}/16 dev node; ip -n {name} route add default dev node"
        );
        let output = Command::new("sh").args(["-ec", &script]).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(netns)
    }

    /// Runs `work` on a thread in the namespace.
    async fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let namespace = File::open(format!("/var/run/netns/{}", self.name))?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let done = setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| work());
            // Nobody waits any more: nothing to tell.
            drop(sender.send(done));
        });
        Ok(receiver.await??)
    }

    fn bind(&self, address: SocketAddr) -> Result<std::net::TcpListener> {
        let namespace = File::open(format!("/var/run/netns/{}", self.name))?;
        let bound = std::thread::spawn(move || -> Result<std::net::TcpListener> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(std::net::TcpListener::bind(address)?)
        });
        let listener = bound.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// A port on the namespace's loopback that leads to `target` outside.
    fn forward(&self, target: SocketAddr) -> Result<SocketAddr> {
        let listener = tokio::net::TcpListener::from_std(self.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, target.port())))?)?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut outer = tokio::net::TcpStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut inner, &mut outer).await
                });
            }
        });
        Ok(address)
    }

    /// The server behind the added Services.
    fn listen(&self, address: SocketAddr) -> Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.bind(address)?)?;
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(e) = Command::new("ip").args(["netns", "del", &self.name]).status() {
            eprintln!("delete {}: {e}", self.name);
        }
    }
}

struct Proxy(Child);

impl Proxy {
    fn start(netns: &Namespace, side: &Side, program: &Path, backend: Backend, dir: &Path, api: SocketAddr) -> Result<Proxy> {
        let config = side.kubeconfig(dir, "admin", &format!("https://{api}"))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns.name]).arg(program).arg(format!("--kubeconfig={}", config.display()));
        command.args(["--hostname-override=n0", "--cluster-cidr=10.244.0.0/16"]);
        if backend != Backend::Own {
            command.args(["--proxy-mode=iptables", "--iptables-min-sync-period=1ms", "--conntrack-max-per-core=0"]);
            command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", iptables(dir, backend)?.display()));
        }
        let log = File::create(dir.join("kube-proxy.log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("start kube-proxy")?;
        Ok(Proxy(child))
    }

    /// Of the proxy and of what it ran (`nft`, `iptables-restore`).
    fn cpu(&self) -> Result<Duration> {
        let stat = procfs::process::Process::new(self.0.id() as i32)?.stat()?;
        let ticks = stat.utime + stat.stime + stat.cutime.max(0) as u64 + stat.cstime.max(0) as u64;
        Ok(Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(e) = self.0.kill().and_then(|()| self.0.wait().map(drop)) {
            eprintln!("end kube-proxy: {e}");
        }
    }
}

/// A folder in which `iptables` and its like are the wanted ones.
fn iptables(dir: &Path, backend: Backend) -> Result<PathBuf> {
    let style = if backend == Backend::Legacy { "legacy" } else { "nft" };
    let folder = dir.join(style);
    std::fs::create_dir_all(&folder)?;
    for family in ["iptables", "ip6tables"] {
        for tool in ["", "-save", "-restore"] {
            let link = folder.join(format!("{family}{tool}"));
            symlink(format!("/usr/sbin/{family}-{style}{tool}"), &link).with_context(|| format!("link {}", link.display()))?;
        }
    }
    Ok(folder)
}
