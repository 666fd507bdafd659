//! The fenced transaction: whatever the gate allowed is stored here, at most once for each request
//! id, and only if the answer is not older than a withdrawal that was applied (WD-3).

use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::query;
use chassis::request::{RequestKey, request_answered};
use diesel::prelude::*;
use diesel::query_dsl::methods::FilterDsl;
use uuid::Uuid;

use super::schema::fence;
use crate::rules::gate::{Answer, Permit};

/// How a gated transaction ended.
#[derive(Debug)]
pub(crate) enum Stored {
    Done,
    /// Somebody else was first with the same request id.
    SeenBefore,
    /// A withdrawal newer than the answer was applied: ask the gate again.
    AnswerOutdated,
    /// The answer is too old, or could have changed by itself: ask the gate again.
    AnswerStale,
    /// The row has changed since it was read.
    LostRace,
}

/// Why a gated transaction was rolled back.
enum Undone {
    Because(Stored),
    Failed(Error),
}

impl From<Error> for Undone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<diesel::result::Error> for Undone {
    fn from(error: diesel::result::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Stores an effect that rests on the gate's answer, and the answer to the caller under its request
/// id, in one transaction. `effect` says whether its row was still as it was read.
pub(crate) async fn store_gated(
    database: &Database,
    clock: &Clock,
    key: RequestKey,
    basis: (Answer, Permit),
    response: Vec<u8>,
    effect: impl FnOnce(&mut Connection) -> Result<bool, Error> + Send + 'static,
) -> Result<Stored, Error> {
    let clock = clock.clone();
    let write = move |connection: &mut Connection| {
        let (answer, permit) = basis;
        if !pass_fence(connection, answer.customer_id, permit.revision)? {
            return Err(Undone::Because(Stored::AnswerOutdated));
        }
        let now = clock.now();
        if !request_answered(connection, &key, &response, now)? {
            return Err(Undone::Because(Stored::SeenBefore));
        }
        if !effect(connection)? {
            return Err(Undone::Because(Stored::LostRace));
        }
        // Looked at last: the queue for the transaction, the fence and the request id may each have
        // taken longer than the answer may be old.
        if !answer.is_fresh(clock.now()) {
            return Err(Undone::Because(Stored::AnswerStale));
        }
        Ok(())
    };
    match database.write(write).await {
        Ok(()) => Ok(Stored::Done),
        Err(Undone::Because(stored)) => Ok(stored),
        Err(Undone::Failed(error)) => Err(error),
    }
}

/// Stores the answer to a request that changed nothing and rests on no answer of the gate; false
/// when somebody else was first with the same request id.
pub(crate) async fn store_answer(
    database: &Database,
    clock: &Clock,
    key: RequestKey,
    response: Vec<u8>,
) -> Result<bool, Error> {
    let now = clock.now();
    database
        .write(move |connection: &mut Connection| request_answered(connection, &key, &response, now))
        .await
}

/// Takes the customer's fence, unless a withdrawal newer than the answer was applied. Transactions
/// of one customer wait for each other here; those of different customers never do.
fn pass_fence(connection: &mut Connection, customer: Uuid, answer_revision: i64) -> Result<bool, Error> {
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
