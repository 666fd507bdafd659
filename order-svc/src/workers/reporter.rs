//! Tells agreement-svc of first purchases, at least once each, in its own time.

use std::time::Duration;

use chassis::backoff;
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chrono::TimeDelta;
use tokio::sync::watch;

use crate::agreements::Agreements;
use crate::store::report::{Report, report_done, report_postpone, reports_claim};

/// How long a claimed report is left to whoever claimed it; longer than one delivery can take.
const LEASE: TimeDelta = TimeDelta::seconds(60);

/// How often to look without having been woken: for reports that failed, and for other replicas'.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits after failures, before jitter: the first, and the longest.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Delivers reports until `stop` says so. `orders` changes when an order has been stored.
pub(crate) async fn run(
    database: Database,
    clock: Clock,
    agreements: Agreements,
    mut orders: watch::Receiver<()>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        if let Err(error) = deliver(&database, &clock, &agreements).await {
            tracing::warn!(%error, "purchase reports cannot be read; trying again");
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Ok(()) = orders.changed() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

async fn deliver(database: &Database, clock: &Clock, agreements: &Agreements) -> Result<(), Error> {
    loop {
        let now = clock.now();
        let due =
            database.write(move |connection: &mut Connection| reports_claim(connection, now, LEASE)).await?;
        if due.is_empty() {
            return Ok(());
        }
        for report in due {
            settle(database, clock, agreements, report).await?;
        }
    }
}

async fn settle(
    database: &Database,
    clock: &Clock,
    agreements: &Agreements,
    report: Report,
) -> Result<(), Error> {
    let taken = agreements.report_purchase(&report).await;
    let now = clock.now();
    let customer = report.customer_id;
    match taken {
        Ok(()) => {
            database.write(move |connection: &mut Connection| report_done(connection, customer, now)).await
        }
        Err(status) => {
            let wait = backoff::wait(report.attempts, RETRY_BASE, RETRY_MAX);
            tracing::warn!(%customer, attempts = report.attempts, %status, "a purchase report was not taken");
            let due_at = now + TimeDelta::from_std(wait).unwrap_or(LEASE);
            database
                .write(move |connection: &mut Connection| report_postpone(connection, customer, due_at))
                .await
        }
    }
}
