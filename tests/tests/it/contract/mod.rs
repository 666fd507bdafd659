//! The contract: access policy, bad input, statuses, repeated requests, recorded samples.

pub(crate) mod access;
mod bad_input;
mod error_details;
mod repeats;
mod replay_samples;
mod rust_client;
mod service_config;
mod statuses;
