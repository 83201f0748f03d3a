//! The program dns: flags, then [`dns::run`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let config = dns::Config::parse();
    machinery::shell::run("dns", config.v, |token| dns::run(config, token))
}
