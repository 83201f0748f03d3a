//! Events, in both groups' forms.
//!
//! Upstream: `pkg/apis/core/validation/events.go` (v1.33).

use api::field::{Error, ErrorList, Path};
use serde_json::Value;

use crate::value::{is_set, text};
use crate::{Kind, Strategy};

pub struct Event;

impl Strategy for Event {
    /// An event lives in its object's namespace; one about a cluster-scoped object in `default`.
    fn validate(&self, _kind: &Kind, object: &Value) -> ErrorList {
        let path = Path::new("involvedObject").child("namespace");
        let (own, about) = (text(object, "/metadata/namespace"), text(object, "/involvedObject/namespace"));
        let mut errors = Vec::new();
        let node = text(object, "/involvedObject/kind") == "Node";
        let stray = match about {
            "" => !matches!(own, "" | "default" | "kube-system") && !node,
            about => about != own,
        };
        if stray {
            errors.push(Error::invalid(&path, about, "does not match event.namespace"));
        }
        if is_set(object, "/eventTime") {
            for (name, pointer) in [("reportingController", "/reportingComponent"), ("reportingInstance", "/reportingInstance")] {
                if text(object, pointer).is_empty() {
                    errors.push(Error::required(&Path::new(name), ""));
                }
            }
            for name in ["action", "reason"] {
                if text(object, &format!("/{name}")).is_empty() {
                    errors.push(Error::required(&Path::new(name), ""));
                }
            }
        }
        errors
    }
}
