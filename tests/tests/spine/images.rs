//! Images: built, pulled from a registry with a password and a private authority, and refused in upstream's words.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;
use crate::network::docker_archive;

pub fn a_dockerfile_becomes_an_image(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("i-build")?;
    let dir = tempfile::tempdir()?;
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text);
    write("page", "built here\n")?;
    write(
        "Dockerfile",
        "FROM coracle/web:1\nENV WORD=hello\nRUN echo \"$WORD from RUN\" > /www/run && rm /etc/nsswitch.conf\nWORKDIR /www\nCOPY page .\nUSER 1000\nCMD [\"cat\", \"page\", \"run\"]\n",
    )?;
    let folder = dir.path().to_string_lossy().into_owned();
    ensure_contains(
        &spine.cluster.coracle(&["image", "build", &folder, "--tag", "test/built:1"])?,
        &["built docker.io/test/built:1 sha256:"],
    )?;
    kubectl.ok("run built --image=test/built:1 --restart=Never")?;
    kubectl.ok("wait --for=jsonpath={.status.phase}=Succeeded pod/built --timeout=60s")?;
    ensure_eq(kubectl.ok("logs built")?, "built here\nhello from RUN\n".into(), "what it says")?;
    kubectl.ok("run look --image=test/built:1 --restart=Never --command -- ls /etc/nsswitch.conf")?;
    kubectl.ok("wait --for=jsonpath={.status.phase}=Failed pod/look --timeout=60s").context("a removed file is gone")?;
    write("Dockerfile", "FROM coracle/web:1\nVOLUME /x\n")?;
    let said = spine.cluster.coracle(&["image", "build", &folder, "--tag", "test/built:1"]).unwrap_or_else(|e| format!("{e:#}"));
    ensure_contains(&said, &["line 2: VOLUME /x: VOLUME is not known here; known are FROM, COPY"])
}

pub fn refused_images_say_why(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("i-refused")?;
    kubectl.ok("run never --image=test/absent:1 --image-pull-policy=Never")?;
    kubectl.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: [{name: bad, image: \"Test/Bad:1\"}]}\n")?;
    let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
    for (pod, reason, words) in [
        ("never", "ErrImageNeverPull", "Container image \"test/absent:1\" is not present with pull policy of Never"),
        ("bad", "InvalidImageName", "Failed to apply default image tag \"Test/Bad:1\": couldn't parse image name"),
    ] {
        until(30, reason, || ensure_eq(kubectl.path(&format!("pod/{pod}"), waiting)?, reason.into(), "reason"))?;
        until(10, "event", || ensure_contains(&kubectl.ok(&format!("describe pod {pod}"))?, &[words, &format!("Error: {reason}")]))?;
    }
    Ok(())
}

/// learner:secret
const LEARNER: &str = "learner:$2y$05$RK8yiRKCoew8CRYrY7zyau8J8OROAicpyBqWq9zXdnAhloJHqjVRy\n";

/// Ends with its owner.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(e) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("end the registry: {e}");
        }
    }
}

fn tool(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Debian's registry at this address, with a password and a certificate of its own authority.
fn registry(dir: &Path, host: &str, port: u16) -> Result<Registry> {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let subject = format!("subjectAltName=IP:{host}");
    tool(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
            "-keyout",
            &at("ca.key"),
            "-out",
            &at("ca.crt"),
        ],
    )?;
    tool(
        "openssl",
        &[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=registry",
            "-keyout",
            &at("tls.key"),
            "-out",
            &at("tls.csr"),
        ],
    )?;
    fs::write(dir.join("san"), subject)?;
    tool(
        "openssl",
        &[
            "x509",
            "-req",
            "-in",
            &at("tls.csr"),
            "-CA",
            &at("ca.crt"),
            "-CAkey",
            &at("ca.key"),
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &at("san"),
            "-out",
            &at("tls.crt"),
        ],
    )?;
    fs::write(dir.join("htpasswd"), LEARNER)?;
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}:{port}\", tls: {{certificate: {}, key: {}}}}}\n\
         auth: {{htpasswd: {{realm: test, path: {}}}}}\nlog: {{level: error}}\n",
        at("blobs"),
        at("tls.crt"),
        at("tls.key"),
        at("htpasswd"),
    );
    fs::write(dir.join("config.yml"), config)?;
    let child = Command::new(registry_program(dir)?)
        .args(["serve", &at("config.yml")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("run docker-registry")?;
    Ok(Registry(child))
}

/// Debian's, unpacked and not installed: its package would start a service.
fn registry_program(dir: &Path) -> Result<PathBuf> {
    if let Ok(found) = tool("which", &["docker-registry"]) {
        return Ok(found.trim().into());
    }
    let into = dir.to_string_lossy();
    tool("sh", &["-c", &format!("cd {into} && apt-get -qq download docker-registry && dpkg-deb -x docker-registry_*.deb .")])?;
    Ok(dir.join("usr/bin/docker-registry"))
}

pub fn private_registry(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("i-private")?;
    let dir = tempfile::tempdir()?;
    // The host's address on the machines' bridge.
    let master = spine.cluster.address("master")?;
    let (network, port) = (master.rsplit_once('.').context("an address")?.0, 5443);
    let host = format!("{network}.1");
    let _registry = registry(dir.path(), &host, port)?;
    let name = format!("{host}:{port}/team/mine:1");
    let archive = dir.path().join("mine.tar");
    fs::write(&archive, docker_archive()?)?;
    let (from, to) = (format!("docker-archive:{}", archive.display()), format!("docker://{name}"));
    until(20, "push", || tool("skopeo", &["copy", "--dest-tls-verify=false", "--dest-creds", "learner:secret", &from, &to]))?;

    let run = |pod: &str, more: &str| kubectl.ok(&format!("run {pod} --image={name} --restart=Never {more}"));
    let described = |pod: &str, words: &[&str]| until(60, pod, || ensure_contains(&kubectl.ok(&format!("describe pod {pod}"))?, words));
    run("stranger", "")?;
    described("stranger", &["Failed to pull image", "certificate", "ErrImagePull"])?;
    let ca = dir.path().join("ca.crt");
    spine.cluster.coracle(&["image", "trust", &format!("{host}:{port}"), "--ca", &ca.to_string_lossy()])?;
    run("nobody", r#"--overrides={"spec":{"imagePullSecrets":[{"name":"missing"}]}}"#)?;
    described(
        "nobody",
        &["Unable to retrieve some image pull secrets (missing); attempting to pull the image may not succeed.", "401 Unauthorized"],
    )?;
    described("nobody", &["Back-off pulling image", "Error: ImagePullBackOff"])?;

    let succeeds = |pod: &str| kubectl.ok(&format!("wait --for=jsonpath={{.status.phase}}=Succeeded pod/{pod} --timeout=60s"));
    kubectl.ok(&format!(
        "create secret docker-registry right --docker-server={host}:{port} --docker-username=learner --docker-password=secret"
    ))?;
    kubectl.ok(&format!(
        "create secret docker-registry wrong --docker-server={host}:{port}/other --docker-username=learner --docker-password=secret"
    ))?;
    run("path", r#"--overrides={"spec":{"imagePullSecrets":[{"name":"wrong"}]}}"#)?;
    described("path", &["401 Unauthorized"])?;
    run("named", r#"--overrides={"spec":{"imagePullSecrets":[{"name":"right"}]}}"#)?;
    succeeds("named")?;
    ensure_eq(kubectl.ok("logs named")?, "mine\n".into(), "what it says")?;
    // By the service account, with the older kind of secret, on whatever node: always asked.
    let old = format!(r#"{{"https://{host}:{port}/v2/":{{"username":"learner","password":"secret"}}}}"#);
    kubectl.ok_with("create secret generic older --type=kubernetes.io/dockercfg", &[&format!("--from-literal=.dockercfg={old}")])?;
    kubectl.ok_with("patch serviceaccount default", &["-p", r#"{"imagePullSecrets":[{"name":"older"}]}"#])?;
    run("account", "--image-pull-policy=Always")?;
    succeeds("account")?;
    ensure_eq(kubectl.path("pod/account", "{.spec.imagePullSecrets[0].name}")?, "older".into(), "secret of the service account")?;
    kubectl.ok("delete pod --all --now").map(drop)
}
