//! Processes terms that have ended (SUB-3): renews what renews by itself, ungated (GATE-1), and expires
//! the rest.
//!
//! A relationship that ended, or an acceptance that was withdrawn, before the term's end comes first
//! (CUS-3, WD-2). So a term is processed only once agreement-svc's history is known here beyond its
//! end. Nothing is lost by waiting: until then the subscription cannot be changed.

use std::time::Duration;

use chassis::backoff;
use chassis::clock::{Clock, Time};
use chassis::database::{Connection, Database, Error};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use uuid::Uuid;

use super::Followed;
use crate::rules::subscription::{Cause, Step};
use crate::store::subscription::{
    Due, changes_insert, due_list, due_of, subscription_due, subscription_update,
};

/// How often to look for ended terms. With the history, which is known a second or two late, a renewal is
/// about three seconds late at most while all is well.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits besides, before jitter, while everything fails: the first, and the longest. A single damaged
/// row must not make the others late by much.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Subscriptions looked up at a time. After so many it is found out anew whether the database answers.
const PAGE_SIZE: i64 = 64;

/// Transactions at a time: half of the connections that PostgreSQL is given, so that calls go on. SQLite
/// commits them together.
const AT_A_TIME: usize = 4;

/// What became of an ended term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Settled,
    /// There was nothing left to do.
    NotDue,
    /// Another replica, or a change, was first.
    LostRace,
    /// The row is damaged.
    Failed,
}

/// Processes ended terms until `stop` says so, as far as agreement-svc's history has been `followed`.
pub(crate) async fn run(
    database: Database,
    clock: Clock,
    followed: watch::Receiver<Followed>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0;
    loop {
        // Taken before anything is read: what was applied until then is in what is read.
        let known_until = followed.borrow().until;
        let is_futile = match known_until {
            None => false,
            Some(known_until) => settle_all(&database, &clock, known_until.min(clock.now()), &stop).await,
        };
        failures = if is_futile { failures + 1 } else { 0 };
        let pause = match failures {
            0 => LOOK_INTERVAL,
            failures => LOOK_INTERVAL + backoff::wait(failures - 1, RETRY_BASE, RETRY_MAX),
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Processes every term that has ended until then, whatever happens to some of them; true when there was
/// nothing but failures.
async fn settle_all(database: &Database, clock: &Clock, until: Time, stop: &watch::Receiver<bool>) -> bool {
    let (mut failed, mut settled) = (0, 0);
    let mut after: Option<Due> = None;
    loop {
        let list = move |connection: &mut Connection| due_list(connection, until, after.as_ref(), PAGE_SIZE);
        let page: Vec<Due> = match database.read(list).await {
            Ok(page) => page,
            Err(error @ Error::Unavailable(_)) => {
                tracing::warn!(%error, "ended terms cannot be looked for; trying again");
                return true;
            }
            Err(error) => {
                tracing::error!(%error, "ended terms cannot be looked for");
                return true;
            }
        };
        after = page.last().cloned();
        let outcomes = stream::iter(page)
            .take_while(|_| std::future::ready(!*stop.borrow()))
            .map(|(_, id)| settle_one(database, clock, id, until))
            .buffer_unordered(AT_A_TIME);
        let outcomes: Result<Vec<Outcome>, Error> = outcomes.try_collect().await;
        let Ok(outcomes) = outcomes else { return true };
        failed += outcomes.iter().filter(|outcome| **outcome == Outcome::Failed).count();
        settled += outcomes.iter().filter(|outcome| **outcome == Outcome::Settled).count();
        if after.is_none() || *stop.borrow() {
            return failed > 0 && settled == 0;
        }
    }
}

/// Processes the terms of one customer that have ended until then.
///
/// # Errors
/// The database is unavailable. Damaged rows are passed over.
pub(super) async fn settle_customer(
    database: &Database,
    clock: &Clock,
    customer: Uuid,
    until: Time,
) -> Result<(), Error> {
    let list = move |connection: &mut Connection| due_of(connection, customer, until);
    for id in database.list(list).await? {
        while settle_one(database, clock, id.clone(), until).await? == Outcome::LostRace {}
    }
    Ok(())
}

/// Processes the ended terms of one subscription; a damaged row is logged.
///
/// # Errors
/// The database is unavailable.
async fn settle_one(database: &Database, clock: &Clock, id: String, until: Time) -> Result<Outcome, Error> {
    match try_settle(database, clock, id.clone(), until).await {
        Err(error @ Error::Unavailable(_)) => {
            tracing::warn!(subscription = %id, %error, "an ended term is not processed yet; trying again");
            Err(error)
        }
        Err(error) => {
            tracing::error!(subscription = %id, %error, "an ended term cannot be processed");
            Ok(Outcome::Failed)
        }
        settled => settled,
    }
}

/// Processes the ended terms of one subscription in one transaction.
async fn try_settle(database: &Database, clock: &Clock, id: String, until: Time) -> Result<Outcome, Error> {
    let read = move |connection: &mut Connection| subscription_due(connection, &id, until);
    let Some(known) = database.read(read).await? else { return Ok(Outcome::NotDue) };
    let steps = known.settle(until);
    let Some(Step { after, .. }) = steps.last().cloned() else { return Ok(Outcome::NotDue) };
    let now = clock.now();
    let change = |step: &Step| (known.id, step.change(known.quantity, Cause::TermEnded, None, now));
    let changes: Vec<_> = steps.iter().map(change).collect();
    let write = move |connection: &mut Connection| {
        let is_as_read = subscription_update(connection, &after, known.version)?;
        if is_as_read {
            changes_insert(connection, &changes)?;
        }
        Ok(if is_as_read { Outcome::Settled } else { Outcome::LostRace })
    };
    database.write(write).await
}
