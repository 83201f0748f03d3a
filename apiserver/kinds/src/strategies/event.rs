//! Events, in both groups' forms.
//!
//! Upstream: `pkg/apis/core/validation/events.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::Value;

use crate::meta::{validate_object_meta, validate_object_meta_update};
use crate::validation::field::{invalid, required};
use crate::value::{int, is_set, text};
use crate::{Kind, Strategy};

/// The core group's events: few rules, for old clients' sake; not even their metadata's are all asked.
pub struct Event;

impl Strategy for Event {
    fn validate_whole(&self, kind: &Kind, object: &Value) -> ErrorList {
        let errors = self.validate(kind, object);
        if errors.is_empty() { validate_object_meta(kind, object) } else { errors }
    }

    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = if is_set(object, "/eventTime") { reported(object) } else { placed(object) };
        let namespace = text(object, "/metadata/namespace");
        errors.extend(invalid(&Path::new("namespace"), namespace, names::is_dns1123_subdomain(namespace)));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, _old: &Value) -> ErrorList {
        self.validate(kind, new)
    }
}

/// An event lives in its object's namespace; one about a cluster-scoped object in `default`.
fn placed(object: &Value) -> ErrorList {
    let (own, about) = (text(object, "/metadata/namespace"), text(object, "/involvedObject/namespace"));
    let stray = if about.is_empty() { !matches!(own, "" | "default") } else { about != own };
    if !stray {
        return Vec::new();
    }
    vec![Error::invalid(&Path::new("involvedObject").child("namespace"), about, "does not match event.namespace")]
}

/// What an event with a time of its own must tell.
fn reported(object: &Value) -> ErrorList {
    let mut errors = Vec::new();
    let about = text(object, "/involvedObject/namespace");
    if about.is_empty() && !matches!(text(object, "/metadata/namespace"), "default" | "kube-system") {
        let path = Path::new("involvedObject").child("namespace");
        errors.push(Error::invalid(&path, about, "does not match event.namespace"));
    }
    let controller = text(object, "/reportingComponent");
    errors.extend(required(&Path::new("reportingController"), controller));
    errors.extend(invalid(&Path::new("reportingController"), controller, names::is_qualified_name(controller)));
    for (name, max, needed) in [("reportingInstance", 128, true), ("action", 128, true), ("reason", 128, true), ("message", 1024, false)] {
        let (path, value) = (Path::new(name), text(object, &format!("/{name}")));
        if needed {
            errors.extend(required(&path, value));
        }
        if value.len() > max {
            errors.push(Error::invalid(&path, "", format!("can have at most {max} characters")));
        }
    }
    errors
}

/// `events.k8s.io`: complete. Upstream means to refuse changes, but compares the new event with itself.
pub struct NewEvent;

impl Strategy for NewEvent {
    fn validate_whole(&self, kind: &Kind, object: &Value) -> ErrorList {
        let mut errors = Event.validate(kind, object);
        errors.extend(validate_object_meta(kind, object));
        errors.extend(series(object));
        if !is_set(object, "/eventTime") {
            errors.push(Error::required(&Path::new("eventTime"), ""));
        }
        let event_type = text(object, "/type");
        if !matches!(event_type, "Normal" | "Warning") {
            errors.push(Error::invalid(&Path::new("type"), "", format!("has invalid value: {event_type}")));
        }
        let old = [
            ("firstTimestamp", is_set(object, "/firstTimestamp")),
            ("lastTimestamp", is_set(object, "/lastTimestamp")),
            ("count", int(object, "/count") != 0),
            ("source", !text(object, "/source/component").is_empty() || !text(object, "/source/host").is_empty()),
        ];
        errors.extend(old.iter().filter(|(_, set)| *set).map(|(name, _)| Error::invalid(&Path::new(name), "", "needs to be unset")));
        errors
    }

    fn validate_update(&self, kind: &Kind, new: &Value, old: &Value) -> ErrorList {
        let mut errors = Event.validate(kind, new);
        errors.extend(validate_object_meta_update(kind, new, old));
        errors
    }
}

fn series(object: &Value) -> ErrorList {
    if !is_set(object, "/series") {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if int(object, "/series/count") < 2 {
        errors.push(Error::invalid(&Path::new("series").child("count"), "", "should be at least 2"));
    }
    if !is_set(object, "/series/lastObservedTime") {
        errors.push(Error::required(&Path::new("series").child("lastObservedTime"), ""));
    }
    errors
}
