//! The plumbing of both services: how they are started, called, timed, paged and stored.
//!
//! Admission test for everything here: it knows no noun of the business (no agreement, no order),
//! and both services use it. Business rules, tables and messages never live here.

#![warn(missing_docs)]

pub mod auth;
pub mod backoff;
pub mod clock;
pub mod database;
pub mod form;
pub mod page;
pub mod request;
pub mod server;
pub mod status;
pub mod telemetry;
