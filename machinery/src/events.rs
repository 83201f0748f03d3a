//! Events: what `kubectl describe` shows at its foot.
//!
//! Recording never blocks and never fails the caller: a full channel drops the event. Repeats of one event raise its count instead
//! of making a new object, and one object may cause only so many (25 at once, then one in five minutes).
//! An event that says what was being done is of the newer sort, of `events.k8s.io`: a time of its own, then a series.
//! Upstream: `client-go/tools/record/{event,events_cache}.go`, `client-go/tools/events`.

use std::collections::HashMap;
use std::time::Duration;

use api::Cause;
use api::k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use api::k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cause;
use crate::informer::Object;

const QUEUE: usize = 1000;
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Names an object in an event.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Recorded>,
}

struct Recorded {
    object: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    action: Option<&'static str>,
    at: Timestamp,
    cause: Option<Cause>,
}

impl Recorder {
    /// `component` is the source shown under FROM; `host` the node, for node agents. Ends with the last clone.
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source = EventSource { component: Some(component.to_owned()), host: host.map(str::to_owned) };
        let writer = Writer { client, source, known: HashMap::new(), budgets: HashMap::new() };
        tokio::spawn(writer.run(receiver));
        Recorder { sender }
    }

    pub fn event(&self, object: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        self.record(object, kind, reason, message.into(), None);
    }

    /// `action`: what was being done, as the scheduler's "Binding".
    pub fn acting(&self, object: &ObjectReference, kind: EventType, reason: &str, action: &'static str, message: impl Into<String>) {
        self.record(object, kind, reason, message.into(), Some(action));
    }

    fn record(&self, object: &ObjectReference, kind: EventType, reason: &str, message: String, action: Option<&'static str>) {
        let recorded = Recorded {
            object: object.clone(),
            kind,
            reason: reason.to_owned(),
            message,
            action,
            at: Timestamp::now(),
            cause: cause::current(),
        };
        if self.sender.try_send(recorded).is_err() {
            tracing::warn!(reason, "event dropped: too many at once");
        }
    }

    pub fn normal(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Normal, reason, message);
    }

    pub fn warning(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Warning, reason, message);
    }
}

/// What makes two events the same.
type Identity = (String, Option<String>, EventKey);
type EventKey = (&'static str, String, String);

struct Writer {
    client: Client,
    source: EventSource,
    /// Name and count of the events written lately.
    known: HashMap<Identity, (String, i32)>,
    budgets: HashMap<String, Budget>,
}

struct Budget {
    tokens: f64,
    at: Instant,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Recorded>) {
        while let Some(recorded) = receiver.recv().await {
            if !self.within_budget(&recorded) {
                continue;
            }
            let cause = recorded.cause.clone();
            if let Err(error) = cause::scope(cause, self.write(recorded)).await {
                tracing::debug!("event not written: {error}");
            }
        }
    }

    fn within_budget(&mut self, recorded: &Recorded) -> bool {
        let now = Instant::now();
        if self.budgets.len() > REMEMBERED {
            self.budgets.retain(|_, budget| now - budget.at < Duration::from_secs(7500));
        }
        let object = format!("{:?}/{:?}/{:?}", recorded.object.kind, recorded.object.uid, recorded.object.name);
        let budget = self.budgets.entry(object).or_insert(Budget { tokens: BURST, at: now });
        budget.tokens = (budget.tokens + (now - budget.at).as_secs_f64() * REFILL_PER_SECOND).min(BURST);
        budget.at = now;
        let within = budget.tokens >= 1.0;
        if within {
            budget.tokens -= 1.0;
        }
        within
    }

    async fn write(&mut self, recorded: Recorded) -> Result<(), kube::Error> {
        let object = &recorded.object;
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let identity: Identity = (
            format!("{:?}/{:?}/{:?}", object.kind, object.uid, object.name),
            object.field_path.clone(),
            (recorded.kind.as_str(), recorded.reason.clone(), recorded.message.clone()),
        );
        if let Some((name, count)) = self.known.get_mut(&identity) {
            let patch = match recorded.action {
                None => json!({"count": *count + 1, "lastTimestamp": Time(recorded.at)}),
                Some(_) => json!({"series": {"count": *count + 1, "lastObservedTime": micros(recorded.at)}}),
            };
            match events.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    *count += 1;
                    return Ok(());
                }
                // It has expired since: a new one follows.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = self.new_event(&recorded, namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        events.create(&PostParams::default(), &event).await?;
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(identity, (name, 1));
        Ok(())
    }

    fn new_event(&self, recorded: &Recorded, namespace: String) -> Event {
        let name = recorded.object.name.as_deref().unwrap_or_default();
        let time = Time(recorded.at);
        let plain = recorded.action.is_none();
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = || format!("{}-{}", self.source.component.as_deref().unwrap_or_default(), host().trim());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", recorded.at.as_nanosecond())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: recorded.object.clone(),
            reason: Some(recorded.reason.clone()),
            message: Some(recorded.message.clone()),
            type_: Some(recorded.kind.as_str().to_owned()),
            source: Some(if plain { self.source.clone() } else { EventSource::default() }),
            reporting_component: self.source.component.clone(),
            reporting_instance: if plain { self.source.host.clone() } else { Some(instance()) },
            action: recorded.action.map(str::to_owned),
            event_time: (!plain).then(|| micros(recorded.at)),
            first_timestamp: plain.then(|| time.clone()),
            last_timestamp: plain.then_some(time),
            count: plain.then_some(1),
            ..Event::default()
        }
    }
}

fn micros(at: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at))
}
