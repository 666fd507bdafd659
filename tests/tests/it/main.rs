//! Both services together: what they promise, over real gRPC, on both databases.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use rstest_reuse::{self, template};

/// A test that `#[apply]`s this runs once on each database, under a name that ends in it. It begins with
/// [`tests::needs!`], which skips the database that the run lacks.
#[template]
#[rstest::rstest]
#[case::sqlite(Backend::Sqlite)]
#[case::postgres(Backend::Postgres)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_backend(#[case] backend: Backend) {}

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
