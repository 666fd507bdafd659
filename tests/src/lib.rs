//! Both services together: a cluster in one process, over real gRPC and a real database.
//!
//! Each service runs on a thread and runtime of its own, as its binary would run it, on a free
//! loopback port. The clients here are what stories, demo and benchmark call through.

pub mod backup;
pub mod clients;
pub mod cluster;
mod history;
pub mod imports;
pub mod kill;
mod pair;
pub mod processes;
mod recorded;
pub mod stack;
pub mod vault;
pub mod world;

pub use clients::{As, metadata_of, reason_of};
pub use cluster::{Backend, Cluster, Setup};
