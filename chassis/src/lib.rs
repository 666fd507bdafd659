//! The plumbing of both services: how they are started, called, timed, paged and stored.
//!
//! What is here would serve any two services: it has never heard of agreements or orders, and both
//! services call it. Rules, tables and messages of the business are theirs.

#![warn(missing_docs)]

pub mod auth;
pub mod backoff;
pub mod clock;
pub mod database;
pub mod expiry;
pub mod form;
pub mod idempotency;
pub mod metrics;
pub mod paging;
pub mod reload;
pub mod server;
pub mod status;
pub mod telemetry;
pub mod tls;
