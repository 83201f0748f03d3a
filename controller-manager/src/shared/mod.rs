//! What several controllers need. Pure helpers and thin writers; no controller's own decisions.

pub mod claim;
pub mod conditions;
pub mod departures;
pub mod discovery;
pub mod endpoints;
pub mod expectations;
pub mod hash;
pub mod latest;
pub mod meta;
pub mod per_namespace;
pub mod percent;
pub mod pod_control;
pub mod pods;
pub mod replicas;
pub mod revisions;
pub mod taints;
pub mod watch;
pub mod write;
