//! The program kube-proxy: flags, then [`kube_proxy::run`].

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config = kube_proxy::Config::parse();
    machinery::shell::run("kube-proxy", config.common.v, |token| kube_proxy::run(config, token))
}
