//! The history of orders and changes of subscriptions.
//!
//! An order or change is written with an *entry* in the table `event_pending`, in its own transaction and without a lock. After
//! the commit the recorder ([`events_record`]) takes the entry out and gives it the next revision, one transaction at a time
//! over all replicas. So the numbers have no gaps, no event with a lower one appears later, and no order waits for another.
//! An entry that is committed while the recorder looks at others comes with the next ones.
//!
//! The rows of versions without the history have no entries. They are found by their flag, in the order of their times, and come
//! before all entries.

use std::collections::{BTreeMap, BTreeSet};

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error, Kept, asking};
use chassis::{find_rows, insert_rows, query};
use chrono::NaiveDateTime;
use diesel::dsl::{exists, sql};
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Integer, Text};
use serde::Serialize;
use uuid::Uuid;

use super::schema::{event, event_head, event_pending, orders, subscription, subscription_change};
use super::subscription::ChangeRow;
use super::{Viewer, order};
use crate::rules::Time;
use crate::rules::event::{Changed, Entry, Event, Happened, LIFT, in_order};
use crate::rules::order::Order;
use crate::rules::subscription::term_end;

/// Events that one transaction of the recorder makes: enough for thousands a second, few enough for SQLite, where others wait.
const RECORDED_MAX: usize = 500;

/// What follows on a revision.
#[derive(Debug)]
pub(crate) enum Following {
    Events(Vec<Event>),
    /// The history ends before that revision, with this one.
    CursorAhead {
        head: i64,
    },
}

/// An entry, as it is stored.
#[derive(Insertable, Queryable, QueryableByName, Selectable, Serialize)]
#[diesel(table_name = event_pending, treat_none_as_default_value = false)]
struct EntryRow {
    #[diesel(sql_type = Text)]
    order_id: String,
    #[diesel(sql_type = Text)]
    subscription_id: String,
    #[diesel(sql_type = Integer)]
    change_number: i32,
}

impl EntryRow {
    fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Order { order_id } => {
                Self { order_id: order_id.to_string(), subscription_id: String::new(), change_number: 0 }
            }
            Entry::Change { subscription_id, number } => Self {
                order_id: String::new(),
                subscription_id: subscription_id.to_string(),
                change_number: *number,
            },
        }
    }

    fn read(&self) -> Result<Entry, Error> {
        let row = at("event_pending", &self.order_id);
        Ok(match row.optional_id("subscription_id", &self.subscription_id)? {
            None => Entry::Order { order_id: row.parse("order_id", &self.order_id)? },
            Some(subscription_id) => Entry::Change { subscription_id, number: self.change_number },
        })
    }
}

#[derive(Insertable, Serialize)]
#[diesel(table_name = event, treat_none_as_default_value = false)]
struct EventRow {
    revision: i64,
    recorded_at: NaiveDateTime,
    customer_id: String,
    order_id: String,
    subscription_id: String,
    change_number: i32,
}

/// The entry of a change of a subscription.
pub(super) fn change_entry(subscription_id: Uuid, number: i64) -> Entry {
    // A row with a greater number could not be stored beside it.
    Entry::Change { subscription_id, number: i32::try_from(number).unwrap_or(i32::MAX) }
}

/// Keeps entries, in their order, for orders and changes that the same transaction stores.
pub(super) fn entries_insert(connection: &mut Connection, entries: &[Entry]) -> Result<(), Error> {
    let rows: Vec<_> = entries.iter().map(EntryRow::of).collect();
    Ok(insert_rows!(connection, event_pending, &rows)?)
}

/// That a row is of a version without the history, in the words of the partial indexes.
fn not_in_history(table: &str) -> SqlLiteral<Bool> {
    sql(&format!("NOT {table}.in_history"))
}

/// Whether the recorder has something to do.
pub(crate) fn is_unrecorded(connection: &mut Connection) -> Result<bool, Error> {
    let orders = orders::table.filter(not_in_history("orders")).select(orders::id);
    let changes = subscription_change::table
        .filter(not_in_history("subscription_change"))
        .select(subscription_change::number);
    // By the index, which knows of most entries that are gone.
    let entries = event_pending::table.order(event_pending::entry).select(event_pending::change_number);
    Ok(query!(connection, c => {
        entries.first::<i32>(c).optional()?.is_some()
            || diesel::select(exists(orders)).get_result::<bool>(c)?
            || diesel::select(exists(changes)).get_result::<bool>(c)?
    }))
}

/// The revision of the last event.
pub(crate) fn event_head_read(connection: &mut Connection) -> Result<i64, Error> {
    Ok(query!(connection, c => event_head::table.select(event_head::revision).first(c))?)
}

/// Gives committed orders and changes their events, as many as one transaction may. The answer is whether there may be more.
pub(crate) fn events_record(connection: &mut Connection, now: Time) -> Result<bool, Error> {
    let head = head_lock(connection)?;
    let mut entries = rows_take(connection)?;
    // What was there before the history comes before all entries.
    if entries.len() < RECORDED_MAX {
        entries.extend(entries_take(connection, RECORDED_MAX - entries.len())?);
    }
    if entries.is_empty() {
        return Ok(false);
    }
    let entries = in_order(&entries);
    let rows = event_rows(connection, head, &entries, now)?;
    insert_rows!(&mut *connection, event, &rows)?;
    head_write(connection, head + i64::try_from(rows.len()).unwrap_or(i64::MAX))?;
    Ok(rows.len() >= RECORDED_MAX)
}

/// Records that the database was restored from a copy, and answers the revision before the event, and that of the event.
pub(crate) fn restore_record(connection: &mut Connection, now: Time) -> Result<(i64, i64), Error> {
    let last = head_lock(connection)?;
    let restored = [EventRow {
        revision: last + LIFT,
        recorded_at: now.naive_utc(),
        customer_id: String::new(),
        order_id: String::new(),
        subscription_id: String::new(),
        change_number: 0,
    }];
    insert_rows!(&mut *connection, event, &restored)?;
    head_write(connection, last + LIFT)?;
    Ok((last, last + LIFT))
}

/// Takes the lock under which events are recorded. On PostgreSQL, what is read after it includes all that was recorded before.
fn head_lock(connection: &mut Connection) -> Result<i64, Error> {
    Ok(query!(connection, c => {
        let update = diesel::update(event_head::table)
            .set(event_head::revision.eq(event_head::revision))
            .returning(event_head::revision);
        Kept(update).get_result(c)
    })?)
}

fn head_write(connection: &mut Connection, head: i64) -> Result<(), Error> {
    let _: i64 = query!(connection, c => {
        let update = diesel::update(event_head::table)
            .set(event_head::revision.eq(head))
            .returning(event_head::revision);
        Kept(update).get_result(c)
    })?;
    Ok(())
}

/// Takes the first entries out. Those of transactions that have not committed yet are left, whatever their numbers. Under the lock
/// of the head nothing else takes entries out.
fn entries_take(connection: &mut Connection, limit: usize) -> Result<Vec<Entry>, Error> {
    #[derive(QueryableByName)]
    struct Taken {
        #[diesel(sql_type = BigInt)]
        entry: i64,
        #[diesel(embed)]
        row: EntryRow,
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    asking(connection);
    let taken: Vec<Taken> = match connection {
        Connection::Sqlite(c) => {
            let first = sql_query(
                "SELECT rowid AS entry, order_id, subscription_id, change_number FROM event_pending
                ORDER BY rowid LIMIT ?",
            );
            let taken: Vec<Taken> = Kept(first.bind::<BigInt, _>(limit)).load(c)?;
            if let Some(last) = taken.last() {
                let delete = sql_query("DELETE FROM event_pending WHERE rowid <= ?");
                delete.bind::<BigInt, _>(last.entry).execute(c)?;
            }
            taken
        }
        Connection::Postgres(c) => {
            let first = event_pending::table
                .order(event_pending::entry)
                .limit(limit)
                .select((event_pending::entry, EntryRow::as_select()));
            let taken: Vec<(i64, EntryRow)> = first.load(c)?;
            let taken: Vec<_> = taken.into_iter().map(|(entry, row)| Taken { entry, row }).collect();
            let entries: Vec<i64> = taken.iter().map(|taken| taken.entry).collect();
            diesel::delete(event_pending::table.filter(event_pending::entry.eq_any(entries))).execute(c)?;
            taken
        }
    };
    taken.iter().map(|taken| taken.row.read()).collect()
}

/// Takes the first of the rows that versions without the history stored, and marks them.
fn rows_take(connection: &mut Connection) -> Result<Vec<Entry>, Error> {
    type Change = (String, i32, NaiveDateTime);
    let limit = i64::try_from(RECORDED_MAX).unwrap_or(i64::MAX);
    let (placed, changed): (Vec<(String, NaiveDateTime)>, Vec<Change>) = query!(&mut *connection, c => {
        (
            orders::table
                .filter(not_in_history("orders"))
                .order((orders::placed_at, orders::id))
                .limit(limit)
                .select((orders::id, orders::placed_at))
                .load(c)?,
            subscription_change::table
                .filter(not_in_history("subscription_change"))
                .order((
                    subscription_change::changed_at,
                    subscription_change::subscription_id,
                    subscription_change::number,
                ))
                .limit(limit)
                .select((
                    subscription_change::subscription_id,
                    subscription_change::number,
                    subscription_change::changed_at,
                ))
                .load(c)?,
        )
    });
    // An order has the time of the first changes of its subscriptions, and is before them.
    let placed = placed
        .into_iter()
        .map(|(order_id, at)| (at, EntryRow { order_id, subscription_id: String::new(), change_number: 0 }));
    let changed = changed.into_iter().map(|(subscription_id, change_number, at)| {
        (at, EntryRow { order_id: String::new(), subscription_id, change_number })
    });
    let mut taken: Vec<_> = placed.chain(changed).collect();
    taken.sort_by_key(|(at, _)| *at);
    taken.truncate(RECORDED_MAX);
    query!(&mut *connection, c => {
        for (_, row) in &taken {
            match row.subscription_id.as_str() {
                "" => diesel::update(orders::table.find(&row.order_id)).set(orders::in_history.eq(true)).execute(c)?,
                id => diesel::update(subscription_change::table.find((id, row.change_number)))
                    .set(subscription_change::in_history.eq(true))
                    .execute(c)?,
            };
        }
    });
    taken.iter().map(|(_, row)| row.read()).collect()
}

/// The rows of entries, after a revision: each with its order and customer.
fn event_rows(
    connection: &mut Connection,
    head: i64,
    entries: &[Entry],
    now: Time,
) -> Result<Vec<EventRow>, Error> {
    let rows: Vec<_> = entries.iter().map(EntryRow::of).collect();
    let ids = |id: fn(&EntryRow) -> &String| {
        let mut ids: Vec<String> = rows.iter().map(id).filter(|id| !id.is_empty()).cloned().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let (placed, changed) = (ids(|row| &row.order_id), ids(|row| &row.subscription_id));
    let placed: Vec<(String, String)> = find_rows!(&mut *connection, orders::id, &placed,
        has_id => orders::table.filter(has_id).select((orders::id, orders::customer_id)))?;
    let placed: BTreeMap<String, String> = placed.into_iter().collect();
    let changed: Vec<(String, (String, String))> = find_rows!(connection, subscription::id,
        &changed, has_id => subscription::table.filter(has_id)
            .select((subscription::id, (subscription::order_id, subscription::customer_id))))?;
    let changed: BTreeMap<String, (String, String)> = changed.into_iter().collect();
    let row = |(revision, row): (i64, EntryRow)| {
        let found = match row.subscription_id.as_str() {
            "" => placed.get(&row.order_id).map(|customer_id| (row.order_id.clone(), customer_id.clone())),
            id => changed.get(id).cloned(),
        };
        let missing = || at("event_pending", &row.subscription_id).corrupt("order_id");
        let (order_id, customer_id) = found.ok_or_else(missing)?;
        Ok(EventRow {
            revision,
            recorded_at: now.naive_utc(),
            customer_id,
            order_id,
            subscription_id: row.subscription_id,
            change_number: row.change_number,
        })
    };
    (head + 1..).zip(rows).map(row).collect()
}

/// An event as it is stored: revision, time, order, and subscription.
type Row = (i64, NaiveDateTime, String, String);

/// What of a subscription its events tell: its id, order, payer, customer, offer, start and term.
type OfSubscription = (String, String, String, String, String, NaiveDateTime, String);

/// Reads what events tell. It never changes, so that it may be read after them.
fn read_events(connection: &mut Connection, rows: Vec<Row>) -> Result<Vec<Event>, Error> {
    let placed = rows.iter().filter(|(.., subscription_id)| subscription_id.is_empty());
    let placed: Vec<&String> =
        placed.map(|(_, _, order_id, _)| order_id).filter(|id| !id.is_empty()).collect();
    let placed: Vec<order::Row> = find_rows!(&mut *connection, orders::id, &placed,
        has_id => orders::table.filter(has_id).select(order::Row::as_select()))?;
    let placed = order::with_lines(connection, placed)?;
    let mut placed: BTreeMap<String, Order> =
        placed.into_iter().map(|order| (order.id.to_string(), order)).collect();

    let changed = rows.iter().filter(|(.., subscription_id)| !subscription_id.is_empty());
    let revisions: Vec<i64> = changed.clone().map(|(revision, ..)| *revision).collect();
    let changes: Vec<(i64, ChangeRow)> = find_rows!(&mut *connection, event::revision, &revisions,
        has_revision => event::table
            .inner_join(subscription_change::table.on(
                subscription_change::subscription_id
                    .eq(event::subscription_id)
                    .and(subscription_change::number.eq(event::change_number)),
            ))
            .filter(has_revision)
            .select((event::revision, ChangeRow::as_select())))?;
    let mut changes: BTreeMap<i64, ChangeRow> = changes.into_iter().collect();
    let ids: BTreeSet<&String> = changed.map(|(.., subscription_id)| subscription_id).collect();
    let ids: Vec<&String> = ids.into_iter().collect();
    let subscriptions: Vec<OfSubscription> = find_rows!(&mut *connection, subscription::id,
        &ids, has_id => subscription::table.filter(has_id).select((
        subscription::id,
        subscription::order_id,
        subscription::payer_id,
        subscription::customer_id,
        subscription::offer_id,
        subscription::started_at,
        subscription::term,
    )))?;
    let subscriptions: BTreeMap<String, OfSubscription> =
        subscriptions.into_iter().map(|of| (of.0.clone(), of)).collect();

    let read = |(revision, recorded_at, order_id, subscription_id): Row| {
        let missing = || at("event", &revision.to_string()).corrupt("order_id");
        let happened = match (order_id.as_str(), subscription_id.as_str()) {
            ("", _) => Happened::HistoryRestored,
            (id, "") => Happened::OrderPlaced(placed.remove(id).ok_or_else(missing)?),
            (_, id) => {
                let change = changes.remove(&revision).ok_or_else(missing)?;
                let of = subscriptions.get(id).ok_or_else(missing)?;
                Happened::SubscriptionChanged(read_changed(change, of)?)
            }
        };
        Ok(Event { revision, recorded_at: utc(recorded_at), happened })
    };
    rows.into_iter().map(read).collect()
}

fn read_changed(change: ChangeRow, of: &OfSubscription) -> Result<Changed, Error> {
    let (id, order_id, payer_id, customer_id, offer_id, started_at, term) = of;
    let row = at("subscription", id);
    let change = change.read()?;
    let term = row.named("term", term.parse().ok())?;
    Ok(Changed {
        subscription_id: row.parse("id", id)?,
        order_id: row.parse("order_id", order_id)?,
        payer_id: row.parse("payer_id", payer_id)?,
        customer_id: row.parse("customer_id", customer_id)?,
        offer_id: offer_id.clone(),
        term_end: term_end(utc(*started_at), term, change.term_number),
        change,
    })
}

/// What follows on the event of a revision, in order. A watcher that knows an event that a restore lost gets the announcement of
/// the restore next.
pub(crate) fn events_following(
    connection: &mut Connection,
    revision: i64,
    limit: i64,
) -> Result<Following, Error> {
    let rows: Vec<Row> = query!(&mut *connection, c => {
        event::table
            .filter(event::revision.gt(revision))
            .order(event::revision)
            .limit(limit)
            .select((event::revision, event::recorded_at, event::order_id, event::subscription_id))
            .load(c)
    })
    .map_err(Error::from)?;
    if rows.is_empty() {
        let head = event_head_read(connection)?;
        if head < revision {
            return Ok(Following::CursorAhead { head });
        }
    }
    Ok(Following::Events(read_events(connection, rows)?))
}

/// A customer's events from a revision on, which is not included: up, or down where the newest comes first. The viewer sees those
/// of orders and subscriptions that it sees.
pub(crate) fn events_of(
    connection: &mut Connection,
    customer: Uuid,
    viewer: Viewer,
    (newest_first, from): (bool, i64),
    limit: i64,
) -> Result<Vec<Event>, Error> {
    let rows: Vec<Row> = query!(&mut *connection, c => {
        let mut list = event::table
            .filter(event::customer_id.eq(customer.to_string()))
            .limit(limit)
            .select((event::revision, event::recorded_at, event::order_id, event::subscription_id))
            .into_boxed();
        list = match newest_first {
            true => list.filter(event::revision.lt(from)).order(event::revision.desc()),
            false => list.filter(event::revision.gt(from)).order(event::revision),
        };
        if let Viewer::Partner(partner) = viewer {
            let (customer, partner) = (customer.to_string(), partner.to_string());
            let is_party = orders::payer_id.eq(partner.clone()).or(orders::reseller_id.eq(partner.clone()));
            let its_orders = orders::table.filter(orders::customer_id.eq(customer.clone())).filter(is_party);
            let is_party = subscription::payer_id.eq(partner.clone()).or(subscription::reseller_id.eq(partner));
            let its_subscriptions =
                subscription::table.filter(subscription::customer_id.eq(customer)).filter(is_party);
            let is_placed = event::subscription_id.eq("");
            list = list.filter(
                is_placed
                    .and(event::order_id.eq_any(its_orders.select(orders::id)))
                    .or(event::subscription_id.eq_any(its_subscriptions.select(subscription::id))),
            );
        }
        list.load(c)
    })?;
    read_events(connection, rows)
}

#[cfg(test)]
mod tests {
    use chassis::database::{Database, Writes};
    use diesel::connection::SimpleConnection;

    use super::*;
    use crate::store::MIGRATIONS;

    /// More rows of an older version than one transaction takes come in the order of their times, before the entries; where both
    /// meet, it takes no more of them together.
    #[tokio::test]
    async fn what_was_there_before_is_recorded_in_pieces_and_first() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("orders.sqlite").display());
        let database = Database::open(&url.parse().unwrap(), true, Writes::Concurrent).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        let subscription_id = Uuid::from_u128(8);
        let insert = format!(
            "INSERT INTO orders (id, payer_id, reseller_id, customer_id, placed_at, placed_by_tenant, placed_by, gate_decision,
                gate_rule, gate_evidence, gate_revision, gate_evaluated_at)
            VALUES ('{order}', '{order}', '', '{order}', '2026-01-01 00:00:00', '{order}', '{order}', 'ALLOWED',
                'ATTESTATION', '', 1, '2026-01-01 00:00:00');
            INSERT INTO subscription (id, order_id, payer_id, reseller_id, customer_id, offer_id, quantity, friendly_name, state,
                auto_renew, started_at, term, term_number, answer_revision, version)
            VALUES ('{subscription_id}', '{order}', '{order}', '', '{order}', 'o', 1, '', 'ACTIVE', TRUE,
                '2026-01-01 00:00:00', 'YEAR', 1, 1, 1600);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1600)
            INSERT INTO subscription_change (subscription_id, number, kind, changed_at, actor_tenant, actor, quantity_before,
                quantity_after, gate_decision, gate_rule, gate_evidence, gate_revision, gate_evaluated_at, in_history)
            SELECT '{subscription_id}', i, 'SUSPENDED', datetime('2026-01-01', '+' || i || ' seconds'), '{order}', '{order}',
                1, 1, '', '', '', 0, '2026-01-01 00:00:00', i > 1200 FROM n;
            INSERT INTO event_pending (order_id, subscription_id, change_number)
            SELECT '', subscription_id, number FROM subscription_change WHERE in_history ORDER BY number",
            order = Uuid::from_u128(7)
        );
        let run = move |connection: &mut Connection| {
            query!(&mut *connection, c => c.batch_execute(&insert))?;
            let mut found = vec![];
            while is_unrecorded(connection)? {
                events_record(connection, "2026-03-01T00:00:00Z".parse().unwrap_or_default())?;
                found.push(event_head_read(connection)?);
            }
            let rows: Vec<(i64, i32)> = query!(connection, c => {
                event::table.order(event::revision).select((event::revision, event::change_number)).load(c)
            })?;
            Ok::<_, Error>((found, rows))
        };
        let (heads, rows) = database.write(run).await.unwrap();
        assert_eq!(heads, [500, 1000, 1500, 1601]);
        assert_eq!(rows, (1..=1601).zip(0..=1600).collect::<Vec<_>>());
    }
}
