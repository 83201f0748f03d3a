//! The cluster's image store: an OCI layout on disk ([`store`]), filled by `image load` ([`archive`]) and by our own packer ([`pack`]),
//! served to every machine's containerd as its first mirror ([`server`]).

pub mod archive;
pub mod own;
pub mod pack;
pub mod reference;
pub mod server;
pub mod store;
