//! A connection to either database, and its transactions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::sql_types::Text;
use diesel::{PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};

use super::pool::{LOCK_WAIT_MS, limit_statements};
use super::{Error, error};

/// How long a statement waits for a lock that should not wait for any.
const BRIEF_LOCK_WAIT_MS: u32 = 10;

/// A connection to either database, used through [`query!`](crate::query).
#[expect(missing_docs, reason = "the names say it")]
pub enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Compiles one query body for each kind of connection and runs the one that fits.
///
/// `query!(connection, c => things::table.find(id).first(c))`
#[macro_export]
macro_rules! query {
    ($connection:expr, $c:ident => $body:expr) => {{
        let connection: &mut $crate::database::Connection = $connection;
        $crate::database::asking(connection);
        match connection {
            $crate::database::Connection::Sqlite($c) => $body,
            $crate::database::Connection::Postgres($c) => $body,
        }
    }};
}

/// Inserts rows of one table: PostgreSQL gets them in one statement, which spares a round trip for each. SQLite has no
/// round trips, and would prepare a statement of many rows anew each time; it gets one that is prepared once, row by row.
/// So does PostgreSQL where there is one row.
///
/// `insert_rows!(connection, things, &rows)`, where `things` is the table and `rows` a slice of structs with its columns, which
/// are `Insertable` with `treat_none_as_default_value = false`, and `Serialize`, and `…, on_conflict_do_nothing)` where rows that
/// are there already stay. That statement Diesel finds by its text.
#[macro_export]
macro_rules! insert_rows {
    ($connection:expr, $table:ident, $rows:expr $(, $or:ident)?) => {{
        let connection: &mut $crate::database::Connection = $connection;
        $crate::database::asking(connection);
        match connection {
            $crate::database::Connection::Sqlite(c) => {
                $rows.iter().try_for_each(|row| {
                    let insert = $crate::database::static_id(diesel::insert_into($table::table).values(row));
                    insert$(.$or())?.execute(c).map(drop)
                })
            }
            $crate::database::Connection::Postgres(c) if $rows.len() < 2 => {
                $rows.iter().try_for_each(|row| {
                    let insert = $crate::database::static_id(diesel::insert_into($table::table).values(row));
                    insert$(.$or())?.execute(c).map(drop)
                })
            }
            $crate::database::Connection::Postgres(c) => {
                let may_be_there = !<[&str]>::is_empty(&[$(stringify!($or))?]);
                $crate::database::insert_as_json(c, stringify!($table), $rows, may_be_there)
            }
        }
    }};
}

/// Loads the rows with certain keys: PostgreSQL is asked once for all of them. SQLite has no round trips, and would prepare
/// a statement with a list of keys anew each time; it is asked by one that is prepared once, key by key. So is PostgreSQL
/// where there is one key.
///
/// `find_rows!(connection, things::id, &keys, has_key => things::table.filter(has_key))`, where `keys` is a slice. Rows are
/// in the query's order where that begins with the key, and the keys are in order.
#[macro_export]
macro_rules! find_rows {
    ($connection:expr, $column:expr, $keys:expr, $has_key:ident => $query:expr) => {{
        let connection: &mut $crate::database::Connection = $connection;
        $crate::database::asking(connection);
        match connection {
            $crate::database::Connection::Sqlite(c) => {
                let mut rows = Vec::new();
                let found = $keys.iter().try_for_each(|key| {
                    let $has_key = $column.eq(key);
                    $query.load(c).map(|found: Vec<_>| rows.extend(found))
                });
                found.map(|()| rows)
            }
            $crate::database::Connection::Postgres(c) if $keys.len() < 2 => {
                let mut rows = Vec::new();
                let found = $keys.iter().try_for_each(|key| {
                    let $has_key = $column.eq(key);
                    $query.load(c).map(|found: Vec<_>| rows.extend(found))
                });
                found.map(|()| rows)
            }
            $crate::database::Connection::Postgres(c) => {
                let $has_key = $column.eq_any($keys);
                $query.load(c)
            }
        }
    }};
}

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    /// Reads that all see the same state.
    Snapshot,
    Write,
}

/// Where what is undone began, as the depth of a transaction and its savepoints.
#[derive(Clone, Copy, Debug)]
pub(super) enum Begin {
    Transaction = 1,
    Savepoint = 2,
}

/// A setting of PostgreSQL.
#[derive(QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    value: String,
}

/// Runs a closure and turns its panic into an error.
pub(super) fn guarded<T, E: From<Error>>(
    connection: &mut Connection,
    run: impl FnOnce(&mut Connection) -> Result<T, E>,
) -> Result<T, E> {
    let result = catch_unwind(AssertUnwindSafe(|| run(connection)));
    result.unwrap_or_else(|_| Err(Error::Panicked.into()))
}

impl Connection {
    pub(super) fn probe(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => c.batch_execute("SELECT 1"))?)
    }

    /// Whether the server has not closed the connection, as far as the system knows without asking the server.
    pub(super) fn is_open(&mut self) -> bool {
        match self {
            Self::Sqlite(_) => true,
            // The first look may find the server's last words, and only the second that nothing follows.
            Self::Postgres(c) => (0..2).all(|_| !matches!(c.notifications_iter().next(), Some(Err(_)))),
        }
    }

    /// Whether it can be used again after trouble: the server answers, and has not become a standby, which would refuse
    /// every write.
    pub(super) fn is_usable(&mut self) -> bool {
        match self {
            Self::Sqlite(_) => self.probe().is_ok(),
            Self::Postgres(_) => self.setting("transaction_read_only").is_ok_and(|value| value == "off"),
        }
    }

    /// A setting of the session; empty if the server does not know it.
    pub(super) fn setting(&mut self, name: &str) -> Result<String, Error> {
        let sql = format!("SELECT coalesce(current_setting('{name}', true), '') AS value");
        let setting: Setting = query!(self, c => sql_query(sql).get_result(c))?;
        Ok(setting.value)
    }

    /// The shortest time for which the server waits for a lock before it gives up or looks for a deadlock, in milliseconds;
    /// 0 if it does neither.
    pub(super) fn lock_wait_ms(&mut self) -> Result<String, Error> {
        let sql = "SELECT coalesce(min(setting::integer), 0)::text AS value FROM pg_settings
            WHERE name IN ('lock_timeout', 'deadlock_timeout') AND setting <> '0'";
        let setting: Setting = query!(self, c => sql_query(sql).get_result(c))?;
        Ok(setting.value)
    }

    /// Begins a transaction. Behind a pooler it brings its own limits, in the same message.
    pub(super) fn begin(&mut self, purpose: Purpose, is_pooled: bool) -> Result<(), Error> {
        error::asking(self);
        match self {
            Self::Sqlite(c) => {
                let sql = match purpose {
                    // The write lock is taken at once, because a read that turns into a write may fail.
                    Purpose::Write => "BEGIN IMMEDIATE",
                    // In WAL mode a reader keeps seeing what was committed when it began.
                    Purpose::Read | Purpose::Snapshot => "BEGIN",
                };
                AnsiTransactionManager::begin_transaction_sql(c, sql)?;
            }
            Self::Postgres(c) => {
                let sql = match purpose {
                    Purpose::Write => "BEGIN",
                    Purpose::Read => "BEGIN READ ONLY",
                    Purpose::Snapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
                };
                let limits = if is_pooled { limit_statements() } else { String::new() };
                AnsiTransactionManager::begin_transaction_sql(c, &format!("{sql};{limits}"))?;
            }
        }
        Ok(())
    }

    /// Whether all that the transaction has done can still be committed. A command may have hidden that a statement failed:
    /// PostgreSQL answers the commit after it with a silent rollback, and SQLite may have rolled back by itself.
    pub(super) fn probe_transaction(&mut self) -> Result<(), Error> {
        match self {
            // None begins inside another.
            Self::Sqlite(c) => match c.batch_execute("BEGIN") {
                Ok(()) => Err(Error::Unavailable("SQLite has rolled back the transaction".into())),
                Err(_) => Ok(()),
            },
            Self::Postgres(_) => self.probe(),
        }
    }

    /// Undoes everything since the begin of the transaction, or of the first savepoint in it, also what a panic left open inside.
    pub(super) fn roll_back_to(&mut self, begin: Begin) -> Result<(), Error> {
        loop {
            let depth = query!(self, c => {
                AnsiTransactionManager::transaction_manager_status_mut(c).transaction_depth()
            })?;
            self.roll_back()?;
            if depth.is_none_or(|depth| depth.get() <= begin as u32) {
                return Ok(());
            }
        }
    }

    /// Runs statements that wait for locks of other transactions for 10 ms at most: after that nothing is done, and there is no
    /// result, as where the database is unavailable for another reason. What follows in the transaction waits up
    /// to 5 s.
    ///
    /// # Errors
    /// Those of `run`, but for [`Error::Unavailable`], which is no result; that one where the connection is lost.
    pub fn without_waiting<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let limit = |connection: &mut Self, ms: u32| match connection {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(c) => c.batch_execute(&format!("SET LOCAL lock_timeout = {ms}")),
        };
        self.begin_savepoint()?;
        limit(self, BRIEF_LOCK_WAIT_MS)?;
        match run(self) {
            Ok(done) => {
                limit(self, LOCK_WAIT_MS)?;
                self.commit()?;
                Ok(Some(done))
            }
            Err(error) => {
                // Where the connection is lost this fails, too.
                self.roll_back()?;
                if matches!(error, Error::Unavailable(_)) { Ok(None) } else { Err(error) }
            }
        }
    }

    pub(super) fn begin_savepoint(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => AnsiTransactionManager::begin_transaction(c))?)
    }

    /// Commits the transaction, or releases the savepoint.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => AnsiTransactionManager::commit_transaction(c))?)
    }

    /// Rolls back the transaction, or to the savepoint.
    pub(super) fn roll_back(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => AnsiTransactionManager::rollback_transaction(c))?)
    }
}
