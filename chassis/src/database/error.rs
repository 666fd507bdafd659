//! Errors of a database, the same for both kinds.

use std::cell::Cell;
use std::time::{Duration, Instant};

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};

use super::Connection;

/// The reason why the database did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, is locked, full, read-only or shutting down, or has cancelled the statement. A retry may
    /// succeed.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// It must not be used as it is; the reason names what helps.
    #[error("the database cannot be used: {0}")]
    Unusable(String),
    /// It refused the statement: a defect of the service.
    #[error("the database refused: {0}")]
    Query(String),
    /// A row holds an impossible value: another program wrote to the database.
    #[error("row {key} of {table} has an impossible value in column {column}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The key of the row.
        key: String,
        /// The column with the impossible value.
        column: &'static str,
    },
    /// The transaction panicked and was rolled back; others were not affected.
    #[error("a transaction panicked")]
    Panicked,
}

impl From<diesel::ConnectionError> for Error {
    fn from(error: diesel::ConnectionError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// What the bundled library of SQLite says, in one language, of trouble that passes.
const SQLITE_TROUBLE: [&str; 9] = [
    "attempt to write a readonly database",
    "database is locked",
    "database or disk is full",
    "database table is locked",
    "disk I/O error",
    "interrupted",
    "locking protocol",
    "out of memory",
    "unable to open database file",
];

/// PostgreSQL reports an error in the text of a statement within this time; a later error comes from a wait for a lock. The time is
/// shorter where the server waits less long for locks: see [`work_for`].
pub(super) const READING_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Postgres,
}

thread_local! {
    /// The database that this thread asked last, and when: an error does not say which it comes from.
    static ASKED: Cell<Option<(Kind, Instant)>> = const { Cell::new(None) };
    /// How long the database that this thread works for parses a statement at most.
    static READING: Cell<Duration> = const { Cell::new(READING_MAX) };
    /// True when this thread has met trouble that passes.
    static TROUBLE: Cell<bool> = const { Cell::new(false) };
}

/// Notes which database the thread is about to ask.
#[doc(hidden)]
pub fn asking(connection: &Connection) {
    let kind = match connection {
        Connection::Sqlite(_) => Kind::Sqlite,
        Connection::Postgres(_) => Kind::Postgres,
    };
    ASKED.set(Some((kind, Instant::now())));
}

/// Notes how long the database that the thread works for from now on parses a statement at most: the least of
/// [`READING_MAX`] and the times for which its server waits for a lock.
pub(super) fn work_for(reading_max: Duration) {
    READING.set(reading_max);
}

/// Whether this thread has met trouble that passes since it was last asked.
pub(super) fn take_trouble() -> bool {
    TROUBLE.take()
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        let text = error.to_string();
        if is_passing(&error) {
            TROUBLE.set(true);
            Self::Unavailable(text)
        } else {
            Self::Query(text)
        }
    }
}

fn is_passing(error: &DieselError) -> bool {
    use DatabaseErrorKind as Kind;
    match error {
        DieselError::DatabaseError(kind, about) => match kind {
            Kind::ClosedConnection
            | Kind::UnableToSendCommand
            | Kind::SerializationFailure
            | Kind::ReadOnlyTransaction => true,
            Kind::UniqueViolation
            | Kind::ForeignKeyViolation
            | Kind::NotNullViolation
            | Kind::CheckViolation
            | Kind::RestrictViolation
            | Kind::ExclusionViolation => false,
            _ => is_trouble(&**about),
        },
        DieselError::BrokenTransactionManager => true,
        DieselError::RollbackErrorOnCommit { commit_error, .. } => is_passing(commit_error),
        _ => false,
    }
}

/// Whether an error whose kind diesel does not name is trouble that passes.
///
/// diesel keeps PostgreSQL's code (SQLSTATE) to itself, and the message is in the language of the server. But it hands on
/// what the server says of a statement that is wrong: the place in its text (class 42), the table or column (23). What has
/// neither comes from elsewhere: a cancelled statement (57), no memory, disk or connection (53), a deadlock (40), a lock
/// (55), a system call that failed (58), a pooler. A lock on a table is waited for while the text is read, so that its
/// timeout and a deadlock have a place, too; but they come late, after the server's `lock_timeout` or `deadlock_timeout`.
fn is_trouble(about: &(dyn DatabaseErrorInformation + Send + Sync)) -> bool {
    match ASKED.get() {
        Some((Kind::Postgres, asked_at)) => {
            let is_about_text = about.statement_position().is_some() && asked_at.elapsed() < READING.get();
            let is_about_rows =
                about.table_name().or(about.column_name()).or(about.constraint_name()).is_some();
            !is_about_text && !is_about_rows
        }
        Some((Kind::Sqlite, _)) | None => {
            SQLITE_TROUBLE.iter().any(|trouble| about.message().starts_with(trouble))
        }
    }
}
