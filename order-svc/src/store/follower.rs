//! How far agreement-svc's history has been applied, and the transaction that applies more of it.
//!
//! It takes its locks in the order cursor, fence, subscriptions; gated transactions begin at the fence,
//! so that what a customer buys and what is withdrawn for it happen one after the other.

use chassis::database::row::id_or_empty;
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use uuid::Uuid;

use super::gated::fence_raise;
use super::schema::{fence, follower, subscription};
use super::subscription::{Touched, changes_insert};
use super::withdrawal::withdrawal_insert;
use crate::rules::Time;
use crate::rules::subscription::{Cause, Change, ChangeKind, State};
use crate::rules::withdrawal::{Moment, News, Parting, Place, Restore, Withdrawal};

/// Statements have a limited number of parameters.
const CHANGES_PER_STATEMENT: usize = 1000;

/// Of what rests on lost answers as many are named: enough to begin with, few enough for a log.
const NAMED_MAX: i64 = 100;

/// How far the history has been applied.
pub(crate) fn follower_place(connection: &mut Connection) -> Result<Place, Error> {
    let (revision, head): (i64, Option<String>) = query!(connection, c => {
        follower::table.select((follower::revision, follower::head)).first(c)
    })?;
    // Of another revision it is when somebody moved the row who does not know the column.
    let hash = head.and_then(|head| Some(head.strip_prefix(&format!("{revision}:"))?.to_owned()));
    Ok(Place { revision, hash })
}

/// The revision of the last event that was applied.
pub(crate) fn follower_revision(connection: &mut Connection) -> Result<i64, Error> {
    Ok(query!(connection, c => follower::table.select(follower::revision).first(c))?)
}

/// Applies the history from the event after `applied` up to a moment; false, and nothing done, when that
/// is not how far it has been applied.
pub(crate) fn moment_apply(
    connection: &mut Connection,
    applied: i64,
    moment: &Moment,
    now: Time,
) -> Result<bool, Error> {
    if !follower_move(connection, applied, &moment.place)? {
        return Ok(false);
    }
    let revision = moment.place.revision;
    match &moment.news {
        None => {}
        Some(News::Withdrawn(withdrawal)) => {
            fence_raise(connection, withdrawal.customer_id, revision)?;
            let cancelled = subscriptions_cancel(connection, withdrawal, revision)?;
            let cause = Cause::AgreementWithdrawn { revision };
            keep(connection, &cancelled, ChangeKind::Cancelled, cause, now)?;
            withdrawal_insert(connection, moment, withdrawal, &cancelled, now)?;
        }
        Some(News::RelationshipEnded(parting)) => {
            fence_raise(connection, parting.customer_id, revision)?;
            let running_out = subscriptions_stop_renewing(connection, parting, revision)?;
            let cause = Cause::RelationshipEnded { revision };
            keep(connection, &running_out, ChangeKind::AutoRenewOff, cause, now)?;
        }
    }
    Ok(true)
}

/// Takes the row back to the beginning of the history, so that all of it is applied again; false, and nothing
/// done, when `applied` is not how far it has been applied.
pub(crate) fn follower_start_over(connection: &mut Connection, applied: i64) -> Result<bool, Error> {
    follower_move(connection, applied, &Place::default())
}

fn follower_move(connection: &mut Connection, applied: i64, to: &Place) -> Result<bool, Error> {
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
pub(crate) struct Remains {
    /// Subscriptions that have not ended and rest on answers of it, and the first of them with their customers.
    pub subscriptions: i64,
    pub named_subscriptions: Vec<(String, String)>,
    /// Customers of whom a withdrawal or the end of a relationship was lost, and the first of them. Their fence keeps
    /// what agreement-svc says of them now from being used.
    pub customers: i64,
    pub named_customers: Vec<String>,
}

pub(crate) fn remains(connection: &mut Connection, lost: Restore) -> Result<Remains, Error> {
    let Restore { last_revision, revision } = lost;
    let (subscriptions, named_subscriptions) = query!(&mut *connection, c => {
        let resting = subscription::table
            .filter(subscription::answer_revision.gt(last_revision))
            .filter(subscription::answer_revision.lt(revision))
            .filter(subscription::state.eq_any([State::Active.name(), State::Suspended.name()]));
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
    Ok(Remains { subscriptions, named_subscriptions, customers, named_customers })
}

/// Cancels what a withdrawal leaves without ground: what has not ended, is paid by a partner without
/// acceptance, and rests on an answer from before it (WD-2).
fn subscriptions_cancel(
    connection: &mut Connection,
    withdrawal: &Withdrawal,
    revision: i64,
) -> Result<Vec<Touched>, Error> {
    if withdrawal.uncovered.is_empty() {
        return Ok(vec![]);
    }
    let payers: Vec<String> = withdrawal.uncovered.iter().map(Uuid::to_string).collect();
    Ok(query!(connection, c => {
        diesel::update(
            subscription::table
                .filter(subscription::customer_id.eq(withdrawal.customer_id.to_string()))
                .filter(subscription::payer_id.eq_any(&payers))
                .filter(subscription::state.eq_any([State::Active.name(), State::Suspended.name()]))
                .filter(subscription::answer_revision.lt(revision)),
        )
        .set((
            subscription::state.eq(State::Cancelled.name()),
            subscription::due_at.eq(None::<NaiveDateTime>),
            subscription::version.eq(subscription::version + 1),
        ))
        .returning(Touched::as_returning())
        .get_results(c)
    })?)
}

/// Switches automatic renewal off where payer and customer have parted (CUS-3).
fn subscriptions_stop_renewing(
    connection: &mut Connection,
    parting: &Parting,
    revision: i64,
) -> Result<Vec<Touched>, Error> {
    let reseller = id_or_empty(parting.reseller_id);
    let is_any_reseller = !parting.others_remain;
    Ok(query!(connection, c => {
        diesel::update(
            subscription::table
                .filter(subscription::customer_id.eq(parting.customer_id.to_string()))
                .filter(subscription::payer_id.eq(parting.payer_id.to_string()))
                .filter(subscription::reseller_id.eq(&reseller).or(is_any_reseller.into_sql::<Bool>()))
                .filter(subscription::state.eq_any([State::Active.name(), State::Suspended.name()]))
                .filter(subscription::auto_renew.eq(true))
                .filter(subscription::answer_revision.lt(revision)),
        )
        .set((
            subscription::auto_renew.eq(false),
            subscription::version.eq(subscription::version + 1),
        ))
        .returning(Touched::as_returning())
        .get_results(c)
    })?)
}

fn keep(
    connection: &mut Connection,
    touched: &[Touched],
    kind: ChangeKind,
    cause: Cause,
    now: Time,
) -> Result<(), Error> {
    for touched in touched.chunks(CHANGES_PER_STATEMENT) {
        let changes: Result<Vec<(Uuid, Change)>, Error> =
            touched.iter().map(|touched| touched.change(kind, cause, now)).collect();
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
        let found = database.read(move |connection: &mut Connection| remains(connection, lost)).await;
        let found: Remains = found.unwrap();
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
        let place = async || database.read(follower_place).await.unwrap();
        assert_eq!(place().await, Place::default());
        sql(&database, "UPDATE follower SET revision = 5, head = '5:abc'").await;
        assert_eq!(place().await, Place { revision: 5, hash: Some("abc".into()) });
        // A version that does not know the column moves the row.
        sql(&database, "UPDATE follower SET revision = 6").await;
        assert_eq!(place().await, Place { revision: 6, hash: None });
    }
}
