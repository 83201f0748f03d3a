//! kube-apiserver: flags and the process shell; the work is in the library.
//!
//! `kube-apiserver copy-store --to STORE` copies the state to the other store and ends; the server must not run meanwhile.

use std::process::ExitCode;

use clap::Parser;
use kube_apiserver::Config;
use kube_apiserver::storage::copy::{self, CopyFlags};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut words = std::env::args_os().peekable();
    let program = words.next();
    if words.next_if(|word| word == "copy-store").is_some() {
        let flags = CopyFlags::parse_from(program.into_iter().chain(words));
        return machinery::shell::run("copy-store", 0, |_| async move { copy::run(&flags).await.map(|copied| println!("{copied}")) });
    }
    let config = Config { git_commit: option_env!("GIT_COMMIT").unwrap_or_default(), ..Config::parse() };
    machinery::shell::run("kube-apiserver", config.verbosity, |shutdown| kube_apiserver::run(config, shutdown))
}
