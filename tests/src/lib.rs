//! The harness of the real-cluster tests: a cluster made by `coracle up`, real kubectl, traffic, and waiting for conditions.
//!
//! A test never sleeps for time to pass: it waits for a condition ([`until`]) with a deadline.

pub mod client;
pub mod cluster;
pub mod kubectl;
pub mod runner;
pub mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Tries `probe` until it succeeds. After `seconds` its last error is the test's.
pub fn until<T>(seconds: u64, what: &str, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() > deadline => bail!("{what}: not within {seconds} s: {e:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// `ensure_eq(got, wanted, "what")`.
pub fn ensure_eq<T: PartialEq + std::fmt::Debug>(got: T, wanted: T, what: &str) -> Result<()> {
    if got != wanted {
        bail!("{what}: got {got:?}, wanted {wanted:?}");
    }
    Ok(())
}

/// The text holds all of these.
pub fn ensure_contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        if !text.contains(part) {
            bail!("{part:?} is not in:\n{text}");
        }
    }
    Ok(())
}

/// A tar archive of these (path, mode, content).
pub fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        archive.append_data(&mut header, path, *content).unwrap_or_else(|e| unreachable!("memory takes everything: {e}"));
    }
    archive.into_inner().unwrap_or_else(|e| unreachable!("memory takes everything: {e}"))
}
