//! Subscriptions and their recorded changes; rows change with optimistic locking by `version`.

use std::collections::BTreeSet;

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error, Kept, asking};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use diesel::dsl::{count_star, exists, min, sql};
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text};
use serde::Serialize;
use uuid::Uuid;

use super::schema::{follower, subscription, subscription_change};
use super::{Side, Slice, Viewer, approval_row, no_approval_row, read_approval};
use crate::rules::Time;
use crate::rules::offer::Term;
use crate::rules::subscription::{Cause, Change, ChangeKind, Subscription};
use crate::rules::withdrawal::SubscriptionFacts;

/// The reason of a change that a withdrawal made.
pub(super) const AGREEMENT_WITHDRAWN: &str = "AGREEMENT_WITHDRAWN";

#[derive(Queryable, Selectable)]
#[diesel(table_name = subscription)]
struct Row {
    id: String,
    order_id: String,
    payer_id: String,
    reseller_id: String,
    customer_id: String,
    offer_id: String,
    quantity: i64,
    friendly_name: String,
    state: String,
    auto_renew: bool,
    started_at: NaiveDateTime,
    term: String,
    term_number: i32,
    term_end: Option<NaiveDateTime>,
    answer_revision: i64,
    version: i64,
}

impl Row {
    fn read(self) -> Result<Subscription, Error> {
        let (table, id) = ("subscription", &self.id);
        Ok(Subscription {
            order_id: at(table, id).parse("order_id", &self.order_id)?,
            payer_id: at(table, id).parse("payer_id", &self.payer_id)?,
            reseller_id: at(table, id).optional_id("reseller_id", &self.reseller_id)?,
            customer_id: at(table, id).parse("customer_id", &self.customer_id)?,
            quantity: at(table, id).count("quantity", self.quantity)?,
            state: at(table, id).named("state", self.state.parse().ok())?,
            term: at(table, id).named("term", self.term.parse().ok())?,
            term_number: at(table, id).count("term_number", self.term_number)?,
            id: at(table, id).parse("id", id)?,
            offer_id: self.offer_id,
            friendly_name: self.friendly_name,
            auto_renew: self.auto_renew,
            started_at: utc(self.started_at),
            term_end: self.term_end.map(utc),
            answer_revision: self.answer_revision,
            version: self.version,
        })
    }
}

#[derive(Insertable, Serialize)]
#[diesel(table_name = subscription, treat_none_as_default_value = false)]
struct NewRow {
    id: String,
    order_id: String,
    payer_id: String,
    reseller_id: String,
    customer_id: String,
    offer_id: String,
    quantity: i64,
    friendly_name: String,
    state: &'static str,
    auto_renew: bool,
    started_at: NaiveDateTime,
    term: &'static str,
    term_number: i32,
    term_end: Option<NaiveDateTime>,
    answer_revision: i64,
    version: i64,
    due_at: Option<NaiveDateTime>,
}

#[derive(Insertable, Queryable, Selectable, Serialize)]
#[diesel(table_name = subscription_change)]
struct ChangeRow {
    subscription_id: String,
    number: i32,
    kind: String,
    changed_at: NaiveDateTime,
    actor_tenant: String,
    actor: String,
    quantity_before: i64,
    quantity_after: i64,
    gate_decision: String,
    gate_rule: String,
    gate_evidence: String,
    gate_revision: i64,
    gate_evaluated_at: NaiveDateTime,
    reason: String,
    event_revision: i64,
    term_number: i32,
    reseller_id: String,
}

impl ChangeRow {
    fn read(self) -> Result<Change, Error> {
        let (table, id) = ("subscription_change", &self.subscription_id);
        let gate = (
            self.gate_decision,
            self.gate_rule,
            self.gate_evidence,
            self.gate_revision,
            self.gate_evaluated_at,
        );
        let revision = self.event_revision;
        let cause = match self.reason.as_str() {
            "REQUESTED" => Cause::Requested {
                tenant_id: at(table, id).parse("actor_tenant", &self.actor_tenant)?,
                user_id: at(table, id).parse("actor", &self.actor)?,
            },
            "TERM_ENDED" => Cause::TermEnded,
            AGREEMENT_WITHDRAWN => Cause::AgreementWithdrawn { revision },
            "RELATIONSHIP_ENDED" => Cause::RelationshipEnded { revision },
            _ => return Err(at(table, id).corrupt("reason")),
        };
        Ok(Change {
            number: self.number.into(),
            kind: at(table, id).named("kind", self.kind.parse().ok())?,
            changed_at: utc(self.changed_at),
            cause,
            quantity_before: at(table, id).count("quantity_before", self.quantity_before)?,
            quantity_after: at(table, id).count("quantity_after", self.quantity_after)?,
            term_number: at(table, id).count("term_number", self.term_number)?,
            approval: (!gate.0.is_empty()).then(|| read_approval(table, id, gate)).transpose()?,
            reseller_id: at(table, id).optional_id("reseller_id", &self.reseller_id)?,
        })
    }
}

/// That a subscription has not ended, in the words of the partial index: SQLite uses it for nothing else.
pub(super) fn is_open() -> SqlLiteral<Bool> {
    sql("subscription.state IN ('ACTIVE', 'SUSPENDED')")
}

/// Subscriptions of a customer and some payers that have not ended, after an id, as the rules of withdrawals and ends of
/// relationships look at them.
pub(super) fn subscriptions_open(
    connection: &mut Connection,
    customer: Uuid,
    payers: &[Uuid],
    after: &str,
    limit: usize,
) -> Result<Vec<(Uuid, SubscriptionFacts)>, Error> {
    type Open = (String, String, String, String, bool, String, i64, i64);
    let payers: Vec<String> = payers.iter().map(Uuid::to_string).collect();
    let rows: Vec<Open> = query!(connection, c => {
        subscription::table
            .filter(subscription::customer_id.eq(customer.to_string()))
            .filter(subscription::payer_id.eq_any(&payers))
            .filter(is_open())
            .filter(subscription::id.gt(after))
            .order(subscription::id)
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .select((
                subscription::id,
                subscription::payer_id,
                subscription::reseller_id,
                subscription::state,
                subscription::auto_renew,
                subscription::term,
                subscription::answer_revision,
                subscription::reseller_revision,
            ))
            .load(c)
    })?;
    let read = |(id, payer, reseller, state, auto_renew, term, answer_revision, reseller_revision): Open| {
        let row = at("subscription", &id);
        let term: Term = row.named("term", term.parse().ok())?;
        let facts = SubscriptionFacts {
            payer_id: row.parse("payer_id", &payer)?,
            reseller_id: row.optional_id("reseller_id", &reseller)?,
            state: row.named("state", state.parse().ok())?,
            auto_renew,
            is_perpetual: term == Term::Perpetual,
            answer_revision,
            reseller_revision,
        };
        Ok((row.parse("id", &id)?, facts))
    };
    rows.into_iter().map(read).collect()
}

/// A payer and a customer, and how many of their subscriptions may be open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub customer_id: Uuid,
    pub payer_id: Uuid,
    pub open_max: i64,
}

/// Whether more subscriptions than that have not ended, of each.
pub(super) fn are_more_open_of(connection: &mut Connection, rooms: &[Room]) -> Result<Vec<bool>, Error> {
    #[derive(QueryableByName)]
    struct Exceeded {
        #[diesel(sql_type = Integer)]
        number: i32,
    }
    asking(connection);
    let Connection::Postgres(c) = connection else {
        let is_exceeded = |room: &Room| {
            Ok(room.open_max < 0
                || are_more_open(connection, room.customer_id, room.payer_id, room.open_max)?)
        };
        return rooms.iter().map(is_exceeded).collect();
    };
    let exceeded = sql_query(
        "SELECT number FROM unnest($1, $2, $3, $4) AS room (number, customer_id, payer_id, open_max)
        WHERE EXISTS (
            SELECT FROM subscription
            WHERE subscription.customer_id = room.customer_id AND subscription.payer_id = room.payer_id
                AND subscription.state IN ('ACTIVE', 'SUSPENDED')
            OFFSET greatest(room.open_max, 0) LIMIT 1
        ) OR room.open_max < 0",
    )
    .bind::<Array<Integer>, _>((0..).take(rooms.len()).collect::<Vec<i32>>())
    .bind::<Array<Text>, _>(rooms.iter().map(|room| room.customer_id.to_string()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rooms.iter().map(|room| room.payer_id.to_string()).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(rooms.iter().map(|room| room.open_max).collect::<Vec<_>>());
    let exceeded: Vec<Exceeded> = Kept(exceeded).load(c)?;
    let exceeded: BTreeSet<i32> = exceeded.into_iter().map(|row| row.number).collect();
    Ok((0..).take(rooms.len()).map(|number| exceeded.contains(&number)).collect())
}

/// Whether more subscriptions of a payer and a customer than so many have not ended.
pub(crate) fn are_more_open(
    connection: &mut Connection,
    customer: Uuid,
    payer: Uuid,
    than: i64,
) -> Result<bool, Error> {
    let beyond: Option<i32> = query!(connection, c => {
        let beyond = subscription::table
            .filter(subscription::customer_id.eq(customer.to_string()))
            .filter(subscription::payer_id.eq(payer.to_string()))
            .filter(is_open())
            .offset(than)
            .limit(1)
            .select(sql::<Integer>("1"));
        Kept(beyond).get_result(c).optional()
    })?;
    Ok(beyond.is_some())
}

/// A subscription that was just changed, with what its history needs.
#[derive(Queryable, Selectable)]
#[diesel(table_name = subscription)]
pub(super) struct ChangedRow {
    pub id: String,
    quantity: i64,
    term_number: i32,
    version: i64,
}

impl ChangedRow {
    /// What is kept of it, where nothing but its kind and cause is to be said.
    pub(super) fn change(&self, kind: ChangeKind, cause: Cause, now: Time) -> Result<(Uuid, Change), Error> {
        let row = at("subscription", &self.id);
        let quantity = row.count("quantity", self.quantity)?;
        let change = Change {
            number: self.version,
            kind,
            changed_at: now,
            cause,
            quantity_before: quantity,
            quantity_after: quantity,
            term_number: row.count("term_number", self.term_number)?,
            approval: None,
            reseller_id: None,
        };
        Ok((row.parse("id", &self.id)?, change))
    }
}

pub(super) fn subscriptions_insert(connection: &mut Connection, new: &[&Subscription]) -> Result<(), Error> {
    let row = |new: &&Subscription| NewRow {
        id: new.id.to_string(),
        order_id: new.order_id.to_string(),
        payer_id: new.payer_id.to_string(),
        reseller_id: id_or_empty(new.reseller_id),
        customer_id: new.customer_id.to_string(),
        offer_id: new.offer_id.clone(),
        quantity: new.quantity.into(),
        friendly_name: new.friendly_name.clone(),
        state: new.state.into_str(),
        auto_renew: new.auto_renew,
        started_at: new.started_at.naive_utc(),
        term: new.term.into_str(),
        term_number: i32::try_from(new.term_number).unwrap_or(i32::MAX),
        term_end: new.term_end.map(|at| at.naive_utc()),
        answer_revision: new.answer_revision,
        version: new.version,
        due_at: new.due_at().map(|at| at.naive_utc()),
    };
    let rows: Vec<_> = new.iter().map(row).collect();
    Ok(insert_rows!(connection, subscription, &rows)?)
}

/// Stores a subscription as it is after its changes, and the changes, if its version is still the one that they
/// were decided on (optimistic locking); else nothing is stored, and the answer is false.
pub(crate) fn subscription_change(
    connection: &mut Connection,
    after: &Subscription,
    version: i64,
    changes: &[Change],
) -> Result<bool, Error> {
    let is_as_read = subscription_update(connection, after, version)?;
    if is_as_read {
        if changes.iter().any(|change| change.kind == ChangeKind::ResellerAssigned) {
            reseller_assigned(connection, after.id)?;
        }
        let changes: Vec<_> = changes.iter().map(|change| (after.id, change.clone())).collect();
        changes_insert(connection, &changes)?;
    }
    Ok(is_as_read)
}

/// Notes which ends of relationships came before its reseller was assigned. Behind the customer's fence the cursor tells.
fn reseller_assigned(connection: &mut Connection, id: Uuid) -> Result<(), Error> {
    let applied: i64 = query!(&mut *connection, c => follower::table.select(follower::revision).first(c))?;
    query!(connection, c => {
        diesel::update(subscription::table.find(id.to_string()))
            .set(subscription::reseller_revision.eq(applied))
            .execute(c)
    })?;
    Ok(())
}

fn subscription_update(
    connection: &mut Connection,
    changed: &Subscription,
    version: i64,
) -> Result<bool, Error> {
    let updated: Vec<String> = query!(connection, c => {
        let update = diesel::update(
            subscription::table
                .filter(subscription::id.eq(changed.id.to_string()))
                .filter(subscription::version.eq(version)),
        )
        .set((
            subscription::reseller_id.eq(id_or_empty(changed.reseller_id)),
            subscription::quantity.eq(i64::from(changed.quantity)),
            subscription::state.eq(changed.state.into_str()),
            subscription::auto_renew.eq(changed.auto_renew),
            subscription::term_number.eq(i32::try_from(changed.term_number).unwrap_or(i32::MAX)),
            subscription::term_end.eq(changed.term_end.map(|at| at.naive_utc())),
            subscription::answer_revision.eq(changed.answer_revision),
            subscription::version.eq(changed.version),
            subscription::due_at.eq(changed.due_at().map(|at| at.naive_utc())),
        ));
        Kept(update.returning(subscription::id)).load(c)
    })?;
    Ok(!updated.is_empty())
}

/// Keeps what happened to each of the subscriptions.
pub(super) fn changes_insert(connection: &mut Connection, changes: &[(Uuid, Change)]) -> Result<(), Error> {
    let mut rows = vec![];
    for (id, change) in changes {
        let gate = match &change.approval {
            Some(approval) => approval_row(approval)?,
            None => no_approval_row(change.changed_at),
        };
        let (gate_decision, gate_rule, gate_evidence, gate_revision, gate_evaluated_at) = gate;
        let (reason, actor, event_revision) = match change.cause {
            Cause::Requested { tenant_id, user_id } => ("REQUESTED", Some((tenant_id, user_id)), 0),
            Cause::TermEnded => ("TERM_ENDED", None, 0),
            Cause::AgreementWithdrawn { revision } => (AGREEMENT_WITHDRAWN, None, revision),
            Cause::RelationshipEnded { revision } => ("RELATIONSHIP_ENDED", None, revision),
        };
        let (actor_tenant, actor) = actor.unzip();
        let number = i32::try_from(change.number)
            .map_err(|_| at("subscription", &id.to_string()).corrupt("version"))?;
        rows.push(ChangeRow {
            subscription_id: id.to_string(),
            number,
            kind: change.kind.into_str().to_owned(),
            changed_at: change.changed_at.naive_utc(),
            actor_tenant: id_or_empty(actor_tenant),
            actor: id_or_empty(actor),
            quantity_before: change.quantity_before.into(),
            quantity_after: change.quantity_after.into(),
            gate_decision,
            gate_rule,
            gate_evidence,
            gate_revision,
            gate_evaluated_at,
            reason: reason.to_owned(),
            event_revision,
            term_number: i32::try_from(change.term_number).unwrap_or(i32::MAX),
            reseller_id: id_or_empty(change.reseller_id),
        });
    }
    Ok(insert_rows!(connection, subscription_change, &rows)?)
}

pub(crate) fn subscription_find(
    connection: &mut Connection,
    viewer: Viewer,
    id: Uuid,
) -> Result<Option<Subscription>, Error> {
    let row: Option<Row> = query!(connection, c => {
        subscription::table.find(id.to_string()).select(Row::as_select()).first(c).optional()
    })?;
    row.filter(|row| viewer.sees(&row.payer_id, &row.reseller_id)).map(Row::read).transpose()
}

pub(crate) fn subscription_list(
    connection: &mut Connection,
    slice: &Slice,
) -> Result<Vec<Subscription>, Error> {
    let side = |side: Side| {
        let rows: Vec<Row> = query!(&mut *connection, c => {
            let mut list = subscription::table
                .filter(subscription::id.gt(slice.after.as_deref().unwrap_or_default()))
                .order(subscription::id)
                .limit(slice.limit)
                .select(Row::as_select())
                .into_boxed();
            match side {
                Side::Anyone => {}
                Side::Payer(id) => list = list.filter(subscription::payer_id.eq(id.to_string())),
                Side::Reseller(id) => list = list.filter(subscription::reseller_id.eq(id.to_string())),
            }
            if let Some(customer) = slice.customer_id {
                list = list.filter(subscription::customer_id.eq(customer.to_string()));
            }
            list.load(c)
        })?;
        Ok(rows)
    };
    let rows = slice.load(side, |row| &row.id)?;
    rows.into_iter().map(Row::read).collect()
}

/// A subscription whose term may have to be processed: when it ends, and the subscription's id. The row
/// itself is read by [`subscription_due`], so that one that cannot be read does not block the others.
pub(crate) type Due = (NaiveDateTime, String);

/// CallOptions that have ended until then, oldest first, after the last of the page before.
pub(crate) fn due_list(
    connection: &mut Connection,
    until: Time,
    after: Option<&Due>,
    limit: i64,
) -> Result<Vec<Due>, Error> {
    Ok(query!(connection, c => {
        let mut list = subscription::table
            .filter(subscription::due_at.le(until.naive_utc()))
            .order((subscription::due_at, subscription::id))
            .limit(limit)
            .select((subscription::due_at.assume_not_null(), subscription::id))
            .into_boxed();
        if let Some((due_at, id)) = after {
            let of_same_time = subscription::due_at.eq(due_at).and(subscription::id.gt(id));
            list = list.filter(subscription::due_at.gt(due_at).or(of_same_time).assume_not_null());
        }
        list.load(c)
    })?)
}

/// How many subscriptions have a term that ended before then, and when the first of those terms ended.
pub(crate) fn terms_overdue(connection: &mut Connection, now: Time) -> Result<(i64, Option<Time>), Error> {
    let (count, oldest): (i64, Option<NaiveDateTime>) = query!(connection, c => {
        subscription::table
            .filter(subscription::due_at.le(now.naive_utc()))
            .select((count_star(), min(subscription::due_at)))
            .first(c)
    })?;
    Ok((count, oldest.map(utc)))
}

/// The customer's subscriptions whose term has ended until then, oldest first.
pub(crate) fn due_of(connection: &mut Connection, customer: Uuid, until: Time) -> Result<Vec<String>, Error> {
    Ok(query!(connection, c => {
        subscription::table
            .filter(subscription::customer_id.eq(customer.to_string()))
            .filter(subscription::due_at.le(until.naive_utc()))
            .order((subscription::due_at, subscription::id))
            .select(subscription::id)
            .load(c)
    })?)
}

/// Whether a term of the customer's subscriptions has ended until then and is not processed yet.
pub(super) fn terms_are_due(connection: &mut Connection, customer: Uuid, until: Time) -> Result<bool, Error> {
    let due = subscription::table
        .filter(subscription::customer_id.eq(customer.to_string()))
        .filter(subscription::due_at.le(until.naive_utc()));
    Ok(query!(connection, c => diesel::select(exists(due)).get_result(c))?)
}

/// A subscription, if its term has ended until then and is not processed yet.
pub(crate) fn subscription_due(
    connection: &mut Connection,
    id: &str,
    until: Time,
) -> Result<Option<Subscription>, Error> {
    let row: Option<Row> = query!(connection, c => {
        subscription::table
            .find(id)
            .filter(subscription::due_at.le(until.naive_utc()))
            .select(Row::as_select())
            .first(c)
            .optional()
    })?;
    let subscription = row.map(Row::read).transpose()?;
    match subscription {
        Some(read) if read.due_at().is_none_or(|due_at| until < due_at) => {
            Err(at("subscription", id).corrupt("due_at"))
        }
        subscription => Ok(subscription),
    }
}

pub(crate) fn change_list(
    connection: &mut Connection,
    id: Uuid,
    after: i64,
    limit: i64,
) -> Result<Vec<Change>, Error> {
    // Numbers beyond what a row can have come only from tokens that were made up.
    let after = i32::try_from(after).unwrap_or(i32::MAX);
    let rows: Vec<ChangeRow> = query!(connection, c => {
        subscription_change::table
            .filter(subscription_change::subscription_id.eq(id.to_string()))
            .filter(subscription_change::number.gt(after))
            .order(subscription_change::number)
            .limit(limit)
            .select(ChangeRow::as_select())
            .load(c)
    })?;
    rows.into_iter().map(ChangeRow::read).collect()
}
