//! Images: presence, pulls by policy, back-off after failures. Credentials: `keyring`.
//!
//! A pull runs in its own task, so that a pod being deleted does not wait for it; its end wakes the pod.
//! Upstream: `pkg/kubelet/images/image_manager.go`, `pkg/credentialprovider`, v1.33.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_cri::v1::{AuthConfig, Image};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use machinery::events::Recorder;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::backoff::Backoff;
use crate::cri::Cri;
use crate::keyring::Keyring;
use crate::objects::Objects;
use crate::plan::Waiting;
use crate::pod::{ContainerExt, PodExt};

/// Pulls at a time on one node.
const PARALLEL_PULLS: usize = 8;
/// When a pod that cannot have its image looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
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
    Waiting {
        waiting: Waiting,
        retry: Option<Duration>,
    },
}

impl Default for Pulls {
    fn default() -> Self {
        Pulls { states: HashMap::new(), backoff: Backoff::standard() }
    }
}

/// An image's name in full.
#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    /// What the runtime is asked for: as written, with a tag: `busybox:latest`.
    pub tagged: String,
    /// What credentials are looked up by: `docker.io/library/busybox`.
    pub repository: String,
}

/// Upstream: `parsers.ParseImageName`, `github.com/distribution/reference`. Errors: upstream's text.
pub fn parse(image: &str) -> Result<Name, String> {
    let refuse = |why: &str| Err(format!("couldn't parse image name {image:?}: invalid reference format{why}"));
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" || host.contains(char::is_uppercase) => (host, path),
        _ => ("docker.io", name),
    };
    let repository = match host {
        "docker.io" | "index.docker.io" if !path.contains('/') => format!("docker.io/library/{path}"),
        "index.docker.io" => format!("docker.io/{path}"),
        host => format!("{host}/{path}"),
    };
    let path = repository.split_once('/').map_or("", |(_, path)| path);
    if path.contains(char::is_uppercase) {
        return refuse(&format!(": repository name ({path}) must be lowercase"));
    }
    let tag_fits = |tag: &str| {
        let first = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        first && tag.len() <= 128 && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    let digest_fits = |digest: &str| {
        digest.split_once(':').is_some_and(|(kind, hex)| !kind.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    };
    if !path.split('/').all(component_fits) || !tag.is_none_or(tag_fits) || !digest.is_none_or(digest_fits) {
        return refuse("");
    }
    let tagged = if tag.is_some() || digest.is_some() { image.to_owned() } else { format!("{image}:latest") };
    Ok(Name { tagged, repository })
}

/// Runs of letters and digits, joined by one dot, one or two underscores, or dashes.
fn component_fits(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut joints = part.split(alphanumeric).filter(|joint| !joint.is_empty());
    let joins = |joint: &str| matches!(joint, "." | "_" | "__") || joint.chars().all(|c| c == '-');
    part.starts_with(alphanumeric) && part.ends_with(alphanumeric) && joints.all(joins)
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
        let image = match parse(container.image()) {
            Ok(name) => name,
            Err(why) => {
                let message = format!("Failed to apply default image tag {:?}: {why}", container.image());
                return Err(self.refused(about, "InspectFailed", "InvalidImageName", message));
            }
        };
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
        let present = match self.cri.image_status(&image.tagged).await {
            Ok(present) => present,
            Err(error) => {
                let message = format!("Failed to inspect image {:?}: {error}", container.image());
                return Err(self.refused(about, "InspectFailed", "ImageInspectError", message));
            }
        };
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
                Err(self.refused(about, "ErrImageNeverPull", "ErrImageNeverPull", message))
            }
            _ => {
                self.start(pod, container, about, objects, pulls, wake, image).await;
                Err(Blocked::Pulling)
            }
        }
    }

    /// Says so, and why the container waits: `event` with the message, then upstream's second event.
    fn refused(&self, about: &ObjectReference, event: &str, reason: &str, message: String) -> Blocked {
        self.recorder.warning(about, event, message.clone());
        self.recorder.warning(about, "Failed", format!("Error: {reason}"));
        Blocked::Waiting { waiting: Waiting { reason: reason.into(), message }, retry: Some(LOOK_AGAIN) }
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
        image: Name,
    ) {
        let credentials = self.credentials(pod, about, objects, &image.repository).await;
        let (sender, receiver) = oneshot::channel();
        let (this, about, wake, shown) = (self.clone(), about.clone(), wake.clone(), container.image().to_owned());
        let cause = machinery::cause::current();
        tokio::spawn(machinery::cause::scope(cause, async move {
            let _slot = this.slots.acquire().await;
            this.recorder.normal(&about, "Pulling", format!("Pulling image {shown:?}"));
            let outcome = match credentials {
                Ok(credentials) => this.pull(&image.tagged, &shown, credentials, &about).await,
                Err(error) => Err(error),
            };
            // The pod may be gone by now.
            let _nobody_waits = sender.send(outcome);
            wake.notify_one();
        }));
        pulls.states.insert(container.name.clone(), Pull::Running(receiver));
    }

    /// Of the pod's pull secrets, those for this repository. A missing secret is no reason not to try.
    async fn credentials(
        &self,
        pod: &Pod,
        about: &ObjectReference,
        objects: &Objects,
        repository: &str,
    ) -> Result<Vec<AuthConfig>, String> {
        let (mut secrets, mut missing) = (Vec::new(), Vec::new());
        for reference in pod.spec().image_pull_secrets.iter().flatten() {
            match objects.secret(pod.namespace(), &reference.name, true).await {
                Ok(Some(secret)) => secrets.push(secret),
                Ok(None) | Err(_) => missing.push(reference.name.clone()),
            }
        }
        if !missing.is_empty() {
            let pod = ObjectReference { field_path: None, ..about.clone() };
            let names = missing.join(", ");
            let text = format!("Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed.");
            self.recorder.warning(&pod, "FailedToRetrieveImagePullSecret", text);
        }
        Keyring::new(&secrets).map(|keyring| keyring.lookup(repository))
    }

    async fn pull(&self, image: &str, shown: &str, credentials: Vec<AuthConfig>, about: &ObjectReference) -> Outcome {
        let started = Instant::now();
        let mut attempts: Vec<Option<AuthConfig>> = credentials.into_iter().map(Some).collect();
        if attempts.is_empty() {
            attempts.push(None);
        }
        let mut errors: Vec<String> = Vec::new();
        for auth in attempts {
            match self.cri.pull_image(image, auth, None).await {
                Ok(_) => {
                    let took = go_millis(started.elapsed());
                    let size = self.cri.image_status(image).await.ok().flatten().map(|i| i.size).unwrap_or_default();
                    let text =
                        format!("Successfully pulled image {shown:?} in {took} ({took} including waiting). Image size: {size} bytes.");
                    self.recorder.normal(about, "Pulled", text);
                    return Ok(());
                }
                Err(error) if errors.contains(&error.to_string()) => {}
                Err(error) => errors.push(error.to_string()),
            }
        }
        Err(if errors.len() == 1 { errors.remove(0) } else { format!("[{}]", errors.join(", ")) })
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
    fn backing_off(
        &self,
        container: &Container,
        about: &ObjectReference,
        pulls: &mut Pulls,
        failure: (String, Timestamp, bool),
    ) -> Option<Blocked> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_full() {
        for (image, tagged, repository) in [
            ("busybox", "busybox:latest", "docker.io/library/busybox"),
            ("docker.io/busybox:1", "docker.io/busybox:1", "docker.io/library/busybox"),
            ("index.docker.io/a/b:1", "index.docker.io/a/b:1", "docker.io/a/b"),
            ("localhost:5000/a", "localhost:5000/a:latest", "localhost:5000/a"),
            ("a/b:1", "a/b:1", "docker.io/a/b"),
            ("r.example/a__b/c-d.e:v1", "r.example/a__b/c-d.e:v1", "r.example/a__b/c-d.e"),
            ("a@sha256:00000000000000000000000000000000", "a@sha256:00000000000000000000000000000000", "docker.io/library/a"),
        ] {
            assert_eq!(parse(image), Ok(Name { tagged: tagged.into(), repository: repository.into() }));
        }
        for (image, why) in [
            ("Nginx", ": repository name (library/Nginx) must be lowercase"),
            ("a:", ""),
            ("a b", ""),
            ("a//b", ""),
            ("-a", ""),
            ("a..b", ""),
            ("a@sha256:00", ""),
            ("", ""),
        ] {
            assert_eq!(parse(image), Err(format!("couldn't parse image name {image:?}: invalid reference format{why}")));
        }
    }

    #[test]
    fn durations() {
        for (ms, text) in [(85, "85ms"), (1204, "1.204s"), (2000, "2s"), (63_200, "1m3.2s")] {
            assert_eq!(go_millis(Duration::from_millis(ms)), text);
        }
    }
}
