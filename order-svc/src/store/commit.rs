//! The transactions in which requests take effect, at most once for each request id. Whatever the
//! gate allowed is stored behind the customer's fence, only if the answer is not older than a
//! withdrawal that was applied (WD-3).

use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::idempotency::{IdempotencyKey, answer_store};
use chassis::query;
use diesel::prelude::*;
use diesel::query_dsl::methods::FilterDsl;
use uuid::Uuid;

use super::schema::fence;
use crate::rules::Time;
use crate::rules::gate::{Answer, Permit};

/// How such a transaction ended.
#[derive(Debug)]
pub(crate) enum Commit {
    Done,
    /// Another call was first with the same request id.
    SeenBefore,
    /// A withdrawal newer than the answer was applied: ask the gate again.
    AnswerOutdated,
    /// The answer is too old, or could have changed by itself: ask the gate again.
    AnswerStale,
    /// The row has changed since it was read.
    LostRace,
}

/// Why such a transaction was rolled back.
enum Rollback {
    Because(Commit),
    Failed(Error),
}

impl From<Error> for Rollback {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<diesel::result::Error> for Rollback {
    fn from(error: diesel::result::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Stores an effect that rests on the gate's answer, and the answer to the caller under its request
/// id, in one transaction. `effect` says whether its row was still as it was read.
pub(crate) async fn commit_gated(
    database: &Database,
    clock: &Clock,
    key: IdempotencyKey,
    basis: (Answer, Permit),
    response: Vec<u8>,
    effect: impl FnOnce(&mut Connection) -> Result<bool, Error> + Send + 'static,
) -> Result<Commit, Error> {
    let clock = clock.clone();
    let write = move |connection: &mut Connection| {
        let (answer, permit) = basis;
        if !check_fence(connection, answer.customer_id, permit.revision)? {
            return Err(Rollback::Because(Commit::AnswerOutdated));
        }
        commit_once(connection, &key, &response, clock.now(), effect)?;
        // Looked at last: the queue for the transaction, the fence and the request id may each have
        // taken longer than the answer may be old.
        if !answer.is_fresh(clock.now()) {
            return Err(Rollback::Because(Commit::AnswerStale));
        }
        Ok(())
    };
    ended(database.write(write).await)
}

/// Stores an effect that needs no answer of the gate, and the answer to the caller under its request
/// id, in one transaction. `effect` says whether its row was still as it was read.
pub(crate) async fn commit_ungated(
    database: &Database,
    clock: &Clock,
    key: IdempotencyKey,
    response: Vec<u8>,
    effect: impl FnOnce(&mut Connection) -> Result<bool, Error> + Send + 'static,
) -> Result<Commit, Error> {
    let now = clock.now();
    let write = move |connection: &mut Connection| commit_once(connection, &key, &response, now, effect);
    ended(database.write(write).await)
}

fn commit_once(
    connection: &mut Connection,
    key: &IdempotencyKey,
    response: &[u8],
    now: Time,
    effect: impl FnOnce(&mut Connection) -> Result<bool, Error>,
) -> Result<(), Rollback> {
    if !answer_store(connection, key, response, now)? {
        return Err(Rollback::Because(Commit::SeenBefore));
    }
    if !effect(connection)? {
        return Err(Rollback::Because(Commit::LostRace));
    }
    Ok(())
}

fn ended(written: Result<(), Rollback>) -> Result<Commit, Error> {
    match written {
        Ok(()) => Ok(Commit::Done),
        Err(Rollback::Because(stored)) => Ok(stored),
        Err(Rollback::Failed(error)) => Err(error),
    }
}

/// Takes the customer's fence, unless a withdrawal newer than the answer was applied. Transactions
/// of one customer wait for each other here; those of different customers never do.
fn check_fence(connection: &mut Connection, customer: Uuid, answer_revision: i64) -> Result<bool, Error> {
    let passed = query!(connection, c => {
        FilterDsl::filter(
            diesel::insert_into(fence::table)
                .values((fence::customer_id.eq(customer.to_string()), fence::fence_revision.eq(0)))
                .on_conflict(fence::customer_id)
                .do_update()
                .set(fence::fence_revision.eq(fence::fence_revision)),
            fence::fence_revision.le(answer_revision),
        )
        .execute(c)
    })?;
    Ok(passed > 0)
}

/// Raises a customer's fence to the revision of an event, past which no older answer comes. It never falls,
/// also when an event is applied again.
pub(super) fn fence_raise(connection: &mut Connection, customer: Uuid, revision: i64) -> Result<(), Error> {
    query!(connection, c => {
        FilterDsl::filter(
            diesel::insert_into(fence::table)
                .values((fence::customer_id.eq(customer.to_string()), fence::fence_revision.eq(revision)))
                .on_conflict(fence::customer_id)
                .do_update()
                .set(fence::fence_revision.eq(revision)),
            fence::fence_revision.lt(revision),
        )
        .execute(c)
    })?;
    Ok(())
}
