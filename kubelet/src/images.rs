//! Images: presence, pulls by policy, back-off after failures, credentials.
//!
//! A pull runs in its own task, so that a pod being deleted does not wait for it; its end wakes the pod.
//! Upstream: `pkg/kubelet/images/image_manager.go`, `pkg/credentialprovider`, v1.33.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use jiff::Timestamp;
use k8s_cri::v1::{AuthConfig, Image};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Secret};
use machinery::events::Recorder;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::backoff::Backoff;
use crate::cri::Cri;
use crate::objects::Objects;
use crate::plan::Waiting;
use crate::pod::{ContainerExt, PodExt};

/// Pulls at a time on one node.
const PARALLEL_PULLS: usize = 8;
/// How long a failure shows as ErrImagePull before it shows as ImagePullBackOff.
const SHOW_ERROR: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Images {
    cri: Cri,
    recorder: Recorder,
    slots: Arc<Semaphore>,
}

/// The pulls of one pod, by container name.
pub struct Pulls {
    states: HashMap<String, Pull>,
    backoff: Backoff,
}

enum Pull {
    Running(oneshot::Receiver<Outcome>),
    Failed { error: String, at: Timestamp, told: bool },
}

type Outcome = Result<(), String>;

/// What stands between a container and its image.
pub enum Blocked {
    /// Being pulled.
    Pulling,
    Waiting { waiting: Waiting, retry: Option<Duration> },
}

impl Default for Pulls {
    fn default() -> Self {
        Pulls { states: HashMap::new(), backoff: Backoff::standard() }
    }
}

/// `busybox` → `busybox:latest`: what the registry is asked for.
pub fn with_default_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

impl Images {
    pub fn new(cri: Cri, recorder: Recorder) -> Self {
        Images { cri, recorder, slots: Arc::new(Semaphore::new(PARALLEL_PULLS)) }
    }

    /// The container's image, pulled if its policy says so; `wake` is told when a pull ends.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        about: &ObjectReference,
        objects: &Objects,
        pulls: &mut Pulls,
        wake: &Arc<Notify>,
    ) -> Result<Image, Blocked> {
        let image = with_default_tag(container.image());
        let mut pulled = false;
        match pulls.states.remove(&container.name) {
            None => {}
            Some(Pull::Running(mut receiver)) => match receiver.try_recv() {
                Ok(Ok(())) => pulled = true,
                Ok(Err(error)) => return Err(self.failed(pod, container, about, pulls, error)),
                Err(oneshot::error::TryRecvError::Empty) => {
                    pulls.states.insert(container.name.clone(), Pull::Running(receiver));
                    return Err(Blocked::Pulling);
                }
                Err(oneshot::error::TryRecvError::Closed) => {}
            },
            Some(Pull::Failed { error, at, told }) => {
                if let Some(blocked) = self.backing_off(container, about, pulls, (error, at, told)) {
                    return Err(blocked);
                }
            }
        }
        let present = self.cri.image_status(&image).await.map_err(|e| inspect_error(&e.to_string()))?;
        match (container.image_pull_policy.as_deref().unwrap_or("IfNotPresent"), present) {
            (_, Some(found)) if pulled => {
                pulls.backoff.reset(&container.name);
                Ok(found)
            }
            ("IfNotPresent" | "Never", Some(found)) => {
                self.recorder.normal(about, "Pulled", format!("Container image {:?} already present on machine", container.image()));
                Ok(found)
            }
            ("Never", None) => {
                let message = format!("Container image {:?} is not present with pull policy of Never", container.image());
                self.recorder.warning(about, "ErrImageNeverPull", message.clone());
                Err(Blocked::Waiting { waiting: Waiting { reason: "ErrImageNeverPull".into(), message }, retry: Some(Duration::from_secs(10)) })
            }
            _ => {
                self.start(pod, container, about, objects, pulls, wake, image).await;
                Err(Blocked::Pulling)
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn start(
        &self,
        pod: &Pod,
        container: &Container,
        about: &ObjectReference,
        objects: &Objects,
        pulls: &mut Pulls,
        wake: &Arc<Notify>,
        image: String,
    ) {
        let mut secrets = Vec::new();
        for reference in pod.spec().image_pull_secrets.iter().flatten() {
            // A missing pull secret is no reason not to try.
            secrets.extend(objects.secret(pod.namespace(), &reference.name, true).await.unwrap_or_default());
        }
        let credentials = credentials(&secrets, &image);
        let (sender, receiver) = oneshot::channel();
        let (this, about, wake, shown) = (self.clone(), about.clone(), wake.clone(), container.image().to_owned());
        let cause = machinery::cause::current();
        tokio::spawn(machinery::cause::scope(cause, async move {
            let _slot = this.slots.acquire().await;
            this.recorder.normal(&about, "Pulling", format!("Pulling image {shown:?}"));
            let outcome = this.pull(&image, &shown, credentials, &about).await;
            // The pod may be gone by now.
            let _nobody_waits = sender.send(outcome);
            wake.notify_one();
        }));
        pulls.states.insert(container.name.clone(), Pull::Running(receiver));
    }

    async fn pull(&self, image: &str, shown: &str, credentials: Vec<AuthConfig>, about: &ObjectReference) -> Outcome {
        let started = Instant::now();
        let mut attempts: Vec<Option<AuthConfig>> = credentials.into_iter().map(Some).collect();
        if attempts.is_empty() {
            attempts.push(None);
        }
        let mut last = String::new();
        for auth in attempts {
            match self.cri.pull_image(image, auth, None).await {
                Ok(_) => {
                    let took = go_millis(started.elapsed());
                    let size = self.cri.image_status(image).await.ok().flatten().map(|i| i.size).unwrap_or_default();
                    let text = format!("Successfully pulled image {shown:?} in {took} ({took} including waiting). Image size: {size} bytes.");
                    self.recorder.normal(about, "Pulled", text);
                    return Ok(());
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn failed(&self, pod: &Pod, container: &Container, about: &ObjectReference, pulls: &mut Pulls, error: String) -> Blocked {
        tracing::warn!(pod = %pod.key(), image = container.image(), %error, "pull failed");
        self.recorder.warning(about, "Failed", format!("Failed to pull image {:?}: {error}", container.image()));
        self.recorder.warning(about, "Failed", "Error: ErrImagePull");
        let now = Timestamp::now();
        pulls.backoff.next(&container.name, now, now);
        pulls.states.insert(container.name.clone(), Pull::Failed { error: error.clone(), at: now, told: false });
        Blocked::Waiting { waiting: Waiting { reason: "ErrImagePull".into(), message: error }, retry: Some(SHOW_ERROR) }
    }

    /// None once the back-off is over.
    fn backing_off(&self, container: &Container, about: &ObjectReference, pulls: &mut Pulls, failure: (String, Timestamp, bool)) -> Option<Blocked> {
        let (error, at, told) = failure;
        let now = Timestamp::now();
        let left = pulls.backoff.remaining(&container.name, at, now)?;
        let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
        if let Some(show) = SHOW_ERROR.checked_sub(age).filter(|d| !d.is_zero()) {
            let waiting = Waiting { reason: "ErrImagePull".into(), message: error.clone() };
            pulls.states.insert(container.name.clone(), Pull::Failed { error, at, told });
            return Some(Blocked::Waiting { waiting, retry: Some(show.min(left)) });
        }
        let text = format!("Back-off pulling image {:?}", container.image());
        if !told {
            self.recorder.normal(about, "BackOff", text.clone());
            self.recorder.warning(about, "Failed", "Error: ImagePullBackOff");
        }
        let waiting = Waiting { reason: "ImagePullBackOff".into(), message: format!("{text}: ErrImagePull: {error}") };
        pulls.states.insert(container.name.clone(), Pull::Failed { error, at, told: true });
        Some(Blocked::Waiting { waiting, retry: Some(left) })
    }
}

fn inspect_error(message: &str) -> Blocked {
    let waiting = Waiting { reason: "ImageInspectError".into(), message: format!("Failed to inspect image: {message}") };
    Blocked::Waiting { waiting, retry: Some(Duration::from_secs(1)) }
}

/// As Go prints a duration rounded to milliseconds: `85ms`, `1.204s`, `1m3.2s`.
fn go_millis(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = |ms: u128| {
        let text = format!("{}.{:03}", ms / 1000, ms % 1000);
        format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => seconds(millis),
        _ => format!("{}m{}", millis / 60_000, seconds(millis % 60_000)),
    }
}

#[derive(serde::Deserialize)]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
}

#[derive(serde::Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// Those entries of the pull secrets that are for this image's registry.
fn credentials(secrets: &[Arc<Secret>], image: &str) -> Vec<AuthConfig> {
    let registry = match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    };
    let mut found = Vec::new();
    for secret in secrets {
        let data = secret.data.iter().flatten();
        let config = data.clone().find(|(k, _)| *k == ".dockerconfigjson").and_then(|(_, v)| serde_json::from_slice::<DockerConfig>(&v.0).ok());
        let legacy = || data.clone().find(|(k, _)| *k == ".dockercfg").and_then(|(_, v)| serde_json::from_slice(&v.0).ok());
        let auths = config.map(|c| c.auths).or_else(legacy).unwrap_or_default();
        for (address, auth) in auths {
            let bare = address.trim_start_matches("https://").trim_start_matches("http://");
            let host = bare.split('/').next().unwrap_or(bare);
            if host == registry || (registry == "docker.io" && host == "index.docker.io") {
                found.push(auth_config(auth));
            }
        }
    }
    found
}

fn auth_config(auth: DockerAuth) -> AuthConfig {
    let decoded = base64::engine::general_purpose::STANDARD.decode(&auth.auth).ok().and_then(|b| String::from_utf8(b).ok());
    let (username, password) = match decoded.as_deref().and_then(|t| t.split_once(':')) {
        Some((user, password)) if auth.username.is_empty() => (user.to_owned(), password.to_owned()),
        _ => (auth.username, auth.password),
    };
    AuthConfig { username, password, ..AuthConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tags() {
        for (image, full) in [
            ("busybox", "busybox:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("a/b:1", "a/b:1"),
            ("a@sha256:00", "a@sha256:00"),
        ] {
            assert_eq!(with_default_tag(image), full);
        }
    }

    #[test]
    fn durations() {
        for (ms, text) in [(85, "85ms"), (1204, "1.204s"), (2000, "2s"), (63_200, "1m3.2s")] {
            assert_eq!(go_millis(Duration::from_millis(ms)), text);
        }
    }
}
