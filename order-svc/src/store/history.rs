//! Applies agreement-svc's history: the transactions that take its next events, raise the fence, end subscriptions, keep the
//! relationships, and move the cursor (the one row of the table `follower`).
//!
//! Several small events share a transaction. One that ends many subscriptions takes several: the first raises the fence, so
//! that nothing more is stored on an older answer; then come steps of a bounded size; the last completes the report and moves
//! the cursor. Each step may be repeated, so that a process that stops in between costs nothing.
//!
//! A transaction takes its locks in the order cursor, fence, subscriptions; gated transactions begin at the fence,
//! so that what a customer buys and what is withdrawn for it happen one after the other.

use std::collections::BTreeSet;

use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::fence::fence_raise;
use super::open::{is_open, subscriptions_open};
use super::relationship::relationship_write;
use super::schema::{fence, follower, subscription};
use super::subscription::{ChangedRow, changes_insert, terms_are_due};
use super::withdrawal::{
    ReportState, effects_insert, withdrawal_abandon, withdrawal_archive_step, withdrawal_begin,
    withdrawal_finish, withdrawal_finish_begun,
};
use crate::rules::Time;
use crate::rules::history::{Consequence, Cursor, HistoryPoint, Restore};
use crate::rules::relationship::Ending;
use crate::rules::subscription::{Cause, Change, ChangeKind, State};
use crate::rules::withdrawal::SubscriptionFacts;

/// Subscriptions that one transaction looks at and changes: no event, however many subscriptions it ends, keeps others
/// waiting for longer than that takes. Statements have a limited number of parameters, too.
pub(crate) const ROWS_MAX: usize = 1000;

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

/// How far the history was applied, and how far its relationships are known: the same, unless a version without them moved the
/// cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub applied: i64,
    pub relationships: i64,
}

pub(crate) fn progress_read(connection: &mut Connection) -> Result<Progress, Error> {
    let (applied, relationships) = query!(connection, c => {
        follower::table.select((follower::revision, follower::relationships_revision)).first(c)
    })?;
    Ok(Progress { applied, relationships })
}

/// The revision of the last event that was applied.
pub(crate) fn cursor_revision(connection: &mut Connection) -> Result<i64, Error> {
    Ok(query!(connection, c => follower::table.select(follower::revision).first(c))?)
}

/// Stores the relationships of points of the history that a version without them has applied, up to a revision, and completes
/// the reports that such a version left begun. False, and nothing done, when `known` is not how far they are known.
pub(crate) fn relationships_fill(
    connection: &mut Connection,
    known: i64,
    points: &[HistoryPoint],
    up_to: i64,
    now: Time,
) -> Result<bool, Error> {
    let moved = query!(&mut *connection, c => {
        diesel::update(follower::table.filter(follower::relationships_revision.eq(known)))
            .set(follower::relationships_revision.eq(up_to))
            .execute(c)
    })?;
    if moved == 0 {
        return Ok(false);
    }
    for point in points.iter().filter(|point| point.cursor.revision <= up_to) {
        match &point.consequence {
            Some(Consequence::RelationshipEstablished(relationship)) => {
                relationship_write(connection, *relationship, true, point.cursor.revision)?;
            }
            Some(Consequence::RelationshipEnded(end)) => {
                relationship_write(connection, end.relationship, false, point.cursor.revision)?;
            }
            Some(Consequence::Withdrawn(withdrawal)) => {
                withdrawal_finish_begun(connection, point.cursor.revision, withdrawal, now)?;
            }
            None => {}
        }
    }
    Ok(true)
}

/// How far a transaction came with the points of the history that it was given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub revision: i64,
    /// Why it went no further.
    pub stopped: Option<Stopped>,
}

/// Why the next event was not applied together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Terms that ended before it have to be processed first. The fence is raised.
    TermsDue,
    /// It takes more than one transaction may change. The fence is raised.
    TooLarge,
}

/// Applies points of the history, as many as one transaction may. `None`, and nothing done, when `applied` is not how far
/// it has been applied. `are_terms_done`: those that ended before the first point have been processed, as far as they can
/// be.
pub(crate) fn history_apply(
    connection: &mut Connection,
    applied: i64,
    points: &[HistoryPoint],
    are_terms_done: bool,
    now: Time,
) -> Result<Option<Applied>, Error> {
    if !cursor_hold(connection, applied)? {
        return Ok(None);
    }
    let mut room = ROWS_MAX;
    let mut cursor = None;
    let mut stopped = None;
    for (n, point) in points.iter().enumerate() {
        if let Some(consequence) = &point.consequence {
            let are_terms_done = are_terms_done && n == 0;
            let customer = consequence.customer_id();
            if !are_terms_done
                && consequence.voids_answers()
                && terms_are_due(connection, customer, point.until)?
            {
                // The terms may be many; nothing is stored on an older answer meanwhile.
                fence_raise(connection, customer, point.cursor.revision)?;
                stopped = Some(Stopped::TermsDue);
                break;
            }
            match event_apply(connection, point, consequence, room, now)? {
                Some(looked_at) => room -= looked_at,
                None => {
                    stopped = Some(Stopped::TooLarge);
                    break;
                }
            }
        }
        cursor = Some(&point.cursor);
    }
    if let Some(cursor) = cursor {
        cursor_advance(connection, applied, cursor)?;
    }
    Ok(Some(Applied { revision: cursor.map_or(applied, |cursor| cursor.revision), stopped }))
}

/// Applies one event, and counts the subscriptions that it looked at. `None` if it takes several transactions; then it is only
/// begun.
fn event_apply(
    connection: &mut Connection,
    point: &HistoryPoint,
    consequence: &Consequence,
    room: usize,
    now: Time,
) -> Result<Option<usize>, Error> {
    let revision = point.cursor.revision;
    if let Consequence::RelationshipEstablished(relationship) = consequence {
        relationship_write(connection, *relationship, true, revision)?;
        return Ok(Some(0));
    }
    fence_raise(connection, consequence.customer_id(), revision)?;
    let is_reported = match consequence {
        Consequence::Withdrawn(withdrawal) => match withdrawal_begin(connection, point, withdrawal, now)? {
            ReportState::Begun => true,
            ReportState::Complete => false,
            ReportState::Occupied => return Ok(None),
        },
        Consequence::RelationshipEnded(end) => {
            relationship_write(connection, end.relationship, false, revision)?;
            false
        }
        Consequence::RelationshipEstablished(_) => false,
    };
    let (customer, payers) = (consequence.customer_id(), consequence.payers());
    let open = match payers.is_empty() {
        true => vec![],
        false => subscriptions_open(connection, customer, payers, "", room + 1)?,
    };
    if open.len() > room {
        return Ok(None);
    }
    subscriptions_end(connection, point, consequence, is_reported, &open, now)?;
    if let (Consequence::Withdrawn(withdrawal), true) = (consequence, is_reported) {
        withdrawal_finish(connection, revision, withdrawal, now)?;
    }
    Ok(Some(open.len()))
}

/// The next step of an event that is too large for one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EventStep {
    /// End subscriptions with ids after this one.
    After(String),
    /// Complete the report and move the cursor.
    Finish,
}

/// One step of the event of a point, which was begun; each may be repeated. The answer is the next step, if there is one;
/// or an error of the transaction. `None`, and nothing done, when `applied` is not how far the history has been applied.
pub(crate) fn event_step(
    connection: &mut Connection,
    applied: i64,
    (point, consequence): (&HistoryPoint, &Consequence),
    step: &EventStep,
    now: Time,
) -> Result<Option<Option<EventStep>>, Error> {
    if !cursor_hold(connection, applied)? {
        return Ok(None);
    }
    let is_reported = match consequence {
        Consequence::Withdrawn(withdrawal) => match withdrawal_begin(connection, point, withdrawal, now)? {
            ReportState::Begun => true,
            ReportState::Complete => false,
            ReportState::Occupied => {
                withdrawal_archive_step(connection, point.cursor.revision, now)?;
                return Ok(Some(Some(step.clone())));
            }
        },
        Consequence::RelationshipEnded(_) | Consequence::RelationshipEstablished(_) => false,
    };
    match step {
        EventStep::After(after) => {
            let (customer, payers) = (consequence.customer_id(), consequence.payers());
            let open = subscriptions_open(connection, customer, payers, after, ROWS_MAX)?;
            subscriptions_end(connection, point, consequence, is_reported, &open, now)?;
            let last = open.last().filter(|_| open.len() == ROWS_MAX);
            Ok(Some(Some(last.map_or(EventStep::Finish, |(id, _)| EventStep::After(id.to_string())))))
        }
        EventStep::Finish => {
            if let (Consequence::Withdrawn(withdrawal), true) = (consequence, is_reported) {
                withdrawal_finish(connection, point.cursor.revision, withdrawal, now)?;
            }
            cursor_advance(connection, applied, &point.cursor)?;
            Ok(Some(None))
        }
    }
}

/// Does to the open subscriptions what the event of a point does to them.
fn subscriptions_end(
    connection: &mut Connection,
    point: &HistoryPoint,
    consequence: &Consequence,
    is_reported: bool,
    open: &[(Uuid, SubscriptionFacts)],
    now: Time,
) -> Result<(), Error> {
    let revision = point.cursor.revision;
    let concerned = |ending: Ending| {
        let concerned =
            open.iter().filter(|(_, facts)| consequence.effect_on(revision, facts) == Some(ending));
        concerned.map(|(id, _)| id.to_string()).collect::<Vec<_>>()
    };
    let cause = match consequence {
        Consequence::Withdrawn(_) => Cause::AgreementWithdrawn { revision },
        Consequence::RelationshipEstablished(_) | Consequence::RelationshipEnded(_) => {
            Cause::RelationshipEnded { revision }
        }
    };
    // What ended by itself meanwhile is not changed, and not reported.
    let cancelled =
        subscriptions_update(connection, &concerned(Ending::Cancelled), revision, Ending::Cancelled)?;
    changes_record(connection, &cancelled, ChangeKind::Cancelled, cause, now)?;
    if is_reported && !cancelled.is_empty() {
        let cancelled: BTreeSet<&str> = cancelled.iter().map(|row| row.id.as_str()).collect();
        let is_cancelled = |id: &Uuid| cancelled.contains(id.to_string().as_str());
        let effects: Vec<_> = open.iter().filter(|(id, _)| is_cancelled(id)).copied().collect();
        effects_insert(connection, revision, &effects)?;
    }
    let not_renewed =
        subscriptions_update(connection, &concerned(Ending::NotRenewed), revision, Ending::NotRenewed)?;
    changes_record(connection, &not_renewed, ChangeKind::AutoRenewOff, cause, now)
}

/// Passes over an event that cannot be applied: raises its customer's fence, completes the report if that was begun, and moves
/// the cursor. An error, and nothing done, when it is not the next one: how far the history has been applied.
pub(crate) fn event_skip(
    connection: &mut Connection,
    revision: i64,
    customer: Uuid,
    now: Time,
) -> Result<Result<(), i64>, Error> {
    let applied = cursor_revision(connection)?;
    if applied != revision - 1 || !cursor_hold(connection, applied)? {
        return Ok(Err(applied));
    }
    fence_raise(connection, customer, revision)?;
    withdrawal_abandon(connection, revision, now)?;
    cursor_advance(connection, applied, &Cursor { revision, hash: None })?;
    Ok(Ok(()))
}

/// Keeps the row of the cursor until the end of the transaction, if that is how far the history has been applied and the
/// relationships are known. Of several replicas that apply it, one goes on.
fn cursor_hold(connection: &mut Connection, applied: i64) -> Result<bool, Error> {
    let here = follower::table
        .filter(follower::revision.eq(applied))
        .filter(follower::relationships_revision.eq(applied))
        .select(follower::revision);
    let found: Option<i64> = match connection {
        Connection::Sqlite(c) => here.first(c).optional()?,
        Connection::Postgres(c) => here.for_update().first(c).optional()?,
    };
    Ok(found.is_some())
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
            .set((
                follower::revision.eq(to.revision),
                follower::head.eq(head),
                follower::relationships_revision.eq(to.revision),
            ))
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

/// Ends the subscriptions, unless they have ended or are not renewed already, or rest on an answer of the revision by now.
fn subscriptions_update(
    connection: &mut Connection,
    ids: &[String],
    revision: i64,
    ending: Ending,
) -> Result<Vec<ChangedRow>, Error> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let (is_cancelled, renewed) = match ending {
        Ending::Cancelled => (true, &[true, false][..]),
        Ending::NotRenewed => (false, &[true][..]),
    };
    let cancelled =
        (subscription::state.eq(State::Cancelled.into_str()), subscription::due_at.eq(None::<NaiveDateTime>));
    Ok(query!(connection, c => {
        diesel::update(
            subscription::table
                .filter(subscription::id.eq_any(ids))
                .filter(subscription::answer_revision.lt(revision))
                .filter(is_open())
                .filter(subscription::auto_renew.eq_any(renewed)),
        )
        .set((
            is_cancelled.then_some(cancelled),
            (!is_cancelled).then_some(subscription::auto_renew.eq(false)),
            subscription::version.eq(subscription::version + 1),
        ))
        .returning(ChangedRow::as_returning())
        .get_results(c)
    })?)
}

fn changes_record(
    connection: &mut Connection,
    changed: &[ChangedRow],
    kind: ChangeKind,
    cause: Cause,
    now: Time,
) -> Result<(), Error> {
    if changed.is_empty() {
        return Ok(());
    }
    let changes: Result<Vec<(Uuid, Change)>, Error> =
        changed.iter().map(|row| row.change(kind, cause, now)).collect();
    changes_insert(connection, &changes?)
}

#[cfg(test)]
mod tests {
    use chassis::database::{Database, Writes};
    use diesel::connection::SimpleConnection;
    use tempfile::TempDir;

    use super::*;
    use crate::rules::gate::EvidenceKind;
    use crate::rules::relationship::Relationship;
    use crate::rules::withdrawal::Withdrawal;
    use crate::store::MIGRATIONS;
    use crate::store::schema::withdrawal_effect;

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
            "INSERT INTO orders (id, payer_id, reseller_id, customer_id, placed_at, placed_by_tenant, placed_by, gate_decision, gate_rule,
                gate_evidence, gate_revision, gate_evaluated_at)
            VALUES ('order', 'p', '', 'c', '2026-01-01', 'p', 'p', 'ALLOWED', '', '', 1, '2026-01-01');
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

    /// The terms of a customer may be many, and nothing may be stored on an older answer while they are processed.
    #[tokio::test]
    async fn the_fence_is_raised_before_ended_terms_are_processed() {
        let (database, _folder) = database();
        let (customer, payer) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let insert = format!(
            "INSERT INTO orders (id, payer_id, reseller_id, customer_id, placed_at, placed_by_tenant, placed_by, gate_decision, gate_rule,
                gate_evidence, gate_revision, gate_evaluated_at)
            VALUES ('order', 'p', '', 'c', '2026-01-01', 'p', 'p', 'ALLOWED', '', '', 1, '2026-01-01');
            INSERT INTO subscription (id, order_id, payer_id, reseller_id, customer_id, offer_id, quantity, friendly_name,
                state, auto_renew, started_at, term, term_number, answer_revision, version, due_at)
            VALUES ('due', 'order', '{payer}', '', '{customer}', 'o', 1, '', 'ACTIVE', TRUE, '2026-01-01', 'MONTH', 1, 1, 1,
                '2026-02-01')"
        );
        let until = "2026-03-01T00:00:00Z".parse().unwrap();
        let withdrawal = Withdrawal {
            customer_id: customer,
            kind: EvidenceKind::Attestation,
            acceptance_id: Uuid::from_u128(3),
            partner_id: Some(payer),
            uncovered: vec![payer],
        };
        let relationship = Relationship { customer_id: customer, payer_id: payer, reseller_id: None };
        let points = [Consequence::RelationshipEstablished(relationship), Consequence::Withdrawn(withdrawal)];
        let apply = move |connection: &mut Connection| {
            query!(&mut *connection, c => c.batch_execute(&insert))?;
            let points: Vec<_> = (1..)
                .zip(points)
                .map(|(revision, consequence)| HistoryPoint {
                    cursor: Cursor { revision, hash: None },
                    until,
                    consequence: Some(consequence),
                })
                .collect();
            let applied = history_apply(connection, 0, &points, false, until)?;
            let fences: Vec<i64> =
                query!(connection, c => fence::table.select(fence::fence_revision).load(c))?;
            Ok::<_, Error>((applied, fences))
        };
        let (applied, fences) = database.write(apply).await.unwrap();
        assert_eq!(applied, Some(Applied { revision: 1, stopped: Some(Stopped::TermsDue) }));
        assert_eq!(fences, [2]);
    }

    /// Of a report whose revision another withdrawal has, each transaction moves a bounded number of rows.
    #[tokio::test]
    async fn a_report_is_archived_in_steps() {
        let (database, _folder) = database();
        sql(
            &database,
            "INSERT INTO withdrawal (revision, customer_id, kind, acceptance_id, partner_id, withdrawn_at, applied_at,
                cancelled, stayed) VALUES (1, 'c', 'ATTESTATION', 'lost', '', '2026-01-01 00:00:00', '2026-01-01 00:00:00', 2500, 0);
            INSERT INTO orders (id, payer_id, reseller_id, customer_id, placed_at, placed_by_tenant, placed_by, gate_decision, gate_rule,
                gate_evidence, gate_revision, gate_evaluated_at)
            VALUES ('order', 'p', '', 'c', '2026-01-01', 'p', 'p', 'ALLOWED', '', '', 1, '2026-01-01');
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
            INSERT INTO subscription (id, order_id, payer_id, reseller_id, customer_id, offer_id, quantity, friendly_name,
                state, auto_renew, started_at, term, term_number, answer_revision, version)
            SELECT 's' || i, 'order', 'p', '', 'c', 'o', 1, '', 'CANCELLED', TRUE, '2026-01-01', 'YEAR', 1, 1, 1 FROM n;
            INSERT INTO withdrawal_effect (revision, subscription_id, payer_id, reseller_id, outcome)
            SELECT 1, id, 'p', '', 'CANCELLED' FROM subscription",
        )
        .await;
        let until = "2026-03-01T00:00:00Z".parse().unwrap();
        let consequence = Consequence::Withdrawn(Withdrawal {
            customer_id: Uuid::from_u128(1),
            kind: EvidenceKind::Attestation,
            acceptance_id: Uuid::from_u128(3),
            partner_id: None,
            uncovered: vec![],
        });
        let cursor = Cursor { revision: 1, hash: None };
        let point = HistoryPoint { cursor, until, consequence: Some(consequence.clone()) };
        let (mut step, mut left) = (EventStep::After(String::new()), vec![]);
        while step != EventStep::Finish {
            let (point, consequence, this) = (point.clone(), consequence.clone(), step.clone());
            let take = move |connection: &mut Connection| {
                let next = event_step(connection, 0, (&point, &consequence), &this, until)?;
                let of_lost = withdrawal_effect::table.filter(withdrawal_effect::revision.eq(1));
                let left: i64 = query!(connection, c => of_lost.count().get_result(c))?;
                Ok::<_, Error>((next.flatten().unwrap(), left))
            };
            let rows;
            (step, rows) = database.write(take).await.unwrap();
            left.push(rows);
        }
        // The fourth transaction frees the revision, and the fifth takes the step itself.
        assert_eq!(left, [1500, 500, 0, 0, 0]);
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
