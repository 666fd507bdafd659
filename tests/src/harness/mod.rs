//! The harness: what starts and stops services, databases, a PKI and a failover pair, and the clients that call them.

pub mod backup;
pub mod clients;
pub mod cluster;
pub mod databases;
mod events;
pub mod identity_provider;
pub mod pki;
pub mod postgres_servers;
pub mod processes;
pub mod service;
pub(crate) mod setup;
pub mod stack;
