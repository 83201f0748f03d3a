//! What is particular to each kind, by area.

pub mod batch;
pub mod certificate;
pub mod cluster;
pub mod config;
pub mod definition;
pub mod endpoints;
pub mod event;
pub mod extension;
pub mod flow;
pub mod network;
pub mod pod;
pub mod policy;
pub mod quota;
pub mod rbac;
pub mod service;
pub mod volume;
pub mod workload;
