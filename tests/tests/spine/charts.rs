//! Helm on a chart with hooks and a test: install, upgrade, roll back, fail and recover, uninstall.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use tests::kubectl::Kubectl;
use tests::{ensure_contains, ensure_eq};

use crate::Spine;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/page");

/// Standard output and error; `good`: whether it should succeed.
fn helm(kubectl: &Kubectl, good: bool, words: &str) -> Result<String> {
    let mut command = Command::new("helm");
    command.args(words.split_whitespace()).arg("--kubeconfig").arg(&kubectl.config).args(["-n", &kubectl.namespace]);
    let output = command.stdin(Stdio::null()).output().context("helm")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success() == good, "helm {words}: {}\n{text}", output.status);
    Ok(text)
}

pub fn helm_releases(spine: &Spine) -> Result<()> {
    if Command::new("helm").arg("version").output().is_err() {
        println!("    helm is not installed: nothing tried");
        return Ok(());
    }
    let kubectl = spine.own("c-helm")?;
    let good = |words: &str| helm(&kubectl, true, words);
    ensure_contains(&good(&format!("install page {CHART} --wait --timeout 90s"))?, &["STATUS: deployed"])?;
    ensure_eq(kubectl.ok("logs job/page-before")?, "pre-install of revision 1\n".into(), "the hook before the installation")?;
    ensure_eq(kubectl.path("deployment/page", "{.status.readyReplicas}")?, "2".into(), "--wait waits")?;
    ensure_contains(&good("test page --timeout 60s")?, &["Phase:          Succeeded"])?;

    good(&format!("upgrade page {CHART} --set page=second --set replicas=1 --wait --timeout 90s"))?;
    ensure_eq(kubectl.ok("logs job/page-after")?, "post-upgrade of revision 2\n".into(), "the hook after the upgrade")?;
    ensure_contains(&good("get manifest page")?, &["index.html: \"second\""])?;
    ensure_contains(&good("get values page")?, &["page: second"])?;
    ensure_eq(kubectl.path("deployment/page", "{.spec.replicas}")?, "1".into(), "the upgrade's values")?;

    helm(&kubectl, false, &format!("upgrade page {CHART} --set ready=false --set page=third --atomic --timeout 8s"))?;
    ensure_contains(&good("history page")?, &["Rollback to 2"])?;
    ensure_eq(kubectl.path("configmap/page", r"{.data.index\.html}")?, "second".into(), "after the failed upgrade")?;

    good("rollback page 1 --wait --timeout 90s")?;
    ensure_eq(kubectl.path("deployment/page", "{.status.readyReplicas}")?, "2".into(), "after the rollback")?;
    ensure_contains(&good("status page")?, &["REVISION: 5"])?;
    ensure_contains(&good("list")?, &["page-0.1.0"])?;

    good("uninstall page --wait --timeout 60s")?;
    ensure_eq(
        kubectl.ok("get deployments,services,configmaps -l app.kubernetes.io/instance=page -o name")?,
        String::new(),
        "after uninstalling",
    )
}
