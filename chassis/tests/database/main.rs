//! The bridge to the database: what it promises to those who read and write through it, on SQLite
//! and on PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a fixture that does not work fails the test")]

mod housekeeping;
mod migrations;
mod opening;
mod outages;
mod requests;
mod snapshots;
mod statements;
mod writer;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use chassis::clock::new_salt;
use chassis::database::{Connection, Database, Error, Url, Writes};
use chassis::query;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::{Connection as _, PgConnection, SqliteConnection, sql_query};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use futures_util::FutureExt;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::sync::oneshot;

use schema::thing;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("tests/migrations");

/// Those of a later version.
const LATER: EmbeddedMigrations = embed_migrations!("tests/migrations_later");

/// Those of another service.
const OTHERS: EmbeddedMigrations = embed_migrations!("tests/migrations_of_another");

/// As many connections as the pool has, and so the most that can be found dead in it.
const POOL_SIZE: usize = 8;

mod schema {
    diesel::table! {
        thing (name) {
            name -> Text,
            payload -> Binary,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    /// SQLite, and PostgreSQL where `TEST_POSTGRES_URL` names one; in CI it has to.
    fn all() -> Vec<Self> {
        [Self::Sqlite].into_iter().chain(Self::postgres()).collect()
    }

    fn postgres() -> Option<Self> {
        if postgres_url().is_some() {
            return Some(Self::Postgres);
        }
        assert!(std::env::var_os("CI").is_none(), "TEST_POSTGRES_URL must be set in CI");
        #[expect(clippy::print_stderr, reason = "what was not tested must be seen")]
        {
            eprintln!("SKIPPED on PostgreSQL: TEST_POSTGRES_URL is not set");
        }
        None
    }

    /// Every way to write on every database.
    fn all_with_writes() -> Vec<(Self, Writes)> {
        let ways = [Writes::Serial, Writes::Concurrent];
        Self::all().into_iter().flat_map(|backend| ways.map(|writes| (backend, writes))).collect()
    }

    /// Whether several writes share a commit.
    fn batches(self, writes: Writes) -> bool {
        self == Self::Sqlite || writes == Writes::Serial
    }
}

fn postgres_url() -> Option<String> {
    std::env::var("TEST_POSTGRES_URL").ok().filter(|url| !url.is_empty())
}

/// A database of a test's own, removed with it.
struct Home {
    url: Url,
    folder: TempDir,
    /// On PostgreSQL; also the name under which connections of this test announce themselves.
    schema: Option<String>,
}

impl Home {
    fn new(backend: Backend) -> Self {
        Self::with_options(backend, "")
    }

    /// With further options of the server, as a URL writes them.
    fn with_options(backend: Backend, options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        match backend {
            Backend::Sqlite => {
                let url = format!("sqlite:{}", folder.path().join("things.sqlite").display());
                Self { url: url.parse().unwrap(), folder, schema: None }
            }
            Backend::Postgres => {
                let base = postgres_url().unwrap();
                let schema = format!("test_bridge_{}", new_salt());
                server().batch_execute(&format!("CREATE SCHEMA {schema}")).unwrap();
                let and = if base.contains('?') { '&' } else { '?' };
                let name = &schema[..40];
                let url =
                    format!("{base}{and}options=-csearch_path%3D{schema}{options}&application_name={name}");
                Self { url: url.parse().unwrap(), folder, schema: Some(schema) }
            }
        }
    }

    fn open(&self, writes: Writes) -> Database {
        let database = Database::open(&self.url, true, writes).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        database
    }

    /// A connection that has nothing to do with the bridge.
    fn independent(&self) -> Connection {
        match &self.url {
            Url::Sqlite(path) => {
                let mut c = SqliteConnection::establish(&path.to_string_lossy()).unwrap();
                c.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
                Connection::Sqlite(c)
            }
            Url::Postgres(url) => {
                // Under another name, so that `end_connections` spares it.
                let url = url.replace("application_name=", "application_name=independent_");
                Connection::Postgres(PgConnection::establish(&url).unwrap())
            }
        }
    }

    fn stored(&self) -> BTreeSet<String> {
        names(&mut self.independent()).unwrap().into_iter().collect()
    }

    /// Until the server has ended every connection of the bridge by itself.
    fn wait_for_end_of_connections(&self) {
        let name = &self.schema.as_ref().unwrap()[..40];
        let left = format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'");
        let mut server = server();
        while sql_query(&left).execute(&mut server).unwrap() > 0 {
            thread::yield_now();
        }
    }

    /// Ends every connection of the bridge, as a restart of the server would.
    fn end_connections(&self) -> usize {
        let name = &self.schema.as_ref().unwrap()[..40];
        sql_query(format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{name}'"
        ))
        .execute(&mut server())
        .unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(schema) = &self.schema {
            let dropped = server().batch_execute(&format!("DROP SCHEMA {schema} CASCADE"));
            // A second panic would hide why the test failed.
            assert!(dropped.is_ok() || thread::panicking(), "{dropped:?}");
        }
    }
}

fn server() -> PgConnection {
    PgConnection::establish(&postgres_url().unwrap()).unwrap()
}

/// What a command of these tests ends in.
#[derive(Debug)]
enum Failure {
    /// Its own doing.
    Refused(usize),
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn insert(connection: &mut Connection, name: &str) -> Result<(), Error> {
    insert_large(connection, name, 1)
}

fn insert_large(connection: &mut Connection, name: &str, bytes: usize) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(thing::table)
            .values((thing::name.eq(name), thing::payload.eq(vec![7_u8; bytes])))
            .execute(c)
    })?;
    Ok(())
}

fn names(connection: &mut Connection) -> Result<Vec<String>, Error> {
    Ok(query!(connection, c => thing::table.select(thing::name).order(thing::name).load(c))?)
}

/// Writes one row through the bridge.
async fn write(database: &Database, name: &'static str) -> Result<(), Error> {
    database.write(move |connection: &mut Connection| insert(connection, name)).await
}

type Answer<T> = Pin<Box<dyn Future<Output = T>>>;

/// Asks for a command at once, without waiting for its answer.
fn ask<T: 'static>(command: impl Future<Output = T> + 'static) -> Answer<T> {
    // Polling once puts it into the queue, whatever else this task has done.
    let mut answer: Answer<T> = Box::pin(tokio::task::unconstrained(command));
    assert!(answer.as_mut().now_or_never().is_none(), "it was answered before it could run");
    answer
}

/// The writer, held inside the first command of a batch: whatever is asked meanwhile joins that
/// batch.
struct Held {
    release: mpsc::Sender<()>,
    answer: Answer<Result<(), Error>>,
}

impl Held {
    /// Runs `first` in the command that then holds the writer.
    async fn with(
        database: &Database,
        first: impl FnOnce(&mut Connection) -> Result<(), Error> + Send + 'static,
    ) -> Self {
        let (started, has_started) = oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let database = database.clone();
        let answer = ask(async move {
            let hold = move |connection: &mut Connection| {
                let result = first(connection);
                let _ = started.send(());
                let _ = released.recv();
                result
            };
            database.write(hold).await
        });
        has_started.await.unwrap();
        Self { release, answer }
    }

    /// Lets the batch go on; the answer to the command that held it is still to come.
    fn release(self) -> Answer<Result<(), Error>> {
        drop(self.release);
        self.answer
    }
}
