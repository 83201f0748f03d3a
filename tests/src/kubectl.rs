//! Real kubectl on the test's cluster.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

#[derive(Debug, Clone)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// kubectl with a kubeconfig and a namespace.
#[derive(Debug, Clone)]
pub struct Kubectl {
    pub config: PathBuf,
    pub namespace: String,
}

impl Kubectl {
    pub fn new(config: PathBuf, namespace: &str) -> Kubectl {
        Kubectl { config, namespace: namespace.into() }
    }

    /// The command for words separated by spaces; add arguments that hold spaces with `.arg`.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.config).args(["-n", &self.namespace]).args(words.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    /// Runs to the end, whatever the exit status.
    pub fn run(&self, words: &str) -> Result<Output> {
        finish(self.command(words), "")
    }

    /// With more arguments that may hold spaces.
    pub fn run_with(&self, words: &str, more: &[&str]) -> Result<Output> {
        let mut command = self.command(words);
        command.args(more);
        finish(command, "")
    }

    /// Standard output; a non-zero exit is an error.
    pub fn ok(&self, words: &str) -> Result<String> {
        succeeded(self.run(words)?, words)
    }

    pub fn ok_with(&self, words: &str, more: &[&str]) -> Result<String> {
        succeeded(self.run_with(words, more)?, words)
    }

    /// With text on standard input.
    pub fn ok_stdin(&self, words: &str, input: &str) -> Result<String> {
        succeeded(finish(self.command(words), input)?, words)
    }

    /// Must fail; the error text.
    pub fn fails(&self, words: &str) -> Result<String> {
        self.fails_stdin(words, "")
    }

    pub fn fails_stdin(&self, words: &str, input: &str) -> Result<String> {
        let output = finish(self.command(words), input)?;
        if output.code == 0 {
            bail!("kubectl {words} should have failed and said {}", output.stdout);
        }
        Ok(output.stderr)
    }

    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.ok_stdin("apply -f -", manifest)
    }

    pub fn json(&self, words: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&format!("{words} -o json"))?)?)
    }

    /// One value by JSONPath; empty if absent.
    pub fn path(&self, object: &str, path: &str) -> Result<String> {
        self.ok_with(&format!("get {object}"), &["-o", &format!("jsonpath={path}")])
    }

    /// Runs in the background; its output is in the returned child's pipes.
    pub fn spawn(&self, words: &str) -> Result<Background> {
        let child = self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start kubectl")?;
        Ok(Background(child))
    }

    /// Makes the namespace and returns kubectl in it, ready for pods (its default ServiceAccount exists).
    pub fn in_new_namespace(&self, name: &str) -> Result<Kubectl> {
        self.ok(&format!("create namespace {name}"))?;
        let inside = Kubectl::new(self.config.clone(), name);
        crate::until(20, "default ServiceAccount", || inside.ok("get serviceaccount default"))?;
        Ok(inside)
    }
}

/// A child that ends with its owner.
pub struct Background(pub Child);

impl Background {
    /// Kills it and returns what it wrote.
    pub fn end(mut self) -> Result<String> {
        use std::io::Read;
        self.0.kill()?;
        let mut text = String::new();
        if let Some(mut pipe) = self.0.stdout.take() {
            pipe.read_to_string(&mut text)?;
        }
        self.0.wait()?;
        Ok(text)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait()
            && let Err(e) = self.0.kill()
        {
            eprintln!("kill kubectl: {e}");
        }
    }
}

fn succeeded(output: Output, words: &str) -> Result<String> {
    if output.code != 0 {
        bail!("kubectl {words}: exit {}: {}{}", output.code, output.stderr, output.stdout);
    }
    Ok(output.stdout)
}

pub fn finish(mut command: Command, input: &str) -> Result<Output> {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start kubectl")?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
