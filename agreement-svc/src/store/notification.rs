//! Announcements of attestations, on their way to the customers' primary contacts.
//!
//! One is queued in the transaction that stores the attestation. It is never deleted.

use std::collections::HashMap;

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::notification;

use crate::rules::Time;
use crate::rules::notification::{Notification, NotificationState};

type Row = (String, String, i32, NaiveDateTime, Option<NaiveDateTime>, String);

fn read(
    (attestation_id, state, attempts, due_at, sent_at, last_failure): Row,
) -> Result<Notification, Error> {
    let row = at("notification", &attestation_id);
    Ok(Notification {
        attestation_id: row.parse("attestation_id", &attestation_id)?,
        state: row.named("state", NotificationState::from_name(&state))?,
        attempts: row.count("attempts", attempts)?,
        due_at: utc(due_at),
        sent_at: sent_at.map(utc),
        last_failure,
    })
}

/// Queues the announcement of an attestation, due at once.
pub(crate) fn notification_insert(
    connection: &mut Connection,
    attestation: Uuid,
    now: Time,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(notification::table)
            .values((
                notification::attestation_id.eq(attestation.to_string()),
                notification::state.eq(NotificationState::Queued.name()),
                notification::attempts.eq(0),
                notification::due_at.eq(now.naive_utc()),
                notification::last_failure.eq(""),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// The announcements of some attestations, by attestation.
pub(crate) fn notifications_of(
    connection: &mut Connection,
    attestations: &[Uuid],
) -> Result<HashMap<Uuid, Notification>, Error> {
    let ids: Vec<String> = attestations.iter().map(ToString::to_string).collect();
    let rows: Vec<Row> = query!(connection, c => {
        notification::table.filter(notification::attestation_id.eq_any(&ids)).load(c)
    })?;
    rows.into_iter().map(|row| read(row).map(|known| (known.attestation_id, known))).collect()
}
