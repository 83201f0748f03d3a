//! Why a write happened: the object and revision whose change triggered it.
//!
//! A controller's sync knows the object that woke it; the machinery sends that as the header
//! [`HEADER`] with every write, and the API server's journal keeps it. `coracle trace` follows the
//! chain from an apply to a serving pod. No upstream counterpart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::key::{GroupResource, Key};

/// `coracle-cause: deployments.apps/default/web@123`
pub const HEADER: &str = "coracle-cause";

/// An object at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    pub resource: GroupResource,
    pub key: Key,
    pub revision: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("a cause reads RESOURCE[.GROUP]/[NAMESPACE/]NAME@REVISION, not {0:?}")]
pub struct ParseCauseError(String);

impl Cause {
    pub fn new(resource: GroupResource, key: Key, revision: u64) -> Self {
        Cause { resource, key, revision }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.resource, self.key, self.revision)
    }
}

impl FromStr for Cause {
    type Err = ParseCauseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseCauseError(text.to_owned());
        let (path, revision) = text.rsplit_once('@').ok_or_else(error)?;
        let (resource, key) = path.split_once('/').ok_or_else(error)?;
        if resource.is_empty() || key.is_empty() {
            return Err(error());
        }
        let (Ok(resource), Ok(key)) = (resource.parse(), key.parse());
        Ok(Cause { resource, key, revision: revision.parse().map_err(|_| error())? })
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One line of the API server's journal: a committed write, or a note about work that writes no object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JournalEntry {
    /// The store's revision of the write; for a note, the revision at which the server received it.
    pub revision: u64,
    /// Microseconds since the epoch, by the API server's clock.
    pub time: u64,
    pub user: String,
    /// The client's program: the User-Agent up to its first space.
    pub agent: String,
    /// create, update, patch, delete; `note` for a note.
    pub verb: String,
    /// `deployments.apps`, `pods`.
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_read_as_they_print() {
        for text in ["deployments.apps/default/web@12", "nodes/n1@3", "networkpolicies.networking.k8s.io/a/b@1"] {
            assert_eq!(text.parse::<Cause>().unwrap().to_string(), text);
        }
        for text in ["", "pods", "pods/x", "pods/x@", "pods/x@y", "/x@1"] {
            assert!(text.parse::<Cause>().is_err(), "{text}");
        }
    }
}
