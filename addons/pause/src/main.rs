//! The container that holds a pod's namespaces open.
//!
//! It does three things: waits, reaps children that lost their parent (when the pod shares its process namespace it is
//! process 1), and leaves at once on SIGTERM or SIGINT. No thread, no allocation after start.
//! Upstream: build/pause/linux/pause.c.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("-v") {
        println!("pause {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(signal) => {
            eprintln!("Shutting down, got signal: {signal}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pause: waiting for a signal: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Blocks the three signals, so that none can arrive between two waits, then takes them one by one.
fn run() -> nix::Result<Signal> {
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => reap(),
            signal => return Ok(signal),
        }
    }
}

/// One SIGCHLD may stand for several children.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
