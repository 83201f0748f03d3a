//! One pod from apply to Running on a cluster of ours, beside the bare CRI calls on the same node with the same image.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tests::client::{Client, Endpoint};
use tests::cluster::Cluster;
use tonic::transport::{Channel, Uri};

use crate::milliseconds;

const ROUNDS: usize = 15;
const NAME: &str = "bench";
const PODS: &str = "/api/v1/namespaces/default/pods";

pub async fn run() -> Result<()> {
    println!("\npod start: a cluster of ours");
    let (cluster, _) = Cluster::up(NAME, &["--workers", "1", "--bare"])?;
    let measured = measure(&cluster).await;
    cluster.coracle(&["down"])?;
    let (pods, bare) = measured?;
    println!("{:<44} {:>12.1}", "pod, apply to Running, median (ms)", milliseconds(pods));
    println!("{:<44} {:>12.1}", "bare CRI calls, median (ms)", milliseconds(bare));
    println!("{:<44} {:>12.1}", "over the bare calls (ms)", milliseconds(pods) - milliseconds(bare));
    Ok(())
}

async fn measure(cluster: &Cluster) -> Result<(Duration, Duration)> {
    let address = format!("{}:6443", cluster.address("master")?).parse()?;
    let endpoint = Endpoint { address, pki: cluster.dir().join("pki") };
    // The first has its image pulled.
    pod(&endpoint, 0).await?;
    let mut pods = Vec::new();
    for n in 1..=ROUNDS {
        pods.push(pod(&endpoint, n).await?);
    }
    let mut runtime = runtime(cluster).await?;
    let mut bare = Vec::new();
    for n in 0..=ROUNDS {
        bare.push(bare_calls(&mut runtime, n).await?);
    }
    pods.sort();
    bare.sort();
    Ok((pods[ROUNDS / 2], bare[ROUNDS / 2]))
}

/// From the create to the moment the API shows the pod Running.
async fn pod(endpoint: &Endpoint, n: usize) -> Result<Duration> {
    let name = format!("p{n}");
    let mut watcher = Client::new(endpoint)?;
    let path = format!("{PODS}?watch=1&fieldSelector=metadata.name%3D{name}");
    let mut events = watcher.open(Method::GET, &path, Bytes::new()).await?.into_body();
    let body = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "web", "image": "coracle/web:1"}]}});
    let mut client = Client::new(endpoint)?;
    let began = Instant::now();
    let answer = client.request(Method::POST, PODS, serde_json::to_vec(&body)?).await?;
    if answer.status != 201 {
        bail!("create {name}: {}", String::from_utf8_lossy(&answer.body));
    }
    let running = async {
        let mut text = Vec::new();
        while let Some(frame) = events.frame().await {
            text.extend_from_slice(frame?.data_ref().map_or(&[][..], |bytes| bytes));
            if text.windows(17).any(|window| window == b"\"phase\":\"Running\"") {
                return Ok(began.elapsed());
            }
        }
        bail!("the watch ended")
    };
    let took = tokio::time::timeout(Duration::from_secs(30), running).await.with_context(|| format!("{name} is not Running"))??;
    client.request(Method::DELETE, &format!("{PODS}/{name}?gracePeriodSeconds=0"), Bytes::new()).await?;
    Ok(took)
}

/// The worker's containerd, seen from the host through the machine's first process.
async fn runtime(cluster: &Cluster) -> Result<RuntimeServiceClient<Channel>> {
    let record = coracle::cluster::Cluster::existing(&cluster.name)?;
    let pid = coracle::machine::state(&record, record.machine("worker1")?)?.pid;
    let socket = PathBuf::from(format!("/proc/{pid}/root/run/containerd/containerd.sock"));
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    Ok(RuntimeServiceClient::new(tonic::transport::Endpoint::from_static("http://[::]").connect_with_connector(connector).await?))
}

async fn bare_calls(runtime: &mut RuntimeServiceClient<Channel>, n: usize) -> Result<Duration> {
    let config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: format!("bare{n}"), uid: format!("bare{n}"), namespace: "bench".into(), attempt: 0 }),
        linux: Some(LinuxPodSandboxConfig { cgroup_parent: format!("/coracle/{NAME}/worker1/kubepods/bare{n}"), ..Default::default() }),
        ..Default::default()
    };
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "web".into(), attempt: 0 }),
        image: Some(ImageSpec { image: "docker.io/coracle/web:1".into(), ..Default::default() }),
        linux: Some(LinuxContainerConfig::default()),
        ..Default::default()
    };
    let began = Instant::now();
    let run = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let sandbox = runtime.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
    let create = CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: Some(container), sandbox_config: Some(config) };
    let container_id = runtime.create_container(create).await?.into_inner().container_id;
    runtime.start_container(StartContainerRequest { container_id }).await?;
    let took = began.elapsed();
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await?;
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await?;
    Ok(took)
}
