//! Subscriptions that have not ended: how many a payer has with a customer, and what the rules of withdrawals and ends of
//! relationships look at.

use std::collections::BTreeSet;

use chassis::database::row::at;
use chassis::database::{Connection, Error, Kept, asking};
use chassis::query;
use diesel::dsl::sql;
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text};
use uuid::Uuid;

use super::schema::subscription;
use crate::rules::offer::Term;
use crate::rules::order::Parties;
use crate::rules::withdrawal::SubscriptionFacts;

/// That a subscription has not ended, in the words of the partial index: SQLite uses it for nothing else.
pub(super) fn is_open() -> SqlLiteral<Bool> {
    sql("subscription.state IN ('ACTIVE', 'SUSPENDED')")
}

/// The columns that the rules of withdrawals and ends of relationships look at.
pub(super) type Open = (String, String, String, String, bool, String, i64, i64);

pub(super) const OPEN: OpenColumns = (
    subscription::id,
    subscription::payer_id,
    subscription::reseller_id,
    subscription::state,
    subscription::auto_renew,
    subscription::term,
    subscription::answer_revision,
    subscription::reseller_revision,
);

type OpenColumns = (
    subscription::id,
    subscription::payer_id,
    subscription::reseller_id,
    subscription::state,
    subscription::auto_renew,
    subscription::term,
    subscription::answer_revision,
    subscription::reseller_revision,
);

pub(super) fn read_open(open: Open) -> Result<(Uuid, SubscriptionFacts), Error> {
    let (id, payer, reseller, state, auto_renew, term, answer_revision, reseller_revision) = open;
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
    let payers: Vec<String> = payers.iter().map(Uuid::to_string).collect();
    let rows: Vec<Open> = query!(connection, c => {
        subscription::table
            .filter(subscription::customer_id.eq(customer.to_string()))
            .filter(subscription::payer_id.eq_any(&payers))
            .filter(is_open())
            .filter(subscription::id.gt(after))
            .order(subscription::id)
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .select(OPEN)
            .load(c)
    })?;
    rows.into_iter().map(read_open).collect()
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
    if rooms.is_empty() {
        return Ok(vec![]);
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
fn are_more_open(connection: &mut Connection, customer: Uuid, payer: Uuid, than: i64) -> Result<bool, Error> {
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

/// Whether payer and customer may have so many more open subscriptions (SUB-7). Behind the fence the answer is exact.
pub(crate) fn has_room(
    connection: &mut Connection,
    parties: &Parties,
    more: usize,
    open_max: u32,
) -> Result<bool, Error> {
    let open_max = i64::from(open_max) - i64::try_from(more).unwrap_or(i64::from(u32::MAX));
    if open_max < 0 {
        return Ok(false);
    }
    Ok(!are_more_open(connection, parties.customer_id, parties.payer_id, open_max)?)
}
