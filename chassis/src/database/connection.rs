//! A connection to either database, and its transactions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::{PgConnection, SqliteConnection};

use super::Error;

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
    ($connection:expr, $c:ident => $body:expr) => {
        match $connection {
            $crate::database::Connection::Sqlite($c) => $body,
            $crate::database::Connection::Postgres($c) => $body,
        }
    };
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

    pub(super) fn begin(&mut self) -> Result<(), Error> {
        match self {
            // The write lock is taken at once, because a read that turns into a write may fail.
            Self::Sqlite(c) => AnsiTransactionManager::begin_transaction_sql(c, "BEGIN IMMEDIATE")?,
            Self::Postgres(c) => AnsiTransactionManager::begin_transaction(c)?,
        }
        Ok(())
    }

    pub(super) fn begin_snapshot(&mut self) -> Result<(), Error> {
        match self {
            // In WAL mode a reader keeps seeing what was committed when it began.
            Self::Sqlite(c) => AnsiTransactionManager::begin_transaction_sql(c, "BEGIN")?,
            Self::Postgres(c) => {
                const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                AnsiTransactionManager::begin_transaction_sql(c, SNAPSHOT)?;
            }
        }
        Ok(())
    }

    /// Undoes everything since the savepoint of a command, also what a panic left open inside it.
    pub(super) fn roll_back_command(&mut self) -> Result<(), Error> {
        const COMMAND_DEPTH: u32 = 2;
        loop {
            let depth = query!(self, c => {
                AnsiTransactionManager::transaction_manager_status_mut(c).transaction_depth()
            })?;
            self.roll_back()?;
            if depth.is_none_or(|depth| depth.get() <= COMMAND_DEPTH) {
                return Ok(());
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
