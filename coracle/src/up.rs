//! `coracle up`: makes whatever of the cluster is missing, in the order in which one thing needs another. Running it again repairs.
//!
//! ```text
//! record ── certificates ── images ── host network ── machines ── API server ready ── kubeconfig ── nodes Ready ── system objects ── quick start
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use nix::fcntl::{Flock, FlockArg};

use crate::cluster::{Cluster, DEFAULT_NAME, Options, ROOT, Store as StateStore, check_name, free_network};
use crate::image::{own, store::Store};
use crate::run::tool_with_input;
use crate::{doctor, host, kubeconfig, machine, migrate, pki, tls};

#[derive(Debug, clap::Args)]
pub struct UpArgs {
    /// Name of the cluster; several can run side by side
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// Worker machines beside the master; a running cluster gets the missing ones [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=200))]
    pub workers: Option<u8>,
    /// One more flag for a program, as PROGRAM=--FLAG=VALUE; can be repeated; taken when the cluster is made
    #[arg(long = "flag", value_name = "PROGRAM=--FLAG=VALUE", value_parser = parse_flag)]
    pub flags: Vec<(String, String)>,
    /// Keep the state in an etcd on the master, not in the embedded store; taken when the cluster is made
    #[arg(long)]
    pub etcd: bool,
    /// Leave the quick start out
    #[arg(long)]
    pub bare: bool,
}

fn parse_flag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((program, flag)) if flag.starts_with("--") => Ok((program.into(), flag.into())),
        _ => Err("expected PROGRAM=--FLAG=VALUE, as kubelet=--v=4".into()),
    }
}

const SYSTEM: &str =
    concat!(include_str!("../../manifests/system/dns.yaml"), "\n---\n", include_str!("../../manifests/system/storage.yaml"));
const QUICKSTART: &str = include_str!("../../manifests/quickstart/quickstart.yaml");
const QUICKSTART_PORT: u16 = 30080;
const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Prints what is done, with the seconds since the start.
pub struct Progress(pub Instant);

impl Progress {
    pub fn say(&self, what: &str) {
        println!("{:>6.1}s  {what}", self.0.elapsed().as_secs_f64());
    }
}

pub async fn up(args: &UpArgs) -> Result<()> {
    let progress = Progress(Instant::now());
    check_name(&args.name)?;
    doctor::require()?;
    let _lock = lock(&args.name)?;
    let (mut cluster, existed) = record(args)?;
    if existed && cluster.machines.iter().all(|machine| machine::is_running(&cluster, machine)) {
        progress.say(&format!("cluster {} is running; making sure that nothing is missing", cluster.name));
    }
    if cluster.runs_etcd() {
        doctor::require_etcd()?;
    }
    migrate::settle(&mut cluster)?;
    prepare(&cluster, &progress)?;
    start_machines(&cluster, &progress)?;
    await_ready(&cluster, &progress).await?;
    if let Some(previous) = kubeconfig::install(&cluster)? {
        cluster.previous_context = Some(previous);
        cluster.save()?;
    }
    progress.say(&format!("kubectl's context is {}, in {}", cluster.context(), kubeconfig::user_config().display()));
    apply(&cluster, SYSTEM).context("apply the system objects")?;
    if !args.bare {
        apply(&cluster, QUICKSTART).context("apply the quick start")?;
        progress.say("system objects and the quick start applied");
    }
    await_nodes(&cluster, &progress).await?;
    label_master(&cluster)?;
    if !args.bare {
        await_quickstart(&cluster, &progress).await?;
    }
    summary(&cluster, args.bare)
}

/// One `up` or `down` of a cluster at a time.
pub fn lock(name: &str) -> Result<Flock<File>> {
    std::fs::create_dir_all(ROOT)?;
    let path = Path::new(ROOT).join(format!(".{name}.lock"));
    let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| e)
        .with_context(|| format!("another `coracle up` or `down` of {name} is at work"))
}

/// The cluster's record, made or extended. Returns whether it was there.
fn record(args: &UpArgs) -> Result<(Cluster, bool)> {
    if let Some(mut cluster) = Cluster::load(&args.name)? {
        if args.etcd && cluster.options.store != StateStore::Etcd {
            bail!("cluster {} keeps its state in {}: move it with `coracle migrate --to etcd`", args.name, cluster.options.store);
        }
        cluster.set_workers(args.workers.unwrap_or(0));
        cluster.save()?;
        return Ok((cluster, true));
    }
    let taken: Vec<u8> = Cluster::names().iter().filter_map(|name| Cluster::load(name).ok().flatten()).map(|other| other.network).collect();
    let network = free_network(&host::routes()?, &taken)?;
    if args.etcd {
        doctor::require_etcd()?;
    }
    let store = if args.etcd { StateStore::Etcd } else { StateStore::Embedded };
    let options = Options { flags: args.flags.clone(), store, moving_to: None };
    let cluster = Cluster::new(&args.name, network, args.workers.unwrap_or(2), options);
    cluster.save()?;
    Ok((cluster, false))
}

fn prepare(cluster: &Cluster, progress: &Progress) -> Result<()> {
    pki::ensure(cluster)?;
    progress.say("certificates");
    own::ensure(&Store::open(&cluster.image_dir())?, &programs()?)?;
    progress.say("images");
    host::ensure(cluster)?;
    progress.say(&format!("network {} on bridge {}", cluster.subnet(), cluster.bridge()));
    Ok(())
}

/// The folder of our programs: where this one is.
pub fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("a program lies in a folder")?.to_path_buf())
}

/// All machines at once; the workers' agents wait for the API server by themselves.
fn start_machines(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let outcomes: Vec<Result<bool>> = std::thread::scope(|scope| {
        let starts: Vec<_> = cluster.machines.iter().map(|machine| scope.spawn(|| machine::ensure(cluster, machine))).collect();
        starts.into_iter().map(|start| start.join().unwrap_or_else(|_| bail!("the start of a machine panicked"))).collect()
    });
    for (machine, outcome) in cluster.machines.iter().zip(outcomes) {
        if outcome.with_context(|| format!("start machine {}", machine.name))? {
            progress.say(&format!("machine {} at {}", machine.name, cluster.address(machine)));
        }
    }
    Ok(())
}

/// Repeats `probe` until it is content or `limit` has passed; the error then says what was missing last.
pub async fn wait_for<F>(limit: Duration, mut probe: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

pub async fn await_ready(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let config = tls::admin(cluster)?;
    let address = cluster.address(cluster.master());
    let hint = || format!("the API server is not ready; see `coracle logs kube-apiserver --name {}`", cluster.name);
    wait_for(Duration::from_secs(60), || async {
        match tls::get(Some(config.clone()), address, crate::cluster::API_PORT, "/readyz").await? {
            (200, _) => Ok(()),
            (code, text) => bail!("/readyz: {code} {text}"),
        }
    })
    .await
    .with_context(hint)?;
    progress.say("API server ready");
    Ok(())
}

/// A client of the cluster with the administrator's rights.
pub async fn client(cluster: &Cluster) -> Result<kube::Client> {
    machinery::shell::client(Some(&cluster.admin_conf()), "coracle").await
}

async fn await_nodes(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let nodes: Api<Node> = Api::all(client(cluster).await?);
    let mut reported = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let list = nodes.list(&ListParams::default()).await.context("list nodes")?;
        for node in list.items.iter().filter(|node| is_ready(node)) {
            let name = node.metadata.name.clone().unwrap_or_default();
            if !reported.contains(&name) {
                progress.say(&format!("node {name} Ready"));
                reported.push(name);
            }
        }
        let missing: Vec<&str> =
            cluster.machines.iter().map(|machine| machine.name.as_str()).filter(|name| !reported.iter().any(|r| r == name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not Ready: {}; see `coracle logs kubelet --on {} --name {}`", missing.join(", "), missing[0], cluster.name);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// A kubelet may not give itself these labels (NodeRestriction), so the administrator does, as kubeadm would.
fn label_master(cluster: &Cluster) -> Result<()> {
    let role = format!("{CONTROL_PLANE_LABEL}=");
    let mut words = vec!["label", "node", &cluster.master().name, &role, "--overwrite"];
    // Alone, the master takes outside traffic too.
    words.extend((cluster.machines.len() > 1).then_some("node.kubernetes.io/exclude-from-external-load-balancers="));
    kubectl(cluster, &words, "").map(drop)
}

fn apply(cluster: &Cluster, manifest: &str) -> Result<()> {
    kubectl(cluster, &["apply", "-f", "-"], manifest).map(drop)
}

fn kubectl(cluster: &Cluster, args: &[&str], input: &str) -> Result<String> {
    let config = cluster.admin_conf();
    let config = config.to_string_lossy();
    let mut all = vec!["--kubeconfig", config.as_ref()];
    all.extend(args);
    tool_with_input("kubectl", &all, input)
}

fn quickstart_address(cluster: &Cluster) -> std::net::Ipv4Addr {
    cluster.address(cluster.machines.last().unwrap_or(cluster.master()))
}

async fn await_quickstart(cluster: &Cluster, progress: &Progress) -> Result<()> {
    if cluster.machines.len() == 1 {
        return Ok(());
    }
    let address = quickstart_address(cluster);
    wait_for(Duration::from_secs(120), || async {
        match tls::get(None, address, QUICKSTART_PORT, "/").await? {
            (200, _) => Ok(()),
            (code, _) => bail!("status {code}"),
        }
    })
    .await
    .context("the quick start does not answer; see `kubectl get pods`")?;
    progress.say("the quick start answers");
    Ok(())
}

fn summary(cluster: &Cluster, bare: bool) -> Result<()> {
    println!("\n{}", kubectl(cluster, &["get", "nodes"], "")?.trim_end());
    if !bare && cluster.machines.len() > 1 {
        println!("\nThe quick start answers at http://{}:{QUICKSTART_PORT}", quickstart_address(cluster));
    }
    Ok(())
}
