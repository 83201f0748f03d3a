//! kube-controller-manager: parses flags and runs [`kube_controller_manager::run`].

use std::process::ExitCode;

use clap::Parser;
use kube_controller_manager::config::Config;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config = Config::parse();
    machinery::shell::run("kube-controller-manager", config.common.v, |token| kube_controller_manager::run(config, token))
}
