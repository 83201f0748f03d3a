//! Bytes between kubectl and containers: logs, exec, attach, cp, port-forward.

use std::fs;
use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, Result, bail};
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;
use crate::basics::get;

fn pod(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: coracle/web:1\n    \
         command: [sh, -c, '{script}']\n"
    )
}

pub fn logs(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-logs")?;
    kubectl.apply(&pod(
        "talk",
        "for i in 1 2 3; do echo line $i; done; sleep 0.3; echo oops >&2; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last; exit 1",
    ))?;
    kubectl.ok("wait --for=condition=Ready pod/talk --timeout=60s")?;
    until(20, "first lines", || ensure_eq(kubectl.ok("logs talk")?, "line 1\nline 2\nline 3\noops\n".into(), "logs"))?;
    ensure_eq(kubectl.ok("logs talk --tail=1")?, "oops\n".into(), "tail")?;
    ensure_contains(&kubectl.ok("logs talk --timestamps --tail=1")?, &["T", "Z oops"])?;
    ensure_contains(&kubectl.fails("logs talk --previous")?, &["previous terminated container \"main\" in pod \"talk\" not found"])?;
    let mut following = kubectl.spawn("logs -f talk")?;
    let mut lines = BufReader::new(following.0.stdout.take().context("pipe")?).lines();
    for wanted in ["line 1", "line 2", "line 3", "oops"] {
        ensure_eq(lines.next().transpose()?, Some(wanted.to_string()), "followed line")?;
    }
    kubectl.ok("exec talk -- touch /tmp/go")?;
    ensure_eq(lines.next().transpose()?, Some("last".to_string()), "a new line shows")?;
    until(30, "a restart", || ensure_eq(kubectl.path("pod/talk", "{.status.containerStatuses[0].restartCount}")?, "1".into(), "restarts"))?;
    ensure_contains(&kubectl.ok("logs talk --previous --tail=1")?, &["last"])?;
    ensure_contains(&kubectl.fails("logs talk -c nope")?, &["container nope is not valid for pod talk"])
}

pub fn exec_attach_cp(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-exec")?;
    kubectl.apply(&pod("box", "trap exit TERM; while sleep 0.2; do echo tick; done"))?;
    kubectl.ok("wait --for=condition=Ready pod/box --timeout=60s")?;
    ensure_eq(kubectl.ok("exec box -- hostname")?, "box\n".into(), "exec")?;
    ensure_eq(kubectl.ok_stdin("exec -i box -- tr a-z A-Z", "shout")?, "SHOUT".into(), "exec with input")?;
    let failed = kubectl.run_with("exec box --", &["sh", "-c", "echo err >&2; exit 7"])?;
    ensure_eq((failed.code, failed.stderr.contains("err")), (7, true), "exit status and standard error")?;
    // A terminal on both sides: `script` gives kubectl one.
    let words = format!("kubectl --kubeconfig {} -n s-exec exec -it box -- tty", kubectl.config.display());
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qec", &words, "/dev/null"]);
    ensure_contains(&tests::kubectl::finish(terminal, "")?.stdout, &["/dev/pts/"])?;
    let mut attached = kubectl.spawn("attach box")?;
    let mut byte = [0; 5];
    attached.0.stdout.take().context("pipe")?.read_exact(&mut byte)?;
    ensure_eq(&byte, b"tick\n", "attached output")?;
    drop(attached);
    copy(&kubectl)
}

fn copy(kubectl: &tests::kubectl::Kubectl) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let there = dir.path().join("there");
    let back = dir.path().join("back");
    let content: Vec<u8> = (0..300_000u32).flat_map(|number| number.to_le_bytes()).collect();
    fs::write(&there, &content)?;
    kubectl.ok_with("cp", &[&there.to_string_lossy(), "box:/tmp/there"])?;
    kubectl.ok_with("cp", &["box:/tmp/there", &back.to_string_lossy()])?;
    ensure_eq(fs::read(&back)? == content, true, "a copied file comes back the same")
}

pub fn port_forward(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-forward")?;
    kubectl.ok("run web --image=coracle/web:1 --port=8080")?;
    kubectl.ok("wait --for=condition=Ready pod/web --timeout=60s")?;
    // kubectl gives up when the first connection is refused: the server must listen before.
    until(10, "the server listens", || kubectl.ok("exec web -- wget -qO- http://127.0.0.1:8080/"))?;
    let mut forward = kubectl.spawn("port-forward pod/web :8080")?;
    let mut line = String::new();
    // Kept open to the end: kubectl writes a line for each connection.
    let mut said = BufReader::new(forward.0.stdout.take().context("pipe")?);
    said.read_line(&mut line)?;
    let Some(address) = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next()) else { bail!("said {line:?}") };
    for _ in 0..3 {
        ensure_contains(&get(address)?, &["200 OK", "Coracle"])?;
    }
    forward.end().map(drop)
}

/// A container added to a running pod runs once, sees the processes of its target, and stays as it was asked for.
pub fn debug(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("s-debug")?;
    kubectl.apply(&pod("work", "sleep 1000"))?;
    kubectl.ok("wait --for=condition=Ready pod/work --timeout=60s")?;
    kubectl.ok_with("debug work --image=coracle/web:1 -c look --profile=general -- sh -c", &["echo said once; exit 3"])?;
    until(30, "an ephemeral container's output", || ensure_eq(kubectl.ok("logs work -c look")?, "said once\n".into(), "log"))?;
    let state = "{.status.ephemeralContainerStatuses[?(@.name==\"look\")].state.terminated.exitCode}";
    until(30, "its end", || ensure_eq(kubectl.path("pod/work", state)?, "3".into(), "exit code"))?;
    let words = "debug work --image=coracle/web:1 -c beside --target=main --profile=general -- sh -c";
    kubectl.ok_with(words, &["tr '\\0' ' ' < /proc/1/cmdline"])?;
    until(30, "the target's processes", || ensure_contains(&kubectl.ok("logs work -c beside")?, &["sleep 1000"]))?;
    let again = kubectl.fails("debug work --image=coracle/web:1 -c look --profile=general -- true")?;
    ensure_contains(&again, &["spec.ephemeralContainers: Forbidden: existing ephemeral containers \"look\" may not be changed"])?;
    let nowhere = kubectl.fails("debug work --image=coracle/web:1 -c x --target=none --profile=general -- true")?;
    ensure_contains(&nowhere, &["spec.ephemeralContainers[2].targetContainerName: Not found: \"none\""])?;
    ensure_contains(&kubectl.ok("describe pod work")?, &["Ephemeral Containers:", "Created container: look", "Started container beside"])?;
    ensure_eq(kubectl.path("pod/work", "{.status.phase} {.status.containerStatuses[0].restartCount}")?, "Running 0".into(), "the pod")?;
    kubectl.ok("delete pod work --timeout=60s").map(drop)
}
