//! Updates of subscriptions, with optimistic locking by `version`.

use std::collections::BTreeSet;

use chassis::database::row::id_or_empty;
use chassis::database::{Connection, Error, Kept, asking};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Text};
use serde::Serialize;
use uuid::Uuid;

use super::schema::{follower, subscription};
use super::subscription::changes_insert;
use crate::rules::subscription::{Change, ChangeKind, Subscription};

/// A subscription as it is after some changes.
#[derive(Debug)]
pub(crate) struct Update {
    pub after: Subscription,
    /// The version that the changes were decided on.
    pub version: i64,
    pub changes: Vec<Change>,
}

/// Stores subscriptions as they are after their changes, and the changes, each if its version is still the one that they were
/// decided on (optimistic locking); of the others nothing is stored, and the answer is false. Of several on the same version
/// the first one is stored.
pub(crate) fn subscriptions_change(
    connection: &mut Connection,
    updates: &[&Update],
) -> Result<Vec<bool>, Error> {
    let are_as_read = subscriptions_update(connection, updates)?;
    let stored = updates.iter().zip(&are_as_read).filter(|(_, is_as_read)| **is_as_read);
    let stored: Vec<(Uuid, Change)> = stored
        .flat_map(|(update, _)| update.changes.iter().map(|change| (update.after.id, change.clone())))
        .collect();
    let assigned = stored.iter().filter(|(_, change)| change.kind == ChangeKind::ResellerAssigned);
    resellers_assigned(connection, &assigned.map(|(id, _)| id.to_string()).collect::<Vec<_>>())?;
    changes_insert(connection, &stored)?;
    Ok(are_as_read)
}

/// Notes which ends of relationships came before their resellers were assigned. Behind the customer's fence the cursor tells.
fn resellers_assigned(connection: &mut Connection, ids: &[String]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    query!(connection, c => {
        let applied: i64 = follower::table.select(follower::revision).first(c)?;
        diesel::update(subscription::table.filter(subscription::id.eq_any(ids)))
            .set(subscription::reseller_revision.eq(applied))
            .execute(c)
    })?;
    Ok(())
}

/// The columns of a subscription that change, with its version before.
#[derive(Serialize)]
struct UpdateRow {
    id: String,
    version_before: i64,
    reseller_id: String,
    quantity: i64,
    state: &'static str,
    auto_renew: bool,
    term_number: i32,
    term_end: Option<NaiveDateTime>,
    answer_revision: i64,
    version: i64,
    due_at: Option<NaiveDateTime>,
}

impl UpdateRow {
    fn of(update: &Update) -> Self {
        let Update { after, version, .. } = update;
        Self {
            id: after.id.to_string(),
            version_before: *version,
            reseller_id: id_or_empty(after.reseller_id),
            quantity: after.quantity.into(),
            state: after.state.into_str(),
            auto_renew: after.auto_renew,
            term_number: i32::try_from(after.term_number).unwrap_or(i32::MAX),
            term_end: after.term_end.map(|at| at.naive_utc()),
            answer_revision: after.answer_revision,
            version: after.version,
            due_at: after.due_at().map(|at| at.naive_utc()),
        }
    }
}

/// Which of the rows were updated.
fn subscriptions_update(connection: &mut Connection, updates: &[&Update]) -> Result<Vec<bool>, Error> {
    #[derive(QueryableByName)]
    struct Updated {
        #[diesel(sql_type = Text)]
        id: String,
        #[diesel(sql_type = BigInt)]
        version_before: i64,
    }
    let rows = updates.iter().map(|update| UpdateRow::of(update));
    asking(connection);
    let c = match connection {
        Connection::Postgres(c) if updates.len() > 1 => c,
        single => return rows.map(|row| subscription_update(single, &row)).collect(),
    };
    // PostgreSQL would take any of several on the same version.
    let mut of_versions = BTreeSet::new();
    let rows: Vec<_> =
        rows.map(|row| (of_versions.insert((row.id.clone(), row.version_before)), row)).collect();
    let (ids, firsts): (Vec<&str>, Vec<&UpdateRow>) =
        rows.iter().filter(|(is_first, _)| *is_first).map(|(_, row)| (row.id.as_str(), row)).unzip();
    // The list of ids leaves the planner no choice but their index, whatever it believes of the size of the table.
    let update = sql_query(
        "UPDATE subscription
        SET reseller_id = changed.reseller_id, quantity = changed.quantity, state = changed.state,
            auto_renew = changed.auto_renew, term_number = changed.term_number, term_end = changed.term_end,
            answer_revision = changed.answer_revision, version = changed.version, due_at = changed.due_at
        FROM json_to_recordset($1::json) AS changed (id text, version_before bigint, reseller_id text, quantity bigint,
            state text, auto_renew boolean, term_number integer, term_end timestamp, answer_revision bigint,
            version bigint, due_at timestamp)
        WHERE subscription.id = ANY($2) AND subscription.id = changed.id
            AND subscription.version = changed.version_before
        RETURNING subscription.id, changed.version_before",
    )
    .bind::<Text, _>(serde_json::to_string(&firsts).map_err(|error| Error::Query(error.to_string()))?)
    .bind::<Array<Text>, _>(ids);
    let updated: Vec<Updated> = Kept(update).load(c)?;
    let updated: BTreeSet<_> = updated.into_iter().map(|row| (row.id, row.version_before)).collect();
    let is_updated =
        |(is_first, row): (bool, UpdateRow)| is_first && updated.contains(&(row.id, row.version_before));
    Ok(rows.into_iter().map(is_updated).collect())
}

fn subscription_update(connection: &mut Connection, row: &UpdateRow) -> Result<bool, Error> {
    let updated: Vec<String> = query!(connection, c => {
        let update = diesel::update(
            subscription::table
                .filter(subscription::id.eq(&row.id))
                .filter(subscription::version.eq(row.version_before)),
        )
        .set((
            subscription::reseller_id.eq(&row.reseller_id),
            subscription::quantity.eq(row.quantity),
            subscription::state.eq(row.state),
            subscription::auto_renew.eq(row.auto_renew),
            subscription::term_number.eq(row.term_number),
            subscription::term_end.eq(row.term_end),
            subscription::answer_revision.eq(row.answer_revision),
            subscription::version.eq(row.version),
            subscription::due_at.eq(row.due_at),
        ));
        Kept(update.returning(subscription::id)).load(c)
    })?;
    Ok(!updated.is_empty())
}
