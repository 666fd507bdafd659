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

mod acceptance_page;
mod architecture;
mod attestations;
mod contract;
mod faults;
mod finding;
mod gate;
mod history;
mod invitations;
mod model;
mod operations;
mod order_events;
mod orders;
mod subscriptions;
