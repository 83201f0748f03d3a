//! Where objects live in the store: upstream's key layout (`/registry/pods/default/web`), so that one etcd can serve both.
//!
//! Upstream counterpart: `kubernetes/pkg/kubeapiserver/default_storage_factory_builder.go` and the `SpecialDefaultResourcePrefixes`.

use std::time::Duration;

use api::key::Key;
use kinds::Kind;

pub const ROOT: &str = "/registry/";

/// Resources whose folder is not simply their plural name.
const SPECIAL: &[(&str, &str, &str)] = &[
    ("", "replicationcontrollers", "controllers"),
    ("", "endpoints", "services/endpoints"),
    ("", "nodes", "minions"),
    ("", "services", "services/specs"),
    ("networking.k8s.io", "ingresses", "ingress"),
    ("apiregistration.k8s.io", "apiservices", "apiregistration.k8s.io/apiservices"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "apiextensions.k8s.io/customresourcedefinitions"),
];

/// The folder of a kind, without slashes around it: `pods`, `services/specs`.
pub fn folder(kind: &Kind) -> &'static str {
    let special = SPECIAL.iter().find(|(group, plural, _)| *group == kind.group && *plural == kind.plural);
    special.map_or(kind.plural, |(_, _, folder)| folder)
}

/// Events vanish after an hour, as upstream's `--event-ttl`.
const EVENTS: (&str, Duration) = ("/registry/events/", Duration::from_secs(3600));

/// How long an object lives by itself; `None` = until it is deleted.
pub fn ttl(stored_key: &str) -> Option<Duration> {
    stored_key.starts_with(EVENTS.0).then_some(EVENTS.1)
}

pub fn store_key(kind: &Kind, key: &Key) -> String {
    format!("{ROOT}{}/{key}", folder(kind))
}

/// The folder and object of a stored key. Inverse of [`store_key`], given the set of folders.
pub fn split(stored: &str, is_folder: impl Fn(&str) -> bool) -> Option<(&str, Key)> {
    let path = stored.strip_prefix(ROOT)?;
    let first = path.find('/')?;
    let second = path[first + 1..].find('/').map(|i| first + 1 + i);
    let end = [second, Some(first)].into_iter().flatten().find(|&end| is_folder(&path[..end]))?;
    let Ok(key) = path[end + 1..].parse();
    Some((&path[..end], key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_as_they_were_made() {
        let folders = ["pods", "services/specs", "minions", "events"];
        let split = |key| split(key, |f| folders.contains(&f));
        assert_eq!(split("/registry/pods/default/web"), Some(("pods", Key::new("default", "web"))));
        assert_eq!(split("/registry/services/specs/a/b"), Some(("services/specs", Key::new("a", "b"))));
        assert_eq!(split("/registry/minions/n1"), Some(("minions", Key::cluster("n1"))));
        assert_eq!(split("/registry/unknown/x"), None);
        assert_eq!(split("/elsewhere"), None);
    }
}
