//! Withdrawal reports: written in the transaction that applies a withdrawal, read by the partners that it concerns.

use std::collections::BTreeMap;

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::dsl::{exists, max};
use diesel::prelude::*;
use uuid::Uuid;

use super::Viewer;
use super::schema::{subscription_change, withdrawal, withdrawal_effect, withdrawal_partner};
use super::subscription::AGREEMENT_WITHDRAWN;
use crate::rules::Time;
use crate::rules::history::HistoryPoint;
use crate::rules::withdrawal::{Effect, Report, Withdrawal, WithdrawalOutcome};

/// Statements have a limited number of parameters.
const ROWS_PER_STATEMENT: usize = 1000;

/// By how much the announcement of a restore raises the revision: what is between is no event's, and half of it
/// is more than can be recorded before a restore is announced.
const RESTORE_LIFT: i64 = 1 << 32;

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = withdrawal)]
struct Row {
    revision: i64,
    customer_id: String,
    kind: String,
    acceptance_id: String,
    partner_id: String,
    withdrawn_at: NaiveDateTime,
    applied_at: NaiveDateTime,
    cancelled: i32,
    stayed: i32,
}

/// A partner's part: how many subscriptions were cancelled and stayed.
type PartRow = (i32, i32);

impl Row {
    /// `part` counts what the reader may see of it; without, that is everything.
    fn read(self, uncovered: Vec<Uuid>, part: Option<PartRow>) -> Result<Report, Error> {
        let key = self.revision.to_string();
        let row = at("withdrawal", &key);
        let (cancelled, stayed) = part.unwrap_or((self.cancelled, self.stayed));
        Ok(Report {
            revision: self.revision,
            withdrawal: Withdrawal {
                customer_id: row.parse("customer_id", &self.customer_id)?,
                kind: row.named("kind", self.kind.parse().ok())?,
                acceptance_id: row.parse("acceptance_id", &self.acceptance_id)?,
                partner_id: row.optional_id("partner_id", &self.partner_id)?,
                uncovered,
            },
            withdrawn_at: utc(self.withdrawn_at),
            applied_at: utc(self.applied_at),
            cancelled: row.count("cancelled", cancelled)?,
            stayed: row.count("stayed", stayed)?,
        })
    }
}

/// Stores the report of a withdrawal: the outcome for each subscription that had not ended and that the acceptance
/// could cover. Where the report is there already, it stays: the event is applied again.
pub(super) fn withdrawal_insert(
    connection: &mut Connection,
    point: &HistoryPoint,
    of: &Withdrawal,
    effects: &[Effect],
    now: Time,
) -> Result<(), Error> {
    let revision = point.cursor.revision;
    let kept: Option<Row> = query!(&mut *connection, c => {
        withdrawal::table.find(revision).select(Row::as_select()).first(c).optional()
    })?;
    match kept {
        None => {}
        Some(kept) if kept.acceptance_id == of.acceptance_id.to_string() => return Ok(()),
        Some(lost) => withdrawal_archive(connection, lost)?,
    }
    let count = |rows: usize| i32::try_from(rows).unwrap_or(i32::MAX);
    let cancelled = effects.iter().filter(|effect| effect.outcome == WithdrawalOutcome::Cancelled).count();
    let row = Row {
        revision,
        customer_id: of.customer_id.to_string(),
        kind: of.kind.into_str().to_owned(),
        acceptance_id: of.acceptance_id.to_string(),
        partner_id: id_or_empty(of.partner_id),
        withdrawn_at: point.until.naive_utc(),
        applied_at: now.naive_utc(),
        cancelled: count(cancelled),
        stayed: count(effects.len() - cancelled),
    };
    query!(&mut *connection, c => diesel::insert_into(withdrawal::table).values(&row).execute(c))?;
    let parts: Vec<_> = of
        .parts(effects)
        .into_iter()
        .map(|(partner, part)| {
            (
                withdrawal_partner::partner_id.eq(partner.to_string()),
                withdrawal_partner::revision.eq(revision),
                withdrawal_partner::is_uncovered.eq(part.is_uncovered),
                withdrawal_partner::cancelled.eq(i32::try_from(part.cancelled).unwrap_or(i32::MAX)),
                withdrawal_partner::stayed.eq(i32::try_from(part.stayed).unwrap_or(i32::MAX)),
            )
        })
        .collect();
    for parts in parts.chunks(ROWS_PER_STATEMENT) {
        query!(connection, c => {
            diesel::insert_into(withdrawal_partner::table).values(parts.to_vec()).execute(c)
        })?;
    }
    let effects: Vec<_> = effects
        .iter()
        .map(|effect| {
            (
                withdrawal_effect::revision.eq(revision),
                withdrawal_effect::subscription_id.eq(effect.subscription_id.to_string()),
                withdrawal_effect::payer_id.eq(effect.payer_id.to_string()),
                withdrawal_effect::reseller_id.eq(id_or_empty(effect.reseller_id)),
                withdrawal_effect::outcome.eq(effect.outcome.into_str()),
            )
        })
        .collect();
    for effects in effects.chunks(ROWS_PER_STATEMENT) {
        query!(connection, c => {
            diesel::insert_into(withdrawal_effect::table).values(effects.to_vec()).execute(c)
        })?;
    }
    Ok(())
}

/// Keeps what a withdrawal did whose event a restore lost and whose revision is another withdrawal's now, as
/// happens when one is recorded before the restore is announced. It goes to a revision that no event has, and
/// with it what the subscriptions that it cancelled say of why they were.
fn withdrawal_archive(connection: &mut Connection, lost: Row) -> Result<(), Error> {
    let revision = lost.revision;
    query!(connection, c => {
        let last: Option<i64> = withdrawal::table
            .filter(withdrawal::revision.lt(revision + RESTORE_LIFT))
            .select(max(withdrawal::revision))
            .first(c)?;
        // Another one may be there from an earlier restore.
        let aside = last.unwrap_or(0).max(revision + RESTORE_LIFT / 2) + 1;
        diesel::insert_into(withdrawal::table).values(Row { revision: aside, ..lost }).execute(c)?;
        diesel::update(withdrawal_partner::table.filter(withdrawal_partner::revision.eq(revision)))
            .set(withdrawal_partner::revision.eq(aside))
            .execute(c)?;
        let cancelled = withdrawal_effect::table
            .filter(withdrawal_effect::revision.eq(revision))
            .filter(withdrawal_effect::outcome.eq(WithdrawalOutcome::Cancelled.into_str()))
            .select(withdrawal_effect::subscription_id);
        // What the lost one left alone, the other one may just have ended.
        let causes = subscription_change::table
            .filter(subscription_change::reason.eq(AGREEMENT_WITHDRAWN))
            .filter(subscription_change::event_revision.eq(revision))
            .filter(subscription_change::subscription_id.eq_any(cancelled));
        diesel::update(causes).set(subscription_change::event_revision.eq(aside)).execute(c)?;
        diesel::update(withdrawal_effect::table.filter(withdrawal_effect::revision.eq(revision)))
            .set(withdrawal_effect::revision.eq(aside))
            .execute(c)?;
        diesel::delete(withdrawal::table.find(revision)).execute(c)?;
    });
    Ok(())
}

/// Whether the withdrawal of an acceptance was applied, whatever agreement-svc says of it by now (WD-3a).
pub(super) fn is_withdrawn(connection: &mut Connection, acceptance: Uuid) -> Result<bool, Error> {
    let of_acceptance = withdrawal::table.filter(withdrawal::acceptance_id.eq(acceptance.to_string()));
    Ok(query!(connection, c => diesel::select(exists(of_acceptance)).get_result(c))?)
}

/// Which withdrawals are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Withdrawals {
    pub viewer: Viewer,
    pub customer_id: Option<Uuid>,
    /// Those of later revisions.
    pub after: i64,
    pub limit: i64,
}

/// What a withdrawal did, as the viewer may see it.
pub(crate) fn withdrawal_find(
    connection: &mut Connection,
    viewer: Viewer,
    revision: i64,
) -> Result<Option<Report>, Error> {
    let slice = Withdrawals { viewer, customer_id: None, after: revision - 1, limit: 1 };
    let found = withdrawal_list(connection, slice)?.pop();
    Ok(found.filter(|report| report.revision == revision))
}

/// What withdrawals did, as the viewer may see it, in the order of revisions.
pub(crate) fn withdrawal_list(connection: &mut Connection, slice: Withdrawals) -> Result<Vec<Report>, Error> {
    let Withdrawals { viewer, customer_id, after, limit } = slice;
    let customer = customer_id.map(|id| id.to_string());
    let rows: Vec<(Row, Option<PartRow>)> = match viewer {
        Viewer::Everything => {
            let rows: Vec<Row> = query!(connection, c => {
                let mut list = withdrawal::table
                    .filter(withdrawal::revision.gt(after))
                    .order(withdrawal::revision)
                    .limit(limit)
                    .select(Row::as_select())
                    .into_boxed();
                if let Some(customer) = &customer {
                    list = list.filter(withdrawal::customer_id.eq(customer));
                }
                list.load(c)
            })?;
            rows.into_iter().map(|row| (row, None)).collect()
        }
        Viewer::Partner(partner) => query!(&mut *connection, c => {
            let mut list = withdrawal_partner::table
                .inner_join(withdrawal::table)
                .filter(withdrawal_partner::partner_id.eq(partner.to_string()))
                .filter(withdrawal_partner::revision.gt(after))
                .order(withdrawal_partner::revision)
                .limit(limit)
                .select((
                    Row::as_select(),
                    (withdrawal_partner::cancelled, withdrawal_partner::stayed).nullable(),
                ))
                .into_boxed();
            if let Some(customer) = &customer {
                list = list.filter(withdrawal::customer_id.eq(customer));
            }
            list.load(c)
        })?,
    };
    let revisions: Vec<i64> = rows.iter().map(|(row, _)| row.revision).collect();
    let mut uncovered = uncovered_of(connection, viewer, &revisions)?;
    let read = |(row, part): (Row, Option<PartRow>)| {
        let uncovered = uncovered.remove(&row.revision).unwrap_or_default();
        row.read(uncovered, part)
    };
    rows.into_iter().map(read).collect()
}

/// The partners that withdrawals left without acceptance; a partner sees only itself.
fn uncovered_of(
    connection: &mut Connection,
    viewer: Viewer,
    revisions: &[i64],
) -> Result<BTreeMap<i64, Vec<Uuid>>, Error> {
    let rows: Vec<(i64, String)> = query!(connection, c => {
        let mut list = withdrawal_partner::table
            .filter(withdrawal_partner::revision.eq_any(revisions))
            .filter(withdrawal_partner::is_uncovered.eq(true))
            .order((withdrawal_partner::revision, withdrawal_partner::partner_id))
            .select((withdrawal_partner::revision, withdrawal_partner::partner_id))
            .into_boxed();
        if let Viewer::Partner(partner) = viewer {
            list = list.filter(withdrawal_partner::partner_id.eq(partner.to_string()));
        }
        list.load(c)
    })?;
    let mut uncovered: BTreeMap<i64, Vec<Uuid>> = BTreeMap::new();
    for (revision, partner) in rows {
        let id = at("withdrawal_partner", &partner).parse("partner_id", &partner)?;
        uncovered.entry(revision).or_default().push(id);
    }
    Ok(uncovered)
}

/// The outcomes for the customer's subscriptions, as the viewer may see it, in the order of their ids.
pub(crate) fn effect_list(
    connection: &mut Connection,
    viewer: Viewer,
    revision: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<Effect>, Error> {
    let rows: Vec<(String, String, String, String)> = query!(connection, c => {
        let mut list = withdrawal_effect::table
            .filter(withdrawal_effect::revision.eq(revision))
            .filter(withdrawal_effect::subscription_id.gt(after))
            .order(withdrawal_effect::subscription_id)
            .limit(limit)
            .select((
                withdrawal_effect::subscription_id,
                withdrawal_effect::payer_id,
                withdrawal_effect::reseller_id,
                withdrawal_effect::outcome,
            ))
            .into_boxed();
        if let Viewer::Partner(partner) = viewer {
            let partner = partner.to_string();
            let is_payer = withdrawal_effect::payer_id.eq(partner.clone());
            list = list.filter(is_payer.or(withdrawal_effect::reseller_id.eq(partner)));
        }
        list.load(c)
    })?;
    let read = |(id, payer, reseller, outcome): (String, String, String, String)| {
        let row = at("withdrawal_effect", &id);
        Ok(Effect {
            subscription_id: row.parse("subscription_id", &id)?,
            payer_id: row.parse("payer_id", &payer)?,
            reseller_id: row.optional_id("reseller_id", &reseller)?,
            outcome: row.named("outcome", outcome.parse().ok())?,
        })
    };
    rows.into_iter().map(read).collect()
}
