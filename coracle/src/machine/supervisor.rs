//! The first process of a machine: starts the machine's processes, starts them again when they end, answers the control socket.
//!
//! One task per process owns that process alone: its desired state comes through a watch channel, its report goes out through another.
//! Logs are files opened for appending (`log/coracle/PROCESS.log`); past [`LOG_LIMIT`] a file is copied to `.log.1` and emptied,
//! so that a process outlives its supervisor without a broken pipe.

use std::fs::{self, File};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::control::{Answer, ProcessReport, Program, Request, State};

/// Bytes a log may grow to before it is rotated.
const LOG_LIMIT: u64 = 16 << 20;
/// How often sizes are looked at.
const LOG_PERIOD: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A process that ran this long has recovered: its next back-off is the first again.
const RECOVERED: Duration = Duration::from_secs(10);
/// From SIGTERM to SIGKILL when a process is stopped.
const GRACE: Duration = Duration::from_secs(10);

/// The pause before start number `failures + 1` in a row.
pub fn backoff(failures: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << failures.min(16)).min(LONGEST_BACKOFF)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    Stop,
    Start,
    Kill,
    /// Be started with these words from now on.
    Become(Vec<String>),
}

/// Why a process that is down is looked at again.
enum Woken {
    /// Its back-off has passed.
    Due,
    /// It was told to start.
    Ordered,
    /// The supervisor is leaving.
    Leaving,
}

struct Handle {
    program: Program,
    commands: mpsc::Sender<Order>,
    report: watch::Receiver<ProcessReport>,
    started: watch::Receiver<Instant>,
}

/// Runs until cancelled (SIGTERM), then stops every process, the last started first.
pub async fn run(programs: Vec<Program>, listener: StdListener, logs: PathBuf, shutdown: CancellationToken) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut handles: Vec<Handle> = programs.into_iter().map(|program| start(program, &logs)).collect();
    let mut rotation = tokio::time::interval(LOG_PERIOD);
    loop {
        tokio::select! {
            connection = listener.accept() => {
                if let Err(e) = serve(connection?.0, &mut handles, &logs).await {
                    tracing::warn!("control connection: {e:#}");
                }
            }
            _ = rotation.tick() => rotate_all(&logs),
            _ = shutdown.cancelled() => break,
        }
    }
    for handle in handles.iter().rev() {
        order(handle, Order::Stop, State::Stopped).await;
    }
    Ok(())
}

async fn serve(stream: UnixStream, handles: &mut Vec<Handle>, logs: &Path) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).await?;
    let request: Request = serde_json::from_str(&line).context("request")?;
    let error = match request {
        Request::Configure(programs) => {
            configure(programs, handles, logs).await;
            None
        }
        request => carry_out(&request, handles).await,
    };
    let processes = handles.iter().map(Handle::report).collect();
    let answer = Answer { pid: std::process::id(), processes, error };
    writer.write_all((serde_json::to_string(&answer)? + "\n").as_bytes()).await?;
    Ok(())
}

/// Returns what was wrong with the request, if anything.
async fn carry_out(request: &Request, handles: &[Handle]) -> Option<String> {
    let (name, what, goal) = match request {
        Request::Status | Request::Configure(_) => return None,
        Request::Stop(name) => (name, Order::Stop, State::Stopped),
        Request::Start(name) => (name, Order::Start, State::Running),
        Request::Kill(name) => (name, Order::Kill, State::Crashed),
    };
    match handles.iter().find(|handle| handle.program.name == *name) {
        Some(handle) => order(handle, what, goal).await,
        None => {
            let known: Vec<&str> = handles.iter().map(|handle| handle.program.name.as_str()).collect();
            return Some(format!("no process {name:?} on this machine; there are {}", known.join(", ")));
        }
    }
    None
}

/// Makes `handles` these programs, in their order: ends the others, starts the new ones.
async fn configure(programs: Vec<Program>, handles: &mut Vec<Handle>, logs: &Path) {
    let mut before: Vec<Handle> = std::mem::take(handles);
    for program in programs {
        let Some(at) = before.iter().position(|handle| handle.program.name == program.name) else {
            handles.push(start(program, logs));
            continue;
        };
        let mut handle = before.remove(at);
        if handle.program != program {
            order(&handle, Order::Become(program.argv.clone()), State::Running).await;
            handle.program = program;
        }
        handles.push(handle);
    }
    for handle in before.iter().rev() {
        order(handle, Order::Stop, State::Stopped).await;
    }
}

/// Sends a command and waits until it shows.
async fn order(handle: &Handle, what: Order, goal: State) {
    let before = handle.report.borrow().restarts;
    if handle.commands.send(what.clone()).await.is_err() || matches!(what, Order::Become(_)) {
        return;
    }
    let mut report = handle.report.clone();
    let shown = report.wait_for(|now| match what {
        Order::Kill => now.restarts > before || now.state == State::Stopped,
        _ => now.state == goal,
    });
    if tokio::time::timeout(GRACE + Duration::from_secs(2), shown).await.is_err() {
        tracing::warn!("{}: {what:?} took too long", handle.program.name);
    }
}

impl Handle {
    fn report(&self) -> ProcessReport {
        let mut report = self.report.borrow().clone();
        if report.state == State::Running {
            report.uptime_seconds = self.started.borrow().elapsed().as_secs();
        }
        report
    }
}

fn start(program: Program, logs: &Path) -> Handle {
    let (commands, inbox) = mpsc::channel(4);
    let first =
        ProcessReport { name: program.name.clone(), state: State::Crashed, pid: None, restarts: 0, uptime_seconds: 0, last_end: None };
    let (report_sender, report) = watch::channel(first);
    let (started_sender, started) = watch::channel(Instant::now());
    let handle = Handle { program: program.clone(), commands, report, started };
    let keeper = Keeper { log: logs.join(format!("{}.log", program.name)), program, inbox, report: report_sender, started: started_sender };
    tokio::spawn(keeper.keep());
    handle
}

/// Keeps one process running.
struct Keeper {
    program: Program,
    log: PathBuf,
    inbox: mpsc::Receiver<Order>,
    report: watch::Sender<ProcessReport>,
    started: watch::Sender<Instant>,
}

impl Keeper {
    async fn keep(mut self) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let wanted = match self.spawn() {
                Ok(child) => self.watch(child).await,
                Err(e) => {
                    self.ended(format!("{e:#}"), State::Crashed);
                    true
                }
            };
            failures = if began.elapsed() >= RECOVERED { 0 } else { failures + 1 };
            match self.wait(wanted.then(|| backoff(failures - failures.min(1)))).await {
                Woken::Ordered => failures = 0,
                Woken::Due => {}
                Woken::Leaving => return,
            }
        }
    }

    fn spawn(&mut self) -> Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program.argv[0])
            .args(&self.program.argv[1..])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.argv[0]))?;
        self.started.send_replace(Instant::now());
        tracing::info!("{} started, pid {:?}", self.program.name, child.id());
        self.report.send_modify(|report| {
            report.state = State::Running;
            report.pid = child.id();
        });
        Ok(child)
    }

    /// Until the process has ended. Returns whether it should run again.
    async fn watch(&mut self, mut child: Child) -> bool {
        loop {
            tokio::select! {
                status = child.wait() => {
                    let how = status.map_or_else(|e| e.to_string(), |status| status.to_string());
                    self.ended(how, State::Crashed);
                    return true;
                }
                command = self.inbox.recv() => match command {
                    Some(Order::Start) => {}
                    Some(Order::Become(argv)) => self.program.argv = argv,
                    Some(Order::Kill) => signal(&child, Signal::SIGKILL),
                    Some(Order::Stop) | None => {
                        self.stop(&mut child).await;
                        return false;
                    }
                },
            }
        }
    }

    async fn stop(&mut self, child: &mut Child) {
        signal(child, Signal::SIGTERM);
        if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            signal(child, Signal::SIGKILL);
        }
        let how = child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
        self.ended(how, State::Stopped);
    }

    /// Waits for the back-off to pass or, when stopped (no pause), for the order to start.
    async fn wait(&mut self, mut pause: Option<Duration>) -> Woken {
        loop {
            let next = match pause {
                Some(pause) => match tokio::time::timeout(pause, self.inbox.recv()).await {
                    Ok(next) => next,
                    Err(_elapsed) => return Woken::Due,
                },
                None => self.inbox.recv().await,
            };
            match next {
                Some(Order::Start) => return Woken::Ordered,
                Some(Order::Stop) => {
                    pause = None;
                    self.report.send_modify(|report| report.state = State::Stopped);
                }
                Some(Order::Kill) => {}
                Some(Order::Become(argv)) => self.program.argv = argv,
                None => return Woken::Leaving,
            }
        }
    }

    fn ended(&self, how: String, state: State) {
        tracing::info!("{} ended: {how}", self.program.name);
        self.report.send_modify(|report| {
            report.restarts += u32::from(state == State::Crashed);
            report.state = state;
            report.pid = None;
            report.last_end = Some(how);
        });
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id()
        && let Err(e) = kill(Pid::from_raw(pid as i32), signal)
    {
        tracing::debug!("signal {signal} to {pid}: {e}");
    }
}

fn rotate_all(logs: &Path) {
    let Ok(entries) = fs::read_dir(logs) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log")) {
        if let Err(e) = rotate(&path, LOG_LIMIT) {
            tracing::warn!("rotate {}: {e}", path.display());
        }
    }
}

fn rotate(path: &Path, limit: u64) -> std::io::Result<()> {
    if fs::metadata(path)?.len() <= limit {
        return Ok(());
    }
    fs::copy(path, path.with_extension("log.1"))?;
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::control;

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let seconds: Vec<f64> = (0..8).map(|failures| backoff(failures).as_secs_f64()).collect();
        assert_eq!(seconds, [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]);
    }

    #[test]
    fn a_full_log_is_moved_and_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubelet.log");
        fs::write(&path, "0123456789").unwrap();
        rotate(&path, 10).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "0123456789");
        rotate(&path, 9).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        assert_eq!(fs::read_to_string(dir.path().join("kubelet.log.1")).unwrap(), "0123456789");
    }

    /// A supervisor of one `sleep`, asked over its socket as `coracle` does.
    async fn supervised(dir: &Path) -> PathBuf {
        let socket = dir.join("s.sock");
        let listener = StdListener::bind(&socket).unwrap();
        let sleep = Program { name: "sleep".into(), argv: vec!["sleep".into(), "1000".into()] };
        tokio::spawn(run(vec![sleep], listener, dir.to_path_buf(), CancellationToken::new()));
        socket
    }

    async fn ask(socket: &Path, request: Request) -> ProcessReport {
        let socket = socket.to_path_buf();
        let answer = tokio::task::spawn_blocking(move || control::ask(&socket, &request)).await.unwrap().unwrap();
        answer.processes[0].clone()
    }

    async fn until(socket: &Path, what: impl Fn(&ProcessReport) -> bool) -> ProcessReport {
        let wait = async {
            loop {
                let report = ask(socket, Request::Status).await;
                if what(&report) {
                    return report;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap()
    }

    /// The command line of a process; the kernel shows none for a moment after the process has its new program.
    async fn words(pid: u32) -> String {
        let shown = async {
            loop {
                let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
                if !words.is_empty() {
                    return words;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), shown).await.unwrap()
    }

    #[tokio::test]
    async fn killed_restarts_stopped_stays_started_runs() {
        let dir = tempfile::tempdir().unwrap();
        let socket = supervised(dir.path()).await;
        let first = until(&socket, |report| report.state == State::Running).await;
        let killed = ask(&socket, Request::Kill("sleep".into())).await;
        assert_eq!((killed.restarts, killed.last_end.as_deref()), (1, Some("signal: 9 (SIGKILL)")));
        let second = until(&socket, |report| report.state == State::Running).await;
        assert_ne!(first.pid, second.pid);
        let stopped = ask(&socket, Request::Stop("sleep".into())).await;
        assert_eq!((stopped.state, stopped.pid), (State::Stopped, None));
        let started = ask(&socket, Request::Start("sleep".into())).await;
        assert_eq!((started.state, started.restarts), (State::Running, 1));
        ask(&socket, Request::Stop("sleep".into())).await;
    }

    #[tokio::test]
    async fn a_new_table_ends_what_it_lacks_and_starts_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let socket = supervised(dir.path()).await;
        until(&socket, |report| report.state == State::Running).await;
        let program = |name: &str, seconds: &str| Program { name: name.into(), argv: vec!["sleep".into(), seconds.into()] };
        let other = ask(&socket, Request::Configure(vec![program("other", "1001"), program("sleep", "1002")])).await;
        assert_eq!(other.name, "other");
        until(&socket, |report| report.state == State::Running).await;
        let only = ask(&socket, Request::Configure(vec![program("sleep", "1002")])).await;
        assert_eq!((only.name.as_str(), only.restarts), ("sleep", 0), "it was left alone");
        ask(&socket, Request::Kill("sleep".into())).await;
        let pid = until(&socket, |report| report.state == State::Running).await.pid.unwrap();
        assert_eq!(words(pid).await, "sleep\x001002\0", "the next start has the new words");
        ask(&socket, Request::Stop("sleep".into())).await;
    }

    #[tokio::test]
    async fn an_unknown_process_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let socket = supervised(dir.path()).await;
        let asked = tokio::task::spawn_blocking(move || control::ask(&socket, &Request::Stop("etcd".into()))).await.unwrap();
        assert_eq!(asked.unwrap_err().to_string(), "no process \"etcd\" on this machine; there are sleep");
    }
}
