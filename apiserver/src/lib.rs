//! The API server: the only program that can reach the store, and the way in for everyone else.
//!
//! ```text
//! http ─▶ auth (who, may they) ─▶ registry (one pipeline) ─▶ storage
//!   ▲                                   │ committed change
//!   └────────── watch ◀── cache ◀───────┘
//! ```
//! Upstream counterpart: `cmd/kube-apiserver`, `k8s.io/apiserver` (v1.33).
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backend;
pub mod bootstrap;
mod components;
pub mod config;
pub mod discovery;
mod html;
pub mod http;
pub mod journal;
pub mod kubelet;
pub mod openapi;
pub mod proxy;
pub mod registry;
pub mod storage;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use auth::authn::Authenticator;
use auth::authz::Authorizer;
use auth::token::{Discovery as TokenDiscovery, Issuer, SigningKey, Verifier, VerifyingKey};
use kinds::{KINDS, Kind, Storage as Stored};
use machinery::tls;
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub use config::Config;
use http::App;
use http::metrics::Metrics;
use registry::Registry;
use registry::addresses::Addresses;
use registry::cache::Cache;
use storage::transform::{Identity, Transformer};

/// Serve until `shutdown`. Errors: flags that can't be used, a store that can't be opened, a port that is taken.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let address = SocketAddr::new(config.bind_address, config.secure_port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    let port = listener.local_addr()?.port();
    let advertised = config.advertise_address.unwrap_or_else(|| own_address(config.bind_address));
    let certificate = tls::certificate(Some((&config.tls_cert_file, &config.tls_private_key_file)), Vec::new())?;
    let server_tls = tls::server(certificate, Some(&config.client_ca_file))?;
    let registry = open_registry(&config).await?;
    let app = Arc::new(build(&config, registry, SocketAddr::new(advertised, port), shutdown)?);
    let reach = bootstrap::Reach { address: advertised, port };
    let ensure = tokio::spawn(ensure(app.clone(), reach));
    tracing::info!(%address, %advertised, "serving");
    http::serve::serve(app, listener, server_tls).await;
    ensure.abort();
    tracing::info!("stopped");
    Ok(())
}

/// Bootstrap objects; the server serves meanwhile, and is ready after.
async fn ensure(app: Arc<App>, reach: bootstrap::Reach) {
    loop {
        match bootstrap::ensure(&app.registry, &reach).await {
            Ok(()) => break,
            Err(error) => tracing::error!(%error, "bootstrap objects could not be ensured, trying again"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    app.ready.store(true, Ordering::Release);
    tracing::info!("ready");
}

fn has_records(kind: &&'static Kind) -> bool {
    kind.storage == Stored::Own
}

async fn open_registry(config: &Config) -> anyhow::Result<Arc<Registry>> {
    let store = config.store.open().await?;
    let transformer: Arc<dyn Transformer> = Arc::new(Identity);
    let authorizer = Arc::new(Authorizer::new());
    let observer = authorizer.clone();
    let observe =
        move |kind: &'static Kind, key: &api::Key, new: Option<&serde_json::Value>| observer.observe(&kind.group_resource(), key, new);
    let (cache, changes) =
        Cache::load(KINDS.iter().filter(has_records), &*store, &*transformer, &observe).await.context("loading the store")?;
    let cache = Arc::new(cache);
    let small = cache.clone();
    tokio::spawn(async move { small.keep_small().await });
    let (following, followed, opener) = (cache.clone(), store.clone(), transformer.clone());
    tokio::spawn(async move { following.follow(&*followed, changes, &*opener, &observe).await });
    let addresses = Addresses::new(config.service_cluster_ip_range, config.service_node_port_range.clone());
    Ok(Arc::new(Registry::new(store, transformer, cache, authorizer, addresses)))
}

fn build(config: &Config, registry: Arc<Registry>, advertised: SocketAddr, shutdown: CancellationToken) -> anyhow::Result<App> {
    let read = |path: &std::path::Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let signing = SigningKey::from_pem(&read(&config.service_account_signing_key_file)?).context("the service account signing key")?;
    let mut keys = Vec::new();
    for path in &config.service_account_key_file {
        keys.extend(VerifyingKey::all_from_pem(&read(path)?).with_context(|| format!("the keys in {}", path.display()))?);
    }
    if keys.is_empty() {
        keys.push(signing.public().clone());
    }
    let issuer_url = config.service_account_issuer.clone();
    let audiences = if config.api_audiences.is_empty() { vec![issuer_url.clone()] } else { config.api_audiences.clone() };
    let address = advertised.to_string();
    let token_discovery = TokenDiscovery::new(&issuer_url, &address, &keys);
    Ok(App {
        registry,
        authenticator: Authenticator::new(Verifier::new(vec![issuer_url.clone()], keys, audiences.clone())),
        issuer: Issuer::new(signing, issuer_url, audiences),
        token_discovery,
        backends: backend::Backends {
            kubelet: kubelet_client(config).context("the kubelet client certificate")?,
            anyone: TlsConnector::from(tls::trusting_client()),
        },
        advertised,
        discovery: discovery::Discovery::new(&address),
        git_commit: config.git_commit,
        metrics: Metrics::new(),
        shutdown,
        ready: AtomicBool::new(false),
    })
}

/// `None` without a client certificate: kubelets can't be reached then.
fn kubelet_client(config: &Config) -> anyhow::Result<Option<TlsConnector>> {
    let (Some(certificate), Some(key)) = (&config.kubelet_client_certificate, &config.kubelet_client_key) else { return Ok(None) };
    let authority = config.kubelet_certificate_authority.as_ref().unwrap_or(&config.client_ca_file);
    Ok(Some(TlsConnector::from(tls::client(authority, certificate, key)?)))
}

/// The address this machine would use to reach others: upstream takes the one of the default route.
fn own_address(bind: IpAddr) -> IpAddr {
    if !bind.is_unspecified() {
        return bind;
    }
    // Connecting a UDP socket sends nothing; it only chooses a route.
    let probe = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect("192.0.2.1:9").map(|()| socket))
        .and_then(|socket| socket.local_addr());
    probe.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}
