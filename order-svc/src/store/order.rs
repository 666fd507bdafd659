//! Orders and their lines: the rows that CreateOrder stores, and how they are read.

use std::collections::BTreeMap;

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::report::report_insert;
use super::schema::{order_line, orders};
use super::subscription::{changes_insert, subscriptions_insert};
use super::{ApprovalRow, Side, Slice, Viewer, approval_row, read_approval};
use crate::rules::order::{Line, Order, Parties, PlacedLine};
use crate::rules::subscription::Subscription;

#[derive(Queryable)]
struct Row {
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
            id: at(table, id).parse("id", id)?,
        })
    }
}

fn with_lines(connection: &mut Connection, rows: Vec<Row>) -> Result<Vec<Order>, Error> {
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

/// Stores an accepted order: its lines, their subscriptions with the first change of each, and the report of
/// the customer's first purchase.
pub(crate) fn order_place(
    connection: &mut Connection,
    order: &Order,
    subscriptions: &[Subscription],
) -> Result<(), Error> {
    order_insert(connection, order)?;
    subscriptions_insert(connection, subscriptions)?;
    let changes: Vec<_> = subscriptions.iter().map(|new| (new.id, order.creation(new))).collect();
    changes_insert(connection, &changes)?;
    report_insert(connection, order)
}

fn order_insert(connection: &mut Connection, new: &Order) -> Result<(), Error> {
    let (decision, rule, evidence, revision, evaluated_at) = approval_row(&new.approval)?;
    let id = new.id.to_string();
    query!(connection, c => {
        diesel::insert_into(orders::table)
            .values((
                orders::id.eq(&id),
                orders::payer_id.eq(new.parties.payer_id.to_string()),
                orders::reseller_id.eq(id_or_empty(new.parties.reseller_id)),
                orders::customer_id.eq(new.parties.customer_id.to_string()),
                orders::placed_at.eq(new.placed_at.naive_utc()),
                orders::placed_by_tenant.eq(new.placed_by_tenant.to_string()),
                orders::placed_by.eq(new.placed_by.to_string()),
                orders::gate_decision.eq(&decision),
                orders::gate_rule.eq(&rule),
                orders::gate_evidence.eq(&evidence),
                orders::gate_revision.eq(revision),
                orders::gate_evaluated_at.eq(evaluated_at),
            ))
            .execute(c)
    })?;
    let lines: Vec<_> = (1..)
        .zip(&new.lines)
        .map(|(number, placed): (i32, _)| {
            (
                order_line::order_id.eq(&id),
                order_line::number.eq(number),
                order_line::offer_id.eq(&placed.line.offer_id),
                order_line::quantity.eq(i64::from(placed.line.quantity)),
                order_line::friendly_name.eq(&placed.line.friendly_name),
                order_line::subscription_id.eq(placed.subscription_id.to_string()),
            )
        })
        .collect();
    Ok(insert_rows!(connection, order_line::table, &lines)?)
}

pub(crate) fn order_find(
    connection: &mut Connection,
    viewer: Viewer,
    id: Uuid,
) -> Result<Option<Order>, Error> {
    let row: Option<Row> = query!(connection, c => orders::table.find(id.to_string()).first(c).optional())?;
    let visible = row.filter(|row| viewer.sees(&row.payer_id, &row.reseller_id));
    Ok(with_lines(connection, visible.into_iter().collect())?.pop())
}

pub(crate) fn order_list(connection: &mut Connection, slice: &Slice) -> Result<Vec<Order>, Error> {
    let side = |side: Side| {
        let rows: Vec<Row> = query!(&mut *connection, c => {
            let mut list = orders::table
                .filter(orders::id.gt(slice.after.as_deref().unwrap_or_default()))
                .order(orders::id)
                .limit(slice.limit)
                .into_boxed();
            match side {
                Side::Anyone => {}
                Side::Payer(id) => list = list.filter(orders::payer_id.eq(id.to_string())),
                Side::Reseller(id) => list = list.filter(orders::reseller_id.eq(id.to_string())),
            }
            if let Some(customer) = slice.customer_id {
                list = list.filter(orders::customer_id.eq(customer.to_string()));
            }
            list.load(c)
        })?;
        Ok(rows)
    };
    let rows = slice.load(side, |row| &row.id)?;
    with_lines(connection, rows)
}
