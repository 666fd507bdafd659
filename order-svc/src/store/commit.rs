//! The transaction in which a change of a subscription takes effect, at most once for each idempotency key; that of orders
//! is in [`super::placement`]. The customer's fence holds a fencing token: the revision of the last withdrawal or end of a relationship that was applied.
//! What the gate allowed is stored only on an answer that is not older than that revision (WD-3), and that rests on no
//! acceptance whose withdrawal was applied (WD-3a): after a restore agreement-svc may count such an acceptance again.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use chassis::clock::Clock;
use chassis::database::row::at;
use chassis::database::{Connection, Database, Error, Kept, asking};
use chassis::idempotency::{IdempotencyKey, response_store};
use chassis::query;
use diesel::prelude::*;
use diesel::query_dsl::methods::FilterDsl;
use uuid::Uuid;

use super::open::are_more_open;
use super::relationship::relationships_of;
use super::schema::fence;
use super::subscription::subscription_change;
use super::withdrawal::withdrawn_of;
use crate::rules::Time;
use crate::rules::gate::{Answer, Approval};
use crate::rules::order::Parties;
use crate::rules::relationship::Needed;
use crate::rules::subscription::{Change, Subscription};

/// How such a transaction ended.
#[derive(Debug)]
pub(crate) enum Commit {
    Done,
    /// Another call was first with the same request id.
    SeenBefore,
    /// The gate's answer does not count any more.
    Void(Void),
    /// The answer is too old, or could have changed by itself: ask the gate again.
    AnswerStale,
    /// The row has changed since it was read.
    LostRace,
    /// The relationship that the caller needs is not active any more (ROLE-6).
    NotRelated,
}

/// Why an answer of the gate does not count, however young it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Void {
    /// A withdrawal or end of a relationship newer than the answer was applied, of this revision: ask the gate again.
    Outdated { fence: i64 },
    /// It rests on an acceptance whose withdrawal was applied here (WD-3a).
    EvidenceWithdrawn { acceptance_id: Uuid },
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

/// What a request writes.
#[derive(Debug)]
pub(crate) struct Write {
    /// The subscription after the change.
    pub after: Subscription,
    /// The version that the change was decided on.
    pub version: i64,
    pub change: Change,
    /// The relationship that the caller needs (ROLE-6).
    pub needed: Option<Needed>,
}

/// Stores what a request writes, and the answer to the caller under its request id, in one transaction.
/// `basis` is the gate's answer that it rests on; what is not gated has none. Where it is so already, only the answer is stored.
pub(crate) async fn commit(
    database: &Database,
    clock: &Clock,
    key: IdempotencyKey,
    basis: Option<(Answer, Approval)>,
    response: Vec<u8>,
    writes: Option<Write>,
) -> Result<Commit, Error> {
    let clock = clock.clone();
    let write = move |connection: &mut Connection| match &basis {
        None => commit_free(connection, &key, &response, clock.now(), writes.as_ref()),
        Some((answer, approval)) => {
            commit_gated(connection, (answer, approval), &key, &response, &clock, writes.as_ref())
        }
    };
    ended(database.write(write).await)
}

/// Writes behind the customer's fence, if the answer still holds when all is written.
fn commit_gated(
    connection: &mut Connection,
    (answer, approval): (&Answer, &Approval),
    key: &IdempotencyKey,
    response: &[u8],
    clock: &Clock,
    writes: Option<&Write>,
) -> Result<(), Rollback> {
    let fence = fence_take(connection, answer.customer_id, approval.revision)?;
    if let Some(void) = void(connection, fence, approval)? {
        return Err(Rollback::Because(Commit::Void(void)));
    }
    commit_once(connection, key, response, clock.now(), writes)?;
    // The age is checked last: the queue for the transaction, the fence and the request id may each have
    // taken longer than the answer may be old.
    if !answer.is_fresh(clock.now()) {
        return Err(Rollback::Because(Commit::AnswerStale));
    }
    Ok(())
}

/// Writes what needs no answer of the gate, if the relationship that the caller needs is still active behind the customer's
/// fence: its end takes the fence, too.
fn commit_free(
    connection: &mut Connection,
    key: &IdempotencyKey,
    response: &[u8],
    now: Time,
    writes: Option<&Write>,
) -> Result<(), Rollback> {
    if let Some(Write { after, needed: Some(needed), .. }) = writes {
        let Subscription { customer_id, payer_id, .. } = *after;
        fence_take(connection, customer_id, i64::MAX)?;
        let known = relationships_of(connection, customer_id, payer_id)?;
        if !known.is_some_and(|known| needed.is_met_by(&known)) {
            return Err(Rollback::Because(Commit::NotRelated));
        }
    }
    commit_once(connection, key, response, now, writes)
}

/// Writes unless the request id was answered before (idempotency).
fn commit_once(
    connection: &mut Connection,
    key: &IdempotencyKey,
    response: &[u8],
    now: Time,
    writes: Option<&Write>,
) -> Result<(), Rollback> {
    if !response_store(connection, key, response, now)? {
        return Err(Rollback::Because(Commit::SeenBefore));
    }
    if let Some(Write { after, version, change, .. }) = writes
        && !subscription_change(connection, after, *version, slice::from_ref(change))?
    {
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

/// Takes the customer's fence, unless a withdrawal or end of a relationship newer than the answer was applied: then its
/// revision is returned. Transactions of one customer wait for each other here, and for a transaction of orders that has the
/// customer among others.
fn fence_take(
    connection: &mut Connection,
    customer: Uuid,
    answer_revision: i64,
) -> Result<Option<i64>, Error> {
    let passed: Option<i64> = query!(&mut *connection, c => {
        let take = FilterDsl::filter(
            diesel::insert_into(fence::table)
                .values((fence::customer_id.eq(customer.to_string()), fence::fence_revision.eq(0)))
                .on_conflict(fence::customer_id)
                .do_update()
                .set(fence::fence_revision.eq(fence::fence_revision)),
            fence::fence_revision.le(answer_revision),
        );
        Kept(take.returning(fence::fence_revision)).get_result(c).optional()
    })?;
    if passed.is_some() {
        return Ok(None);
    }
    let revision = query!(connection, c => {
        fence::table.find(customer.to_string()).select(fence::fence_revision).first(c)
    })?;
    Ok(Some(revision))
}

/// Takes the fences of several customers, and gives the revision of each. `waits` says whether for another transaction that has
/// one of them: only a transaction that takes a single fence may, or some could wait for each other in a circle. Fences that
/// another transaction has are left out otherwise.
pub(super) fn fences_take(
    connection: &mut Connection,
    customers: &BTreeSet<Uuid>,
    waits: bool,
) -> Result<BTreeMap<Uuid, i64>, Error> {
    let new_row = |id: &Uuid| (fence::customer_id.eq(id.to_string()), fence::fence_revision.eq(0));
    let ids: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    let known = || QueryDsl::filter(fence::table, fence::customer_id.eq_any(&ids)).order(fence::customer_id);
    asking(connection);
    let mut taken: Vec<(String, i64)> = match connection {
        // The transaction has the only lock there is.
        Connection::Sqlite(c) => {
            let mut taken = vec![];
            for customer in customers {
                let take = diesel::insert_into(fence::table)
                    .values(new_row(customer))
                    .on_conflict(fence::customer_id)
                    .do_update()
                    .set(fence::fence_revision.eq(fence::fence_revision))
                    .returning((fence::customer_id, fence::fence_revision));
                taken.push(Kept(take).get_result(c)?);
            }
            taken
        }
        Connection::Postgres(c) => match waits {
            true => known().for_update().load(c)?,
            false => known().for_update().skip_locked().load(c)?,
        },
    };
    if taken.len() < customers.len() {
        let insert = |connection: &mut Connection| fences_insert(connection, customers);
        let new = if waits { Some(insert(connection)?) } else { connection.without_waiting(insert)? };
        taken.extend(new.unwrap_or_default());
    }
    if waits
        && taken.len() < customers.len()
        && let Connection::Postgres(c) = connection
    {
        // Another transaction has just made the row.
        taken = known().for_update().load(c)?;
    }
    let read = |(id, revision): &(String, i64)| Ok((at("fence", id).parse("customer_id", id)?, *revision));
    taken.iter().map(read).collect()
}

/// Makes the fences that are not there, and gives them. One that another transaction has just made is not among them.
fn fences_insert(
    connection: &mut Connection,
    customers: &BTreeSet<Uuid>,
) -> Result<Vec<(String, i64)>, Error> {
    asking(connection);
    let Connection::Postgres(c) = connection else { return Ok(vec![]) };
    let ids: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    // To insert a row that is there would wait for the transaction that has it.
    let there = QueryDsl::filter(fence::table, fence::customer_id.eq_any(&ids));
    let there: Vec<String> = QueryDsl::select(there, fence::customer_id).load(c)?;
    let new = ids.iter().filter(|id| !there.contains(id));
    let rows: Vec<_> = new.map(|id| (fence::customer_id.eq(id), fence::fence_revision.eq(0))).collect();
    let insert = diesel::insert_into(fence::table).values(rows).on_conflict_do_nothing();
    Ok(insert.returning((fence::customer_id, fence::fence_revision)).load(c)?)
}

/// Why nothing would be stored on the gate's answer about a customer, given at a revision; for what is only validated (ORD-5).
pub(crate) fn answer_void(
    connection: &mut Connection,
    customer: Uuid,
    revision: i64,
    approval: &Approval,
) -> Result<Option<Void>, Error> {
    use diesel::query_dsl::methods::{FilterDsl, SelectDsl};
    let above =
        FilterDsl::filter(fence::table.find(customer.to_string()), fence::fence_revision.gt(revision));
    let above = SelectDsl::select(above, fence::fence_revision);
    let fence = query!(&mut *connection, c => above.first(c).optional())?;
    void(connection, fence, approval)
}

/// `fence`: the customer's, if the answer is older.
fn void(connection: &mut Connection, fence: Option<i64>, approval: &Approval) -> Result<Option<Void>, Error> {
    if let Some(fence) = fence {
        return Ok(Some(Void::Outdated { fence }));
    }
    match &approval.evidence {
        Some(evidence) if !withdrawn_of(connection, &[evidence.acceptance_id])?.is_empty() => {
            Ok(Some(Void::EvidenceWithdrawn { acceptance_id: evidence.acceptance_id }))
        }
        Some(_) | None => Ok(None),
    }
}

/// Whether payer and customer may have so many more open subscriptions (SUB-7). Behind the fence the answer is exact.
pub(crate) fn has_room(
    connection: &mut Connection,
    parties: &Parties,
    more: usize,
    open_max: u32,
) -> Result<bool, Error> {
    let open_max = i64::from(open_max) - i64::try_from(more).unwrap_or(i64::from(u32::MAX));
    if open_max < 0 {
        return Ok(false);
    }
    Ok(!are_more_open(connection, parties.customer_id, parties.payer_id, open_max)?)
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

#[cfg(test)]
mod tests {
    use chassis::auth::Channel;
    use chassis::idempotency::RequestHasher;
    use chrono::DateTime;
    use diesel::connection::SimpleConnection;
    use proto::identity::TenantKind;

    use super::*;
    use crate::rules::subscription::{Cause, ChangeKind, State, tests::subscription};
    use crate::store::{MIGRATIONS, relationship};

    /// ROLE-6: what needs no answer of the gate is stored only while the relationship that the caller needs is active, and
    /// known. Between its look and the transaction it may have ended.
    #[tokio::test]
    async fn a_relationship_that_ended_meanwhile_stores_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("orders.sqlite").display());
        let database =
            Database::open(&url.parse().unwrap(), true, chassis::database::Writes::Concurrent).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        let reseller = Uuid::from_u128(9);
        let subscription = subscription(State::Active);
        let relationship = crate::rules::relationship::Relationship {
            customer_id: subscription.customer_id,
            payer_id: subscription.payer_id,
            reseller_id: Some(reseller),
        };
        // The change is of another version than the row's, which is not there: it comes that far and no further.
        let past_the_check = "LostRace";
        for (revision, is_active, cursor, expected) in [
            (1, true, "revision = 1, relationships_revision = 1", past_the_check),
            (2, false, "revision = 2, relationships_revision = 2", "NotRelated"),
            (3, true, "revision = 3, relationships_revision = 3", past_the_check),
            (3, true, "revision = 4, relationships_revision = 3", "NotRelated"),
            (
                3,
                true,
                "revision = 4, relationships_revision = 4, relationships_complete_at = 5",
                "NotRelated",
            ),
            (3, true, "revision = 5, relationships_revision = 5", past_the_check),
        ] {
            let sql = format!("UPDATE follower SET {cursor}");
            let arrange = move |connection: &mut Connection| {
                query!(&mut *connection, c => c.batch_execute(&sql))?;
                relationship::relationship_write(connection, relationship, is_active, revision)
            };
            database.write(arrange).await.unwrap();
            for (needed, expected) in [
                (Some(Needed::WithReseller(reseller)), expected),
                (Some(Needed::Any), expected),
                (Some(Needed::WithReseller(Uuid::from_u128(8))), "NotRelated"),
                (None, past_the_check),
            ] {
                let caller = chassis::auth::Caller {
                    tenant_kind: TenantKind::Partner.into(),
                    tenant_id: reseller,
                    user_id: reseller,
                    roles: vec![],
                    channel: Channel::Api,
                    client: None,
                };
                let key = RequestHasher::default().key(&caller, "Call", Uuid::from_u128(1), &());
                let now = DateTime::from_timestamp(0, 0).unwrap();
                let step = crate::rules::subscription::Step {
                    after: subscription.clone(),
                    kind: ChangeKind::Suspended,
                };
                let cause = Cause::RelationshipEnded { revision: 1 };
                let change = step.change(5, cause, None, now);
                let write = Some(Write { after: subscription.clone(), version: 7, change, needed });
                let stored = commit(&database, &Clock::system(), key, None, vec![], write).await.unwrap();
                assert_eq!(format!("{stored:?}"), expected, "{cursor} {needed:?}");
            }
        }
    }
}
