//! Subscriptions and their recorded changes.

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error, Unkept};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use diesel::dsl::{count_star, exists, min};
use diesel::prelude::*;
use serde::Serialize;
use uuid::Uuid;

use super::event::{change_entry, entries_insert};
use super::schema::{subscription, subscription_change};
use super::{Side, Slice, Viewer, approval_row, no_approval_row, read_approval};
use crate::rules::Time;
use crate::rules::subscription::{Cause, Change, ChangeKind, State, Subscription};

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
#[diesel(table_name = subscription_change, treat_none_as_default_value = false)]
pub(super) struct ChangeRow {
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
    acceptance_outdated: Option<bool>,
}

/// A row of a version that keeps the history.
#[derive(Insertable, Serialize)]
#[diesel(table_name = subscription_change, treat_none_as_default_value = false)]
struct NewChangeRow {
    #[diesel(embed)]
    #[serde(flatten)]
    row: ChangeRow,
    in_history: bool,
}

impl ChangeRow {
    pub(super) fn read(self) -> Result<Change, Error> {
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
            "TERM_ENDED" => Cause::TermEnded { acceptance_outdated: self.acceptance_outdated },
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

/// Keeps what happened to each of the subscriptions, with its entries for the history.
pub(super) fn changes_insert(connection: &mut Connection, changes: &[(Uuid, Change)]) -> Result<(), Error> {
    change_rows_insert(connection, changes)?;
    let entries: Vec<_> = changes.iter().map(|(id, change)| change_entry(*id, change.number)).collect();
    entries_insert(connection, &entries)
}

pub(super) fn change_rows_insert(
    connection: &mut Connection,
    changes: &[(Uuid, Change)],
) -> Result<(), Error> {
    let mut rows = vec![];
    for (id, change) in changes {
        let gate = match &change.approval {
            Some(approval) => approval_row(approval)?,
            None => no_approval_row(change.changed_at),
        };
        let (gate_decision, gate_rule, gate_evidence, gate_revision, gate_evaluated_at) = gate;
        let (reason, actor, event_revision, acceptance_outdated) = match change.cause {
            Cause::Requested { tenant_id, user_id } => ("REQUESTED", Some((tenant_id, user_id)), 0, None),
            Cause::TermEnded { acceptance_outdated } => ("TERM_ENDED", None, 0, acceptance_outdated),
            Cause::AgreementWithdrawn { revision } => (AGREEMENT_WITHDRAWN, None, revision, None),
            Cause::RelationshipEnded { revision } => ("RELATIONSHIP_ENDED", None, revision, None),
        };
        let (actor_tenant, actor) = actor.unzip();
        let number = i32::try_from(change.number)
            .map_err(|_| at("subscription", &id.to_string()).corrupt("version"))?;
        let row = ChangeRow {
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
            acceptance_outdated,
        };
        rows.push(NewChangeRow { row, in_history: true });
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
    row.filter(|row| viewer.sees(&row.payer_id, &row.reseller_id, &row.customer_id))
        .map(Row::read)
        .transpose()
}

/// A page of subscriptions, filtered.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub slice: Slice,
    pub state: Option<State>,
    /// Those that have not ended and whose term ends before then.
    pub ends_before: Option<Time>,
    /// Those that have not ended and have a term.
    pub has_term: bool,
}

pub(crate) fn subscription_list(
    connection: &mut Connection,
    wanted: &Wanted,
) -> Result<Vec<Subscription>, Error> {
    let Wanted { slice, state, ends_before, has_term } = wanted;
    let (low, high) = slice.keys();
    let side = |side: Side| {
        let rows: Vec<Row> = query!(&mut *connection, c => {
            let mut list = subscription::table
                .filter(subscription::id.gt(&low))
                .filter(subscription::id.lt(&high))
                .limit(slice.limit)
                .select(Row::as_select())
                .into_boxed();
            list = match slice.newest_first {
                true => list.order(subscription::id.desc()),
                false => list.order(subscription::id),
            };
            match side {
                Side::Anyone => {}
                Side::Customer(id) => list = list.filter(subscription::customer_id.eq(id.to_string())),
                Side::Payer(id) => list = list.filter(subscription::payer_id.eq(id.to_string())),
                Side::Reseller(id) => list = list.filter(subscription::reseller_id.eq(id.to_string())),
            }
            if let Some(customer) = slice.customer_id {
                list = list.filter(subscription::customer_id.eq(customer.to_string()));
            }
            if let Some(offer) = &slice.offer_id {
                list = list.filter(subscription::offer_id.eq(offer));
            }
            if let Some(from) = slice.from {
                list = list.filter(subscription::started_at.ge(from.naive_utc()));
            }
            if let Some(before) = slice.before {
                list = list.filter(subscription::started_at.lt(before.naive_utc()));
            }
            if let Some(state) = state {
                list = list.filter(subscription::state.eq(state.into_str()));
            }
            if let Some(ends_before) = ends_before {
                list = list.filter(subscription::due_at.lt(ends_before.naive_utc()));
            }
            if *has_term {
                list = list.filter(subscription::due_at.is_not_null());
            }
            Unkept(list).load(c)
        })?;
        Ok(rows)
    };
    let rows = slice.load(side, |row| &row.id)?;
    rows.into_iter().map(Row::read).collect()
}

/// A subscription whose term may have to be processed: when it ends, and the subscription's id. The row
/// itself is read by [`subscription_due`], so that one that cannot be read does not block the others.
pub(crate) type Due = (NaiveDateTime, String);

/// Terms that have ended until then, oldest first, after the last of the page before.
pub(crate) fn due_list(
    connection: &mut Connection,
    until: Time,
    after: Option<&Due>,
    limit: usize,
) -> Result<Vec<Due>, Error> {
    Ok(query!(connection, c => {
        let mut list = subscription::table
            .filter(subscription::due_at.le(until.naive_utc()))
            .order((subscription::due_at, subscription::id))
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
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

/// Those of these subscriptions that renew by themselves. Each is read by itself, so that a damaged one, which is left out, does
/// not block the others.
pub(crate) fn renewing_of(connection: &mut Connection, ids: &[String]) -> Result<Vec<Subscription>, Error> {
    let mut renewing = vec![];
    for id in ids {
        let row: Result<Option<Row>, _> = query!(&mut *connection, c => {
            let renews = subscription::table.find(id).filter(subscription::auto_renew);
            renews.select(Row::as_select()).first(c).optional()
        });
        match row.map_err(Error::from).and_then(|row| row.map(Row::read).transpose()) {
            Err(error @ Error::Unavailable(_)) => return Err(error),
            read => renewing.extend(read.ok().flatten()),
        }
    }
    Ok(renewing)
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

/// Changes of a subscription from a number on, which is not included: up, or down where the newest comes first.
pub(crate) fn change_list(
    connection: &mut Connection,
    id: Uuid,
    newest_first: bool,
    from: i64,
    limit: i64,
) -> Result<Vec<Change>, Error> {
    // Numbers beyond what a row can have come only from tokens that were made up, or stand for the end of the list.
    let from = i32::try_from(from).unwrap_or(i32::MAX);
    let rows: Vec<ChangeRow> = query!(connection, c => {
        let mut list = subscription_change::table
            .filter(subscription_change::subscription_id.eq(id.to_string()))
            .limit(limit)
            .select(ChangeRow::as_select())
            .into_boxed();
        list = match newest_first {
            true => list.filter(subscription_change::number.lt(from)).order(subscription_change::number.desc()),
            false => list.filter(subscription_change::number.gt(from)).order(subscription_change::number),
        };
        list.load(c)
    })?;
    rows.into_iter().map(ChangeRow::read).collect()
}
