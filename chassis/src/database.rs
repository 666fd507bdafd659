//! One database, SQLite or PostgreSQL, chosen by its URL at run time, and the one bridge from
//! asynchronous handlers to its blocking calls.
//!
//! The body of a query stands inside [`query!`](crate::query) in plain diesel, and is compiled for each
//! kind of connection. Transactions are closures; they may be run on another thread, never
//! wait for a neighbour, and roll back when they return an error.

pub mod row;
mod writer;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::r2d2::{self, ManageConnection, Pool, PooledConnection};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::Integer;
use diesel::{Connection as _, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness};
use prometheus::{Histogram, HistogramOpts};
use tokio::sync::Semaphore;

use writer::Writer;

/// More connections do not make PostgreSQL faster on few cores; fewer leave it idle.
const POOL_SIZE: u32 = 8;

/// How long a call waits for a free connection before it is told to come back.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// Seconds that calls waited: for their turn and then for a connection, for neither longer than [`POOL_WAIT`].
const WAIT_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 4.0];

/// What is asked of libpq where the URL does not say: notice a server that cannot be reached, or has
/// gone silent, within seconds.
const PATIENCE: [(&str, u32); 5] = [
    ("connect_timeout", 5),
    ("keepalives_idle", 10),
    ("keepalives_interval", 5),
    ("keepalives_count", 3),
    ("tcp_user_timeout", 15_000),
];

/// No statement of a call takes longer; migrations may.
const STATEMENT_MS_MAX: u32 = 15_000;

/// How long a statement waits for another's lock before it gives up.
const LOCK_WAIT_MS: u32 = 5000;

/// A connection to either database. [`query!`](crate::query) is how it is used.
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

/// Why the database did not do what it was asked.
#[derive(Clone, Debug)]
pub enum Error {
    /// It cannot be reached, is locked, full or going down. What was asked may be tried again.
    Unavailable(String),
    /// It refused the statement: a defect of ours.
    Query(String),
    /// A row cannot be what it should be: somebody else wrote to the database.
    Corrupt {
        /// The table.
        table: &'static str,
        /// The key of the row.
        key: String,
        /// The column that makes no sense.
        column: &'static str,
    },
    /// The transaction panicked and was rolled back; others were not affected.
    Panicked,
}

/// Where the database is. Its `Display` and `Debug` never show a password.
#[derive(Clone)]
pub enum Url {
    /// `sqlite:PATH`: an embedded database in one file.
    Sqlite(PathBuf),
    /// `postgres://…` or `postgresql://…`, handed to libpq as it is.
    Postgres(String),
}

/// How transactions that write are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// One after the other, several to a commit, on both databases: for state under one lock.
    Serial,
    /// Beside each other where the database can (PostgreSQL), else as `Serial`.
    Concurrent,
}

/// An open database. Clones share it.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    manager: Manager,
    pool: Pool<Manager>,
    /// As many as the pool has connections, so that calls wait here and not on threads.
    permits: Arc<Semaphore>,
    writer: Option<Writer>,
    /// How long whoever had to wait for a connection of the pool did.
    waits: Histogram,
}

impl Database {
    /// Opens the database and connects once, so that a wrong URL is noticed at the start.
    ///
    /// # Errors
    /// A SQLite file that does not exist, unless `create` is set; a server that cannot be reached; TLS
    /// asked of a build whose libpq has none.
    pub fn open(url: &Url, create: bool, writes: Writes) -> Result<Self, Error> {
        if let Url::Sqlite(path) = url
            && !create
            && !path.exists()
        {
            return Err(Error::Unavailable(format!(
                "{} does not exist; pass --create to make an empty database there",
                path.display()
            )));
        }
        let manager = Manager { url: url.clone(), read_only: matches!(url, Url::Sqlite(_)) };
        Manager { read_only: false, ..manager.clone() }.connect()?;
        let pool = Pool::builder()
            .max_size(POOL_SIZE)
            // A file would be opened on a thread of the pool, also when it is about to be let go of.
            .min_idle(Some(u32::from(!manager.read_only)))
            .connection_timeout(POOL_WAIT)
            .test_on_check_out(false)
            .error_handler(Box::new(r2d2::LoggingErrorHandler))
            .build_unchecked(manager.clone());
        let serial = writes == Writes::Serial || matches!(url, Url::Sqlite(_));
        let writer = serial.then(|| Writer::start(Manager { read_only: false, ..manager.clone() }));
        let permits = Arc::new(Semaphore::new(POOL_SIZE as usize));
        let waits = HistogramOpts::new(
            "database_connection_wait_seconds",
            "How long calls waited for a connection to the database; short reads of SQLite that found one at once are not among them.",
        );
        let waits = Histogram::with_opts(waits.buckets(WAIT_BUCKETS.to_vec()))
            .map_err(|error| Error::Query(error.to_string()))?;
        Ok(Self(Arc::new(Inner { manager, pool, permits, writer, waits })))
    }

    /// Brings the schema up to date. Several processes may do so at the same time.
    ///
    /// # Errors
    /// A migration that fails, with the database's words.
    pub fn migrate(&self, migrations: EmbeddedMigrations) -> Result<(), Error> {
        const ONE_AT_A_TIME: &str = "SELECT pg_advisory_lock(7215001)";
        let mut connection = Manager { read_only: false, ..self.0.manager.clone() }.connect()?;
        if let Connection::Postgres(c) = &mut connection {
            c.batch_execute("SET lock_timeout = 0; SET statement_timeout = 0")?;
            c.batch_execute(ONE_AT_A_TIME)?;
        }
        // On SQLite the write lock does what the advisory lock does on PostgreSQL.
        if let Connection::Sqlite(_) = connection {
            connection.begin()?;
        }
        query!(&mut connection, c => c.run_pending_migrations(migrations).map(|_| ()))
            .map_err(|error| Error::Query(format!("migration failed: {error}")))?;
        if let Connection::Sqlite(_) = connection {
            connection.commit()?;
        }
        Ok(())
    }

    /// Refuses a schema that lacks a migration this build needs.
    ///
    /// # Errors
    /// The remedy, or why the database could not be asked.
    pub fn check_schema(&self, migrations: EmbeddedMigrations) -> Result<(), Error> {
        let mut connection = Manager { read_only: false, ..self.0.manager.clone() }.connect()?;
        let pending = query!(&mut connection, c => c.has_pending_migration(migrations))
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        if pending {
            return Err(Error::Query("the schema is not up to date; run the `migrate` command first".into()));
        }
        Ok(())
    }

    /// Runs a short read: a few rows by key. On SQLite it runs right here, which is faster than
    /// handing it to another thread.
    ///
    /// # Errors
    /// Whatever `read` returns; [`Error`] when it could not be run.
    pub async fn read<T, E, F>(&self, read: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        if matches!(self.0.manager.url, Url::Sqlite(_))
            && let Some(mut connection) = self.0.pool.try_get()
        {
            return guarded(&mut connection, read);
        }
        self.list(read).await
    }

    /// Runs a longer read, away from the threads that serve calls.
    ///
    /// # Errors
    /// Whatever `read` returns; [`Error`] when it could not be run.
    pub async fn list<T, E, F>(&self, read: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.blocking(move |connection| guarded(connection, read)).await
    }

    /// Runs a longer read of several statements that all see the same state of the database, whatever
    /// others commit meanwhile. The state is that of the first statement.
    ///
    /// # Errors
    /// Whatever `read` returns; [`Error`] when it could not be run.
    pub async fn snapshot<T, E, F>(&self, read: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.blocking(move |connection| {
            connection.begin_snapshot()?;
            let result = guarded(connection, read);
            if let Err(error) = connection.roll_back() {
                tracing::warn!(?error, "the end of a snapshot failed; the connection is dropped");
            }
            result
        })
        .await
    }

    /// Runs a transaction that writes. It is committed when `write` returns `Ok`, and only then is
    /// the caller answered.
    ///
    /// # Errors
    /// Whatever `write` returns, after the rollback; [`Error`] when it could not be run or
    /// committed. A commit that failed with [`Error::Unavailable`] may in rare cases have happened.
    pub async fn write<T, E, F>(&self, write: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        if let Some(writer) = &self.0.writer {
            return writer.write(write).await;
        }
        self.blocking(move |connection| {
            connection.begin()?;
            let result = guarded(connection, write).and_then(|value| {
                // PostgreSQL answers the commit of a transaction in which a statement failed with a
                // silent rollback; any statement before it fails loudly.
                connection.probe().map(|()| value).map_err(E::from)
            });
            match result {
                Ok(value) => connection.commit().map(|()| value).map_err(E::from),
                Err(error) => {
                    if let Err(error) = connection.roll_back() {
                        tracing::warn!(?error, "a rollback failed; the connection is dropped");
                    }
                    Err(error)
                }
            }
        })
        .await
    }

    /// Rewrites the file of SQLite, which otherwise keeps what was deleted or replaced in its free
    /// space and its log until something else is written there. Writes wait meanwhile, and the disk must
    /// have room for a second file. PostgreSQL sees to its space by itself, when it vacuums.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when others did not let go of the file in time.
    pub async fn purge(&self) -> Result<(), Error> {
        let manager = Manager { read_only: false, ..self.0.manager.clone() };
        let job = move || match manager.connect()? {
            Connection::Postgres(_) => Ok(()),
            Connection::Sqlite(mut c) => {
                c.batch_execute("VACUUM")?;
                let is_busy: Checkpoint = sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result(&mut c)?;
                match is_busy.busy {
                    0 => Ok(()),
                    _ => Err(Error::Unavailable("the log of the database could not be emptied".into())),
                }
            }
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| Error::Panicked)?
    }

    /// How long calls waited for connections.
    pub(crate) fn waits(&self) -> &Histogram {
        &self.0.waits
    }

    pub(crate) fn connections_in_use(&self) -> u32 {
        let pool = self.0.pool.state();
        pool.connections.saturating_sub(pool.idle_connections)
    }

    /// Writes that wait for the one thread that writes, where there is one.
    pub(crate) fn writes_waiting(&self) -> Option<usize> {
        self.0.writer.as_ref().map(Writer::waiting)
    }

    async fn blocking<T, E, F>(&self, run: F) -> Result<T, E>
    where
        F: FnOnce(&mut Pooled) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let busy = || Error::Unavailable("no connection became free in time".into());
        let began = Instant::now();
        let permit = tokio::time::timeout(POOL_WAIT, self.0.permits.clone().acquire_owned()).await;
        if permit.is_err() {
            self.0.waits.observe(began.elapsed().as_secs_f64());
        }
        let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        let inner = Arc::clone(&self.0);
        let job = move || {
            let _permit = permit;
            let connection = inner.pool.get();
            inner.waits.observe(began.elapsed().as_secs_f64());
            let mut connection = connection.map_err(|error| Error::Unavailable(error.to_string()))?;
            let result = run(&mut connection);
            // The pool does not look at what it lends, which would cost a round trip each time. So whoever
            // fails finds out whether the server has closed the connection, and it is not lent again.
            if result.is_err() {
                connection.is_dead = connection.probe().is_err();
            }
            result
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| Error::Panicked)?
    }
}

/// What SQLite answers when it is asked to empty its log.
#[derive(QueryableByName)]
struct Checkpoint {
    /// 1 when somebody else still reads from the log.
    #[diesel(sql_type = Integer)]
    busy: i32,
}

type Pooled = PooledConnection<Manager>;

/// A connection as the pool keeps it.
struct Lent {
    connection: Connection,
    /// It is of no more use.
    is_dead: bool,
}

impl Deref for Lent {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// Runs a closure and turns its panic into an error.
fn guarded<T, E: From<Error>>(
    connection: &mut Connection,
    run: impl FnOnce(&mut Connection) -> Result<T, E>,
) -> Result<T, E> {
    let result = catch_unwind(AssertUnwindSafe(|| run(connection)));
    result.unwrap_or_else(|_| Err(Error::Panicked.into()))
}

impl Connection {
    fn probe(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => c.batch_execute("SELECT 1"))?)
    }

    fn begin(&mut self) -> Result<(), Error> {
        match self {
            // Taking the write lock at once spares the failure of a read that turns into a write.
            Self::Sqlite(c) => AnsiTransactionManager::begin_transaction_sql(c, "BEGIN IMMEDIATE")?,
            Self::Postgres(c) => AnsiTransactionManager::begin_transaction(c)?,
        }
        Ok(())
    }

    fn begin_snapshot(&mut self) -> Result<(), Error> {
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

    /// Undoes everything since the savepoint of a command, whatever a panic left open inside it.
    fn roll_back_command(&mut self) -> Result<(), Error> {
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

    fn begin_savepoint(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => AnsiTransactionManager::begin_transaction(c))?)
    }

    /// Commits the transaction, or keeps what the savepoint guards.
    fn commit(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => AnsiTransactionManager::commit_transaction(c))?)
    }

    /// Undoes the transaction, or what the savepoint guards.
    fn roll_back(&mut self) -> Result<(), Error> {
        Ok(query!(self, c => AnsiTransactionManager::rollback_transaction(c))?)
    }
}

/// Makes connections for the pool and the writer.
#[derive(Clone)]
struct Manager {
    url: Url,
    read_only: bool,
}

impl Manager {
    fn connect(&self) -> Result<Connection, Error> {
        match &self.url {
            Url::Sqlite(path) => {
                let mut c = SqliteConnection::establish(&path.to_string_lossy())?;
                c.batch_execute(&format!("PRAGMA busy_timeout = {LOCK_WAIT_MS}"))?;
                enter_wal(&mut c)?;
                c.batch_execute(&format!(
                    "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA query_only = {};",
                    u8::from(self.read_only)
                ))?;
                Ok(Connection::Sqlite(c))
            }
            Url::Postgres(url) => {
                let mut c = PgConnection::establish(&patient(url))
                    .map_err(|error| Error::Unavailable(without_quotations(&error.to_string())))?;
                c.batch_execute(&format!(
                    "SET lock_timeout = {LOCK_WAIT_MS}; SET statement_timeout = {STATEMENT_MS_MAX}; SET TIME ZONE 'UTC'"
                ))?;
                Ok(Connection::Postgres(c))
            }
        }
    }
}

impl ManageConnection for Manager {
    type Connection = Lent;
    type Error = Error;

    fn connect(&self) -> Result<Lent, Error> {
        Ok(Lent { connection: Self::connect(self)?, is_dead: false })
    }

    fn is_valid(&self, lent: &mut Lent) -> Result<(), Error> {
        lent.probe()
    }

    fn has_broken(&self, lent: &mut Lent) -> bool {
        lent.is_dead
            || query!(&mut lent.connection, c => AnsiTransactionManager::is_broken_transaction_manager(c))
    }
}

/// The URL with what it does not say about patience.
fn patient(url: &str) -> String {
    let mut url = url.to_owned();
    for (key, value) in PATIENCE {
        if !url.contains(&format!("{key}=")) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{key}={value}"));
        }
    }
    url
}

/// SQLite waits for every lock but the one that changing the journal mode takes, so processes that
/// open a new file together have to.
fn enter_wal(c: &mut SqliteConnection) -> Result<(), DieselError> {
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

/// libpq quotes the parts of a URL that it cannot read, and they may be of the password. Only of
/// messages that are known to quote something else are the quotations kept.
fn without_quotations(words: &str) -> String {
    const HARMLESS: [&str; 2] = ["connection to server", "sslmode value"];
    if HARMLESS.iter().any(|begin| words.starts_with(begin)) {
        return words.to_owned();
    }
    let parts = words.split('"').enumerate().map(|(n, part)| if n % 2 == 0 { part } else { "…" });
    parts.collect::<Vec<_>>().join("\"")
}

impl FromStr for Url {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        match url.split_once(':') {
            // SQLite reads `file:` as a URI, which may name a database in memory.
            Some(("sqlite", path))
                if !path.is_empty() && !path.starts_with(":memory:") && !path.starts_with("file:") =>
            {
                Ok(Self::Sqlite(path.into()))
            }
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Self::Postgres(url.to_owned()))
            }
            _ => Err("the database URL must be sqlite:PATH or postgres://USER@HOST/NAME".into()),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres:…"),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the database is unavailable: {why}"),
            Self::Query(why) => write!(f, "the database refused: {why}"),
            Self::Corrupt { table, key, column } => {
                write!(f, "row {key} of {table} makes no sense in column {column}")
            }
            Self::Panicked => f.write_str("a transaction panicked"),
        }
    }
}

impl std::error::Error for Error {}

impl From<diesel::ConnectionError> for Error {
    fn from(error: diesel::ConnectionError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        // Neither binding tells these apart by kind, so the words have to.
        const PASSING: [&str; 11] = [
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
        let words = error.to_string();
        match &error {
            DieselError::DatabaseError(DatabaseErrorKind::ClosedConnection, _)
            | DieselError::DatabaseError(DatabaseErrorKind::UnableToSendCommand, _)
            | DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)
            | DieselError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _)
            | DieselError::BrokenTransactionManager => Self::Unavailable(words),
            _ if PASSING.iter().any(|passing| words.contains(passing)) => Self::Unavailable(words),
            _ => Self::Query(words),
        }
    }
}
