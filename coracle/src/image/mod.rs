//! The cluster's image store: an OCI layout on disk ([`store`]), filled by `image load` ([`archive`]), by `image build` ([`build`]) and by
//! our own packer ([`pack`]),
//! served to every machine's containerd as its first mirror ([`server`]).

pub mod archive;
pub mod build;
pub mod own;
pub mod pack;
pub mod reference;
pub mod registries;
pub mod server;
pub mod store;
