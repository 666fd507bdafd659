//! The race of withdrawals with calls that rest on acceptances (I2), both ways: nothing is stored on an
//! answer that a withdrawal has overtaken, and no withdrawal touches a subscription that rests on a later answer.
//!
//! Partners buy, change and renew for the same few customers while attestations and signatures are
//! withdrawn and given again. A relay between the services delays each answer and each event by a random time, so that
//! they overtake each other in every way that a network allows. Afterwards the records of both services are compared.

mod customer;
mod relay;
mod truth;

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use rstest_reuse::apply;
use tests::{As, Backend, Cluster, Setup, actions, fixtures};
use tokio::time::Instant;

use self::customer::{Customer, all_events};
use self::relay::Relay;
use self::truth::{Truth, reports_of};
use crate::each_backend;

const CUSTOMERS: usize = 4;
const ROUNDS: usize = 30;

/// How often all rounds are raced until order-svc had to repeat a gate check, and a withdrawal left a subscription alone on a
/// later answer.
const BOUTS_MAX: usize = 8;

#[apply(each_backend)]
async fn nothing_outlives_a_withdrawal_on_an_older_answer(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    race(backend).await;
}

async fn race(backend: Backend) {
    let began = Instant::now();
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let setup = Setup { backend, agreements_at, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    if backend == Backend::Postgres {
        // Two replicas, of which one applies each event.
        cluster.start_orders_replica().await.unwrap();
    }
    actions::register_partners(&cluster).await.unwrap();

    let mut customers: Vec<_> = (0..CUSTOMERS).map(|n| Customer::new(&cluster, n)).collect();
    for customer in &mut customers {
        customer.enter().await;
    }
    let operator = cluster.as_caller(fixtures::operator());
    let mut asked_again = 0;
    // An answer is seldom outdated by the time it is stored, and seldom newer than a withdrawal that is not applied yet, so
    // one bout may have none.
    for _ in 0..BOUTS_MAX {
        let racing = customers.into_iter().map(|mut customer| {
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    customer.round().await;
                }
                customer
            })
        });
        customers = join_all(racing).await.into_iter().map(Result::unwrap).collect();
        asked_again = relay.asked_again.load(Ordering::Relaxed);
        if asked_again > 0 && were_left_alone(&operator, &customers).await {
            break;
        }
    }

    let events = all_events(&operator).await;
    let (mut wrong, mut sum) = (vec![], Sum::default());
    for customer in &customers {
        let truth = Truth::read(&operator, customer, &events).await;
        truth.check(&mut wrong);
        truth.add_to(&mut sum);
    }
    summary(backend, &sum, asked_again, began.elapsed());
    let few: Vec<_> = wrong.iter().take(10).collect();
    assert!(wrong.is_empty(), "{} contradictions, among them {few:#?}", wrong.len());
    // Without overlap there was no race, and the test proves nothing.
    assert!(sum.overlapped > 0 && asked_again > 0 && sum.newer > 0);
}

/// Whether a withdrawal of one of the customers left a subscription alone on a later answer.
async fn were_left_alone(operator: &As, customers: &[Customer]) -> bool {
    for customer in customers {
        if reports_of(operator, &customer.id).await.iter().any(|report| report.newer_answer > 0) {
            return true;
        }
    }
    false
}

/// The extent of the race, for the output.
#[derive(Default)]
struct Sum {
    deeds: usize,
    /// Deeds under way while a withdrawal of the same customer was recorded and not yet applied.
    overlapped: usize,
    withdrawals: usize,
    cancelled: usize,
    /// Subscriptions that a withdrawal left alone because they rested on a later answer.
    newer: usize,
}

#[expect(clippy::print_stderr, reason = "how much was raced is worth a line")]
fn summary(backend: Backend, sum: &Sum, asked_again: usize, took: Duration) {
    eprintln!(
        "{backend:?}: {} withdrawals, {} of {} operations under way meanwhile, {} questions asked again, {} \
         subscriptions cancelled, {} left alone on a later answer, {:.1} s",
        sum.withdrawals,
        sum.overlapped,
        sum.deeds,
        asked_again,
        sum.cancelled,
        sum.newer,
        took.as_secs_f64()
    );
}
