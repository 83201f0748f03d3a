//! `coracle`: makes, shows and ends clusters.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`up`], [`down`], [`status`], [`migrate`], [`doctor`], [`trace`] | the commands |
//! | [`cluster`] | the record of a cluster; addresses and paths derive from it |
//! | [`pki`], [`kubeconfig`] | identities |
//! | [`host`], [`machine`] | the host's network; machines, their files, namespaces and processes |
//! | [`image`] | image store, packer, archive reader, mirror |
//!
//! It speaks to the cluster only as a client of the API, and to machines only through their supervisors' sockets.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cli;
pub mod cluster;
pub mod doctor;
pub mod down;
pub mod host;
pub mod image;
pub mod kubeconfig;
pub mod machine;
pub mod migrate;
pub mod pki;
mod run;
pub mod status;
mod tls;
pub mod trace;
pub mod up;
