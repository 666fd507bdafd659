//! Both services together: what they promise, over real gRPC, on both databases.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod acceptance_model;
mod access;
mod bad_input;
mod blocked;
mod concurrency;
mod direct_sign;
mod events;
mod fail_closed;
mod gate;
mod history;
mod import;
mod mail;
mod race;
mod samples;
mod stories;
mod tidy;
mod withdrawals;
