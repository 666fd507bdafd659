//! Delivers the outbox of first purchases to agreement-svc, at least once each.

use std::time::Duration;

use chassis::backoff;
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::telemetry::trace::background_span;
use chrono::TimeDelta;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agreements::AgreementClient;
use crate::rules::order::PurchaseReport;
use crate::store::report::{report_done, report_postpone, reports_claim};

/// The lease of claimed reports; longer than delivering them can take.
const LEASE: TimeDelta = TimeDelta::seconds(60);

/// How often to look without having been woken: for reports that failed, and for other replicas'.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Waits after failures, before jitter: the first, and the longest.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// The longest that a report is put back, by a lease or after a failure.
const WAIT_MAX: TimeDelta = TimeDelta::seconds(300);

/// Delivers reports until `stop` is cancelled. `orders` changes when an order has been stored.
pub(crate) async fn run(
    database: Database,
    clock: Clock,
    agreements: AgreementClient,
    mut orders: watch::Receiver<()>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            // What was claimed and not delivered comes back when the lease ends.
            () = stop.cancelled() => return,
            delivered = deliver(&database, &clock, &agreements) => {
                if let Err(error) = delivered {
                    tracing::warn!(%error, "purchase reports cannot be read; trying again");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = orders.changed() => {}
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

async fn deliver(database: &Database, clock: &Clock, agreements: &AgreementClient) -> Result<(), Error> {
    loop {
        let now = clock.now();
        let due = database
            .write(move |connection: &mut Connection| reports_claim(connection, now, LEASE, WAIT_MAX))
            .await?;
        if due.is_empty() {
            return Ok(());
        }
        for report in due {
            background_span("report a first purchase", deliver_one(database, clock, agreements, report))
                .await?;
        }
    }
}

async fn deliver_one(
    database: &Database,
    clock: &Clock,
    agreements: &AgreementClient,
    report: PurchaseReport,
) -> Result<(), Error> {
    let taken = agreements.report_purchase(&report).await;
    let now = clock.now();
    let customer = report.customer_id;
    match taken {
        Ok(()) => {
            database.write(move |connection: &mut Connection| report_done(connection, customer, now)).await
        }
        Err(status) => {
            let wait = backoff::wait(report.attempts.saturating_sub(1), RETRY_BASE, RETRY_MAX);
            tracing::warn!(%customer, attempts = report.attempts, %status, "agreement-svc did not accept a purchase report");
            let due_at = now + TimeDelta::from_std(wait).unwrap_or(LEASE);
            database
                .write(move |connection: &mut Connection| report_postpone(connection, customer, due_at))
                .await
        }
    }
}
