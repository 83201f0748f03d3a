//! Hands transactions to the kernel through the `nft` program.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Applies all commands or none. Errors: nft is missing, or refuses the transaction.
pub async fn apply(transaction: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("cannot run nft (Debian package nftables)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(transaction.as_bytes()).await.context("cannot write to nft")?;
    }
    let output = child.wait_with_output().await.context("cannot wait for nft")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("nft refused the rules: {}", complaint.lines().take(5).collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}
