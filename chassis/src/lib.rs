//! The plumbing of both services: how they start, authenticate, limit and time calls, page lists and store data.
//!
//! It would serve any service: it knows no rule, table or message of the business.

#![warn(missing_docs)]

pub mod auth;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod database;
pub mod expiry;
pub mod form;
pub mod health;
pub mod idempotency;
pub mod lifecycle;
pub mod limits;
pub mod metrics;
pub mod paging;
pub mod release;
pub mod reload;
pub mod server;
pub mod service;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod watch;
