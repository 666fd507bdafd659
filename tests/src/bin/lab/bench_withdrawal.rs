//! `cargo lab bench-withdrawal`: one withdrawal that cancels a thousand subscriptions of one customer, beside the bare
//! transaction that cancelling them takes on the same database.
//!
//! Two times of the withdrawal are measured, both until GetWithdrawalReport, which waits for it, reports
//! that it was applied: from the answer of WithdrawAttestation, and from when order-svc began the
//! transaction, which is in the report. The floor is one durable transaction through the same kind of
//! connection on the same tables: an update of the subscriptions, and for each the row of its change and that of its event,
//! inserted by statements of many rows, or by a prepared statement a row. It writes no report. All take turns, so
//! that other load on the machine slows all of them alike.

use std::error::Error;
use std::time::{Duration, Instant};

use chassis::clock::Time;
use chassis::database::{self, Connection, Database, Writes};
use chassis::query;
use chrono::NaiveDateTime;
use clap::Args;
use diesel::prelude::*;
use order_svc::store::schema::{event, subscription, subscription_change};
use proto::order::{CreateOrderRequest, GetWithdrawalReportRequest, NewOrderLine};
use tests::fixtures::{self, OFFICE};
use tests::{As, Backend, actions};
use tonic::Status;

use crate::load::percentile;

/// As order-svc does it.
const ROWS_PER_STATEMENT: usize = 1000;

/// Lines of an order, each of which becomes a subscription.
const LINES_MAX: usize = 100;

#[derive(Args)]
pub(crate) struct Options {
    /// Subscriptions that it ends.
    #[arg(long, default_value_t = 1000)]
    pub(crate) subscriptions: usize,
    /// Repetitions; the median counts.
    #[arg(long, default_value_t = 9)]
    pub(crate) repetitions: usize,
}

/// A customer, its attestation, and its subscriptions.
struct Bought {
    customer_id: String,
    attestation_id: String,
    /// The last one.
    order_id: String,
    subscription_ids: Vec<String>,
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    println!("| ending subscriptions | median | of the floor |\n|---|---|---|");
    for backend in Backend::all() {
        for row in measure(backend, &options).await? {
            println!("{}", row.line());
        }
    }
    Ok(())
}

/// A row of the table.
pub(crate) struct Row {
    name: String,
    median: Duration,
    /// How many times the floor.
    of_floor: f64,
}

impl Row {
    pub(crate) fn line(&self) -> String {
        format!("| {} | {:.1} ms | {:.2} |", self.name, self.median.as_secs_f64() * 1000.0, self.of_floor)
    }
}

/// Measures the withdrawal and its floor on a database.
pub(crate) async fn measure(backend: Backend, options: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let database = Database::open(cluster.orders_database(), false, Writes::Concurrent)?;

    let (mut many, mut one, mut in_bulk, mut by_row) = (vec![], vec![], vec![], vec![]);
    for n in 0..options.repetitions {
        let buy = |what, count| buy(&direct, format!("{what} {n}"), count);
        // The service's own events are numbered up from 1.
        let event =
            |number: usize| -i64::try_from((2 * n + number) * options.subscriptions).unwrap_or(i64::MAX);
        many.push(withdrawal(&direct, &buy("Many", options.subscriptions).await?).await?);
        in_bulk.push(floor(&database, buy("Bulk", options.subscriptions).await?, event(1), false).await?);
        one.push(withdrawal(&direct, &buy("One", 1).await?).await?);
        by_row.push(floor(&database, buy("Rows", options.subscriptions).await?, event(2), true).await?);
    }
    let count = options.subscriptions;
    let in_bulk = percentile(&in_bulk, 50);
    let (answered, begun): (Vec<_>, Vec<_>) = many.into_iter().unzip();
    let (one_answered, one_begun): (Vec<_>, Vec<_>) = one.into_iter().unzip();
    let row = |name: String, times: &[Duration]| {
        let median = percentile(times, 50);
        let of_floor = median.as_secs_f64() / in_bulk.as_secs_f64();
        Row { name: format!("{name}, {backend}"), median, of_floor }
    };
    Ok(vec![
        row(format!("floor, {count}, many rows a statement"), &[in_bulk]),
        row(format!("floor, {count}, a statement a row"), &by_row),
        row(format!("from the transaction's begin, {count}"), &begun),
        row(format!("from the withdrawal's answer, {count}"), &answered),
        row("from the transaction's begin, 1".into(), &one_begun),
        row("from the withdrawal's answer, 1".into(), &one_answered),
    ])
}

async fn buy(direct: &As, name: String, count: usize) -> Result<Bought, Status> {
    let customer_id = actions::create_customer(direct, &name, "FR", None).await?;
    let attestation_id = actions::attest_now(direct, &customer_id).await?;
    let (mut order_id, mut subscription_ids) = (String::new(), vec![]);
    while subscription_ids.len() < count {
        let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 5, friendly_name: String::new() };
        let lines = vec![line; LINES_MAX.min(count - subscription_ids.len())];
        let order = CreateOrderRequest { lines, ..fixtures::new_order(&customer_id, None, OFFICE, 5) };
        let placed = direct.orders().create_order(order).await?.into_inner();
        order_id = placed.order.unwrap_or_default().order_id;
        subscription_ids.extend(placed.subscriptions.into_iter().map(|new| new.subscription_id));
    }
    Ok(Bought { customer_id, attestation_id, order_id, subscription_ids })
}

/// How long after its answer, and after the begin of the transaction, a withdrawal is known to be applied.
async fn withdrawal(direct: &As, bought: &Bought) -> Result<(Duration, Duration), Status> {
    let revision = actions::withdraw(direct, &bought.attestation_id).await?;
    let answered = Instant::now();
    loop {
        let request = GetWithdrawalReportRequest { revision, page_size: 1, wait: true, ..Default::default() };
        let answer = direct.withdrawals().get_withdrawal_report(request).await?.into_inner();
        let Some(report) = answer.report else { continue };
        let (elapsed, now) = (answered.elapsed(), fixtures::now());
        if usize::try_from(report.cancelled).ok() != Some(bought.subscription_ids.len()) {
            return Err(Status::internal("it ended other subscriptions"));
        }
        let begun = report.applied_at.unwrap_or_default();
        let begun = Time::from_timestamp(begun.seconds, begun.nanos.unsigned_abs()).unwrap_or(now);
        return Ok((elapsed, (now - begun).to_std().unwrap_or_default()));
    }
}

/// How long the floor takes, whose events are numbered from `first_event` on.
async fn floor(
    database: &Database,
    bought: Bought,
    first_event: i64,
    by_row: bool,
) -> Result<Duration, database::Error> {
    let now = fixtures::now().naive_utc();
    let began = Instant::now();
    let write = move |connection: &mut Connection| -> Result<(), database::Error> {
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
                // order-svc would record what is not.
                subscription_change::in_history.eq(true),
            )
        });
        let events = (first_event..).zip(&bought.subscription_ids).map(|(revision, id)| {
            (
                event::revision.eq(revision),
                event::recorded_at.eq(now),
                event::customer_id.eq(&bought.customer_id),
                event::order_id.eq(&bought.order_id),
                event::subscription_id.eq(id),
                event::change_number.eq(2),
            )
        });
        if by_row {
            for (change, event) in changes.zip(events) {
                query!(&mut *connection, c => {
                    diesel::insert_into(subscription_change::table).values(change).execute(c)?;
                    diesel::insert_into(event::table).values(event).execute(c)?;
                });
            }
            return Ok(());
        }
        let (changes, events): (Vec<_>, Vec<_>) = (changes.collect(), events.collect());
        for (changes, events) in changes.chunks(ROWS_PER_STATEMENT).zip(events.chunks(ROWS_PER_STATEMENT)) {
            query!(&mut *connection, c => {
                diesel::insert_into(subscription_change::table).values(changes.to_vec()).execute(c)?;
                diesel::insert_into(event::table).values(events.to_vec()).execute(c)?;
            });
        }
        Ok(())
    };
    database.write(write).await?;
    Ok(began.elapsed())
}
