//! The command line of `coracle`: what can be said, and who does it.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::cluster::{Cluster, DEFAULT_NAME, Machine, Store as StateStore};
use crate::image::{archive, build, reference::Reference, registries, server, store::Store};
use crate::machine::control::{self, Request};
use crate::machine::{namespaces, processes, supervisor};
use crate::{doctor, down, host, machine, migrate, status, trace, up};

/// A Kubernetes cluster of several machines on this one.
#[derive(Debug, Parser)]
#[command(name = "coracle", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster, or repair it: one master and two workers, with kubectl's context and a quick start
    Up(up::UpArgs),
    /// End a cluster and remove everything of it, its objects and images too
    Down(Which),
    /// Machines, processes and their health
    Status(Which),
    /// End a process of the cluster and keep it down
    Stop(Target),
    /// Start a stopped process
    Start(Target),
    /// Kill a process at once, as a crash; its supervisor starts it again
    Kill(Target),
    /// Print a process's log
    Logs {
        #[command(flatten)]
        target: Target,
        /// Go on as the log grows
        #[arg(short, long)]
        follow: bool,
        /// Only the last lines
        #[arg(long, default_value_t = 1000)]
        tail: usize,
    },
    /// Move the cluster's state to another store; the API server is away meanwhile, pods go on
    Migrate {
        /// Where to
        #[arg(long)]
        to: StateStore,
        #[command(flatten)]
        which: Which,
    },
    /// The cluster's image store
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show what caused what: the chain from an apply to a serving pod
    Trace {
        /// As deployment/quickstart
        object: String,
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// All that is known of the object, not only since its newest apply
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Cut a machine off the network, or heal it
    #[command(subcommand)]
    Machine(MachineCommand),
    /// A shell on a machine
    Shell {
        machine: String,
        #[command(flatten)]
        which: Which,
    },
    /// Run a command on a machine
    Exec {
        machine: String,
        #[command(flatten)]
        which: Which,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Look for what this host lacks
    Doctor,
    /// The first process of a machine
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        which: Which,
        #[arg(long)]
        machine: String,
    },
    /// Serve an image store
    #[command(hide = true)]
    ImageServer(server::ServerArgs),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Name of the cluster
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

#[derive(Debug, clap::Args)]
struct Target {
    /// As kube-apiserver or kubelet
    process: String,
    /// The machine; by default the only one, or the master, that runs the process
    #[arg(long, value_name = "MACHINE")]
    on: Option<String>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Add the images of a docker or OCI archive, plain or gzipped
    Load {
        file: PathBuf,
        /// Name for an image that carries none
        #[arg(long)]
        image: Option<String>,
        #[command(flatten)]
        which: Which,
    },
    /// Build an image from a folder with a Dockerfile (docs/images.md says which instructions are known)
    Build {
        folder: PathBuf,
        /// Name of the image; by default the folder's
        #[arg(short, long)]
        tag: Option<String>,
        /// The Dockerfile, if it is not the folder's
        #[arg(short, long)]
        file: Option<PathBuf>,
        #[command(flatten)]
        which: Which,
    },
    /// Let every machine trust a registry whose certificate a private authority signed
    Trust {
        /// HOST or HOST:PORT, as in the names of its images
        registry: String,
        /// The authority's certificate, PEM
        #[arg(long)]
        ca: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// List the store's images
    Ls(Which),
}

#[derive(Debug, Subcommand)]
enum MachineCommand {
    /// Pull the machine's network cable
    Cut {
        machine: String,
        #[command(flatten)]
        which: Which,
    },
    /// Put it back
    Heal {
        machine: String,
        #[command(flatten)]
        which: Which,
    },
}

pub fn main() -> ExitCode {
    match Cli::parse().command {
        // These are programs of their own: the supervisor enters its namespaces before any thread exists.
        Command::Supervise { which, machine } => supervise(&which.name, &machine),
        Command::ImageServer(args) => machinery::shell::run("image-server", 2, |token| server::run(args, token)),
        command => match run(command) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(e) => {
                eprintln!("coracle: {e:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Carries out a command. Returns whether what it looked at is well.
fn run(command: Command) -> Result<bool> {
    let cluster = |which: &Which| Cluster::existing(&which.name);
    match command {
        Command::Up(args) => block_on(up::up(&args))?,
        Command::Down(which) => down::down(&which.name)?,
        Command::Status(which) => return block_on(status::status(&cluster(&which)?)),
        Command::Stop(target) => tell(&target, Request::Stop)?,
        Command::Start(target) => tell(&target, Request::Start)?,
        Command::Kill(target) => tell(&target, Request::Kill)?,
        Command::Logs { target, follow, tail } => logs(&target, follow, tail)?,
        Command::Migrate { to, which } => block_on(migrate::migrate(&which.name, to))?,
        Command::Image(ImageCommand::Load { file, image, which }) => load(&cluster(&which)?, &file, image.as_deref())?,
        Command::Image(ImageCommand::Build { folder, tag, file, which }) => build(&cluster(&which)?, &folder, tag, file)?,
        Command::Image(ImageCommand::Trust { registry, ca, which }) => trust(&cluster(&which)?, &registry, &ca)?,
        Command::Image(ImageCommand::Ls(which)) => list_images(&cluster(&which)?)?,
        Command::Trace { object, namespace, all, which } => block_on(trace::trace(&cluster(&which)?, &object, &namespace, all))?,
        Command::Machine(MachineCommand::Cut { machine, which }) => set_cable(&cluster(&which)?, &machine, false)?,
        Command::Machine(MachineCommand::Heal { machine, which }) => set_cable(&cluster(&which)?, &machine, true)?,
        Command::Shell { machine, which } => execute(&cluster(&which)?, &machine, &["bash".to_string()])?,
        Command::Exec { machine, which, command } => execute(&cluster(&which)?, &machine, &command)?,
        Command::Doctor => return Ok(doctor::doctor()),
        Command::Supervise { .. } | Command::ImageServer(_) => bail!("not a command of this kind"),
    }
    Ok(true)
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    machinery::tls::install_crypto();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Becomes the machine's first process.
fn supervise(name: &str, machine: &str) -> ExitCode {
    let prepare = || -> Result<_> {
        let cluster = Cluster::existing(name)?;
        let machine = cluster.machine(machine)?.clone();
        let processes = processes::of(&cluster, &machine, &up::programs()?).iter().map(processes::Process::program).collect();
        // Bound by its path on the host, which is out of sight once the machine's own /var/lib is in place.
        let socket = cluster.socket(&machine);
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        nix::unistd::setsid().context("leave the terminal")?;
        namespaces::enter_with(&cluster, &machine, || Ok(UnixListener::bind(&socket)?))
            .map(|listener| (cluster, machine, processes, listener))
    };
    let (cluster, machine, processes, listener) = match prepare() {
        Ok(prepared) => prepared,
        Err(e) => {
            eprintln!("coracle: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    machinery::shell::run("supervisor", 2, |token| async move {
        namespaces::await_network(&cluster, &machine)?;
        supervisor::run(processes, listener, PathBuf::from("/var/log/coracle"), token).await
    })
}

/// The machine meant by `--on`, or the one machine it can be.
fn machine_of<'a>(cluster: &'a Cluster, target: &Target) -> Result<&'a Machine> {
    if let Some(name) = &target.on {
        return cluster.machine(name);
    }
    let bin = up::programs()?;
    let runs = |machine: &&Machine| processes::of(cluster, machine, &bin).iter().any(|process| process.name == target.process);
    let able: Vec<&Machine> = cluster.machines.iter().filter(runs).collect();
    match able.as_slice() {
        [only] => Ok(only),
        // Unknown names are refused by the master's supervisor, which knows all names of its machine.
        [] => Ok(cluster.master()),
        _ => bail!("{} runs on several machines: say which with --on", target.process),
    }
}

fn tell(target: &Target, request: impl Fn(String) -> Request) -> Result<()> {
    let cluster = Cluster::existing(&target.which.name)?;
    let machine = machine_of(&cluster, target)?;
    let answer = control::ask(&cluster.socket(machine), &request(target.process.clone()))?;
    for report in answer.processes.iter().filter(|report| report.name == target.process) {
        let state = format!("{:?}", report.state).to_lowercase();
        let pid = report.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        println!("{} on {}: {state}{pid}", report.name, machine.name);
    }
    Ok(())
}

fn logs(target: &Target, follow: bool, tail: usize) -> Result<()> {
    let cluster = Cluster::existing(&target.which.name)?;
    let machine = machine_of(&cluster, target)?;
    let path = cluster.log(machine, &target.process);
    if !path.exists() {
        bail!("no log of {} on {}: {} is missing", target.process, machine.name, path.display());
    }
    let mut command = std::process::Command::new("tail");
    command.arg("-n").arg(tail.to_string()).args(follow.then_some("-F")).arg(path);
    command.status().context("run tail")?;
    Ok(())
}

fn load(cluster: &Cluster, file: &Path, image: Option<&str>) -> Result<()> {
    for name in archive::load(&Store::open(&cluster.image_dir())?, file, image)? {
        println!("loaded {name}");
    }
    Ok(())
}

fn build(cluster: &Cluster, folder: &Path, tag: Option<String>, file: Option<PathBuf>) -> Result<()> {
    let named = || Some(std::fs::canonicalize(folder).ok()?.file_name()?.to_string_lossy().to_lowercase());
    let name = Reference::parse(&tag.or_else(named).context("give the image a name with --tag")?)?;
    let file = file.unwrap_or_else(|| folder.join("Dockerfile"));
    let image = build::build(&Store::open(&cluster.image_dir())?, folder, &file, &name, &cluster.dir())?;
    println!("built {name} {}", image.digest);
    Ok(())
}

fn trust(cluster: &Cluster, registry: &str, ca: &Path) -> Result<()> {
    let certificate = std::fs::read_to_string(ca).with_context(|| format!("read {}", ca.display()))?;
    registries::add(cluster, registry, &certificate)?;
    for machine in &cluster.machines {
        machine::install(cluster, machine, &registries::files(cluster)?)?;
    }
    println!("{registry} is trusted by {} machines", cluster.machines.len());
    Ok(())
}

fn list_images(cluster: &Cluster) -> Result<()> {
    let store = Store::open(&cluster.image_dir())?;
    println!("{:<50} {:<14} SIZE", "IMAGE", "DIGEST");
    for descriptor in store.index()?.manifests {
        let name = descriptor.name().map(Reference::parse).transpose()?.map_or_else(|| "<none>".into(), |name| name.to_string());
        let size = store.image_size(&descriptor).map_or("-".into(), |bytes| format!("{:.1}MB", bytes as f64 / 1e6));
        println!("{name:<50} {:<14} {size}", descriptor.digest.trim_start_matches("sha256:").get(..12).unwrap_or_default());
    }
    Ok(())
}

fn set_cable(cluster: &Cluster, machine: &str, up: bool) -> Result<()> {
    host::set_cable(cluster, cluster.machine(machine)?, up)?;
    println!("{machine} is {}", if up { "back on the network" } else { "cut off" });
    Ok(())
}

fn execute(cluster: &Cluster, machine: &str, command: &[String]) -> Result<()> {
    machine::exec(cluster, cluster.machine(machine)?, command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
