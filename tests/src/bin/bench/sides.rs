//! The two control planes, each with its store, on loopback ports of its own.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle::kubeconfig;
use coracle::pki::{self, Row};
use tests::client::{Client, Endpoint};
use tests::cluster::programs;

pub struct Side {
    pub endpoint: Endpoint,
    pub started_in: Duration,
    processes: Vec<(String, Child)>,
    /// How each was started, and where it logs.
    commands: Vec<(PathBuf, Vec<String>)>,
    dir: PathBuf,
}

struct Ports {
    api: u16,
    manager: u16,
    scheduler: u16,
    etcd: u16,
}

pub async fn start(name: &str, dir: &Path, stock: &Path) -> Result<Side> {
    let dir = dir.join(name);
    let ports = match name {
        "ours" => Ports { api: 26443, manager: 26257, scheduler: 26259, etcd: 0 },
        _ => Ports { api: 27443, manager: 27257, scheduler: 27259, etcd: 27379 },
    };
    let pki = make_pki(&dir)?;
    let endpoint = Endpoint { address: SocketAddr::from(([127, 0, 0, 1], ports.api)), pki };
    let mut side = Side { endpoint, started_in: Duration::ZERO, processes: Vec::new(), commands: Vec::new(), dir: dir.clone() };
    let bin = if name == "ours" { programs()? } else { stock_programs(stock)? };
    let began = Instant::now();
    if name == "stock" {
        side.spawn(Path::new("etcd"), &etcd_flags(&dir, &ports))?;
    }
    let flags = if name == "ours" { vec![format!("--data-dir={}/data", dir.display())] } else { stock_api_flags(&dir, &ports) };
    side.spawn(&bin.join("kube-apiserver"), &[api_flags(&dir, &ports), flags].concat())?;
    side.await_ready().await?;
    side.started_in = began.elapsed();
    side.spawn(&bin.join("kube-controller-manager"), &manager_flags(&dir, &ports, name))?;
    side.spawn(&bin.join("kube-scheduler"), &scheduler_flags(&dir, &ports))?;
    side.await_controllers().await?;
    Ok(side)
}

impl Side {
    fn spawn(&mut self, program: &Path, flags: &[String]) -> Result<()> {
        let name = name_of(program);
        let log = File::create(self.dir.join(format!("{name}.log")))?;
        let child = Command::new(program)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        self.processes.push((name, child));
        self.commands.push((program.to_path_buf(), flags.to_vec()));
        Ok(())
    }

    /// Kills a process of this side; [`Side::start`] starts it again.
    pub fn end(&mut self, name: &str) -> Result<()> {
        let at = self.processes.iter().position(|(process, _)| process == name).with_context(|| format!("no {name}"))?;
        let (_, mut child) = self.processes.remove(at);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    pub fn start(&mut self, name: &str) -> Result<()> {
        let found = self.commands.iter().find(|(program, _)| name_of(program) == name).cloned();
        let (program, flags) = found.with_context(|| format!("{name} was never started"))?;
        self.spawn(&program, &flags)
    }

    /// A kubeconfig for one of this side's identities, written into `dir`.
    pub fn kubeconfig(&self, dir: &Path, identity: &str, server: &str) -> Result<PathBuf> {
        let config = dir.join(format!("{identity}.conf"));
        std::fs::write(&config, kubeconfig::of_program(server, &self.endpoint.pki.to_string_lossy(), identity))?;
        Ok(config)
    }

    async fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        while Instant::now() < deadline {
            if let Ok(answer) = Client::new(&self.endpoint)?.get("/readyz").await
                && answer.status == 200
            {
                return Ok(());
            }
            for (name, child) in &mut self.processes {
                if let Some(status) = child.try_wait()? {
                    bail!("{name} ended: {status}");
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("{:?} did not get ready", self.endpoint.address)
    }

    /// The control plane works as a whole once the default namespace has its service account.
    async fn await_controllers(&self) -> Result<()> {
        let mut client = Client::new(&self.endpoint)?;
        let deadline = Instant::now() + Duration::from_secs(90);
        while client.get("/api/v1/namespaces/default/serviceaccounts/default").await?.status != 200 {
            if Instant::now() > deadline {
                bail!("no default service account");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// CPU time all processes have used.
    pub fn cpu(&self) -> Result<Duration> {
        let ticks = procfs::ticks_per_second() as f64;
        let mut seconds = 0.0;
        for (_, child) in &self.processes {
            let stat = procfs::process::Process::new(child.id() as i32)?.stat()?;
            seconds += (stat.utime + stat.stime) as f64 / ticks;
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    /// Resident memory of each process, MiB.
    pub fn memory(&self) -> Result<Vec<(String, f64)>> {
        let of = |child: &Child| -> Result<f64> {
            let status = procfs::process::Process::new(child.id() as i32)?.status()?;
            Ok(status.vmrss.context("VmRSS")? as f64 / 1024.0)
        };
        self.processes.iter().map(|(name, child)| Ok((name.clone(), of(child)?))).collect()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        for (name, child) in self.processes.iter_mut().rev() {
            if let Err(e) = child.kill().and_then(|()| child.wait().map(drop)) {
                eprintln!("end {name}: {e}");
            }
        }
    }
}

fn name_of(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub fn stock_programs(stock: &Path) -> Result<PathBuf> {
    let places = [stock.join("bin"), stock.to_path_buf()];
    places.into_iter().find(|dir| dir.join("kube-apiserver").exists()).with_context(|| format!("no kube-apiserver in {}", stock.display()))
}

fn make_pki(dir: &Path) -> Result<PathBuf> {
    let pki = dir.join("pki");
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let server = Row {
        file: "server".into(),
        common_name: "server".into(),
        organization: None,
        usage: pki::Usage::Server,
        dns: vec!["localhost".into(), "kubernetes.default.svc".into()],
        addresses: vec![loopback],
    };
    let client = |file: &str, name: &str, organization| Row {
        file: file.into(),
        common_name: name.into(),
        organization,
        usage: pki::Usage::Client,
        dns: Vec::new(),
        addresses: Vec::new(),
    };
    let rows = [
        server,
        client("admin", "kubernetes-admin", Some("system:masters")),
        client("kube-controller-manager", "system:kube-controller-manager", None),
        client("kube-scheduler", "system:kube-scheduler", None),
    ];
    pki::ensure_in(&pki, &rows)?;
    Ok(pki)
}

fn api_flags(dir: &Path, ports: &Ports) -> Vec<String> {
    let pki = dir.join("pki");
    let pki = pki.display();
    vec![
        format!("--secure-port={}", ports.api),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        format!("--tls-cert-file={pki}/server.crt"),
        format!("--tls-private-key-file={pki}/server.key"),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--service-account-key-file={pki}/sa.pub"),
        format!("--service-account-signing-key-file={pki}/sa.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--kubelet-client-certificate={pki}/admin.crt"),
        format!("--kubelet-client-key={pki}/admin.key"),
        format!("--kubelet-certificate-authority={pki}/ca.crt"),
    ]
}

fn stock_api_flags(dir: &Path, ports: &Ports) -> Vec<String> {
    vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        format!("--cert-dir={}", dir.display()),
    ]
}

fn etcd_flags(dir: &Path, ports: &Ports) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    vec![
        format!("--data-dir={}/etcd", dir.display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{}", ports.etcd + 1),
    ]
}

fn client_flags(dir: &Path, ports: &Ports, identity: &str, port: u16) -> Vec<String> {
    let pki = dir.join("pki");
    let config = dir.join(format!("{identity}.conf"));
    let text = kubeconfig::of_program(&format!("https://127.0.0.1:{}", ports.api), &pki.to_string_lossy(), identity);
    if let Err(e) = std::fs::write(&config, text) {
        eprintln!("write {}: {e}", config.display());
    }
    let pki = pki.display();
    vec![
        format!("--kubeconfig={}", config.display()),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={pki}/server.crt"),
        format!("--tls-private-key-file={pki}/server.key"),
        format!("--client-ca-file={pki}/ca.crt"),
        "--leader-elect=true".into(),
    ]
}

fn manager_flags(dir: &Path, ports: &Ports, name: &str) -> Vec<String> {
    let pki = dir.join("pki");
    let pki = pki.display();
    let mut flags = client_flags(dir, ports, "kube-controller-manager", ports.manager);
    flags.extend([
        format!("--root-ca-file={pki}/ca.crt"),
        format!("--cluster-signing-cert-file={pki}/ca.crt"),
        format!("--cluster-signing-key-file={pki}/ca.key"),
        "--cluster-cidr=10.128.0.0/10".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        // The thousand nodes of the scale rows are objects without a kubelet.
        "--node-monitor-grace-period=2h".into(),
    ]);
    if name == "stock" {
        flags.extend([
            "--port=0".into(),
            format!("--service-account-private-key-file={pki}/sa.key"),
            "--use-service-account-credentials=true".into(),
            // Its own throttle (20 requests a second) is not what is compared.
            "--kube-api-qps=5000".into(),
            "--kube-api-burst=5000".into(),
        ]);
    }
    flags
}

fn scheduler_flags(dir: &Path, ports: &Ports) -> Vec<String> {
    let mut flags = client_flags(dir, ports, "kube-scheduler", ports.scheduler);
    if ports.etcd != 0 {
        flags.extend(["--port=0".into(), "--kube-api-qps=5000".into(), "--kube-api-burst=5000".into()]);
    }
    flags
}
