//! A real etcd for tests, on free loopback ports, in a folder of its own; killed when dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kube_apiserver::storage::etcd::{Etcd, Options};

pub struct EtcdServer {
    client: String,
    peer: String,
    dir: PathBuf,
    child: Child,
}

impl EtcdServer {
    /// `None`, loudly, where etcd is not installed.
    pub fn start(dir: &Path) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("SKIPPED: etcd is not installed (scripts/setup installs it), so its backend was not tested");
            return None;
        }
        let url = || format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        let (client, peer) = (url(), url());
        let child = spawn(&client, &peer, dir);
        Some(EtcdServer { client, peer, dir: dir.to_owned(), child })
    }

    pub fn options(&self) -> Options {
        Options { servers: vec![self.client.clone()], prefix: "/registry".into(), ..Options::default() }
    }

    pub async fn connect(&self) -> Etcd {
        Etcd::connect(&self.options()).await.unwrap()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        // It may be dead already: then there is only something to wait for.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.client, &self.peer, &self.dir);
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(client: &str, peer: &str, dir: &Path) -> Child {
    Command::new("etcd")
        .args(["--name=test", "--log-level=error", &format!("--initial-cluster=test={peer}")])
        .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
        .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
        .arg("--data-dir")
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
