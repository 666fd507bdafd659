//! Orders and their lines: the rows that CreateOrder stores, and how they are read.

use std::collections::BTreeMap;

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error, Unkept};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use diesel::dsl::exists;
use diesel::prelude::*;
use serde::Serialize;
use uuid::Uuid;

use super::event::{change_entry, entries_insert};
use super::report::reports_insert;
use super::schema::{order_line, orders};
use super::subscription::{change_rows_insert, subscriptions_insert};
use super::{ApprovalRow, Side, Slice, Viewer, approval_row, read_approval};
use crate::rules::event::Entry;
use crate::rules::order::{Line, Order, Parties, PlacedLine};
use crate::rules::subscription::Subscription;

#[derive(Insertable, Queryable, Selectable, Serialize)]
#[diesel(table_name = orders, treat_none_as_default_value = false)]
pub(super) struct Row {
    id: String,
    payer_id: String,
    reseller_id: String,
    customer_id: String,
    placed_at: NaiveDateTime,
    placed_by_tenant: String,
    placed_by: String,
    gate_decision: String,
    gate_rule: String,
    gate_evidence: String,
    gate_revision: i64,
    gate_evaluated_at: NaiveDateTime,
    external_reference: Option<String>,
}

/// A row of a version that keeps the history.
#[derive(Insertable, Serialize)]
#[diesel(table_name = orders, treat_none_as_default_value = false)]
struct NewRow {
    #[diesel(embed)]
    #[serde(flatten)]
    row: Row,
    in_history: bool,
}

type LineRow = (String, i32, String, i64, String, String);

impl Row {
    fn read(self, lines: Vec<PlacedLine>) -> Result<Order, Error> {
        let (table, id) = ("orders", &self.id);
        let gate: ApprovalRow = (
            self.gate_decision,
            self.gate_rule,
            self.gate_evidence,
            self.gate_revision,
            self.gate_evaluated_at,
        );
        Ok(Order {
            parties: Parties {
                payer_id: at(table, id).parse("payer_id", &self.payer_id)?,
                reseller_id: at(table, id).optional_id("reseller_id", &self.reseller_id)?,
                customer_id: at(table, id).parse("customer_id", &self.customer_id)?,
            },
            lines,
            placed_at: utc(self.placed_at),
            placed_by_tenant: at(table, id).parse("placed_by_tenant", &self.placed_by_tenant)?,
            placed_by: at(table, id).parse("placed_by", &self.placed_by)?,
            approval: read_approval(table, id, gate)?,
            external_reference: self.external_reference,
            id: at(table, id).parse("id", id)?,
        })
    }
}

pub(super) fn with_lines(connection: &mut Connection, rows: Vec<Row>) -> Result<Vec<Order>, Error> {
    if rows.is_empty() {
        return Ok(vec![]);
    }
    let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    let line_rows: Vec<LineRow> = query!(connection, c => {
        order_line::table
            .filter(order_line::order_id.eq_any(&ids))
            .order((order_line::order_id, order_line::number))
            .load(c)
    })?;
    let mut lines: BTreeMap<String, Vec<PlacedLine>> = BTreeMap::new();
    for (order_id, _, offer_id, quantity, friendly_name, subscription_id) in line_rows {
        let quantity = at("order_line", &order_id).count("quantity", quantity)?;
        let subscription_id = at("order_line", &order_id).parse("subscription_id", &subscription_id)?;
        let line = Line { offer_id, quantity, friendly_name };
        lines.entry(order_id).or_default().push(PlacedLine { line, subscription_id });
    }
    rows.into_iter()
        .map(|row| {
            let lines = lines.remove(&row.id).unwrap_or_default();
            row.read(lines)
        })
        .collect()
}

/// Stores accepted orders: their lines, the subscriptions of these with the first change of each, their entries for the history,
/// and the report of a customer's first purchase.
pub(crate) fn orders_insert(
    connection: &mut Connection,
    orders: &[(&Order, &[Subscription])],
) -> Result<(), Error> {
    let (mut rows, mut lines, mut subscriptions, mut changes) = (vec![], vec![], vec![], vec![]);
    let mut entries = vec![];
    for (order, new) in orders {
        rows.push(NewRow { row: order_row(order)?, in_history: true });
        entries.push(Entry::Order { order_id: order.id });
        entries.extend(new.iter().map(|new| change_entry(new.id, new.version)));
        lines.extend((1..).zip(&order.lines).map(|(number, line)| line_row(order.id, number, line)));
        subscriptions.extend(new.iter());
        changes.extend(new.iter().map(|new| (new.id, order.creation(new))));
    }
    insert_rows!(&mut *connection, orders, &rows)?;
    insert_rows!(&mut *connection, order_line, &lines)?;
    subscriptions_insert(connection, &subscriptions)?;
    change_rows_insert(connection, &changes)?;
    entries_insert(connection, &entries)?;
    reports_insert(connection, orders.iter().map(|(order, _)| *order))
}

#[derive(Insertable, Serialize)]
#[diesel(table_name = order_line, treat_none_as_default_value = false)]
struct NewLine<'a> {
    order_id: String,
    number: i32,
    offer_id: &'a str,
    quantity: i64,
    friendly_name: &'a str,
    subscription_id: String,
}

fn line_row(order: Uuid, number: i32, placed: &PlacedLine) -> NewLine<'_> {
    NewLine {
        order_id: order.to_string(),
        number,
        offer_id: &placed.line.offer_id,
        quantity: placed.line.quantity.into(),
        friendly_name: &placed.line.friendly_name,
        subscription_id: placed.subscription_id.to_string(),
    }
}

fn order_row(new: &Order) -> Result<Row, Error> {
    let (gate_decision, gate_rule, gate_evidence, gate_revision, gate_evaluated_at) =
        approval_row(&new.approval)?;
    Ok(Row {
        id: new.id.to_string(),
        payer_id: new.parties.payer_id.to_string(),
        reseller_id: id_or_empty(new.parties.reseller_id),
        customer_id: new.parties.customer_id.to_string(),
        placed_at: new.placed_at.naive_utc(),
        placed_by_tenant: new.placed_by_tenant.to_string(),
        placed_by: new.placed_by.to_string(),
        gate_decision,
        gate_rule,
        gate_evidence,
        gate_revision,
        gate_evaluated_at,
        external_reference: new.external_reference.clone(),
    })
}

pub(crate) fn order_find(
    connection: &mut Connection,
    viewer: Viewer,
    id: Uuid,
) -> Result<Option<Order>, Error> {
    let row: Option<Row> = query!(connection, c => orders::table.find(id.to_string()).select(Row::as_select()).first(c).optional())?;
    let visible = row.filter(|row| viewer.sees(&row.payer_id, &row.reseller_id, &row.customer_id));
    Ok(with_lines(connection, visible.into_iter().collect())?.pop())
}

/// Orders, with a reference where one is given: it is that of the tenant that placed them, for whom it is shown.
pub(crate) fn order_list(
    connection: &mut Connection,
    slice: &Slice,
    external_reference: Option<&str>,
) -> Result<Vec<Order>, Error> {
    let (low, high) = slice.keys();
    let side = |side: Side| {
        let rows: Vec<Row> = query!(&mut *connection, c => {
            let mut list = orders::table
                .filter(orders::id.gt(&low))
                .filter(orders::id.lt(&high))
                .limit(slice.limit)
                .select(Row::as_select())
                .into_boxed();
            list = match slice.newest_first {
                true => list.order(orders::id.desc()),
                false => list.order(orders::id),
            };
            match side {
                Side::Anyone => {}
                Side::Customer(id) => list = list.filter(orders::customer_id.eq(id.to_string())),
                Side::Payer(id) => list = list.filter(orders::payer_id.eq(id.to_string())),
                Side::Reseller(id) => list = list.filter(orders::reseller_id.eq(id.to_string())),
            }
            if let Some(customer) = slice.customer_id {
                list = list.filter(orders::customer_id.eq(customer.to_string()));
            }
            if let Some(offer) = &slice.offer_id {
                let of_offer = order_line::table
                    .filter(order_line::order_id.eq(orders::id))
                    .filter(order_line::offer_id.eq(offer));
                list = list.filter(exists(of_offer));
            }
            if let Some(reference) = external_reference {
                list = list.filter(orders::external_reference.eq(reference));
                if let Viewer::Partner(own) = slice.viewer {
                    list = list.filter(orders::placed_by_tenant.eq(own.to_string()));
                }
            }
            if let Some(from) = slice.from {
                list = list.filter(orders::placed_at.ge(from.naive_utc()));
            }
            if let Some(before) = slice.before {
                list = list.filter(orders::placed_at.lt(before.naive_utc()));
            }
            Unkept(list).load(c)
        })?;
        Ok(rows)
    };
    let rows = slice.load(side, |row| &row.id)?;
    with_lines(connection, rows)
}
