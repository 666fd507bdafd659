//! One database, SQLite or PostgreSQL, chosen by its URL at run time, and the bridge from asynchronous handlers to its
//! blocking calls.
//!
//! The body of a query stands inside [`query!`](crate::query) in plain diesel, and is compiled for each kind of
//! connection. Transactions are closures: they may run on another thread, never wait for another service, and roll back
//! if they return an error.

mod batch;
mod connection;
mod error;
mod migrate;
mod opening;
mod pool;
pub mod row;
pub(crate) mod share;
mod statement;
pub mod testing;
mod url;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::{self, Pool};
use diesel::sql_types::Integer;
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use prometheus::{Histogram, HistogramOpts};

pub use self::batch::{BatchedReads, Batcher, Reply, Work};
pub use self::connection::Connection;
use self::connection::{Purpose, guarded};
pub use self::error::{Error, asking};
use self::pool::{LogErrors, Manager, PooledConnection};
use self::share::ConnectionShares;
pub use self::statement::{Kept, Unkept, insert_as_json, static_id};
pub use self::url::Url;
use self::writer::Writer;

/// More connections do not make PostgreSQL faster on few cores; fewer leave it idle.
const POOL_SIZE: u32 = 8;

/// How long a call waits for a free connection before it fails.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// The pause between two attempts to rewrite the file.
const VACUUM_PAUSE: Duration = Duration::from_millis(50);

/// Seconds that calls waited: for their share, a list for its two shares, and then for a connection, for each at most
/// [`POOL_WAIT`].
const WAIT_BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 4.0, 6.0];

/// How writing transactions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// One after the other, several to a commit (group commit), on both databases: for state under one lock.
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
    /// Who may use a connection of the pool, so that calls wait here and not on threads.
    shares: ConnectionShares,
    writer: Option<Writer>,
    /// How long calls waited for a connection of the pool.
    wait_histogram: Histogram,
}

impl Inner {
    /// A connection outside the pool, that may write.
    fn connect(&self) -> Result<Connection, Error> {
        error::work_for(self.manager.reading_max);
        self.manager.writing().connect()
    }

    /// A read of one statement needs none, where settings belong to the session.
    fn needs_transaction(&self, purpose: Purpose) -> bool {
        purpose != Purpose::Read || self.manager.is_pooled
    }

    /// A connection on which the transaction has begun. If that fails, nothing was run yet, so another one is tried.
    fn begin(&self, first: GotFromPool, purpose: Purpose) -> Result<Pooled, Error> {
        let got = |got: GotFromPool| got.map_err(|error| Error::Unavailable(error.to_string()));
        let mut connection = got(first)?;
        if !self.needs_transaction(purpose) || connection.begin(purpose, self.manager.is_pooled).is_ok() {
            return Ok(connection);
        }
        self.manager.discard(&mut connection);
        drop(connection);
        let mut connection = got(self.pool.get())?;
        connection.begin(purpose, self.manager.is_pooled)?;
        Ok(connection)
    }
}

impl Database {
    /// Opens the database and connects once, so that what cannot work is noticed at the start.
    ///
    /// # Errors
    /// A SQLite file that does not exist, unless `create` is set, or that cannot be written; a server that cannot be
    /// reached, is too old, or does not store UTF-8; a URL that asks for TLS of a build whose libpq has none, or for
    /// options that a connection pooler ignores.
    pub fn open(url: &Url, create: bool, writes: Writes) -> Result<Self, Error> {
        opening::check_url(url, create)?;
        let (mut manager, mut connection) = Manager::open(url)?;
        opening::check_server(&mut connection)?;
        manager.reading_max = opening::reading_max(&mut connection)?;
        drop(connection);
        if manager.is_pooled {
            tracing::info!("behind a connection pooler reads are transactions, and no statement is prepared");
        }
        let pool = Pool::builder()
            .max_size(POOL_SIZE)
            // A file would be opened on a thread of the pool, even while the pool is dropped.
            .min_idle(Some(u32::from(!manager.read_only)))
            .connection_timeout(POOL_WAIT)
            // The check asks only the system, which knows of most closed connections, unless one was idle for long.
            .test_on_check_out(true)
            .error_handler(Box::new(LogErrors))
            .build_unchecked(manager.clone());
        let serial = writes == Writes::Serial || matches!(url, Url::Sqlite(_));
        let writer = serial.then(|| Writer::start(manager.writing()));
        let wait_histogram = HistogramOpts::new(
            "database_connection_wait_seconds",
            "How long calls waited for a connection to the database; short reads of SQLite that found one at once are not among them.",
        );
        let wait_histogram = Histogram::with_opts(wait_histogram.buckets(WAIT_BUCKETS.to_vec()))
            .map_err(|error| Error::Query(error.to_string()))?;
        Ok(Self(Arc::new(Inner { manager, pool, shares: ConnectionShares::new(), writer, wait_histogram })))
    }

    /// Whether it runs inside this process, so that there are no round trips to save.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        matches!(self.0.manager.url, Url::Sqlite(_))
    }

    /// Runs a short read: a few rows by key. On SQLite it runs on the calling thread, which is faster than
    /// handing it to another.
    ///
    /// # Errors
    /// The error of `read`; [`Error`] if it could not be run.
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
        self.blocking(Purpose::Read, false, read).await
    }

    /// Runs a longer read, away from the threads that serve calls. Longer reads and snapshots have at most half of the
    /// connections.
    ///
    /// # Errors
    /// The error of `read`; [`Error`] if it could not be run.
    pub async fn list<T, E, F>(&self, read: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.blocking(Purpose::Read, true, read).await
    }

    /// Runs a longer read of several statements that all see the state of the database at the first statement,
    /// also if others commit meanwhile.
    ///
    /// # Errors
    /// The error of `read`; [`Error`] if it could not be run.
    pub async fn snapshot<T, E, F>(&self, read: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.blocking(Purpose::Snapshot, true, read).await
    }

    /// Runs a writing transaction. It is committed if `write` returns `Ok`, and the result is returned after the
    /// commit.
    ///
    /// # Errors
    /// The error of `write`, after the rollback; [`Error`] if it could not be run or
    /// committed. A commit that failed with [`Error::Unavailable`] may in rare cases have happened.
    pub async fn write<T, E, F>(&self, write: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.write_parts(1, write).await
    }

    /// Runs a writing transaction that does the work of several: fewer others share its commit, so that none waits longer.
    ///
    /// # Errors
    /// As [`Database::write`].
    pub async fn write_parts<T, E, F>(&self, parts: usize, write: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        if let Some(writer) = &self.0.writer {
            return writer.write(parts, write).await;
        }
        self.blocking(Purpose::Write, false, write).await
    }

    /// Runs a writing transaction that shares its commit with no other, for what is no call: it holds its locks until its
    /// own end only, and not while another change waits for one. The write lock of SQLite makes that needless there.
    ///
    /// # Errors
    /// As [`Database::write`].
    pub async fn write_apart<T, E, F>(&self, write: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        match self.0.manager.url {
            Url::Sqlite(_) => self.write(write).await,
            Url::Postgres(_) => self.blocking(Purpose::Write, false, write).await,
        }
    }

    /// Rewrites the file of SQLite, which otherwise keeps deleted and replaced data in its free space and its log
    /// until they are written over. Writes wait meanwhile, and the disk must have room for a second file. PostgreSQL
    /// reuses its space when it vacuums. While others hold the file, each of the two steps is tried again for at most `tried_max`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if other connections did not release the file in time.
    pub async fn vacuum(&self, tried_max: Duration) -> Result<(), Error> {
        let inner = Arc::clone(&self.0);
        let job = move || match inner.connect()? {
            Connection::Postgres(_) => Ok(()),
            Connection::Sqlite(mut c) => {
                retry_until(tried_max, || Ok(c.batch_execute("VACUUM")?))?;
                retry_until(tried_max, || {
                    let checkpoint: Checkpoint =
                        sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result(&mut c)?;
                    match checkpoint.busy {
                        0 => Ok(()),
                        _ => Err(Error::Unavailable("the log of the database could not be emptied".into())),
                    }
                })
            }
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| Error::Panicked)?
    }

    /// How long calls waited for connections.
    pub(crate) fn wait_histogram(&self) -> &Histogram {
        &self.0.wait_histogram
    }

    pub(crate) fn connections_in_use(&self) -> u32 {
        let pool = self.0.pool.state();
        pool.connections.saturating_sub(pool.idle_connections)
    }

    /// Writes that wait for the one thread that writes, where there is one.
    pub(crate) fn writes_waiting(&self) -> Option<usize> {
        self.0.writer.as_ref().map(Writer::waiting)
    }

    async fn blocking<T, E, F>(&self, purpose: Purpose, is_longer: bool, run: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let began = Instant::now();
        let share = self.0.shares.take(is_longer).await;
        if share.is_err() {
            self.0.wait_histogram.observe(began.elapsed().as_secs_f64());
        }
        let share = share?;
        let inner = Arc::clone(&self.0);
        let job = move || {
            let _share = share;
            error::work_for(inner.manager.reading_max);
            let connection = inner.pool.get();
            inner.wait_histogram.observe(began.elapsed().as_secs_f64());
            let mut connection = inner.begin(connection, purpose)?;
            error::take_trouble();
            let mut is_begun = inner.needs_transaction(purpose);
            let result = guarded(&mut connection, run).and_then(|value| {
                if purpose == Purpose::Write {
                    connection.probe_transaction()?;
                    is_begun = false;
                    connection.commit()?;
                }
                Ok(value)
            });
            if is_begun && let Err(error) = connection.roll_back() {
                tracing::warn!(?error, "a rollback failed; the connection is dropped");
            }
            if error::take_trouble() {
                inner.manager.examine(&mut connection);
            }
            result
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| Error::Panicked)?
    }
}

/// The answer of SQLite to a checkpoint of its log.
#[derive(QueryableByName)]
struct Checkpoint {
    /// 1 if another connection still reads from the log.
    #[diesel(sql_type = Integer)]
    busy: i32,
}

type Pooled = r2d2::PooledConnection<Manager>;
type GotFromPool = Result<Pooled, r2d2::PoolError>;

/// Tries again what needs the file for itself while others hold it, for at most `tried_max`: they hold it for moments, but
/// SQLite has no queue for it, and does not wait at all while another connection copies the log into the file.
#[expect(clippy::disallowed_methods, reason = "SQLite says when the file is free to those only who try")]
fn retry_until(tried_max: Duration, mut attempt: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    let until = Instant::now() + tried_max;
    loop {
        match attempt() {
            Err(Error::Unavailable(_)) if Instant::now() < until => std::thread::sleep(VACUUM_PAUSE),
            ended => return ended,
        }
    }
}
