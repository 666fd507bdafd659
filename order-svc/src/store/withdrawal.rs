//! Withdrawal reports: written while a withdrawal is applied, read by the partners that it concerns once it is. What it
//! cancelled has rows; of what stayed there are counts.

use std::collections::{BTreeMap, BTreeSet};

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error, Unkept, asking};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use diesel::dsl::{count_star, exists, max};
use diesel::prelude::*;
use serde::Serialize;
use uuid::Uuid;

use super::Viewer;
use super::open::is_open;
use super::schema::{subscription, subscription_change, withdrawal, withdrawal_effect, withdrawal_partner};
use super::subscription::AGREEMENT_WITHDRAWN;
use crate::rules::Time;
use crate::rules::history::HistoryPoint;
use crate::rules::withdrawal::{
    Counts, Effect, Outcomes, Report, SubscriptionFacts, Withdrawal, WithdrawalOutcome,
};

/// How much of a lost report is archived in a step.
const ARCHIVED_MAX: i64 = 1000;

/// By how much agreement-svc raises the revision at a restore (`LIFT` there): what is between is no event's, and half of it
/// is more than can be recorded before a restore is announced.
const AGREEMENTS_LIFT: i64 = 1 << 32;

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
    newer_answer: i32,
    is_complete: bool,
}

#[derive(Insertable, Serialize)]
#[diesel(table_name = withdrawal_effect, treat_none_as_default_value = false)]
struct NewEffect {
    revision: i64,
    subscription_id: String,
    payer_id: String,
    reseller_id: String,
    outcome: &'static str,
}

#[derive(Insertable, Serialize)]
#[diesel(table_name = withdrawal_partner, treat_none_as_default_value = false)]
struct NewPart {
    partner_id: String,
    revision: i64,
    is_uncovered: bool,
    cancelled: i32,
    stayed: i32,
    newer_answer: i32,
}

/// A partner's part: how many subscriptions were cancelled, how many stayed, and how many of these on a newer answer.
type PartRow = (i32, i32, i32);

impl Row {
    /// `part` counts what the reader may see of it; without, that is everything.
    fn read(self, uncovered: Vec<Uuid>, part: Option<PartRow>) -> Result<Report, Error> {
        let key = self.revision.to_string();
        let row = at("withdrawal", &key);
        let (cancelled, stayed, newer_answer) =
            part.unwrap_or((self.cancelled, self.stayed, self.newer_answer));
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
            counts: Counts {
                cancelled: row.count("cancelled", cancelled)?,
                stayed: row.count("stayed", stayed)?,
                newer_answer: row.count("newer_answer", newer_answer)?,
            },
        })
    }
}

/// How the report of a withdrawal stands when its event is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReportState {
    /// It was begun, and can be read once it is complete.
    Begun,
    /// The event is applied again, and the report of the first time stays.
    Complete,
    /// The revision has the report of another withdrawal, whose event a restore lost; that is to be archived first.
    Occupied,
}

/// Begins the report of a withdrawal, unless there is one.
pub(super) fn withdrawal_begin(
    connection: &mut Connection,
    point: &HistoryPoint,
    of: &Withdrawal,
    now: Time,
) -> Result<ReportState, Error> {
    let revision = point.cursor.revision;
    let kept: Option<Row> = query!(&mut *connection, c => {
        withdrawal::table.find(revision).select(Row::as_select()).first(c).optional()
    })?;
    match kept {
        None => {}
        Some(kept) if kept.acceptance_id != of.acceptance_id.to_string() => return Ok(ReportState::Occupied),
        Some(kept) if kept.is_complete => return Ok(ReportState::Complete),
        Some(_) => return Ok(ReportState::Begun),
    }
    let row = Row {
        revision,
        customer_id: of.customer_id.to_string(),
        kind: of.kind.into_str().to_owned(),
        acceptance_id: of.acceptance_id.to_string(),
        partner_id: id_or_empty(of.partner_id),
        withdrawn_at: point.until.naive_utc(),
        applied_at: now.naive_utc(),
        cancelled: 0,
        stayed: 0,
        newer_answer: 0,
        is_complete: false,
    };
    query!(connection, c => diesel::insert_into(withdrawal::table).values(&row).execute(c))?;
    Ok(ReportState::Begun)
}

/// Adds subscriptions that the withdrawal of a revision cancelled to its report.
pub(super) fn effects_insert(
    connection: &mut Connection,
    revision: i64,
    cancelled: &[(Uuid, SubscriptionFacts)],
) -> Result<(), Error> {
    let effect = |(id, facts): &(Uuid, SubscriptionFacts)| NewEffect {
        revision,
        subscription_id: id.to_string(),
        payer_id: facts.payer_id.to_string(),
        reseller_id: id_or_empty(facts.reseller_id),
        outcome: WithdrawalOutcome::Cancelled.into_str(),
    };
    let effects: Vec<_> = cancelled.iter().map(effect).collect();
    Ok(insert_rows!(connection, withdrawal_effect, &effects)?)
}

/// Payer, reseller on record, and how many subscriptions they have.
type Group = (String, String, i64);

fn counted(group: &Group, outcome: WithdrawalOutcome) -> Result<Outcomes, Error> {
    let (payer, reseller, count) = group;
    let row = at("subscription", payer);
    Ok(Outcomes {
        payer_id: row.parse("payer_id", payer)?,
        reseller_id: row.optional_id("reseller_id", reseller)?,
        outcome,
        count: row.count("count", *count)?,
    })
}

/// What the withdrawal of a revision has cancelled.
fn cancelled(connection: &mut Connection, revision: i64) -> Result<Vec<Outcomes>, Error> {
    let groups: Vec<Group> = query!(connection, c => {
        withdrawal_effect::table
            .filter(withdrawal_effect::revision.eq(revision))
            .filter(withdrawal_effect::outcome.eq(WithdrawalOutcome::Cancelled.into_str()))
            .group_by((withdrawal_effect::payer_id, withdrawal_effect::reseller_id))
            .select((withdrawal_effect::payer_id, withdrawal_effect::reseller_id, count_star()))
            .load(c)
    })?;
    groups.iter().map(|group| counted(group, WithdrawalOutcome::Cancelled)).collect()
}

/// Completes the report of a withdrawal of which everything was applied: what it cancelled has rows, and what is still open
/// is counted.
pub(super) fn withdrawal_finish(
    connection: &mut Connection,
    revision: i64,
    of: &Withdrawal,
    now: Time,
) -> Result<(), Error> {
    let mut outcomes = cancelled(connection, revision)?;
    let open: Vec<Group> = query!(&mut *connection, c => {
        let mut open = subscription::table
            .filter(subscription::customer_id.eq(of.customer_id.to_string()))
            .filter(is_open())
            .group_by((subscription::payer_id, subscription::reseller_id))
            .select((subscription::payer_id, subscription::reseller_id, count_star()))
            .into_boxed();
        if let Some(partner) = of.partner_id {
            open = open.filter(subscription::payer_id.eq(partner.to_string()));
        }
        open.load(c)
    })?;
    for group in &open {
        let payer_id = at("subscription", &group.0).parse("payer_id", &group.0)?;
        if let Some(outcome) = of.why_stayed(payer_id) {
            outcomes.push(counted(group, outcome)?);
        }
    }
    report_complete(connection, revision, of, &outcomes, now)
}

/// Completes the report of a withdrawal that an older version has applied the rest of. What that version cancelled has no rows.
pub(super) fn withdrawal_finish_begun(
    connection: &mut Connection,
    revision: i64,
    of: &Withdrawal,
    now: Time,
) -> Result<(), Error> {
    let begun = withdrawal::table
        .find(revision)
        .filter(withdrawal::acceptance_id.eq(of.acceptance_id.to_string()))
        .filter(withdrawal::is_complete.eq(false));
    if query!(&mut *connection, c => diesel::select(exists(begun)).get_result(c))? {
        withdrawal_finish(connection, revision, of, now)?;
    }
    Ok(())
}

/// Completes the report of a withdrawal that is passed over, if it was begun: with what was cancelled until then.
pub(super) fn withdrawal_abandon(connection: &mut Connection, revision: i64, now: Time) -> Result<(), Error> {
    let begun: Option<Row> = query!(&mut *connection, c => {
        withdrawal::table
            .find(revision)
            .filter(withdrawal::is_complete.eq(false))
            .select(Row::as_select())
            .first(c)
            .optional()
    })?;
    let Some(begun) = begun else { return Ok(()) };
    let outcomes = cancelled(connection, revision)?;
    // The event names the others, too, but it is not read here.
    let uncovered: BTreeSet<Uuid> = outcomes.iter().map(|outcomes| outcomes.payer_id).collect();
    let of = begun.read(uncovered.into_iter().collect(), None)?.withdrawal;
    report_complete(connection, revision, &of, &outcomes, now)
}

fn report_complete(
    connection: &mut Connection,
    revision: i64,
    of: &Withdrawal,
    outcomes: &[Outcomes],
    now: Time,
) -> Result<(), Error> {
    let mut all = Counts::default();
    outcomes.iter().for_each(|counted| all.add(counted));
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    query!(&mut *connection, c => {
        diesel::update(withdrawal::table.find(revision))
            .set((
                withdrawal::applied_at.eq(now.naive_utc()),
                withdrawal::cancelled.eq(number(all.cancelled)),
                withdrawal::stayed.eq(number(all.stayed)),
                withdrawal::newer_answer.eq(number(all.newer_answer)),
                withdrawal::is_complete.eq(true),
            ))
            .execute(c)
    })?;
    let parts: Vec<_> = of
        .parts(outcomes)
        .into_iter()
        .map(|(partner, part)| NewPart {
            partner_id: partner.to_string(),
            revision,
            is_uncovered: part.is_uncovered,
            cancelled: number(part.counts.cancelled),
            stayed: number(part.counts.stayed),
            newer_answer: number(part.counts.newer_answer),
        })
        .collect();
    Ok(insert_rows!(connection, withdrawal_partner, &parts)?)
}

/// Keeps what a withdrawal did whose event a restore lost and whose revision is another withdrawal's now, as
/// happens when one is recorded before the restore is announced. It goes to a revision that no event has, and
/// with it what the subscriptions that it cancelled say of why they were. This is one step of a bounded size; the last one
/// frees the revision.
pub(super) fn withdrawal_archive_step(
    connection: &mut Connection,
    revision: i64,
    now: Time,
) -> Result<(), Error> {
    // The report may have been begun only.
    withdrawal_abandon(connection, revision, now)?;
    query!(connection, c => {
        let lost: Row = withdrawal::table.find(revision).select(Row::as_select()).first(c)?;
        let begun: Option<i64> = withdrawal::table
            .filter(withdrawal::acceptance_id.eq(&lost.acceptance_id))
            .filter(withdrawal::revision.gt(revision))
            .filter(withdrawal::is_complete.eq(false))
            .select(withdrawal::revision)
            .first(c)
            .optional()?;
        let archived = match begun {
            Some(archived) => archived,
            None => {
                let last: Option<i64> = withdrawal::table
                    .filter(withdrawal::revision.lt(revision + AGREEMENTS_LIFT))
                    .select(max(withdrawal::revision))
                    .first(c)?;
                // Another one may be there from an earlier restore.
                let archived = last.unwrap_or(0).max(revision + AGREEMENTS_LIFT / 2) + 1;
                let row = Row { revision: archived, is_complete: false, ..lost };
                diesel::insert_into(withdrawal::table).values(row).execute(c)?;
                archived
            }
        };
        let effects: Vec<(String, String)> = withdrawal_effect::table
            .filter(withdrawal_effect::revision.eq(revision))
            .select((withdrawal_effect::subscription_id, withdrawal_effect::outcome))
            .limit(ARCHIVED_MAX)
            .load(c)?;
        if effects.is_empty() {
            diesel::update(withdrawal_partner::table.filter(withdrawal_partner::revision.eq(revision)))
                .set(withdrawal_partner::revision.eq(archived))
                .execute(c)?;
            diesel::delete(withdrawal::table.find(revision)).execute(c)?;
            diesel::update(withdrawal::table.find(archived)).set(withdrawal::is_complete.eq(true)).execute(c)?;
            return Ok(());
        }
        let all = effects.iter().map(|(id, _)| id);
        let of_all = withdrawal_effect::table
            .filter(withdrawal_effect::revision.eq(revision))
            .filter(withdrawal_effect::subscription_id.eq_any(all));
        diesel::update(of_all).set(withdrawal_effect::revision.eq(archived)).execute(c)?;
        // What the lost one left alone, the other one may just have ended.
        let is_cancelled = |outcome: &str| outcome == WithdrawalOutcome::Cancelled.into_str();
        let cancelled = effects.iter().filter(|(_, outcome)| is_cancelled(outcome)).map(|(id, _)| id);
        let causes = subscription_change::table
            .filter(subscription_change::reason.eq(AGREEMENT_WITHDRAWN))
            .filter(subscription_change::event_revision.eq(revision))
            .filter(subscription_change::subscription_id.eq_any(cancelled));
        diesel::update(causes).set(subscription_change::event_revision.eq(archived)).execute(c)?;
    });
    Ok(())
}

/// Of some acceptances those whose withdrawal was applied, whatever agreement-svc says of them by now (WD-3a).
pub(super) fn withdrawn_of(
    connection: &mut Connection,
    acceptances: &[Uuid],
) -> Result<BTreeSet<Uuid>, Error> {
    if acceptances.is_empty() {
        return Ok(BTreeSet::new());
    }
    asking(connection);
    let ids = acceptances.iter().map(Uuid::to_string);
    let withdrawn: Vec<String> = match connection {
        // A list of values would have to be prepared anew for each number of them.
        Connection::Sqlite(c) => {
            let mut withdrawn = vec![];
            for id in ids {
                let of_acceptance = withdrawal::table.filter(withdrawal::acceptance_id.eq(id));
                let found = of_acceptance.select(withdrawal::acceptance_id).first(c);
                withdrawn.extend(found.optional()?);
            }
            withdrawn
        }
        Connection::Postgres(c) => withdrawal::table
            .filter(withdrawal::acceptance_id.eq_any(ids))
            .select(withdrawal::acceptance_id)
            .load(c)?,
    };
    let read = |id: &String| at("withdrawal", id).parse("acceptance_id", id);
    withdrawn.iter().map(read).collect()
}

/// Which withdrawals are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Withdrawals {
    pub viewer: Viewer,
    pub customer_id: Option<Uuid>,
    /// From this revision on, which is not included: up, or down where the newest comes first.
    pub from: i64,
    pub newest_first: bool,
    pub limit: i64,
}

/// What a withdrawal did, as the viewer may see it.
pub(crate) fn withdrawal_find(
    connection: &mut Connection,
    viewer: Viewer,
    revision: i64,
) -> Result<Option<Report>, Error> {
    let slice = Withdrawals { viewer, customer_id: None, from: revision - 1, newest_first: false, limit: 1 };
    let found = withdrawal_list(connection, slice)?.pop();
    Ok(found.filter(|report| report.revision == revision))
}

/// What withdrawals did, as the viewer may see it, in the order of revisions.
pub(crate) fn withdrawal_list(connection: &mut Connection, slice: Withdrawals) -> Result<Vec<Report>, Error> {
    let Withdrawals { viewer, customer_id, from, newest_first, limit } = slice;
    let customer = customer_id.map(|id| id.to_string());
    let rows: Vec<(Row, Option<PartRow>)> = match viewer {
        Viewer::Everything | Viewer::Customer(_) => {
            let rows: Vec<Row> = query!(&mut *connection, c => {
                let mut list = withdrawal::table
                    .filter(withdrawal::is_complete.eq(true))
                    .limit(limit)
                    .select(Row::as_select())
                    .into_boxed();
                list = match newest_first {
                    true => list.filter(withdrawal::revision.lt(from)).order(withdrawal::revision.desc()),
                    false => list.filter(withdrawal::revision.gt(from)).order(withdrawal::revision),
                };
                if let Viewer::Customer(own) = viewer {
                    list = list.filter(withdrawal::customer_id.eq(own.to_string()));
                }
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
                .limit(limit)
                .select((
                    Row::as_select(),
                    (
                        withdrawal_partner::cancelled,
                        withdrawal_partner::stayed,
                        withdrawal_partner::newer_answer,
                    )
                        .nullable(),
                ))
                .into_boxed();
            list = match newest_first {
                true => list
                    .filter(withdrawal_partner::revision.lt(from))
                    .order(withdrawal_partner::revision.desc()),
                false => list
                    .filter(withdrawal_partner::revision.gt(from))
                    .order(withdrawal_partner::revision),
            };
            if let Some(customer) = &customer {
                list = list.filter(withdrawal::customer_id.eq(customer));
            }
            Unkept(list).load(c)
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
    if revisions.is_empty() {
        return Ok(BTreeMap::new());
    }
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
