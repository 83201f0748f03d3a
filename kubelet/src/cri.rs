//! The CRI v1 client: every call the kubelet makes, with its time-out and with errors that read as upstream's.
//!
//! Upstream: `staging/src/k8s.io/cri-client/pkg/remote_{runtime,image}.go`, v1.33.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::containers_client::ContainersClient;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use parking_lot::Mutex;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};

/// As Go prints a gRPC error; it stands in events and container states.
#[derive(Debug, Clone, thiserror::Error)]
#[error("rpc error: code = {code:?} desc = {message}")]
pub struct Error {
    pub code: Code,
    pub message: String,
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Error { code: status.code(), message: status.message().to_owned() }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Upstream's `--runtime-request-timeout`.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Sandboxes wait for the network plugin.
const SANDBOX_TIMEOUT: Duration = Duration::from_secs(240);
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);
const MAX_MESSAGE: usize = 16 << 20;

#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    channel: Channel,
    making: Making,
}

/// When the calls began that are making something now.
#[derive(Clone, Default)]
struct Making(Arc<Mutex<Vec<SystemTime>>>);

/// A call that makes something, until it ends or is given up.
struct Call<'a> {
    of: &'a Making,
    began: SystemTime,
}

impl Making {
    fn call(&self) -> Call<'_> {
        let began = SystemTime::now();
        self.0.lock().push(began);
        Call { of: self, began }
    }

    fn oldest(&self) -> SystemTime {
        self.0.lock().iter().min().copied().unwrap_or_else(SystemTime::now)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut calls = self.of.0.lock();
        if let Some(at) = calls.iter().position(|began| *began == self.began) {
            calls.swap_remove(at);
        }
    }
}

/// `unix:///run/containerd/containerd.sock` → the path.
pub fn socket_path(endpoint: &str) -> PathBuf {
    PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint))
}

/// A channel over a unix socket that connects when first used and again after the runtime's restart.
fn lazy_channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://[::]").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    }))
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

impl Cri {
    pub fn new(endpoint: &str) -> Self {
        let channel = lazy_channel(&socket_path(endpoint));
        Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            channel,
            making: Making::default(),
        }
    }

    /// Since when a sandbox or a container may be in the making; now if none is.
    pub fn making_since(&self) -> SystemTime {
        self.making.oldest()
    }

    /// For containerd's own services on the same socket.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The ids of all containers that containerd itself has on record for pods, whoever made them.
    pub async fn recorded(&self) -> Result<HashSet<String>> {
        let mut request = timed(containerd_client::services::v1::ListContainersRequest::default(), TIMEOUT);
        request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
        let mut client = ContainersClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        Ok(client.list(request).await?.into_inner().containers.into_iter().map(|container| container.id).collect())
    }

    pub async fn version(&self) -> Result<VersionResponse> {
        let request = VersionRequest { version: "0.1.0".into() };
        Ok(self.runtime.clone().version(timed(request, Duration::from_secs(10))).await?.into_inner())
    }

    pub async fn status(&self) -> Result<Vec<RuntimeCondition>> {
        let request = StatusRequest { verbose: false };
        let answer = self.runtime.clone().status(timed(request, Duration::from_secs(10))).await?.into_inner();
        Ok(answer.status.map(|s| s.conditions).unwrap_or_default())
    }

    pub async fn run_sandbox(&self, config: PodSandboxConfig, runtime_handler: String) -> Result<String> {
        let _call = self.making.call();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler };
        Ok(self.runtime.clone().run_pod_sandbox(timed(request, SANDBOX_TIMEOUT)).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().stop_pod_sandbox(timed(request, SANDBOX_TIMEOUT)).await.map(drop))
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().remove_pod_sandbox(timed(request, TIMEOUT)).await.map(drop))
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<Option<PodSandboxStatus>> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        Ok(self.runtime.clone().pod_sandbox_status(timed(request, TIMEOUT)).await?.into_inner().status)
    }

    /// The file of a sandbox's network namespace, as the runtime tells it; `None` on the host's network.
    pub async fn sandbox_network(&self, id: &str) -> Result<Option<PathBuf>> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let info = match self.runtime.clone().pod_sandbox_status(timed(request, TIMEOUT)).await {
            Ok(answer) => answer.into_inner().info,
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
            Err(status) => return Err(status.into()),
        };
        let told: serde_json::Value = info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let namespaces = told["runtimeSpec"]["linux"]["namespaces"].as_array();
        let network = namespaces.into_iter().flatten().find(|namespace| namespace["type"] == "network");
        Ok(network.and_then(|namespace| namespace["path"].as_str()).map(PathBuf::from))
    }

    /// All sandboxes that carry these labels.
    pub async fn list_sandboxes(&self, labels: HashMap<String, String>) -> Result<Vec<PodSandbox>> {
        let filter = PodSandboxFilter { label_selector: labels, ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_pod_sandbox(timed(request, TIMEOUT)).await?.into_inner().items)
    }

    pub async fn list_containers(&self, labels: HashMap<String, String>) -> Result<Vec<Container>> {
        let filter = ContainerFilter { label_selector: labels, ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_containers(timed(request, TIMEOUT)).await?.into_inner().containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(timed(request, TIMEOUT)).await?.into_inner();
        answer.status.ok_or_else(|| Error { code: Code::Internal, message: format!("container {id:?} has no status") })
    }

    pub async fn create_container(&self, sandbox: &str, config: ContainerConfig, sandbox_config: PodSandboxConfig) -> Result<String> {
        let _call = self.making.call();
        let request =
            CreateContainerRequest { pod_sandbox_id: sandbox.to_owned(), config: Some(config), sandbox_config: Some(sandbox_config) };
        Ok(self.runtime.clone().create_container(timed(request, TIMEOUT)).await?.into_inner().container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let _call = self.making.call();
        let request = StartContainerRequest { container_id: id.to_owned() };
        Ok(self.runtime.clone().start_container(timed(request, TIMEOUT)).await.map(drop)?)
    }

    /// Returns when the container has ended: TERM, `grace` seconds, KILL.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        let timeout = TIMEOUT + Duration::from_secs(grace.max(0).unsigned_abs());
        gone_is_fine(self.runtime.clone().stop_container(timed(request, timeout)).await.map(drop))
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(self.runtime.clone().remove_container(timed(request, TIMEOUT)).await.map(drop))
    }

    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = ReopenContainerLogRequest { container_id: id.to_owned() };
        Ok(self.runtime.clone().reopen_container_log(timed(request, TIMEOUT)).await.map(drop)?)
    }

    pub async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<ExecSyncResponse> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: seconds };
        let limit = if seconds == 0 { PULL_TIMEOUT } else { timeout + Duration::from_secs(10) };
        Ok(self.runtime.clone().exec_sync(timed(request, limit)).await?.into_inner())
    }

    pub async fn exec_url(&self, request: ExecRequest) -> Result<String> {
        Ok(self.runtime.clone().exec(timed(request, TIMEOUT)).await?.into_inner().url)
    }

    pub async fn attach_url(&self, request: AttachRequest) -> Result<String> {
        Ok(self.runtime.clone().attach(timed(request, TIMEOUT)).await?.into_inner().url)
    }

    pub async fn port_forward_url(&self, request: PortForwardRequest) -> Result<String> {
        Ok(self.runtime.clone().port_forward(timed(request, TIMEOUT)).await?.into_inner().url)
    }

    pub async fn container_stats(&self) -> Result<Vec<ContainerStats>> {
        let request = ListContainerStatsRequest { filter: None };
        Ok(self.runtime.clone().list_container_stats(timed(request, TIMEOUT)).await?.into_inner().stats)
    }

    pub async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(self.images.clone().image_status(timed(request, TIMEOUT)).await?.into_inner().image)
    }

    pub async fn list_images(&self) -> Result<Vec<Image>> {
        let request = ListImagesRequest { filter: None };
        Ok(self.images.clone().list_images(timed(request, TIMEOUT)).await?.into_inner().images)
    }

    pub async fn pull_image(&self, image: &str, auth: Option<AuthConfig>, sandbox: Option<PodSandboxConfig>) -> Result<String> {
        let request = PullImageRequest { image: Some(spec(image)), auth, sandbox_config: sandbox };
        Ok(self.images.clone().pull_image(timed(request, PULL_TIMEOUT)).await?.into_inner().image_ref)
    }

    pub async fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(spec(image)) };
        gone_is_fine(self.images.clone().remove_image(timed(request, TIMEOUT)).await.map(drop))
    }

    /// Where images are kept, and the bytes they use.
    pub async fn image_fs(&self) -> Result<Option<(PathBuf, u64)>> {
        let answer = self.images.clone().image_fs_info(timed(ImageFsInfoRequest {}, TIMEOUT)).await?.into_inner();
        Ok(answer
            .image_filesystems
            .into_iter()
            .next()
            .and_then(|fs| Some((PathBuf::from(fs.fs_id?.mountpoint), fs.used_bytes.map(|b| b.value).unwrap_or_default()))))
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// Stopping or removing what is not there is done already.
fn gone_is_fine(result: std::result::Result<(), tonic::Status>) -> Result<()> {
    match result {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_made_is_as_old_as_its_oldest_call() {
        let making = Making::default();
        let first = making.call();
        let began = first.began;
        let second = making.call();
        assert_eq!(making.oldest(), began);
        drop(first);
        assert!(making.oldest() >= began && making.oldest() == second.began);
        drop(second);
        assert!(making.0.lock().is_empty());
    }
}
