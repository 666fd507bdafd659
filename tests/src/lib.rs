//! Both services together: a cluster in one process, over real gRPC and a real database.
//!
//! Each service runs on a thread and runtime of its own, as its binary would run it, on a free
//! loopback port. The clients here are what stories, demo and benchmark call through.

pub mod actions;
pub mod assert;
pub mod backup;
pub mod clients;
pub mod cluster;
pub mod fixtures;
mod history;
pub mod imports;
pub mod kill;
mod pair;
pub mod processes;
mod recorded;
pub mod stack;
pub mod vault;

/// Fixtures and actions under the name that callers still use.
pub mod world {
    pub use crate::actions::*;
    pub use crate::fixtures::*;
}

pub use clients::{As, metadata_of, reason_of};
pub use cluster::{Backend, Cluster, Setup};
