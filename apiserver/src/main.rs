//! kube-apiserver: flags, log, signals; the work is in the library.
//!
//! `kube-apiserver copy-store --to STORE` copies the state to the other store and ends; the server must not run meanwhile.

use std::process::ExitCode;

use clap::Parser;
use kube_apiserver::Config;
use kube_apiserver::storage::copy::{self, CopyFlags};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = std::env::args_os().peekable();
    let program = words.next();
    if words.next_if(|word| word == "copy-store").is_some() {
        let flags = CopyFlags::parse_from(program.into_iter().chain(words));
        log("warn");
        return exit(copy::run(&flags).await.map(|copied| println!("{copied}")));
    }
    let config = Config::parse();
    log(match config.verbosity {
        0 => "warn",
        1..=3 => "info",
        4 => "debug",
        _ => "trace",
    });
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone()));
    exit(kube_apiserver::run(config, shutdown).await)
}

fn log(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

fn exit(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn stop_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return tracing::error!("signals can't be handled");
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}
