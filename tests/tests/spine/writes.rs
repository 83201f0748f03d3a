//! Who owns which field, and writes that must not be written.

use anyhow::Result;
use tests::kubectl::Kubectl;
use tests::{ensure_contains, ensure_eq};

use crate::Spine;
use crate::verbs::deployment;

fn config_map(data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {data}\n")
}

/// `manager/operation/subresource` of each entry.
fn managers(kubectl: &Kubectl, object: &str) -> Result<Vec<String>> {
    let shown = kubectl.json(&format!("get {object} --show-managed-fields"))?;
    let text = |entry: &serde_json::Value, name: &str| entry[name].as_str().unwrap_or_default().to_string();
    let entry =
        |entry: &serde_json::Value| format!("{}/{}/{}", text(entry, "manager"), text(entry, "operation"), text(entry, "subresource"));
    Ok(shown["metadata"]["managedFields"].as_array().into_iter().flatten().map(entry).collect())
}

pub fn server_side_apply(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("w-apply")?;
    let apply = |more: &str, input: &str| kubectl.ok_stdin(&format!("apply --server-side {more} -f -"), input);
    ensure_eq(apply("", &config_map("{x: a, k: b}"))?, "configmap/c serverside-applied\n".into(), "made by apply")?;
    ensure_eq(managers(&kubectl, "configmap/c")?, vec!["kubectl/Apply/".to_string()], "managers")?;
    // Another's field is a conflict, by force it is taken.
    kubectl.ok_with("patch configmap c --field-manager=other -p", &[r#"{"data":{"x":"theirs"}}"#])?;
    let refused = kubectl.fails_stdin("apply --server-side -f -", &config_map("{x: mine, k: b}"))?;
    ensure_contains(&refused, &["Apply failed with 1 conflict: conflict with \"other\" using v1: .data.x", "--force-conflicts"])?;
    apply("--force-conflicts", &config_map("{x: mine, k: b}"))?;
    ensure_eq(managers(&kubectl, "configmap/c")?, vec!["kubectl/Apply/".to_string()], "the other owns nothing any more")?;
    // What an applier stops speaking of goes; what others set stays.
    kubectl.ok_with("patch configmap c --field-manager=other -p", &[r#"{"data":{"z":"theirs"}}"#])?;
    apply("", &config_map("{k: b}"))?;
    ensure_eq(kubectl.path("configmap/c", "{.data}")?, r#"{"k":"b","z":"theirs"}"#.into(), "pruned")?;
    ensure_contains(
        &kubectl.fails_stdin("apply --server-side -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndota: {}\n")?,
        &["failed to create typed patch object (w-apply/c; /v1, Kind=ConfigMap): .dota: field not declared in schema"],
    )?;
    from_client_side(&kubectl)
}

/// An object of client-side applies turns server-side without conflict, and its first manager is gone.
fn from_client_side(kubectl: &Kubectl) -> Result<()> {
    kubectl.apply(&deployment("web", 0))?;
    ensure_contains(&managers(kubectl, "deployment/web")?.join(" "), &["kubectl-client-side-apply/Update/"])?;
    let changed = deployment("web", 0).replace("containerPort: 8080", "containerPort: 8081");
    kubectl.ok_stdin("apply --server-side -f -", &changed)?;
    let after = managers(kubectl, "deployment/web")?.join(" ");
    ensure_contains(&after, &["kubectl/Apply/"])?;
    ensure_eq(after.contains("client-side"), false, "the client-side manager")?;
    kubectl.ok("scale deployment web --replicas=1")?;
    ensure_contains(&managers(kubectl, "deployment/web")?.join(" "), &["kubectl/Update/scale"])?;
    let refused = kubectl.fails_stdin("apply --server-side -f -", &changed)?;
    ensure_contains(&refused, &["conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas"])
}

/// A write that changes nothing keeps the revision, whoever makes it and however.
pub fn managers_and_no_ops(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("w-none")?;
    kubectl.ok_stdin("apply --server-side -f -", &config_map("{x: a}"))?;
    let revision = || kubectl.path("configmap/c", "{.metadata.resourceVersion}");
    let first = revision()?;
    std::thread::sleep(std::time::Duration::from_millis(1100));
    kubectl.ok_stdin("apply --server-side -f -", &config_map("{x: a}"))?;
    kubectl.ok_with("patch configmap c --field-manager=other -p", &[r#"{"data":{"x":"a"}}"#])?;
    kubectl.ok_with("patch configmap c --field-manager=other --type=json -p", &[r#"[{"op":"replace","path":"/data/x","value":"a"}]"#])?;
    kubectl.ok_stdin("replace -f -", &kubectl.ok("get configmap c -o yaml --show-managed-fields")?)?;
    kubectl.ok_stdin("replace -f -", &kubectl.ok("get configmap c -o yaml")?)?;
    ensure_eq(revision()?, first, "revision after writes that change nothing")?;
    // The list can be cleared, and stays clear until something is applied.
    kubectl.ok_with("patch configmap c --type=merge -p", &[r#"{"metadata":{"managedFields":[{}]}}"#])?;
    kubectl.ok_with("patch configmap c -p", &[r#"{"data":{"x":"b"}}"#])?;
    ensure_eq(managers(&kubectl, "configmap/c")?, Vec::<String>::new(), "managers of a cleared object")?;
    kubectl.ok_stdin("apply --server-side --force-conflicts -f -", &config_map("{x: b}"))?;
    ensure_eq(managers(&kubectl, "configmap/c")?, vec!["kubectl/Apply/".to_string(), "before-first-apply/Update/".into()], "managers again")
}

pub fn diff_and_dry_run(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("w-dry")?;
    kubectl.ok_stdin("apply --server-side -f -", &config_map("{x: a}"))?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config_map("{x: b}"))?;
    let path = file.path().to_string_lossy().into_owned();
    for side in ["--server-side=true", "--server-side=false"] {
        let diff = kubectl.run_with(&format!("diff {side} -f"), &[&path])?;
        ensure_eq(diff.code, 1, side)?;
        ensure_contains(&diff.stdout, &["-  x: a", "+  x: b"])?;
    }
    let before = kubectl.path("configmap/c", "{.metadata.resourceVersion}")?;
    for (words, said) in [
        ("apply --server-side --dry-run=server -f", "configmap/c serverside-applied (server dry run)"),
        ("replace --dry-run=server -f", "configmap/c replaced (server dry run)"),
        ("delete --dry-run=server -f", "configmap \"c\" deleted (server dry run)"),
        ("delete configmaps --all --dry-run=server", "configmap \"c\" deleted (server dry run)"),
        ("create configmap d --dry-run=server", "configmap/d created (server dry run)"),
        ("label configmap c a=b --dry-run=server", "configmap/c labeled (server dry run)"),
    ] {
        let more: &[&str] = if words.ends_with("-f") { &[&path] } else { &[] };
        ensure_contains(&kubectl.ok_with(words, more)?, &[said])?;
    }
    ensure_eq(kubectl.path("configmap/c", "{.metadata.resourceVersion}")?, before, "revision after dry runs")?;
    ensure_eq(kubectl.ok("get configmap d --ignore-not-found")?, String::new(), "a dry run's object")
}
