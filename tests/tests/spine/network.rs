//! Services, names, images.

use anyhow::Result;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;
use crate::verbs::{available, deployment};

pub fn names_and_services(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("n-names")?;
    kubectl.apply(&deployment("web", 2))?;
    kubectl.ok("expose deployment web --port=80 --target-port=8080")?;
    kubectl.ok("create service clusterip hollow --clusterip=None --tcp=8080:8080")?;
    kubectl.ok_with("patch service hollow", &["-p", r#"{"spec":{"selector":{"app":"web"}}}"#])?;
    kubectl.ok("run client --image=coracle/web:1")?;
    available(&kubectl, "web")?;
    kubectl.ok("wait --for=condition=Ready pod/client --timeout=60s")?;
    let shell = |script: &str| kubectl.ok_with("exec client -- sh -c", &[script]);
    ensure_contains(
        &shell("cat /etc/resolv.conf")?,
        &["nameserver 10.96.0.10", "n-names.svc.cluster.local svc.cluster.local cluster.local", "ndots:5"],
    )?;
    for name in ["web", "web.n-names", "web.n-names.svc.cluster.local", "hollow:8080"] {
        until(30, name, || ensure_contains(&shell(&format!("wget -qO- http://{name}/"))?, &["Coracle"]))?;
    }
    ensure_contains(&shell("wget -qO- http://quickstart.default/")?, &["Your cluster works."])?;
    let address = kubectl.path("service/web", "{.spec.clusterIP}")?;
    ensure_contains(&shell("nslookup web.n-names.svc.cluster.local")?, &[&address])?;
    let pods = kubectl.ok_with("get pods -l app=web", &["-o", "jsonpath={.items[*].status.podIP}"])?;
    let answer = shell("nslookup hollow.n-names.svc.cluster.local")?;
    ensure_contains(&answer, &pods.split(' ').collect::<Vec<_>>())?;
    // A pod reaches itself through its own Service, and the API server through its.
    let one = kubectl.ok_with("get pods -l app=web", &["-o", "jsonpath={.items[0].metadata.name}"])?;
    for _ in 0..4 {
        ensure_contains(&kubectl.ok_with(&format!("exec {one} -- wget -qO-"), &["http://web/"])?, &["Coracle"])?;
    }
    ensure_contains(&shell("nc -w 2 kubernetes.default 443 </dev/null && echo open")?, &["open"])?;
    // A Service without endpoints refuses at once.
    kubectl.ok("scale deployment web --replicas=0")?;
    until(30, "refusal", || {
        let said = kubectl.run_with("exec client -- wget -qO-", &["http://web/"])?;
        ensure_contains(&said.stderr, &["refused"])
    })
}

/// An archive loaded on the host runs on every node, with the pull policy that its tag implies.
pub fn loaded_image_runs(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("n-image")?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("mine.tar");
    std::fs::write(&path, docker_archive()?)?;
    ensure_contains(&spine.cluster.coracle(&["image", "load", &path.to_string_lossy()])?, &["loaded docker.io/library/mine:latest"])?;
    ensure_contains(&spine.cluster.coracle(&["image", "ls"])?, &["docker.io/library/mine:latest", "registry.k8s.io/pause:3.10"])?;
    kubectl.ok("run mine --image=mine --restart=Never")?;
    ensure_eq(kubectl.path("pod/mine", "{.spec.containers[0].imagePullPolicy}")?, "Always".into(), "policy of :latest")?;
    kubectl.ok("wait --for=jsonpath={.status.phase}=Succeeded pod/mine --timeout=60s")?;
    ensure_eq(kubectl.ok("logs mine")?, "mine\n".into(), "what it says")
}

/// `docker save` of an image that is busybox saying "mine".
pub fn docker_archive() -> Result<Vec<u8>> {
    let busybox = std::fs::read("/bin/busybox")?;
    let script = b"mine\n";
    let layer = tests::tar(&[("bin/busybox", 0o755, &busybox), ("say", 0o644, script)]);
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/busybox","cat","/say"]},"rootfs":{"type":"layers","diff_ids":["DIFF"]}}"#;
    let config = String::from_utf8_lossy(config).replace("DIFF", &format!("sha256:{}", sha256(&layer)?));
    let manifest = br#"[{"Config":"config.json","RepoTags":["mine:latest"],"Layers":["layer.tar"]}]"#;
    Ok(tests::tar(&[("manifest.json", 0o644, manifest), ("config.json", 0o644, config.as_bytes()), ("layer.tar", 0o644, &layer)]))
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, bytes)?;
    let output = std::process::Command::new("sha256sum").arg(file.path()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout)[..64].to_string())
}
