//! The history, as it is read. It is written by [`super::change`] alone.

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::change::ChangeError;
use super::schema::{event, revision};

use crate::rules::event::{Event, LIFT};
use crate::rules::{Refusal, Time};

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

/// Whether there is an event of a revision: not of one that a restore passed over.
pub(crate) fn event_exists(connection: &mut Connection, revision: i64) -> Result<bool, Error> {
    let found = query!(connection, c => {
        diesel::select(diesel::dsl::exists(event::table.find(revision))).get_result(c)
    })?;
    Ok(found)
}

/// What follows on an event, in order, for a consumer that knows its revision and perhaps its hash.
///
/// A consumer that knows an event that is no part of this history gets the next one that announces a restore: it was
/// lost by that, or by one before it.
///
/// # Errors
/// [`Refusal::CursorAhead`] when the history ends before the event; [`Refusal::HistoryForked`] when it went
/// another way, or the event is gone, and no restore was announced since.
pub(crate) fn events_following(
    connection: &mut Connection,
    known: (i64, Option<&str>),
    limit: i64,
) -> Result<Vec<Recorded>, ChangeError> {
    let (revision, hash) = known;
    // With the event itself, so that what is read is proven to follow on it by the same statement.
    let mut rows = events_from(connection, revision, limit.saturating_add(1))?;
    if rows.first().is_some_and(|first| first.revision == revision) {
        let itself = rows.remove(0);
        if hash.is_none_or(|hash| hash == itself.hash) {
            return Ok(rows);
        }
        rows = match restored_after(connection, revision)? {
            Some(restored) => events_from(connection, restored, limit)?,
            None => vec![],
        };
    }
    match rows.first() {
        _ if revision == 0 => Ok(rows),
        Some(Recorded { event: Event::HistoryRestored { .. }, .. }) => Ok(rows),
        Some(_) => Err(Refusal::HistoryForked { revision }.into()),
        None => match revision_head(connection)? {
            head if head < revision => Err(Refusal::CursorAhead { head }.into()),
            _ => Err(Refusal::HistoryForked { revision }.into()),
        },
    }
}

/// The event of a revision.
pub(crate) fn event_find(connection: &mut Connection, revision: i64) -> Result<Option<Recorded>, Error> {
    Ok(events_from(connection, revision, 1)?.into_iter().find(|event| event.revision == revision))
}

fn events_from(connection: &mut Connection, first: i64, limit: i64) -> Result<Vec<Recorded>, Error> {
    let rows: Vec<Row> = query!(connection, c => {
        event::table
            .filter(event::revision.ge(first))
            .order(event::revision)
            .limit(limit)
            .select((event::revision, event::recorded_at, event::body, event::hash))
            .load(c)
    })?;
    rows.into_iter().map(read).collect()
}

/// The revision of the first event after this one that announces a restore. Each lifts the revision by as
/// much, and far fewer than that many events lie between two, so it is the first beyond the next multiple.
fn restored_after(connection: &mut Connection, revision: i64) -> Result<Option<i64>, Error> {
    let lifted = (revision / LIFT + 1) * LIFT;
    Ok(query!(connection, c => {
        event::table
            .filter(event::revision.ge(lifted))
            .order(event::revision)
            .select(event::revision)
            .first(c)
            .optional()
    })?)
}

/// One customer's history from a revision on, which is not included: up, or down where the newest comes first. Where a
/// partner looks, it is without what belongs to another one.
pub(crate) fn events_of(
    connection: &mut Connection,
    customer: Uuid,
    partner: Option<Uuid>,
    (newest_first, from): (bool, i64),
    limit: i64,
) -> Result<Vec<Recorded>, Error> {
    let rows: Vec<Row> = query!(connection, c => {
        let mut list = event::table
            .filter(event::customer_id.eq(customer.to_string()))
            .limit(limit)
            .select((event::revision, event::recorded_at, event::body, event::hash))
            .into_boxed();
        list = match newest_first {
            true => list.filter(event::revision.lt(from)).order(event::revision.desc()),
            false => list.filter(event::revision.gt(from)).order(event::revision),
        };
        if let Some(partner) = partner {
            list = list.filter(event::partner_id.is_null().or(event::partner_id.eq(partner.to_string())));
        }
        list.load(c)
    })?;
    rows.into_iter().map(read).collect()
}
