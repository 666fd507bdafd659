//! A model test of orders and subscriptions: random histories played over gRPC and, beside it, in a model of the rules
//! that shares no code with the services. What the customers accept is played and modelled by
//! [`acceptance`](super::acceptance).
//!
//! After each step the answer, or the refusal with all its details, the subscriptions and their changes must be the
//! model's.

mod call;
mod compare;
mod expect;
mod offers;
mod play;
mod preview;
mod state;
mod steps;

use chassis::clock::Clock;
use proptest::test_runner::TestCaseError;
use rstest_reuse::apply;
use tests::{Backend, Cluster, Setup};

use self::compare::compare_offers;
use self::play::Play;
use self::state::Model;
use self::steps::Step;
use super::{acceptance, runner};
use crate::each_backend;
use crate::faults::relay::Relay;

/// When each history begins: at the end of a month that is longer than the next, in a leap year.
const START: &str = "2024-01-30T22:00:00Z";

/// Relationships and acceptances of each kind to begin with, so that much can be bought.
const BEGINNING: [acceptance::Step; 6] = [
    acceptance::Step::Attest { partner: 0, customer: 0, person: 0, agreed_minutes_ago: 0 },
    acceptance::Step::AcceptInvitation { partner: 1, customer: 0, shown: acceptance::Shown::InForce },
    acceptance::Step::AcceptInvitation { partner: 2, customer: 0, shown: acceptance::Shown::InForce },
    acceptance::Step::AcceptInvitation { partner: 1, customer: 1, shown: acceptance::Shown::InForce },
    acceptance::Step::AcceptInvitation { partner: 2, customer: 1, shown: acceptance::Shown::InForce },
    acceptance::Step::Attest { partner: 1, customer: 1, person: 0, agreed_minutes_ago: 0 },
];

async fn play(backend: Backend, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let clock = Clock::manual(START.parse().unwrap());
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    // An answer that is overtaken takes its time.
    let setup =
        Setup { backend, clock: clock.clone(), agreements_at, gate_deadline_ms: 30_000, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    let world = acceptance::Play::begin(&cluster, clock.clone()).await;
    let related =
        [(); acceptance::CUSTOMERS].map(|()| [(acceptance::PARTNERS[0].to_string(), String::new())].into());
    let model = Model { related, ..Model::default() };
    let mut play = Play { world, relay, is_history_held: false, clock, model };
    compare_offers(&play.world.partners[0]).await?;
    let beginning = BEGINNING.map(Step::Accept);
    for (n, step) in beginning.iter().chain(&steps).enumerate() {
        let at = |error| TestCaseError::fail(format!("step {n}, {step:?}: {error}"));
        play.take(step).await.map_err(at)?;
        play.compare().await.map_err(at)?;
    }
    play.hold_history(false);
    play.catch_up().await?;
    play.compare().await?;
    play.compare_all().await
}

/// Histories for each backend, PostgreSQL being the slower.
fn cases(backend: Backend) -> u32 {
    match backend {
        Backend::Sqlite => 15,
        Backend::Postgres => 6,
    }
}

#[apply(each_backend)]
async fn services_agree_with_the_model_of_orders(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    runner::check(backend, cases(backend), steps::steps, play);
}
