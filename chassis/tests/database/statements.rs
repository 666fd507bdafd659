//! Statements that are prepared once, and many rows in one statement.

use chassis::database::Kept;
use chassis::insert_rows;
use chrono::NaiveDateTime;
use diesel::sql_types::{BigInt, Text};
use serde::Serialize;

use super::*;

const TABLE: &str =
    "CREATE TABLE entry (id TEXT PRIMARY KEY, note TEXT, number BIGINT NOT NULL, is_set BOOLEAN NOT NULL,
    made_at TIMESTAMP NOT NULL, added_later INTEGER NOT NULL DEFAULT 7)";

diesel::table! {
    entry (id) {
        id -> Text,
        note -> Nullable<Text>,
        number -> BigInt,
        is_set -> Bool,
        made_at -> Timestamp,
        added_later -> Integer,
    }
}

#[derive(Clone, Debug, PartialEq, Insertable, Queryable, Selectable, Serialize)]
#[diesel(table_name = entry, treat_none_as_default_value = false)]
struct Entry {
    id: String,
    note: Option<String>,
    number: i64,
    is_set: bool,
    made_at: NaiveDateTime,
}

fn new_entry(id: &str, note: Option<&str>, number: i64) -> Entry {
    let made_at = "2026-11-28T23:59:59.123456".parse().unwrap();
    Entry { id: id.into(), note: note.map(Into::into), number, is_set: number > 0, made_at }
}

/// However many rows there are, they are stored as they are given; columns that an older version does not know have their
/// default; and rows that are there already stay, or refuse all.
#[tokio::test]
async fn rows_are_inserted_as_they_are() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        let run = move |connection: &mut Connection| -> Result<(), Error> {
            query!(&mut *connection, c => c.batch_execute(TABLE))?;
            let mut all = vec![
                new_entry("a", None, i64::MAX),
                new_entry("b", Some(""), i64::MIN),
                new_entry("c", Some("\"quoted\", {braced} \\ back\tand\nforth, żółć 🦀, '; DROP"), 1),
                new_entry("d", Some("NULL"), 0),
            ];
            insert_rows!(&mut *connection, entry, &all[..0])?;
            insert_rows!(&mut *connection, entry, &all[..1])?;
            insert_rows!(&mut *connection, entry, &all[1..])?;
            let more = [new_entry("a", Some("not this"), 5), new_entry("e", None, 6)];
            insert_rows!(&mut *connection, entry, &more, on_conflict_do_nothing)?;
            all.push(more[1].clone());
            let rows: Vec<(Entry, i32)> = query!(&mut *connection, c => {
                entry::table.order(entry::id).select((Entry::as_select(), entry::added_later)).load(c)
            })?;
            assert_eq!(rows, all.into_iter().map(|row| (row, 7)).collect::<Vec<_>>(), "{backend:?}");
            let refused: Result<(), Error> = insert_rows!(connection, entry, &more).map_err(Into::into);
            refused
        };
        let refused = database.write(run).await;
        assert!(matches!(refused, Err(Error::Query(_))), "{backend:?}: {refused:?}");
    }
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// A kept statement is prepared once, whatever it is about; Diesel prepares such a one anew each time.
#[tokio::test]
async fn a_kept_statement_is_prepared_once() {
    let Some(backend) = Backend::postgres() else { return };
    let home = Home::new(backend);
    let database = home.open(Writes::Concurrent);
    let prepared = |is_kept: bool| {
        let database = database.clone();
        async move {
            let run = move |connection: &mut Connection| -> Result<i64, Error> {
                let Connection::Postgres(c) = connection else { panic!("the database is PostgreSQL") };
                for name in ["a", "b"] {
                    let update = diesel::update(thing::table.find(name)).set(thing::payload.eq(vec![1]));
                    let update = update.returning(thing::name);
                    let _: Vec<String> = if is_kept { Kept(update).load(c)? } else { update.load(c)? };
                }
                let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE $1";
                let prepared = sql_query(prepared).bind::<Text, _>("UPDATE \"thing\"%");
                Ok(prepared.get_result::<Count>(c)?.count)
            };
            database.write(run).await.unwrap()
        }
    };
    assert_eq!(prepared(false).await, 0);
    assert_eq!(prepared(true).await, 1);
}

/// A table that was small when a statement was planned is not read as a whole for as long as the plan is kept.
#[tokio::test]
async fn a_kept_plan_goes_by_the_index_of_a_table_that_was_small() {
    let Some(backend) = Backend::postgres() else { return };
    let home = Home::new(backend);
    let database = home.open(Writes::Concurrent);
    let run = |connection: &mut Connection| -> Result<i64, Error> {
        let Connection::Postgres(c) = connection else { panic!("the database is PostgreSQL") };
        c.batch_execute("INSERT INTO thing VALUES ('a', ''), ('b', ''); ANALYZE thing")?;
        // The server makes a plan for all values after five of its own for each.
        for _ in 0..10 {
            let read = thing::table.find("a").select(thing::name).for_update();
            let _: Vec<String> = Kept(read).load(c)?;
        }
        let scans = "SELECT seq_scan AS count FROM pg_stat_xact_user_tables WHERE relname = 'thing'
            AND schemaname = current_schema()";
        Ok(sql_query(scans).get_result::<Count>(c)?.count)
    };
    assert_eq!(database.write(run).await.unwrap(), 0);
}
