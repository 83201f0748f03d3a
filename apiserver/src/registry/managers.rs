//! Who manages which field, on the way through the pipeline: before the strategy and admission shape the object, so that what they add
//! is nobody's.
//!
//! Managers are kept per API version, so the comparison is made in the request's. A `scale` is compared as its parent.
//! Upstream counterparts: `endpoints/handlers/{create,update,patch}.go`, `apimachinery/pkg/util/managedfields` (v1.33).

use api::Status;
use jiff::Timestamp;
use schema::managed::{self, Writer};
use serde_json::Value;

use super::{Target, tree};

const MAX_LENGTH: usize = 128;

/// The manager of a request that names none: what stands before the first `/` of its user agent.
pub fn of_agent(agent: &str) -> String {
    let mut name = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()) {
        if name.len() + c.len_utf8() > MAX_LENGTH {
            break;
        }
        name.push(c);
    }
    name
}

/// Notes in `new` what `manager` changes. Both are in storage form; `None` is a create.
pub fn track(target: &Target, old: Option<&Value>, new: &mut Value, manager: &str, now: Timestamp) {
    let now = tree::rfc3339(now);
    let writer = writer(target, manager, &now);
    let (asked, stored) = (target.gvk(), target.storage().storage_gvk());
    if asked == stored {
        return managed::track(&stored, old, new, &writer);
    }
    let version = asked.api_version();
    let old = old.map(|old| kinds::convert(old.clone(), &version));
    let mut seen = kinds::convert(new.clone(), &version);
    managed::track(&asked, old.as_ref(), &mut seen, &writer);
    match seen["metadata"]["managedFields"].take() {
        Value::Null => tree::meta(new).remove("managedFields"),
        list => tree::meta(new).insert("managedFields".into(), list),
    };
}

/// What a server-side apply makes of `live`, both in the target's version.
pub fn apply(
    target: &Target,
    live: Option<&Value>,
    configuration: &Value,
    manager: &str,
    force: bool,
    now: Timestamp,
) -> Result<Value, Status> {
    let now = tree::rfc3339(now);
    managed::apply(&target.gvk(), live, configuration, &writer(target, manager, &now), force)
}

fn writer<'a>(target: &'a Target, manager: &'a str, now: &'a str) -> Writer<'a> {
    Writer { manager, subresource: &target.subresource, ignored: target.kind.reset_fields(&target.subresource), now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_are_named_by_their_agent() {
        for (agent, manager) in
            [("kubectl/v1.32.4 (linux/amd64) kubernetes/59526cd", "kubectl"), ("curl", "curl"), ("a\u{7}b/1", "ab"), ("", "")]
        {
            assert_eq!(of_agent(agent), manager, "{agent}");
        }
        assert_eq!(of_agent(&"é".repeat(100)).len(), MAX_LENGTH);
    }
}
