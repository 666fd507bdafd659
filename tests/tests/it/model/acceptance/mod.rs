//! A model test of acceptance: random histories played over gRPC and, beside it, in a model of the rules that shares
//! no code with the services.
//!
//! After each step answers, records and gate must be the model's; in the end the history holds the
//! model's events and no others.

mod compare;
mod expect;
mod play;
mod steps;

use chassis::clock::Clock;
use proptest::test_runner::TestCaseError;
use rstest_reuse::apply;
use tests::fixtures::{DIRECT, PROVIDER, RESELLER};
use tests::{Backend, Cluster, Setup};
use uuid::Uuid;

pub(super) use self::expect::{Claim, Happened, Model, NOT_FOUND};
pub(super) use self::play::{Play, person};
pub(super) use self::steps::{Shown, Step, step};
use super::runner;
use crate::each_backend;

/// The first two pay; the reseller works through the provider.
pub(super) const PARTNERS: [Uuid; 3] = [DIRECT, PROVIDER, RESELLER];
/// The countries of the customers: few, so that much happens to each customer.
pub(super) const COUNTRIES: [&str; 2] = ["FR", "US"];
pub(super) const CUSTOMERS: usize = COUNTRIES.len();

/// The partner that pays in the relationship that a partner enters.
pub(super) fn payer(partner: usize) -> usize {
    partner.min(1)
}

/// When each history begins: both versions that ship are in force, and acceptance is mandatory.
const START: &str = "2024-01-01T00:00:00Z";

async fn play(backend: Backend, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let clock = Clock::manual(START.parse().unwrap());
    let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    let mut play = Play::begin(&cluster, clock).await;
    for (n, step) in steps.iter().enumerate() {
        let at = |error| TestCaseError::fail(format!("step {n}, {step:?}: {error}"));
        for customer in play.take(step).await.map_err(at)? {
            play.compare(customer).await.map_err(at)?;
        }
    }
    play.compare_history().await
}

/// Histories for each backend: as many as about ten seconds allow, PostgreSQL being the slower.
fn cases(backend: Backend) -> u32 {
    match backend {
        Backend::Sqlite => 20,
        Backend::Postgres => 8,
    }
}

#[apply(each_backend)]
async fn services_agree_with_the_model_of_acceptance(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    runner::check(backend, cases(backend), steps::steps, play);
}
