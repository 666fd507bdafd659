//! The mail outbox: notifications about attestations to the customers' primary contacts.
//!
//! One is written together with its attestation, claimed by moving its due time
//! forward, and due again when the process that claimed it does not finish. It is never deleted.
//!
//! What happens to it after that is no change of an acceptance: it takes no revision and no lock
//! of the revision row.

use std::collections::HashMap;

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::{Duration, NaiveDateTime};
use diesel::dsl::{count_star, min};
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{acceptance, customer, notification, partner, template};

use crate::rules::Time;
use crate::rules::notification::{DueNotification, Failure, Notification, NotificationState, Outcome};

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

/// Queues the notification of an attestation, due at once.
pub(crate) fn notification_insert(
    connection: &mut Connection,
    attestation: Uuid,
    now: Time,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(notification::table)
            .values((
                notification::attestation_id.eq(attestation.to_string()),
                notification::state.eq(NotificationState::Queued.into_str()),
                notification::attempts.eq(0),
                notification::due_at.eq(now.naive_utc()),
                notification::last_failure.eq(""),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// The notifications of some attestations, by attestation.
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

/// Claims at most `limit` of what is due, oldest first, until `now + lease`. What another replica claims at
/// the same moment is left to it.
pub(crate) fn notifications_claim(
    connection: &mut Connection,
    now: Time,
    lease: Duration,
    limit: i64,
) -> Result<Vec<DueNotification>, Error> {
    let due = notification::table
        .filter(notification::state.eq(NotificationState::Queued.into_str()))
        .filter(notification::due_at.le(now.naive_utc()))
        .order(notification::due_at)
        .limit(limit)
        .select(notification::attestation_id);
    // Commits are shared: waiting for a row that another replica holds while it waits for a change of
    // ours would be a deadlock. SQLite has one writer at a time anyway.
    let ids: Vec<String> = match connection {
        Connection::Sqlite(c) => due.load(c)?,
        Connection::Postgres(c) => due.for_update().skip_locked().load(c)?,
    };
    if ids.is_empty() {
        return Ok(vec![]);
    }
    query!(connection, c => {
        diesel::update(notification::table.filter(notification::attestation_id.eq_any(&ids)))
            .set((
                notification::attempts.eq(notification::attempts + 1),
                notification::due_at.eq((now + lease).naive_utc()),
            ))
            .execute(c)
    })?;
    notifications(connection, &ids)
}

/// How many notifications are on their way, and when the oldest of their attestations was recorded.
pub(crate) fn notifications_waiting(connection: &mut Connection) -> Result<(i64, Option<Time>), Error> {
    let (count, oldest): (i64, Option<NaiveDateTime>) = query!(connection, c => {
        notification::table
            .inner_join(acceptance::table.on(acceptance::id.eq(notification::attestation_id)))
            .filter(notification::state.eq(NotificationState::Queued.into_str()))
            .select((count_star(), min(acceptance::recorded_at)))
            .first(c)
    })?;
    Ok((count, oldest.map(utc)))
}

/// How many notifications were given up.
pub(crate) fn dead_letters(connection: &mut Connection) -> Result<i64, Error> {
    Ok(query!(connection, c => {
        notification::table
            .filter(notification::state.eq(NotificationState::DeadLetter.into_str()))
            .select(count_star())
            .first(c)
    })?)
}

#[derive(Queryable)]
struct DueNotificationRow {
    attestation_id: String,
    attempts: i32,
    recipient: String,
    partner_name: String,
    company_name: String,
    first_name: String,
    last_name: String,
    agreement: String,
    version: i32,
    agreed_at: NaiveDateTime,
}

fn notifications(connection: &mut Connection, ids: &[String]) -> Result<Vec<DueNotification>, Error> {
    let rows: Vec<DueNotificationRow> = query!(connection, c => {
        notification::table
            .inner_join(acceptance::table.on(acceptance::id.eq(notification::attestation_id)))
            .inner_join(customer::table.on(customer::id.eq(acceptance::customer_id)))
            .inner_join(partner::table.on(partner::id.eq(acceptance::partner_id)))
            .inner_join(template::table.on(template::id.eq(acceptance::template_id)))
            .filter(notification::attestation_id.eq_any(ids))
            .select((
                notification::attestation_id,
                notification::attempts,
                customer::email,
                partner::name,
                customer::company_name,
                acceptance::first_name,
                acceptance::last_name,
                template::name,
                acceptance::template_version,
                acceptance::agreed_at,
            ))
            .load(c)
    })?;
    let read = |row: DueNotificationRow| {
        let key = at("notification", &row.attestation_id);
        Ok(DueNotification {
            attestation_id: key.parse("attestation_id", &row.attestation_id)?,
            attempts: key.count("attempts", row.attempts)?,
            recipient: row.recipient,
            partner_name: row.partner_name,
            company_name: row.company_name,
            first_name: row.first_name,
            last_name: row.last_name,
            agreement: row.agreement,
            version: at("acceptance", &row.attestation_id).count("template_version", row.version)?,
            agreed_at: utc(row.agreed_at),
        })
    };
    rows.into_iter().map(read).collect()
}

/// The mail server took it, whether or not another process claimed it meanwhile.
pub(crate) fn notification_sent(connection: &mut Connection, id: Uuid, now: Time) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(notification::table.find(id.to_string()))
            .filter(notification::state.ne(NotificationState::Sent.into_str()))
            .set((
                notification::state.eq(NotificationState::Sent.into_str()),
                notification::sent_at.eq(now.naive_utc()),
                notification::last_failure.eq(""),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// An attempt failed. Nothing is stored when another process has claimed or settled it meanwhile.
pub(crate) fn notification_failed(
    connection: &mut Connection,
    id: Uuid,
    attempts: u32,
    failure: Failure,
    outcome: Outcome,
) -> Result<(), Error> {
    let (state, due_at) = match outcome {
        Outcome::Queued { due_at } => (NotificationState::Queued, Some(due_at)),
        Outcome::DeadLetter => (NotificationState::DeadLetter, None),
    };
    query!(connection, c => {
        diesel::update(notification::table.find(id.to_string()))
            .filter(notification::state.eq(NotificationState::Queued.into_str()))
            .filter(notification::attempts.eq(i32::try_from(attempts).unwrap_or(i32::MAX)))
            .set((
                notification::state.eq(state.into_str()),
                due_at.map(|due_at| notification::due_at.eq(due_at.naive_utc())),
                notification::last_failure.eq(failure.to_string()),
            ))
            .execute(c)
    })?;
    Ok(())
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
            ))
            .execute(c)
    })?;
    Ok(())
}
