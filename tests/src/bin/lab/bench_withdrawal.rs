//! `cargo lab bench-withdrawal`: one withdrawal that cancels a thousand subscriptions of one customer, beside the bare
//! transaction that cancelling them takes on the same database.
//!
//! Two times of the withdrawal are measured, both until GetWithdrawalReport, which waits for it, reports
//! that it was applied: from the answer of WithdrawAttestation, and from when order-svc began the
//! transaction, which is in the report. The floor is one durable transaction through the same kind of
//! connection on the same tables: an update of the subscriptions, and for each the row of its change and the entry for its
//! event, inserted by the statements that order-svc uses for many rows, or by a prepared statement a row; the faster one counts.
//! It writes no report. All take turns, so that other load on the machine slows all of them alike.

use std::error::Error;
use std::time::{Duration, Instant};

use chassis::clock::Time;
use chassis::database::{self, Connection, Database, Writes};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use clap::Args;
use diesel::prelude::*;
use order_svc::store::schema::{event_pending, subscription, subscription_change};
use proto::order::{CreateOrderRequest, GetWithdrawalReportRequest, NewOrderLine};
use serde::Serialize;
use tests::fixtures::{self, OFFICE};
use tests::{As, Backend, actions};
use tonic::Status;

use crate::load::percentile;

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
        many.push(withdrawal(&direct, &buy("Many", options.subscriptions).await?).await?);
        in_bulk.push(floor(&database, buy("Bulk", options.subscriptions).await?, false).await?);
        one.push(withdrawal(&direct, &buy("One", 1).await?).await?);
        by_row.push(floor(&database, buy("Rows", options.subscriptions).await?, true).await?);
    }
    let count = options.subscriptions;
    let floor = percentile(&in_bulk, 50).min(percentile(&by_row, 50));
    let (answered, begun): (Vec<_>, Vec<_>) = many.into_iter().unzip();
    let (one_answered, one_begun): (Vec<_>, Vec<_>) = one.into_iter().unzip();
    let row = |name: String, times: &[Duration]| {
        let median = percentile(times, 50);
        let of_floor = median.as_secs_f64() / floor.as_secs_f64();
        Row { name: format!("{name}, {backend}"), median, of_floor }
    };
    Ok(vec![
        row(format!("floor, {count}, many rows a statement"), &in_bulk),
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
    let mut subscription_ids = vec![];
    while subscription_ids.len() < count {
        let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 5, friendly_name: String::new() };
        let lines = vec![line; LINES_MAX.min(count - subscription_ids.len())];
        let order = CreateOrderRequest { lines, ..fixtures::new_order(&customer_id, None, OFFICE, 5) };
        let placed = direct.orders().create_order(order).await?.into_inner();
        subscription_ids.extend(placed.subscriptions.into_iter().map(|new| new.subscription_id));
    }
    Ok(Bought { customer_id, attestation_id, subscription_ids })
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

/// A subscription's change, as a withdrawal makes it.
#[derive(Insertable, Serialize)]
#[diesel(table_name = subscription_change, treat_none_as_default_value = false)]
struct Change {
    subscription_id: String,
    number: i32,
    kind: &'static str,
    changed_at: NaiveDateTime,
    actor_tenant: &'static str,
    actor: &'static str,
    quantity_before: i64,
    quantity_after: i64,
    gate_decision: &'static str,
    gate_rule: &'static str,
    gate_evidence: &'static str,
    gate_revision: i64,
    gate_evaluated_at: NaiveDateTime,
    reason: &'static str,
    event_revision: i64,
    term_number: i32,
    in_history: bool,
}

/// What stands for its event until that is recorded.
#[derive(Insertable, Serialize)]
#[diesel(table_name = event_pending, treat_none_as_default_value = false)]
struct Entry {
    order_id: &'static str,
    subscription_id: String,
    change_number: i32,
}

impl Change {
    fn of(subscription_id: &str) -> Self {
        let now = fixtures::now().naive_utc();
        Self {
            subscription_id: subscription_id.to_owned(),
            number: 2,
            kind: "CANCELLED",
            changed_at: now,
            actor_tenant: "",
            actor: "",
            quantity_before: 5,
            quantity_after: 5,
            gate_decision: "",
            gate_rule: "",
            gate_evidence: "",
            gate_revision: 0,
            gate_evaluated_at: now,
            reason: "AGREEMENT_WITHDRAWN",
            event_revision: 1,
            term_number: 1,
            in_history: true,
        }
    }
}

impl Entry {
    fn of(subscription_id: &str) -> Self {
        Self { order_id: "", subscription_id: subscription_id.to_owned(), change_number: 2 }
    }
}

/// How long the floor takes.
async fn floor(database: &Database, bought: Bought, by_row: bool) -> Result<Duration, database::Error> {
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
        let changes: Vec<_> = bought.subscription_ids.iter().map(|id| Change::of(id)).collect();
        let entries: Vec<_> = bought.subscription_ids.iter().map(|id| Entry::of(id)).collect();
        let rows = if by_row { 1 } else { changes.len() };
        for (changes, entries) in changes.chunks(rows).zip(entries.chunks(rows)) {
            insert_rows!(&mut *connection, subscription_change, changes)?;
            insert_rows!(&mut *connection, event_pending, entries)?;
        }
        Ok(())
    };
    database.write(write).await?;
    Ok(began.elapsed())
}
