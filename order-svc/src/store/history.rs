//! Applies withdrawals and relationship ends: the transaction that takes the next event of agreement-svc's history, raises
//! the fence, cancels subscriptions, and moves the cursor (the one row of the table `follower`).
//!
//! It takes its locks in the order cursor, fence, subscriptions; gated transactions begin at the fence,
//! so that what a customer buys and what is withdrawn for it happen one after the other.

use std::collections::BTreeSet;

use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::commit::fence_raise;
use super::schema::{fence, follower, subscription};
use super::subscription::{ChangedRow, changes_insert, subscriptions_open};
use super::withdrawal::withdrawal_insert;
use crate::rules::Time;
use crate::rules::history::{Consequence, Cursor, HistoryPoint, Restore};
use crate::rules::subscription::{Cause, Change, ChangeKind, State};
use crate::rules::withdrawal::{Effect, SubscriptionFacts, WithdrawalOutcome};

/// Statements have a limited number of parameters.
const ROWS_PER_STATEMENT: usize = 1000;

/// Of what rests on lost answers as many are named: enough to begin with, few enough for a log.
const NAMED_MAX: i64 = 100;

/// How far the history has been applied.
pub(crate) fn cursor_read(connection: &mut Connection) -> Result<Cursor, Error> {
    let (revision, head): (i64, Option<String>) = query!(connection, c => {
        follower::table.select((follower::revision, follower::head)).first(c)
    })?;
    // The hash is of another revision if an older version of the service advanced the cursor.
    let hash = head.and_then(|head| Some(head.strip_prefix(&format!("{revision}:"))?.to_owned()));
    Ok(Cursor { revision, hash })
}

/// The revision of the last event that was applied.
pub(crate) fn cursor_revision(connection: &mut Connection) -> Result<i64, Error> {
    Ok(query!(connection, c => follower::table.select(follower::revision).first(c))?)
}

/// Applies the history from the event after `applied` up to a point; false, and nothing done, when that
/// is not how far it has been applied.
pub(crate) fn history_apply(
    connection: &mut Connection,
    applied: i64,
    point: &HistoryPoint,
    now: Time,
) -> Result<bool, Error> {
    if !cursor_advance(connection, applied, &point.cursor)? {
        return Ok(false);
    }
    let revision = point.cursor.revision;
    match &point.consequence {
        None => {}
        Some(Consequence::Withdrawn(withdrawal)) => {
            fence_raise(connection, withdrawal.customer_id, revision)?;
            let open = subscriptions_open(connection, withdrawal.customer_id)?;
            let mut effects = vec![];
            for (id, facts) in open {
                if let Some(outcome) = withdrawal.effect_on(revision, &facts) {
                    let SubscriptionFacts { payer_id, reseller_id, .. } = facts;
                    effects.push(Effect { subscription_id: id, payer_id, reseller_id, outcome });
                }
            }
            let is_cancelled = |effect: &Effect| effect.outcome == WithdrawalOutcome::Cancelled;
            let cancelled: Vec<Uuid> = effects
                .iter()
                .filter(|effect| is_cancelled(effect))
                .map(|effect| effect.subscription_id)
                .collect();
            let cause = Cause::AgreementWithdrawn { revision };
            let changed = subscriptions_cancel(connection, &cancelled)?;
            changes_record(connection, &changed, ChangeKind::Cancelled, cause, now)?;
            // What ended by itself meanwhile was not cancelled.
            let changed: BTreeSet<&str> = changed.iter().map(|row| row.id.as_str()).collect();
            effects.retain(|effect| {
                !is_cancelled(effect) || changed.contains(effect.subscription_id.to_string().as_str())
            });
            withdrawal_insert(connection, point, withdrawal, &effects, now)?;
        }
        Some(Consequence::RelationshipEnded(end)) => {
            fence_raise(connection, end.customer_id, revision)?;
            let open = subscriptions_open(connection, end.customer_id)?;
            let concerned = open.into_iter().filter(|(_, facts)| end.stops_renewal(revision, facts));
            let ids: Vec<Uuid> = concerned.map(|(id, _)| id).collect();
            let changed = subscriptions_stop_renewing(connection, &ids)?;
            let cause = Cause::RelationshipEnded { revision };
            changes_record(connection, &changed, ChangeKind::AutoRenewOff, cause, now)?;
        }
    }
    Ok(true)
}

/// Takes the row back to the beginning of the history, so that all of it is applied again; false, and nothing
/// done, when `applied` is not how far it has been applied.
pub(crate) fn cursor_reset(connection: &mut Connection, applied: i64) -> Result<bool, Error> {
    cursor_advance(connection, applied, &Cursor::default())
}

fn cursor_advance(connection: &mut Connection, applied: i64, to: &Cursor) -> Result<bool, Error> {
    let head = to.hash.as_ref().map(|hash| format!("{}:{hash}", to.revision));
    let moved = query!(connection, c => {
        diesel::update(follower::table.filter(follower::revision.eq(applied)))
            .set((follower::revision.eq(to.revision), follower::head.eq(head)))
            .execute(c)
    })?;
    Ok(moved > 0)
}

/// What is left here of the part that a restore lost.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// Subscriptions that have not ended and rest on answers of it, and the first of them with their customers.
    pub subscriptions: i64,
    pub named_subscriptions: Vec<(String, String)>,
    /// Customers of whom a withdrawal or the end of a relationship was lost, and the first of them. Their fence keeps
    /// what agreement-svc says of them now from being used.
    pub customers: i64,
    pub named_customers: Vec<String>,
}

pub(crate) fn orphans(connection: &mut Connection, lost: Restore) -> Result<Orphans, Error> {
    let Restore { last_revision, revision } = lost;
    let (subscriptions, named_subscriptions) = query!(&mut *connection, c => {
        let resting = subscription::table
            .filter(subscription::answer_revision.gt(last_revision))
            .filter(subscription::answer_revision.lt(revision))
            .filter(subscription::state.eq_any([State::Active.into_str(), State::Suspended.into_str()]));
        (
            resting.clone().count().get_result(c)?,
            resting
                .order(subscription::id)
                .limit(NAMED_MAX)
                .select((subscription::id, subscription::customer_id))
                .load(c)?,
        )
    });
    let (customers, named_customers) = query!(connection, c => {
        let closed =
            fence::table.filter(fence::fence_revision.gt(last_revision)).filter(fence::fence_revision.lt(revision));
        (
            closed.count().get_result(c)?,
            closed.order(fence::customer_id).limit(NAMED_MAX).select(fence::customer_id).load(c)?,
        )
    });
    Ok(Orphans { subscriptions, named_subscriptions, customers, named_customers })
}

/// Cancels the subscriptions, unless they have ended.
fn subscriptions_cancel(connection: &mut Connection, ids: &[Uuid]) -> Result<Vec<ChangedRow>, Error> {
    let mut changed = vec![];
    for ids in ids.chunks(ROWS_PER_STATEMENT) {
        let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        let rows: Vec<ChangedRow> = query!(&mut *connection, c => {
            diesel::update(
                subscription::table
                    .filter(subscription::id.eq_any(&ids))
                    .filter(subscription::state.eq_any([State::Active.into_str(), State::Suspended.into_str()])),
            )
            .set((
                subscription::state.eq(State::Cancelled.into_str()),
                subscription::due_at.eq(None::<NaiveDateTime>),
                subscription::version.eq(subscription::version + 1),
            ))
            .returning(ChangedRow::as_returning())
            .get_results(c)
        })?;
        changed.extend(rows);
    }
    Ok(changed)
}

/// Switches the automatic renewal of the subscriptions off, unless they have ended or it is off.
fn subscriptions_stop_renewing(connection: &mut Connection, ids: &[Uuid]) -> Result<Vec<ChangedRow>, Error> {
    let mut changed = vec![];
    for ids in ids.chunks(ROWS_PER_STATEMENT) {
        let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        let rows: Vec<ChangedRow> = query!(&mut *connection, c => {
            diesel::update(
                subscription::table
                    .filter(subscription::id.eq_any(&ids))
                    .filter(subscription::state.eq_any([State::Active.into_str(), State::Suspended.into_str()]))
                    .filter(subscription::auto_renew.eq(true)),
            )
            .set((subscription::auto_renew.eq(false), subscription::version.eq(subscription::version + 1)))
            .returning(ChangedRow::as_returning())
            .get_results(c)
        })?;
        changed.extend(rows);
    }
    Ok(changed)
}

fn changes_record(
    connection: &mut Connection,
    changed: &[ChangedRow],
    kind: ChangeKind,
    cause: Cause,
    now: Time,
) -> Result<(), Error> {
    for changed in changed.chunks(ROWS_PER_STATEMENT) {
        let changes: Result<Vec<(Uuid, Change)>, Error> =
            changed.iter().map(|row| row.change(kind, cause, now)).collect();
        changes_insert(connection, &changes?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chassis::database::{Database, Writes};
    use diesel::connection::SimpleConnection;
    use tempfile::TempDir;

    use super::*;
    use crate::store::MIGRATIONS;

    fn database() -> (Database, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("orders.sqlite").display());
        let database = Database::open(&url.parse().unwrap(), true, Writes::Concurrent).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        (database, folder)
    }

    async fn sql(database: &Database, sql: &'static str) {
        let run = move |connection: &mut Connection| {
            query!(connection, c => c.batch_execute(sql)).map_err(Error::from)
        };
        database.write(run).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_left_of_a_lost_part_is_counted_and_named() {
        let (database, _folder) = database();
        sql(
            &database,
            "INSERT INTO orders VALUES ('order', 'p', '', 'c', '2026-01-01', 'p', 'p', 'ALLOWED', '', '', 1, '2026-01-01');
            INSERT INTO subscription (id, order_id, payer_id, reseller_id, customer_id, offer_id, quantity, friendly_name,
                state, auto_renew, started_at, term, term_number, answer_revision, version)
            SELECT column1, 'order', 'p', '', 'c', 'o', 1, '', column2, TRUE, '2026-01-01', 'YEAR', 1, column3, 1 FROM (
                VALUES ('copied', 'ACTIVE', 7), ('lost', 'ACTIVE', 8), ('lost too', 'SUSPENDED', 99),
                    ('ended', 'CANCELLED', 9), ('new', 'ACTIVE', 100));
            INSERT INTO fence VALUES ('copied', 7), ('lost', 8), ('new', 100)",
        )
        .await;
        let lost = Restore { last_revision: 7, revision: 100 };
        let found = database.read(move |connection: &mut Connection| orphans(connection, lost)).await;
        let found: Orphans = found.unwrap();
        assert_eq!((found.subscriptions, found.customers), (2, 1));
        let named = ["lost", "lost too"].map(|id| (id.to_owned(), "c".to_owned()));
        assert_eq!(
            (found.named_subscriptions, found.named_customers),
            (named.to_vec(), vec!["lost".to_owned()])
        );
    }

    #[tokio::test]
    async fn a_hash_counts_only_for_the_revision_that_it_was_stored_with() {
        let (database, _folder) = database();
        let cursor = async || database.read(cursor_read).await.unwrap();
        assert_eq!(cursor().await, Cursor::default());
        sql(&database, "UPDATE follower SET revision = 5, head = '5:abc'").await;
        assert_eq!(cursor().await, Cursor { revision: 5, hash: Some("abc".into()) });
        // A version that does not know the column moves the row.
        sql(&database, "UPDATE follower SET revision = 6").await;
        assert_eq!(cursor().await, Cursor { revision: 6, hash: None });
    }
}
