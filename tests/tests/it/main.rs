//! Both services together: what they promise, over real gRPC, on both databases.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod acceptance_model;
mod access;
mod bad_input;
mod blocked;
mod concurrency;
mod direct_sign;
mod discretion;
mod events;
mod fail_closed;
mod gate;
mod histories;
mod history;
mod import;
mod kill;
mod line;
mod mail;
mod metrics;
mod order_model;
mod orders;
mod overload;
mod race;
mod relay;
mod restore;
mod samples;
mod secured;
mod settings;
mod stories;
mod subscriptions;
mod tidy;
mod traces;
mod upgrade;
mod withdrawals;
