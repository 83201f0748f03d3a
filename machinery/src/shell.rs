//! The shell of every process: flags, logs, signals, the client, the health port.
//!
//! A `main` is: parse flags, `shell::run(name, args.v, |token| run(config, token))`.
//! Upstream: `component-base/cli/run.go`, `client-go/tools/clientcmd`.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::CancellationToken;
use crate::delegated::{Action, Delegated};
use crate::https::{self, Body, Peer};
use crate::metrics;
use crate::tls;

/// Flags that every program takes, with upstream's names.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// File that says where the API server is and with which credentials to reach it; in a pod, its service account serves
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// How much to log: 0 warnings, 2 what happens, 4 each sync, 6 each request
    #[arg(short = 'v', long = "v", default_value_t = 2, value_name = "LEVEL")]
    pub v: u8,
    /// Address to serve health and metrics on
    #[arg(long, default_value = "0.0.0.0", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Certificate to serve health and metrics with; without it, one signed by itself
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Authority whose client certificates are accepted
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

/// Runs a program to its end: until it returns, fails, or SIGTERM or SIGINT cancels its token and it winds up.
pub fn run<F>(name: &'static str, verbosity: u8, program: impl FnOnce(CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = Result<()>>,
{
    init_logs(verbosity);
    stay_small();
    tls::install_crypto();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        let token = CancellationToken::new();
        cancel_on_signal(token.clone())?;
        tracing::info!("{name} starting, version {}", env!("CARGO_PKG_VERSION"));
        program(token).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Where the kernel gives huge pages unasked, a heap with little in use would still hold two MiB for each of its corners.
fn stay_small() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
}

fn init_logs(verbosity: u8) {
    let ours = match verbosity {
        0 | 1 => "warn",
        2 | 3 => "info",
        4 | 5 => "debug",
        _ => "trace",
    };
    // Libraries speak up only when asked for requests: their debug lines drown ours.
    let libraries = if verbosity >= 6 { "debug" } else { "warn" };
    let quiet =
        ["hyper", "hyper_util", "h2", "rustls", "tower", "kube_client", "tonic", "hickory_proto", "hickory_server", "netlink_proto"];
    let default = quiet.iter().fold(ours.to_owned(), |filter, library| format!("{filter},{library}={libraries}"));
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).compact();
    // A second init, in tests that start several programs in one process, keeps the first.
    let _first_wins = logs.try_init();
}

fn cancel_on_signal(token: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(())
}

/// A client with the identity of `kubeconfig` (or of the pod it runs in) that sends the running task's cause with every write.
/// Errors: the file cannot be read or names no usable cluster or credentials.
pub async fn client(kubeconfig: Option<&Path>, agent: &str) -> Result<Client> {
    tls::install_crypto();
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("cannot use {}", path.display()))?
        }
        None => Config::incluster_env().context("no --kubeconfig, and not in a pod with a service account")?,
    };
    let agent = format!("{agent}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, HeaderValue::from_str(&agent)?));
    crate::client::connect(&config)
}

/// The health of a process: named checks, all of which must hold for `/healthz` and `/readyz`.
#[derive(Clone, Default)]
pub struct Health {
    checks: Arc<RwLock<Vec<(&'static str, Check)>>>,
}

type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

impl Health {
    /// Adds a check; `Err` says in words what is wrong.
    pub fn add(&self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.checks.write().push((name, Box::new(check)));
    }

    fn report(&self, path: &str, verbose: bool) -> Response<Body> {
        let (mut lines, mut healthy) = (String::from("[+]ping ok\n"), true);
        for (name, check) in self.checks.read().iter() {
            match check() {
                Ok(()) => lines += &format!("[+]{name} ok\n"),
                Err(why) => {
                    healthy = false;
                    lines += &format!("[-]{name} failed: {why}\n");
                }
            }
        }
        let check = path.trim_start_matches('/');
        match (healthy, verbose) {
            (true, false) => https::text(200, "ok"),
            (true, true) => https::text(200, format!("{lines}{check} check passed\n")),
            (false, _) => https::text(500, format!("{lines}{check} check failed\n")),
        }
    }
}

/// Serves `/livez`, `/readyz`, `/healthz` to all and `/metrics` to those whom the API server lets `get` it, until cancelled.
/// Errors: the address is taken or the certificates cannot be used.
pub async fn serve_health(args: &CommonArgs, port: u16, client: Client, health: Health, token: CancellationToken) -> Result<()> {
    let files = args.tls_cert_file.as_deref().zip(args.tls_private_key_file.as_deref());
    let certificate = tls::certificate(files, vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let config = tls::server(certificate, args.client_ca_file.as_deref())?;
    let address = SocketAddr::new(args.bind_address, port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}: is another instance running?"))?;
    let delegated = Arc::new(Delegated::new(client));
    let handler = move |request: Request<Incoming>, peer: Peer| {
        let (health, delegated) = (health.clone(), delegated.clone());
        async move { answer(&request, &peer, &health, &delegated).await }
    };
    tokio::spawn(https::serve(listener, config, handler, token));
    Ok(())
}

async fn answer(request: &Request<Incoming>, peer: &Peer, health: &Health, delegated: &Delegated) -> Response<Body> {
    let path = request.uri().path();
    let verbose = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "verbose" || p.starts_with("verbose=")));
    match path {
        "/livez" => https::text(200, "ok"),
        "/healthz" | "/readyz" => health.report(path, verbose),
        "/metrics" => {
            let action = Action::Path { verb: "get".to_owned(), path: path.to_owned() };
            match delegated.check(peer, request.headers(), action).await {
                Ok(_) => metrics(),
                Err(refusal) => https::text(refusal.code(), refusal.to_string()),
            }
        }
        _ => https::text(404, "404 page not found\n"),
    }
}

/// What the process counts of itself, as Prometheus scrapes it.
pub fn metrics() -> Response<Body> {
    match metrics::get().text() {
        Ok(text) => https::text(200, text),
        Err(error) => https::text(500, error.to_string()),
    }
}
