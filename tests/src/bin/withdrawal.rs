//! `cargo bench-withdrawal`: one withdrawal that ends a thousand subscriptions of one customer, beside the
//! least that ending them takes on the same database.
//!
//! Of the withdrawal two stretches are measured, both until GetWithdrawalReport, asked without pause, says
//! that it was applied: from the answer of WithdrawAttestation, and from when order-svc began the
//! transaction, which the report tells. The floor is one durable transaction through the same kind of
//! connection on the same tables: an update of the subscriptions and a row of history for each, inserted
//! by statements of many rows, or by a prepared statement a row. It writes no report. All take turns, so
//! that whatever else the machine does falls on all alike.

use std::time::{Duration, Instant};

use chassis::clock::{Clock, Time};
use chassis::database::{Connection, Database, Error, Writes};
use chassis::query;
use chrono::NaiveDateTime;
use clap::Parser;
use diesel::prelude::*;
use proto::agreement::{WithdrawAttestationRequest, WithdrawalReason};
use proto::order::{CreateOrderRequest, GetWithdrawalReportRequest, NewOrderLine};
use tests::world::{self, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, Setup};
use tonic::Status;

/// As order-svc does it.
const ROWS_PER_STATEMENT: usize = 1000;

/// Lines of an order, each of which becomes a subscription.
const LINES_MAX: usize = 100;

diesel::table! {
    subscription (id) {
        id -> Text,
        customer_id -> Text,
        state -> Text,
        version -> BigInt,
        due_at -> Nullable<Timestamp>,
    }
}

diesel::table! {
    subscription_change (subscription_id, number) {
        subscription_id -> Text,
        number -> Integer,
        kind -> Text,
        changed_at -> Timestamp,
        actor_tenant -> Text,
        actor -> Text,
        quantity_before -> BigInt,
        quantity_after -> BigInt,
        gate_decision -> Text,
        gate_rule -> Text,
        gate_evidence -> Text,
        gate_revision -> BigInt,
        gate_evaluated_at -> Timestamp,
        reason -> Text,
        event_revision -> BigInt,
        term_number -> Integer,
    }
}

#[derive(Parser)]
#[command(about = "Measures a withdrawal that ends many subscriptions.")]
struct Options {
    /// Subscriptions that it ends.
    #[arg(long, default_value_t = 1000)]
    subscriptions: usize,
    /// Repetitions; the median counts.
    #[arg(long, default_value_t = 9)]
    repetitions: usize,
}

/// A customer, its attestation, and its subscriptions.
struct Bought {
    customer_id: String,
    attestation_id: String,
    subscription_ids: Vec<String>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut backends = vec![("SQLite", Backend::Sqlite)];
    if std::env::var_os("TEST_POSTGRES_URL").is_some() {
        backends.push(("PostgreSQL", Backend::Postgres));
    }
    say("| ending subscriptions | median | of the floor |\n|---|---|---|");
    for (name, backend) in backends {
        let cluster = Cluster::start(Setup { backend, ..Setup::default() }).await?;
        world::register_partners(&cluster).await?;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let database = Database::open(cluster.orders_database(), false, Writes::Concurrent)?;

        let (mut many, mut one, mut in_bulk, mut by_row) = (vec![], vec![], vec![], vec![]);
        for n in 0..options.repetitions {
            let buy = |what, count| buy(&direct, format!("{what} {n}"), count);
            many.push(withdrawal(&direct, &buy("Many", options.subscriptions).await?).await?);
            in_bulk.push(floor(&database, buy("Bulk", options.subscriptions).await?, false).await?);
            one.push(withdrawal(&direct, &buy("One", 1).await?).await?);
            by_row.push(floor(&database, buy("Rows", options.subscriptions).await?, true).await?);
        }
        let count = options.subscriptions;
        let in_bulk = median(in_bulk);
        let (answered, begun): (Vec<_>, Vec<_>) = many.into_iter().unzip();
        let (one_answered, one_begun): (Vec<_>, Vec<_>) = one.into_iter().unzip();
        row(&format!("floor, {count}, many rows a statement, {name}"), in_bulk, in_bulk);
        row(&format!("floor, {count}, a statement a row, {name}"), median(by_row), in_bulk);
        row(&format!("from the transaction's begin, {count}, {name}"), median(begun), in_bulk);
        row(&format!("from the withdrawal's answer, {count}, {name}"), median(answered), in_bulk);
        row(&format!("from the transaction's begin, 1, {name}"), median(one_begun), in_bulk);
        row(&format!("from the withdrawal's answer, 1, {name}"), median(one_answered), in_bulk);
    }
    Ok(())
}

async fn buy(direct: &As, name: String, count: usize) -> Result<Bought, Status> {
    let customer_id = world::create_customer(direct, &name, "FR", None).await?;
    let attested = world::attest(direct, &customer_id, Clock::system().now()).await?;
    let attestation_id = attested.attestation.unwrap_or_default().attestation_id;
    let mut subscription_ids = vec![];
    while subscription_ids.len() < count {
        let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 5, friendly_name: String::new() };
        let lines = vec![line; LINES_MAX.min(count - subscription_ids.len())];
        let order = CreateOrderRequest { lines, ..world::new_order(&customer_id, None, OFFICE, 5) };
        let placed = direct.orders().create_order(order).await?.into_inner();
        subscription_ids.extend(placed.subscriptions.into_iter().map(|new| new.subscription_id));
    }
    Ok(Bought { customer_id, attestation_id, subscription_ids })
}

/// How long after its answer, and after the begin of the transaction, a withdrawal is known to be applied.
async fn withdrawal(direct: &As, bought: &Bought) -> Result<(Duration, Duration), Status> {
    let request = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id: bought.attestation_id.clone(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    let revision = direct.attestations().withdraw_attestation(request).await?.into_inner().revision;
    let answered = Instant::now();
    loop {
        let request = GetWithdrawalReportRequest { revision, page_size: 1, page_token: String::new() };
        let told = direct.withdrawals().get_withdrawal_report(request).await?.into_inner();
        let Some(report) = told.report else { continue };
        let (elapsed, now) = (answered.elapsed(), Clock::system().now());
        if usize::try_from(report.cancelled).ok() != Some(bought.subscription_ids.len()) {
            return Err(Status::internal("it ended other subscriptions"));
        }
        let begun = report.applied_at.unwrap_or_default();
        let begun = Time::from_timestamp(begun.seconds, begun.nanos.unsigned_abs()).unwrap_or(now);
        return Ok((elapsed, (now - begun).to_std().unwrap_or_default()));
    }
}

/// How long the floor takes.
async fn floor(database: &Database, bought: Bought, by_row: bool) -> Result<Duration, Error> {
    let now = Clock::system().now().naive_utc();
    let began = Instant::now();
    let write = move |connection: &mut Connection| -> Result<(), Error> {
        query!(&mut *connection, c => {
            diesel::update(
                subscription::table
                    .filter(subscription::customer_id.eq(&bought.customer_id))
                    .filter(subscription::state.eq_any(["ACTIVE", "SUSPENDED"])),
            )
            .set((
                subscription::state.eq("CANCELLED"),
                subscription::due_at.eq(None::<NaiveDateTime>),
                subscription::version.eq(subscription::version + 1),
            ))
            .execute(c)
        })?;
        let changes = bought.subscription_ids.iter().map(|id| {
            (
                subscription_change::subscription_id.eq(id),
                subscription_change::number.eq(2),
                subscription_change::kind.eq("CANCELLED"),
                subscription_change::changed_at.eq(now),
                subscription_change::actor_tenant.eq(""),
                subscription_change::actor.eq(""),
                subscription_change::quantity_before.eq(5),
                subscription_change::quantity_after.eq(5),
                subscription_change::gate_decision.eq(""),
                subscription_change::gate_rule.eq(""),
                subscription_change::gate_evidence.eq(""),
                subscription_change::gate_revision.eq(0),
                subscription_change::gate_evaluated_at.eq(now),
                subscription_change::reason.eq("AGREEMENT_WITHDRAWN"),
                subscription_change::event_revision.eq(1),
                subscription_change::term_number.eq(1),
            )
        });
        if by_row {
            for change in changes {
                query!(&mut *connection, c => {
                    diesel::insert_into(subscription_change::table).values(change).execute(c)
                })?;
            }
            return Ok(());
        }
        let changes: Vec<_> = changes.collect();
        for changes in changes.chunks(ROWS_PER_STATEMENT) {
            query!(&mut *connection, c => {
                diesel::insert_into(subscription_change::table).values(changes.to_vec()).execute(c)
            })?;
        }
        Ok(())
    };
    database.write(write).await?;
    Ok(began.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn row(name: &str, time: Duration, floor: Duration) {
    let (ms, ratio) = (time.as_secs_f64() * 1000.0, time.as_secs_f64() / floor.as_secs_f64());
    say(&format!("| {name} | {ms:.1} ms | {ratio:.2} |"));
}

#[expect(clippy::print_stdout, reason = "a benchmark talks to whoever started it")]
fn say(words: &str) {
    println!("{words}");
}
