//! The program kube-scheduler: flags, then [`kube_scheduler::run`].

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config = kube_scheduler::Config::parse();
    machinery::shell::run("kube-scheduler", config.common.v, |token| kube_scheduler::run(config, token))
}
