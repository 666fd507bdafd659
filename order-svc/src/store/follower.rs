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
use super::schema::{follower, subscription};
use super::subscription::{Touched, changes_insert};
use super::withdrawal::withdrawal_insert;
use crate::rules::Time;
use crate::rules::subscription::{Cause, Change, ChangeKind, State};
use crate::rules::withdrawal::{Moment, News, Parting, Withdrawal};

/// Statements have a limited number of parameters.
const CHANGES_PER_STATEMENT: usize = 1000;

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
    let moved = query!(connection, c => {
        diesel::update(follower::table.filter(follower::revision.eq(applied)))
            .set(follower::revision.eq(moment.revision))
            .execute(c)
    })?;
    if moved == 0 {
        return Ok(false);
    }
    let revision = moment.revision;
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
