//! `GET /containerLogs/{namespace}/{pod}/{container}`.
//!
//! Upstream: `pkg/kubelet/kubelet_pods.go` (GetKubeletContainerLogs, validateContainerLogStatus), v1.33.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Query, Refusal};
use crate::kubelet::Kubelet;
use crate::logs::{self, Options};
use crate::observed::{self, Exited, Instance, State};
use crate::pod::PodExt;

fn options(query: &Query) -> Result<Options, Refusal> {
    let bad = |key: &str, value: &str| (400, format!("invalid {key}: {value:?}"));
    let number = |key: &str| query.get(key).filter(|v| !v.is_empty()).map(|v| v.parse::<usize>().map_err(|_| bad(key, v))).transpose();
    let mut since = match query.get("sinceTime") {
        Some(time) => Some(time.parse::<Timestamp>().map_err(|_| bad("sinceTime", time))?),
        None => None,
    };
    if let Some(seconds) = number("sinceSeconds")? {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX / 4);
        since = Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds)).ok();
    }
    Ok(Options {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
        since,
        stream: query.get("stream").map(str::to_owned),
    })
}

pub async fn logs(kubelet: &Arc<Kubelet>, pod: &Arc<Pod>, container: &str, query: &Query) -> Answer {
    let options = options(query)?;
    if pod.container(container).is_none() {
        return Err((404, format!("container {container:?} not found in pod {:?}", pod.name())));
    }
    let observed = observed::observe(&kubelet.cri, pod.uid(), &mut Exited::new()).await.map_err(|e| (500, e.to_string()))?;
    let mut runs = observed.runs(container).filter(|run| run.state != State::Created);
    let latest = runs.next();
    let run = match (options.previous, latest) {
        (false, Some(run)) => run,
        (true, Some(run)) => previous(pod, container, run, runs.next())?,
        (_, None) => return Err(unavailable(pod, container, options.previous)),
    };
    if !std::path::Path::new(&run.log_path).exists() {
        return Err((500, format!("failed to try resolving symlinks in path {:?}: no such file or directory", run.log_path)));
    }
    Ok(Response::new(body(kubelet, run, options)))
}

/// The run before the current one; of a container that waits to run again, that is the one that ended last.
fn previous<'a>(
    pod: &Pod,
    container: &str,
    latest: &'a Arc<Instance>,
    before: Option<&'a Arc<Instance>>,
) -> Result<&'a Arc<Instance>, Refusal> {
    let waiting = status(pod, container).and_then(|s| s.state.as_ref()).is_some_and(|s| s.waiting.is_some());
    let found = if waiting && latest.state == State::Exited { Some(latest) } else { before };
    found.ok_or_else(|| (400, format!("previous terminated container {container:?} in pod {:?} not found", pod.name())))
}

fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status();
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).chain(&status.ephemeral_container_statuses);
    all.flatten().find(|s| s.name == container)
}

fn unavailable(pod: &Pod, container: &str, previous: bool) -> Refusal {
    let (name, place) = (pod.name(), format!("container {container:?} in pod"));
    if previous {
        return (400, format!("previous terminated {place} {name:?} not found"));
    }
    let reason = status(pod, container).and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let text = match reason.as_deref() {
        Some("ErrImagePull") => "image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => "trying and failing to pull image".to_owned(),
        Some(reason) => reason.to_owned(),
        None => return (400, format!("{place} {name:?} is not available")),
    };
    (400, format!("{place} {name:?} is waiting to start: {text}"))
}

fn body(kubelet: &Arc<Kubelet>, run: &Arc<Instance>, options: Options) -> machinery::https::Body {
    let (sender, receiver) = mpsc::channel::<Bytes>(64);
    let ended = Arc::new(AtomicBool::new(run.state == State::Exited));
    if options.follow && run.state != State::Exited {
        tokio::spawn(watch_end(kubelet.clone(), run.id.clone(), ended.clone(), sender.clone()));
    }
    let log = std::path::PathBuf::from(&run.log_path);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = logs::read(&log, &options, &sender, || ended.load(Ordering::Acquire)) {
            tracing::debug!(%error, ?log, "reading a log");
        }
        ended.store(true, Ordering::Release);
    });
    StreamBody::new(ReceiverStream::new(receiver).map(|bytes| Ok::<_, anyhow::Error>(Frame::data(bytes)))).boxed_unsync()
}

/// Tells a follower that the container has ended; stops when the reader has.
async fn watch_end(kubelet: Arc<Kubelet>, id: String, ended: Arc<AtomicBool>, reader: mpsc::Sender<Bytes>) {
    let reader = reader.downgrade();
    while !ended.load(Ordering::Acquire) && reader.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let running = k8s_cri::v1::ContainerState::ContainerRunning as i32;
        if kubelet.cri.container_status(&id).await.is_ok_and(|s| s.state == running) {
            continue;
        }
        ended.store(true, Ordering::Release);
    }
}
