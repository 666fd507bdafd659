//! Notifications about attestations: written together with the attestation, and never deleted. How they are sent is in
//! [`super::outbox`].

use std::collections::HashMap;

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use diesel::dsl::{count_star, min, sql};
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use serde::Serialize;
use uuid::Uuid;

use super::schema::{acceptance, notification};

use crate::rules::Time;
use crate::rules::attestation::Attestation;
use crate::rules::notification::{MailFailure, Notification, NotificationState};

/// What a [`Row`] is read from.
const COLUMNS: (
    notification::attestation_id,
    notification::state,
    notification::attempts,
    notification::due_at,
    notification::sent_at,
    notification::last_failure,
) = (
    notification::attestation_id,
    notification::state,
    notification::attempts,
    notification::due_at,
    notification::sent_at,
    notification::last_failure,
);

/// The states that have partial indexes, which serve a statement that names the state in its text.
const QUEUED: &str = "notification.state = 'QUEUED'";
const DEAD_LETTER: &str = "notification.state = 'DEAD_LETTER'";

/// That a notification waits. Diesel has a connection keep no statement with words of ours; those of the mailer are few.
pub(super) fn is_queued() -> SqlLiteral<Bool> {
    sql(QUEUED)
}

type Row = (String, String, i32, NaiveDateTime, Option<NaiveDateTime>, String);

fn read(
    (attestation_id, state, attempts, due_at, sent_at, last_failure): Row,
) -> Result<Notification, Error> {
    let row = at("notification", &attestation_id);
    Ok(Notification {
        attestation_id: row.parse("attestation_id", &attestation_id)?,
        state: row.named("state", state.parse().ok())?,
        attempts: row.count("attempts", attempts)?,
        due_at: utc(due_at),
        sent_at: sent_at.map(utc),
        last_failure,
    })
}

#[derive(Insertable, Serialize)]
#[diesel(table_name = notification, treat_none_as_default_value = false)]
struct NewRow {
    attestation_id: String,
    partner_id: String,
    customer_id: String,
    state: &'static str,
    attempts: i32,
    due_at: NaiveDateTime,
    last_failure: &'static str,
}

/// Queues the notifications of attestations, due at once.
pub(crate) fn notifications_insert(
    connection: &mut Connection,
    attestations: &[Attestation],
    now: Time,
) -> Result<(), Error> {
    let row = |attestation: &Attestation| NewRow {
        attestation_id: attestation.id.to_string(),
        partner_id: attestation.partner_id.to_string(),
        customer_id: attestation.customer_id.to_string(),
        state: NotificationState::Queued.into_str(),
        attempts: 0,
        due_at: now.naive_utc(),
        last_failure: "",
    };
    let rows: Vec<_> = attestations.iter().map(row).collect();
    Ok(insert_rows!(connection, notification, &rows)?)
}

/// The notifications of some attestations, by attestation.
pub(crate) fn notifications_of(
    connection: &mut Connection,
    attestations: &[Uuid],
) -> Result<HashMap<Uuid, Notification>, Error> {
    let ids: Vec<String> = attestations.iter().map(ToString::to_string).collect();
    let rows: Vec<Row> = query!(connection, c => {
        notification::table
            .filter(notification::attestation_id.eq_any(&ids))
            .select(COLUMNS)
            .load(c)
    })?;
    rows.into_iter().map(|row| read(row).map(|known| (known.attestation_id, known))).collect()
}

/// An unsent mail, with its partner and customer.
pub(crate) struct Unsent {
    pub partner_id: Uuid,
    pub customer_id: Uuid,
    pub notification: Notification,
}

/// The mails that wait, or those that were given up, behind an attestation, in the order of the ids.
pub(crate) fn notifications_unsent(
    connection: &mut Connection,
    state: NotificationState,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Unsent>, Error> {
    let in_state = match state {
        NotificationState::Queued => QUEUED,
        NotificationState::DeadLetter => DEAD_LETTER,
        NotificationState::Sent => return Ok(vec![]),
    };
    let rows: Vec<(String, String, Row)> = query!(connection, c => {
        notification::table
            .filter(sql::<Bool>(in_state))
            .filter(notification::attestation_id.gt(after.unwrap_or_default()))
            .order(notification::attestation_id)
            .limit(limit)
            .select((
                notification::partner_id,
                notification::customer_id,
                COLUMNS,
            ))
            .load(c)
    })?;
    let unsent = |(partner_id, customer_id, row): (String, String, Row)| {
        let key = at("notification", &row.0);
        Ok(Unsent {
            partner_id: key.parse("partner_id", &partner_id)?,
            customer_id: key.parse("customer_id", &customer_id)?,
            notification: read(row)?,
        })
    };
    rows.into_iter().map(unsent).collect()
}

/// What waits to be announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub notifications: i64,
    /// When the oldest of their attestations was recorded, without those that are held.
    pub oldest: Option<Time>,
    /// Those of them whose partner has used up the mails of its day.
    pub held: i64,
    pub dead_letters: i64,
}

pub(crate) fn notifications_waiting(connection: &mut Connection) -> Result<Waiting, Error> {
    let held = MailFailure::DailyLimit.to_string();
    let in_state = |connection: &mut Connection, in_state: &str| -> Result<i64, Error> {
        Ok(query!(connection, c => {
            notification::table.filter(sql::<Bool>(in_state)).select(count_star()).first(c)
        })?)
    };
    let notifications = in_state(connection, QUEUED)?;
    let dead_letters = in_state(connection, DEAD_LETTER)?;
    let (not_held, oldest): (i64, Option<NaiveDateTime>) = query!(connection, c => {
        notification::table
            .inner_join(acceptance::table.on(acceptance::id.eq(notification::attestation_id)))
            .filter(is_queued())
            .filter(notification::last_failure.ne(&held))
            .select((count_star(), min(acceptance::recorded_at)))
            .first(c)
    })?;
    Ok(Waiting { notifications, oldest: oldest.map(utc), held: notifications - not_held, dead_letters })
}

/// Stores a dead letter that is queued anew.
pub(crate) fn notification_requeue(
    connection: &mut Connection,
    requeued: &Notification,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(notification::table.find(requeued.attestation_id.to_string()))
            .filter(notification::state.eq(NotificationState::DeadLetter.into_str()))
            .set((
                notification::state.eq(requeued.state.into_str()),
                notification::attempts.eq(i32::try_from(requeued.attempts).unwrap_or(i32::MAX)),
                notification::due_at.eq(requeued.due_at.naive_utc()),
                // A mail of its own: those that it was announced with may have been sent, or are not retried.
                notification::mail_id.eq(requeued.attestation_id.to_string()),
            ))
            .execute(c)
    })?;
    Ok(())
}
