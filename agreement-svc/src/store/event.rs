//! The history, as it is read. It is written by [`super::change`] alone.

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{event, revision};

use crate::rules::Time;
use crate::rules::event::Event;

/// An event with its place in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub revision: i64,
    pub recorded_at: Time,
    pub hash: String,
    pub event: Event,
}

type Row = (i64, NaiveDateTime, String, String);

fn read((revision, recorded_at, body, hash): Row) -> Result<Recorded, Error> {
    let event = serde_json::from_str(&body);
    let event = event.map_err(|_| at("event", &revision.to_string()).corrupt("body"))?;
    Ok(Recorded { revision, recorded_at: utc(recorded_at), hash, event })
}

/// The revision of the last event.
pub(crate) fn revision_head(connection: &mut Connection) -> Result<i64, Error> {
    Ok(query!(connection, c => revision::table.select(revision::value).first(c))?)
}

/// Everything after a revision, in order.
pub(crate) fn events_after(
    connection: &mut Connection,
    after: i64,
    limit: i64,
) -> Result<Vec<Recorded>, Error> {
    let rows: Vec<Row> = query!(connection, c => {
        event::table
            .filter(event::revision.gt(after))
            .order(event::revision)
            .limit(limit)
            .select((event::revision, event::recorded_at, event::body, event::hash))
            .load(c)
    })?;
    rows.into_iter().map(read).collect()
}

/// One customer's history, in order; where a partner looks, without what belongs to another one.
pub(crate) fn events_of(
    connection: &mut Connection,
    customer: Uuid,
    partner: Option<Uuid>,
    after: i64,
    limit: i64,
) -> Result<Vec<Recorded>, Error> {
    let rows: Vec<Row> = query!(connection, c => {
        let mut list = event::table
            .filter(event::customer_id.eq(customer.to_string()))
            .filter(event::revision.gt(after))
            .order(event::revision)
            .limit(limit)
            .select((event::revision, event::recorded_at, event::body, event::hash))
            .into_boxed();
        if let Some(partner) = partner {
            list = list.filter(event::partner_id.is_null().or(event::partner_id.eq(partner.to_string())));
        }
        list.load(c)
    })?;
    rows.into_iter().map(read).collect()
}
