//! Errors of a database, the same for both kinds.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// The reason why the database did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, is locked, full or shutting down. A retry may succeed.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
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

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        // Neither binding tells these apart by kind, so their texts have to.
        const TRANSIENT: [&str; 11] = [
            "database is locked",
            "database or disk is full",
            "disk I/O error",
            "unable to open database file",
            "lock timeout",
            "deadlock detected",
            "could not serialize",
            "server closed the connection",
            "terminating connection",
            "no connection to the server",
            "could not extend file",
        ];
        let text = error.to_string();
        match &error {
            DieselError::DatabaseError(DatabaseErrorKind::ClosedConnection, _)
            | DieselError::DatabaseError(DatabaseErrorKind::UnableToSendCommand, _)
            | DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)
            | DieselError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _)
            | DieselError::BrokenTransactionManager => Self::Unavailable(text),
            _ if TRANSIENT.iter().any(|transient| text.contains(transient)) => Self::Unavailable(text),
            _ => Self::Query(text),
        }
    }
}
