//! The outbox of first purchases to agreement-svc, claimed with leases.
//!
//! A report is written in the transaction that accepts the order, claimed by moving its due time
//! forward, and due again when the worker that claimed it does not finish, or when agreement-svc was restored from an
//! older copy and may have forgotten it. It is never deleted.

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::{insert_rows, query};
use chrono::{Duration, NaiveDateTime};
use diesel::dsl::{count_star, min};
use diesel::prelude::*;
use serde::Serialize;
use uuid::Uuid;

use super::schema::purchase_report;

use crate::rules::Time;
use crate::rules::order::{Order, PurchaseReport};

/// Reports claimed at a time: so few that their claims outlast delivering them one by one.
const CLAIM_MAX: i64 = 8;

/// Reports made due again at a time: few enough that orders of the same customers do not wait.
const AGAIN_MAX: i64 = 1000;

#[derive(Insertable, Serialize)]
#[diesel(table_name = purchase_report, treat_none_as_default_value = false)]
struct NewRow {
    customer_id: String,
    payer_id: String,
    order_id: String,
    purchased_at: NaiveDateTime,
    attempts: i32,
    due_at: NaiveDateTime,
}

/// Queues the report of a customer's first purchase; of later ones nothing is kept.
pub(super) fn reports_insert<'a>(
    connection: &mut Connection,
    orders: impl Iterator<Item = &'a Order>,
) -> Result<(), Error> {
    let rows: Vec<_> = orders
        .map(|order| NewRow {
            customer_id: order.parties.customer_id.to_string(),
            payer_id: order.parties.payer_id.to_string(),
            order_id: order.id.to_string(),
            purchased_at: order.placed_at.naive_utc(),
            attempts: 0,
            due_at: order.placed_at.naive_utc(),
        })
        .collect();
    Ok(insert_rows!(connection, purchase_report, &rows, on_conflict_do_nothing)?)
}

/// Claims what is due until `now + lease`. A report that another replica claims at the same point
/// is left to it. None is put back for longer than `wait_max`: what is due later was written while the clock was ahead,
/// and is due now.
pub(crate) fn reports_claim(
    connection: &mut Connection,
    now: Time,
    lease: Duration,
    wait_max: Duration,
) -> Result<Vec<PurchaseReport>, Error> {
    let due = purchase_report::table
        .filter(purchase_report::reported_at.is_null())
        .filter(
            purchase_report::due_at
                .le(now.naive_utc())
                .or(purchase_report::due_at.gt((now + wait_max).naive_utc())),
        )
        .order(purchase_report::due_at)
        .limit(CLAIM_MAX)
        .select((
            purchase_report::customer_id,
            purchase_report::payer_id,
            purchase_report::order_id,
            purchase_report::purchased_at,
            purchase_report::attempts,
        ));
    // It waits for no other replica, so it cannot deadlock with one.
    let due: Vec<(String, String, String, NaiveDateTime, i32)> = match connection {
        Connection::Sqlite(c) => due.load(c)?,
        Connection::Postgres(c) => due.for_update().skip_locked().load(c)?,
    };
    let mut claimed = vec![];
    for (key, payer_id, order_id, purchased_at, attempts) in due {
        let updated = query!(connection, c => {
            diesel::update(
                purchase_report::table
                    .filter(purchase_report::customer_id.eq(&key))
                    .filter(purchase_report::attempts.eq(attempts)),
            )
            .set((
                purchase_report::attempts.eq(attempts + 1),
                purchase_report::due_at.eq((now + lease).naive_utc()),
            ))
            .execute(c)
        })?;
        if updated > 0 {
            let table = "purchase_report";
            claimed.push(PurchaseReport {
                customer_id: at(table, &key).parse("customer_id", &key)?,
                payer_id: at(table, &key).parse("payer_id", &payer_id)?,
                order_id: at(table, &key).parse("order_id", &order_id)?,
                purchased_at: utc(purchased_at),
                attempts: u32::try_from(attempts).unwrap_or(0) + 1,
            });
        }
    }
    Ok(claimed)
}

/// How many reports are on their way, and when the oldest of them was written.
pub(crate) fn reports_waiting(connection: &mut Connection) -> Result<(i64, Option<Time>), Error> {
    let (count, oldest): (i64, Option<NaiveDateTime>) = query!(connection, c => {
        purchase_report::table
            .filter(purchase_report::reported_at.is_null())
            .select((count_star(), min(purchase_report::purchased_at)))
            .first(c)
    })?;
    Ok((count, oldest.map(utc)))
}

pub(crate) fn report_done(connection: &mut Connection, customer: Uuid, now: Time) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(purchase_report::table.find(customer.to_string()))
            .set(purchase_report::reported_at.eq(now.naive_utc()))
            .execute(c)
    })?;
    Ok(())
}

/// Makes reports that were delivered before a time due again, as many as one transaction takes. The answer says
/// whether that was all.
pub(crate) fn reports_requeue(
    connection: &mut Connection,
    delivered_before: Time,
    now: Time,
) -> Result<bool, Error> {
    let delivered = purchase_report::table
        .filter(purchase_report::reported_at.lt(delivered_before.naive_utc()))
        .order(purchase_report::customer_id)
        .limit(AGAIN_MAX)
        .select(purchase_report::customer_id);
    // Replicas lock in the same order, so they cannot deadlock.
    let delivered: Vec<String> = match connection {
        Connection::Sqlite(c) => delivered.load(c)?,
        Connection::Postgres(c) => delivered.for_update().load(c)?,
    };
    query!(connection, c => {
        diesel::update(purchase_report::table.filter(purchase_report::customer_id.eq_any(&delivered)))
            .set((
                purchase_report::reported_at.eq(None::<NaiveDateTime>),
                purchase_report::due_at.eq(now.naive_utc()),
            ))
            .execute(c)
    })?;
    Ok(delivered.is_empty())
}

/// Puts a report back until `due_at`.
pub(crate) fn report_postpone(
    connection: &mut Connection,
    customer: Uuid,
    due_at: Time,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(purchase_report::table.find(customer.to_string()))
            .set(purchase_report::due_at.eq(due_at.naive_utc()))
            .execute(c)
    })?;
    Ok(())
}
