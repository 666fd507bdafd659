//! The pool of connections, and how a connection is opened.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, CacheSize, SimpleConnection, TransactionManager};
use diesel::r2d2::{HandleError, ManageConnection};
use diesel::result::Error as DieselError;
use diesel::{Connection as _, PgConnection, SqliteConnection};

use super::{Connection, Error, Url, error};
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
pub(super) const LOCK_WAIT_MS: u32 = 5000;

/// A connection that was not used for this long is asked before it is used: the server may be about to close it.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// How the server plans. A plan that is kept outlives the size that its tables had when it was made: one that reads a small
/// table as a whole would go on reading it so while it grows. Every statement has an index to go by; where one has to read a
/// table anyhow, the price that the planner then expects would have it compile the statement first.
const PLANNING: &str = "-cenable_seqscan%3Doff%20-cjit%3Doff";

/// A setting without a meaning, which only a session of this process's own has.
const OWN_SESSION: &str = "chassis.own_session";

/// Why the pool drops a connection that it was about to hand out.
const CLOSED: &str = "the server has closed the connection";

/// The limits of the statements in a transaction.
pub(super) fn limit_statements() -> String {
    format!("SET LOCAL lock_timeout = {LOCK_WAIT_MS}; SET LOCAL statement_timeout = {STATEMENT_MS_MAX}")
}

/// Makes connections for the pool and the writer. Clones share what they know of cuts.
#[derive(Clone)]
pub(super) struct Manager {
    pub(super) url: Url,
    /// True for readers of SQLite.
    pub(super) read_only: bool,
    /// True behind a connection pooler, where a session is not this process's own: it keeps no settings and no prepared
    /// statements.
    pub(super) is_pooled: bool,
    /// How long the server parses a statement at most, as [`error::work_for`] has it.
    pub(super) reading_max: Duration,
    cuts: Arc<Cuts>,
}

/// How often connections were cut. A connection that is older than the last cut is not used again.
#[derive(Default)]
struct Cuts {
    count: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Cuts {
    /// Within this time it is the same trouble, which goes on: new connections are no better.
    const PAUSE: Duration = Duration::from_secs(1);

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Notes a cut of a connection that was opened after that many.
    fn note(&self, opened_after: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if opened_after == self.count() && last.is_none_or(|last| last.elapsed() >= Self::PAUSE) {
            self.count.fetch_add(1, Ordering::AcqRel);
            *last = Some(Instant::now());
        }
    }
}

impl Manager {
    /// Connects, to find out whether there is a pooler, which takes no settings for a session or does not apply them.
    ///
    /// # Errors
    /// There is no connection; a pooler that does not apply the settings in the URL.
    pub(super) fn open(url: &Url) -> Result<(Self, Connection), Error> {
        let cuts = Arc::default();
        let mut manager = Self {
            url: url.clone(),
            read_only: matches!(url, Url::Sqlite(_)),
            is_pooled: false,
            reading_max: error::READING_MAX,
            cuts,
        };
        let direct = manager.writing().connect();
        let Url::Postgres(text) = url else { return direct.map(|connection| (manager, connection)) };
        let mut connection = match direct {
            Ok(connection) => connection,
            Err(error) => {
                manager.is_pooled = true;
                let pooled = manager.writing().connect().map_err(|_| error)?;
                // A pooler refused the settings, or else a server has just become reachable.
                manager.is_pooled = false;
                let Ok(direct) = manager.writing().connect() else {
                    manager.is_pooled = true;
                    return Ok((manager, pooled));
                };
                direct
            }
        };
        if !connection.setting(OWN_SESSION)?.is_empty() {
            return Ok((manager, connection));
        }
        if own_options(text).is_some() {
            let why = "a connection pooler ignores `options` of the database URL; \
                       leave them out, and set them for the role with ALTER ROLE … SET";
            return Err(Error::Unusable(why.into()));
        }
        drop(connection);
        manager.is_pooled = true;
        manager.writing().connect().map(|connection| (manager, connection))
    }

    /// For connections that may write.
    pub(super) fn writing(&self) -> Self {
        Self { read_only: false, ..self.clone() }
    }

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
                let mut url = with_timeouts(url);
                if !self.is_pooled {
                    url = with_session(&url);
                }
                let mut c = PgConnection::establish(&url)
                    .map_err(|error| Error::Unavailable(redact_quoted(&error.to_string())))?;
                if self.is_pooled {
                    c.set_prepared_statement_cache_size(CacheSize::Disabled);
                }
                Ok(Connection::Postgres(c))
            }
        }
    }

    pub(super) fn connect_pooled(&self) -> Result<PooledConnection, Error> {
        // Read before connecting: a cut meanwhile may have hit this connection, too.
        let cuts = self.cuts.count();
        Ok(PooledConnection { connection: self.connect()?, cuts, is_dead: false, used_at: Instant::now() })
    }

    /// Whether a connection may be used; asks the system and not the server.
    pub(super) fn is_current(&self, connection: &mut PooledConnection) -> bool {
        !connection.is_dead && connection.cuts == self.cuts.count() && connection.connection.is_open()
    }

    /// Whether the server answers on a connection that was idle for long. Other calls than a read that is no transaction
    /// notice it when they begin.
    fn is_awake(&self, connection: &mut PooledConnection) -> bool {
        if self.read_only || self.is_pooled || connection.used_at.elapsed() < IDLE_MAX {
            return true;
        }
        let answers = connection.probe().is_ok();
        if !answers {
            self.discard(connection);
        }
        answers
    }

    /// Finds out after trouble whether the connection was cut. Then none that is as old is used again: what closes one
    /// connection, such as a restart of the server or a failover, mostly closes all.
    pub(super) fn examine(&self, connection: &mut PooledConnection) {
        if !connection.is_open() || !connection.is_usable() {
            self.discard(connection);
        }
    }

    pub(super) fn discard(&self, connection: &mut PooledConnection) {
        connection.is_dead = true;
        if let Url::Sqlite(_) = self.url {
            return;
        }
        self.cuts.note(connection.cuts);
    }
}

impl ManageConnection for Manager {
    type Connection = PooledConnection;
    type Error = Error;

    fn connect(&self) -> Result<PooledConnection, Error> {
        self.connect_pooled()
    }

    fn is_valid(&self, connection: &mut PooledConnection) -> Result<(), Error> {
        if self.is_current(connection) && self.is_awake(connection) {
            Ok(())
        } else {
            Err(Error::Unavailable(CLOSED.into()))
        }
    }

    fn has_broken(&self, connection: &mut PooledConnection) -> bool {
        connection.used_at = Instant::now();
        connection.is_dead
            || connection.cuts != self.cuts.count()
            || query!(&mut connection.connection, c => AnsiTransactionManager::is_broken_transaction_manager(c))
    }
}

/// Logs why the pool has no connection.
#[derive(Debug)]
pub(super) struct LogErrors;

impl HandleError<Error> for LogErrors {
    fn handle_error(&self, error: Error) {
        match &error {
            Error::Unavailable(why) if why == CLOSED => tracing::debug!("{CLOSED}; another one is opened"),
            _ => tracing::warn!(%error, "a connection cannot be opened"),
        }
    }
}

/// The options that an operator sets, encoded as in a URL: there, or where libpq looks else.
fn own_options(url: &str) -> Option<String> {
    let encoded = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") }
    };
    let variable = || std::env::var("PGOPTIONS").ok().filter(|options| !options.trim().is_empty());
    let variable = || variable().map(|options| options.bytes().map(encoded).collect());
    parameter(url, "options").map(ToOwned::to_owned).or_else(variable)
}

/// The value of a parameter of libpq in a URL, still encoded.
pub(super) fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    let (_, parameters) = url.rsplit_once('?')?;
    parameters.split('&').find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='))
}

/// The URL with the timeouts that it does not set itself.
fn with_timeouts(url: &str) -> String {
    let mut url = url.to_owned();
    for (key, value) in TIMEOUTS {
        if !url.contains(&format!("{key}=")) {
            append(&mut url, &format!("{key}={value}"));
        }
    }
    url
}

/// The URL with settings of the session. They begin with it, because a pooler might hand on to other clients what is set
/// later. What the URL sets itself comes after them and counts.
fn with_session(url: &str) -> String {
    let settings = format!(
        "-clock_timeout%3D{LOCK_WAIT_MS}%20-cstatement_timeout%3D{STATEMENT_MS_MAX}%20{PLANNING}%20-c{OWN_SESSION}%3D1"
    );
    let all = match own_options(url) {
        Some(own) => format!("{settings}%20{own}"),
        None => settings,
    };
    if let Some(own) = parameter(url, "options") {
        return url.replacen(&format!("options={own}"), &format!("options={all}"), 1);
    }
    let mut url = url.to_owned();
    append(&mut url, &format!("options={all}"));
    url
}

fn append(url: &mut String, parameter: &str) {
    url.push(if url.contains('?') { '&' } else { '?' });
    url.push_str(parameter);
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
    /// How many cuts there had been when it was opened.
    cuts: u64,
    /// It must not be used again.
    is_dead: bool,
    /// When it was last given back.
    used_at: Instant,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_url_come_after_those_of_the_service() {
        let settings = with_session("postgres://u@h/n?options=-csearch_path%3Dx&connect_timeout=1");
        let own = "%20-csearch_path%3Dx&connect_timeout=1";
        assert!(settings.starts_with("postgres://u@h/n?options=-clock_timeout") && settings.ends_with(own));
        assert!(with_session("postgres://u@h/n").contains("n?options=-c"));
        assert!(with_session("postgres://u@h/n?host=/a").contains("&options=-c"));
    }

    #[test]
    fn a_url_keeps_the_timeouts_that_it_sets() {
        let url = with_timeouts("postgres://u@h/n?connect_timeout=1");
        assert!(url.contains("connect_timeout=1&") && !url.contains("connect_timeout=5"));
    }
}
