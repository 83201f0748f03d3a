//! Running the system's own tools (`ip`, `nft`, `nsenter`, `kubectl`), with errors that carry what was run and what it said.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a tool to its end and returns its standard output. A non-zero exit is an error with the tool's own words.
pub fn tool<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<String> {
    finish(program, Command::new(program).args(args).stdin(Stdio::null()).output())
}

/// As [`tool`], with `input` on standard input.
pub fn tool_with_input<S: AsRef<OsStr>>(program: &str, args: &[S], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes()).with_context(|| format!("write to {program}"))?;
    }
    finish(program, child.wait_with_output())
}

/// Whether the tool ran and was content; for questions like "does this link exist?".
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// `ip` with a sentence of arguments: `ip("link set lo up")`.
pub fn ip(sentence: &str) -> Result<String> {
    tool("ip", &sentence.split_whitespace().collect::<Vec<_>>()).with_context(|| format!("ip {sentence}"))
}

fn finish(program: &str, output: std::io::Result<Output>) -> Result<String> {
    let output = output.with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
