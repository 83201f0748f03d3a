//! The supervisor's socket: one JSON line asks, one JSON line answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", content = "process", rename_all = "lowercase")]
pub enum Request {
    Status,
    /// Ends the process (SIGTERM) and keeps it down.
    Stop(String),
    /// Starts a stopped process; at once, whatever its back-off.
    Start(String),
    /// SIGKILL, as a crash; the supervisor starts it again.
    Kill(String),
    /// Runs these programs and no others. One that runs with other words goes on; the new ones count from its next start.
    Configure(Vec<Program>),
}

/// A process as the supervisor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub argv: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    /// Ended by itself; starts again after its back-off.
    Crashed,
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    pub name: String,
    pub state: State,
    pub pid: Option<u32>,
    /// How often it ended by itself or was killed.
    pub restarts: u32,
    /// Since the last start.
    pub uptime_seconds: u64,
    /// How it ended last: "exit status: 1", "signal: 9".
    pub last_end: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The supervisor's own.
    pub pid: u32,
    pub processes: Vec<ProcessReport>,
    #[serde(default)]
    pub error: Option<String>,
}

/// Asks the supervisor behind `socket`.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("no supervisor answers at {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all((serde_json::to_string(request)? + "\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Answer = serde_json::from_str(&line).context("the supervisor's answer")?;
    if let Some(error) = answer.error {
        bail!(error);
    }
    Ok(answer)
}
