//! The fenced transaction: whatever the gate allowed is stored here, at most once for each request
//! id, and only if the answer is not older than a withdrawal that was applied (WD-3).

use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::query;
use diesel::prelude::*;
use diesel::query_dsl::methods::FilterDsl;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::schema::{fence, request};
use crate::rules::gate::{Answer, Permit};

/// A request that must have at most one effect (I4).
#[derive(Clone, Debug)]
pub(crate) struct RequestKey {
    /// The caller's tenant.
    pub tenant_id: Uuid,
    pub call: &'static str,
    pub request_id: Uuid,
    /// The hash of everything the request says besides its id.
    content: String,
}

impl RequestKey {
    /// `content` is the encoded request without its id.
    pub(crate) fn new(tenant_id: Uuid, call: &'static str, request_id: Uuid, content: &[u8]) -> Self {
        let content = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { tenant_id, call, request_id, content }
    }
}

/// What is known of a request id.
#[derive(Debug)]
pub(crate) enum Seen {
    Never,
    /// The first answer, to be given again.
    Answered(Vec<u8>),
    /// It was used for other content.
    OtherContent,
}

/// How a gated transaction ended.
#[derive(Debug)]
pub(crate) enum Stored {
    Done,
    /// Somebody else was first with the same request id.
    Seen(Seen),
    /// The answer is too old to store anything on: ask the gate again.
    AnswerOutdated,
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

pub(crate) fn request_seen(connection: &mut Connection, key: &RequestKey) -> Result<Seen, Error> {
    let seen: Option<(String, Vec<u8>)> = query!(connection, c => {
        request::table
            .find((key.tenant_id.to_string(), key.call, key.request_id.to_string()))
            .select((request::content, request::answer))
            .first(c)
            .optional()
    })?;
    Ok(match seen {
        None => Seen::Never,
        Some((content, answer)) if content == key.content => Seen::Answered(answer),
        Some(_) => Seen::OtherContent,
    })
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
        // The queue before a transaction may be long, so age is looked at inside it.
        let now = clock.now();
        if !answer.is_fresh(now) || !pass_fence(connection, answer.customer_id, permit.revision)? {
            return Err(Undone::Because(Stored::AnswerOutdated));
        }
        let inserted = query!(connection, c => {
            diesel::insert_into(request::table)
                .values((
                    request::tenant_id.eq(key.tenant_id.to_string()),
                    request::call.eq(key.call),
                    request::request_id.eq(key.request_id.to_string()),
                    request::content.eq(&key.content),
                    request::answer.eq(&response),
                    request::answered_at.eq(now.naive_utc()),
                ))
                .on_conflict_do_nothing()
                .execute(c)
        })?;
        if inserted == 0 {
            return Err(Undone::Because(Stored::Seen(request_seen(connection, &key)?)));
        }
        if effect(connection)? { Ok(()) } else { Err(Undone::Because(Stored::LostRace)) }
    };
    match database.write(write).await {
        Ok(()) => Ok(Stored::Done),
        Err(Undone::Because(stored)) => Ok(stored),
        Err(Undone::Failed(error)) => Err(error),
    }
}

/// Stores the answer to a request that changed nothing and rests on no answer of the gate.
pub(crate) async fn store_answer(
    database: &Database,
    clock: &Clock,
    key: RequestKey,
    response: Vec<u8>,
) -> Result<Seen, Error> {
    let now = clock.now();
    database
        .write(move |connection: &mut Connection| {
            query!(connection, c => {
                diesel::insert_into(request::table)
                    .values((
                        request::tenant_id.eq(key.tenant_id.to_string()),
                        request::call.eq(key.call),
                        request::request_id.eq(key.request_id.to_string()),
                        request::content.eq(&key.content),
                        request::answer.eq(&response),
                        request::answered_at.eq(now.naive_utc()),
                    ))
                    .on_conflict_do_nothing()
                    .execute(c)
            })?;
            request_seen(connection, &key)
        })
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
