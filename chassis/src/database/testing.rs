//! What the tests of the services' stores share: databases of their own, and the plans of statements. Nothing that serves uses it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::deserialize;
use diesel::pg::Pg;
use diesel::row::NamedRow;
use diesel::sql_types::{BigInt, Text};
use diesel::{Connection as _, PgConnection, QueryableByName, RunQueryDsl, sql_query};

use super::{Connection, Error};
use crate::clock::new_salt;
use crate::query;

/// The URL of a file in the folder, or of a new schema on PostgreSQL if `TEST_POSTGRES_URL` names one.
///
/// # Panics
/// In CI, if no PostgreSQL is named; if it does not answer.
#[must_use]
#[expect(clippy::unwrap_used, reason = "a test ends where it has no database")]
pub fn url(is_postgres: bool, folder: &Path) -> Option<String> {
    if !is_postgres {
        return Some(format!("sqlite:{}", folder.join("test.sqlite").display()));
    }
    let base = std::env::var("TEST_POSTGRES_URL").ok();
    assert!(base.is_some() || std::env::var_os("CI").is_none(), "TEST_POSTGRES_URL must be set in CI");
    let base = base?;
    let schema = format!("test_store_{}", new_salt());
    PgConnection::establish(&base).unwrap().batch_execute(&format!("CREATE SCHEMA {schema}")).unwrap();
    Some(format!("{base}{}options=-csearch_path%3D{schema}", if base.contains('?') { '&' } else { '?' }))
}

/// How a database finds the rows of a statement.
#[derive(Debug)]
pub struct Plan {
    /// The text of the statement.
    pub statement: String,
    /// The steps, as the database says them.
    pub steps: Vec<String>,
}

/// One step of a plan of SQLite.
#[derive(QueryableByName)]
struct Step {
    #[diesel(sql_type = Text)]
    detail: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// One line of a plan of PostgreSQL. The name of its column is none that a field can have.
struct Line(String);

impl QueryableByName<Pg> for Line {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        Ok(Self(NamedRow::get::<Text, String>(row, "QUERY PLAN")?))
    }
}

impl Plan {
    /// The first step that reads a whole table. A table or partial index named in `small` may be read whole.
    #[must_use]
    pub fn full_scan(&self, small: &[&str]) -> Option<&str> {
        let is_full = |step: &&String| {
            let scans = step.contains("Seq Scan on ") || step.starts_with("SCAN ");
            scans && !small.iter().any(|name| step.contains(name))
        };
        self.steps.iter().find(is_full).map(String::as_str)
    }
}

/// The texts of the statements that a function runs, in their order, and what it returns.
///
/// # Errors
/// Those of the function.
///
/// # Panics
/// If the function panicked before.
#[expect(clippy::unwrap_used, reason = "no lock outlives a panic of the test")]
pub fn statements_of<T, E>(
    connection: &mut Connection,
    run: impl FnOnce(&mut Connection) -> Result<T, E>,
) -> Result<(T, Vec<String>), E> {
    let statements: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = statements.clone();
    query!(&mut *connection, c => c.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            seen.lock().unwrap().push(query.to_string());
        }
    }));
    let returned = run(connection)?;
    query!(connection, c => c.set_instrumentation(|_: InstrumentationEvent<'_>| {}));
    let mut statements = std::mem::take(&mut *statements.lock().unwrap());
    for statement in &mut statements {
        if let Some((text, _)) = statement.split_once(" -- binds") {
            *statement = text.to_owned();
        }
    }
    Ok((returned, statements))
}

/// How many rows of tables PostgreSQL reads for a function.
///
/// # Errors
/// The database's.
///
/// # Panics
/// If the database is SQLite, which does not count them.
pub fn rows_read(
    connection: &mut Connection,
    run: fn(&mut Connection) -> Result<(), Error>,
) -> Result<i64, Error> {
    run(connection)?;
    let Connection::Postgres(c) = connection else { panic!("SQLite does not count the rows that it reads") };
    let read = sql_query(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint AS count FROM pg_stat_xact_user_tables
        WHERE schemaname = current_schema()",
    );
    Ok(read.get_result::<Count>(c)?.count)
}

/// The plans of the statements that a function runs, whatever the values in them.
///
/// # Errors
/// The database's.
pub fn plans_of(
    connection: &mut Connection,
    run: fn(&mut Connection) -> Result<(), Error>,
) -> Result<Vec<Plan>, Error> {
    let ((), mut statements) = statements_of(connection, run)?;
    statements.sort();
    statements.dedup();
    statements.into_iter().map(|statement| plan_of(connection, statement)).collect()
}

fn plan_of(connection: &mut Connection, statement: String) -> Result<Plan, Error> {
    let steps = match connection {
        Connection::Sqlite(c) => {
            let steps: Vec<Step> = sql_query(format!("EXPLAIN QUERY PLAN {statement}")).load(c)?;
            steps.into_iter().map(|step| step.detail).collect()
        }
        Connection::Postgres(c) => {
            let count = (1..).take_while(|n| statement.contains(&format!("${n}"))).count();
            let nothing =
                if count == 0 { String::new() } else { format!("({})", vec!["NULL"; count].join(", ")) };
            c.batch_execute(&format!(
                "SET plan_cache_mode = force_generic_plan; PREPARE list AS {statement}"
            ))?;
            let lines: Vec<Line> = sql_query(format!("EXPLAIN EXECUTE list{nothing}")).load(c)?;
            c.batch_execute("DEALLOCATE list")?;
            lines.into_iter().map(|Line(step)| step).collect()
        }
    };
    Ok(Plan { statement, steps })
}
