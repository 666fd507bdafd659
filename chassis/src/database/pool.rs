//! The pool of connections, and how a connection is opened.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::r2d2::ManageConnection;
use diesel::result::Error as DieselError;
use diesel::{Connection as _, PgConnection, SqliteConnection};

use super::{Connection, Error, Url};
use crate::query;

/// Settings of libpq that notice a server that is unreachable or silent within seconds; the URL may set others.
const TIMEOUTS: [(&str, u32); 5] = [
    ("connect_timeout", 5),
    ("keepalives_idle", 10),
    ("keepalives_interval", 5),
    ("keepalives_count", 3),
    ("tcp_user_timeout", 15_000),
];

/// No statement of a call takes longer; migrations may.
const STATEMENT_MS_MAX: u32 = 15_000;

/// How long a statement waits for another's lock before it fails.
const LOCK_WAIT_MS: u32 = 5000;

/// Makes connections for the pool and the writer.
#[derive(Clone)]
pub(super) struct Manager {
    pub(super) url: Url,
    pub(super) read_only: bool,
}

impl Manager {
    pub(super) fn connect(&self) -> Result<Connection, Error> {
        match &self.url {
            Url::Sqlite(path) => {
                let mut c = SqliteConnection::establish(&path.to_string_lossy())?;
                c.batch_execute(&format!("PRAGMA busy_timeout = {LOCK_WAIT_MS}"))?;
                enable_wal(&mut c)?;
                c.batch_execute(&format!(
                    "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA query_only = {};",
                    u8::from(self.read_only)
                ))?;
                Ok(Connection::Sqlite(c))
            }
            Url::Postgres(url) => {
                let mut c = PgConnection::establish(&with_timeouts(url))
                    .map_err(|error| Error::Unavailable(redact_quoted(&error.to_string())))?;
                c.batch_execute(&format!(
                    "SET lock_timeout = {LOCK_WAIT_MS}; SET statement_timeout = {STATEMENT_MS_MAX}; SET TIME ZONE 'UTC'"
                ))?;
                Ok(Connection::Postgres(c))
            }
        }
    }
}

impl ManageConnection for Manager {
    type Connection = PooledConnection;
    type Error = Error;

    fn connect(&self) -> Result<PooledConnection, Error> {
        Ok(PooledConnection { connection: Self::connect(self)?, is_dead: false })
    }

    fn is_valid(&self, connection: &mut PooledConnection) -> Result<(), Error> {
        connection.probe()
    }

    fn has_broken(&self, connection: &mut PooledConnection) -> bool {
        connection.is_dead
            || query!(&mut connection.connection, c => AnsiTransactionManager::is_broken_transaction_manager(c))
    }
}

/// The URL with the timeouts that it does not set itself.
fn with_timeouts(url: &str) -> String {
    let mut url = url.to_owned();
    for (key, value) in TIMEOUTS {
        if !url.contains(&format!("{key}=")) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{key}={value}"));
        }
    }
    url
}

/// Turns on write-ahead logging. SQLite's busy timeout does not cover the lock that a change of the journal mode takes, so
/// processes that open a new file together wait here.
fn enable_wal(c: &mut SqliteConnection) -> Result<(), DieselError> {
    const ATTEMPTS_MAX: u32 = 200;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..ATTEMPTS_MAX {
        if c.batch_execute("PRAGMA journal_mode = WAL").is_ok() {
            return Ok(());
        }
        std::thread::park_timeout(PAUSE);
    }
    c.batch_execute("PRAGMA journal_mode = WAL")
}

/// Removes quoted text from an error. libpq quotes the parts of a URL that it cannot read, which may be of the password.
/// Only messages that are known to quote something else keep their quotations.
fn redact_quoted(text: &str) -> String {
    const HARMLESS: [&str; 2] = ["connection to server", "sslmode value"];
    if HARMLESS.iter().any(|begin| text.starts_with(begin)) {
        return text.to_owned();
    }
    let parts = text.split('"').enumerate().map(|(n, part)| if n % 2 == 0 { part } else { "…" });
    parts.collect::<Vec<_>>().join("\"")
}

/// A connection as the pool keeps it.
pub(super) struct PooledConnection {
    connection: Connection,
    /// It must not be used again.
    pub(super) is_dead: bool,
}

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}
