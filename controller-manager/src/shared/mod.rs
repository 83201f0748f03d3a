//! What several controllers need. Pure helpers and thin writers; no controller's own decisions.

pub mod claim;
pub mod conditions;
pub mod expectations;
pub mod hash;
pub mod meta;
pub mod percent;
pub mod pods;
pub mod pod_control;
pub mod replicas;
pub mod watch;
pub mod write;
