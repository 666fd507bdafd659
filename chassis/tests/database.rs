//! The bridge to the database: what it promises to those who read and write through it, on SQLite
//! and on PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a fixture that does not work fails the test")]

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

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
                let url =
                    format!("{base}{and}options=-csearch_path%3D{schema}&application_name={}", &schema[..40]);
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

#[tokio::test]
async fn every_command_gets_its_own_outcome_and_only_what_succeeded_is_stored() {
    const COMMANDS: usize = 200;
    for (backend, writes) in Backend::all_with_writes() {
        let home = Home::new(backend);
        let database = home.open(writes);
        let held = match backend.batches(writes) {
            true => Some(Held::with(&database, |connection| insert(connection, "held")).await),
            false => None,
        };
        let commands = (0..COMMANDS).map(|n| {
            let database = database.clone();
            ask(async move {
                let run = move |connection: &mut Connection| {
                    insert(connection, &format!("{n:03}"))?;
                    match n % 5 {
                        1 => Err(Failure::Refused(n)),
                        // The database refuses the second row of a name.
                        2 => Ok(insert(connection, &format!("{n:03}")).map(|()| n)?),
                        3 => panic!("a defect in a command"),
                        _ => Ok(n),
                    }
                };
                database.write(run).await
            })
        });
        let commands: Vec<_> = commands.collect();
        let held = held.map(Held::release);
        let mut expected = BTreeSet::new();
        for (n, answer) in join_all(commands).await.into_iter().enumerate() {
            match (n % 5, answer) {
                (0 | 4, Ok(own)) => {
                    assert_eq!(own, n);
                    expected.insert(format!("{n:03}"));
                }
                (1, Err(Failure::Refused(own))) => assert_eq!(own, n),
                (2, Err(Failure::Failed(Error::Query(why)))) => {
                    assert!(why.to_lowercase().contains("unique"), "{why}");
                }
                (3, Err(Failure::Failed(Error::Panicked))) => {}
                (_, other) => panic!("{backend:?} {writes:?}: command {n} was answered {other:?}"),
            }
        }
        if let Some(held) = held {
            held.await.unwrap();
            expected.insert("held".into());
        }
        assert_eq!(home.stored(), expected, "{backend:?} {writes:?}");

        write(&database, "later").await.unwrap();
        expected.insert("later".into());
        assert_eq!(home.stored(), expected, "{backend:?} {writes:?}");
    }
}

#[tokio::test]
async fn a_panic_inside_a_nested_transaction_undoes_its_own_command_and_no_other() {
    for (backend, writes) in Backend::all_with_writes() {
        let home = Home::new(backend);
        let database = home.open(writes);
        let held = match backend.batches(writes) {
            true => Some(Held::with(&database, |_| Ok(())).await),
            false => None,
        };
        let before = ask({
            let database = database.clone();
            async move { write(&database, "before").await }
        });
        let panicking = ask({
            let database = database.clone();
            async move {
                let run = |connection: &mut Connection| -> Result<(), Error> {
                    insert(connection, "outer")?;
                    query!(connection, c => c.transaction(|c| {
                        diesel::insert_into(thing::table)
                            .values((thing::name.eq("inner"), thing::payload.eq(vec![])))
                            .execute(c)?;
                        panic!("a defect in a nested transaction")
                    }))
                };
                database.write(run).await
            }
        });
        let after = ask({
            let database = database.clone();
            async move { write(&database, "after").await }
        });
        let held = held.map(Held::release);
        assert!(before.await.is_ok(), "{backend:?} {writes:?}");
        assert!(matches!(panicking.await, Err(Error::Panicked)), "{backend:?} {writes:?}");
        assert!(after.await.is_ok(), "{backend:?} {writes:?}");
        if let Some(held) = held {
            held.await.unwrap();
        }
        let stored = ["after", "before"].map(String::from);
        assert_eq!(home.stored(), stored.into(), "{backend:?} {writes:?}: what was answered with Ok");
        assert!(write(&database, "later").await.is_ok(), "{backend:?} {writes:?}");
        let stored = ["after", "before", "later"].map(String::from);
        assert_eq!(home.stored(), stored.into(), "{backend:?} {writes:?}");
    }
}

#[tokio::test]
async fn a_command_that_hides_a_refused_statement_is_not_told_that_it_was_stored_when_it_was_not() {
    for (backend, writes) in Backend::all_with_writes() {
        let home = Home::new(backend);
        let database = home.open(writes);
        let run = |connection: &mut Connection| {
            insert(connection, "hiding")?;
            // PostgreSQL undoes the whole transaction for this, SQLite only the statement.
            drop(insert(connection, "hiding"));
            Ok::<_, Error>(())
        };
        let is_ok = database.write(run).await.is_ok();
        assert_eq!(home.stored().contains("hiding"), is_ok, "{backend:?} {writes:?}");
        assert!(write(&database, "later").await.is_ok(), "{backend:?} {writes:?}");
    }
}

#[tokio::test]
async fn no_caller_of_a_batch_is_answered_before_its_commit() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        let first = Held::with(&database, |connection| insert(connection, "first")).await;
        let second = {
            let database = database.clone();
            ask(async move { write(&database, "second").await })
        };
        let (started, has_started) = oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let third = {
            let database = database.clone();
            ask(async move {
                let hold = move |connection: &mut Connection| {
                    let _ = started.send(());
                    let _ = released.recv();
                    insert(connection, "third")
                };
                database.write(hold).await
            })
        };
        let mut first = first.release();
        let mut second = second;
        // The third command runs, so the first two of its batch have run; none is committed.
        has_started.await.unwrap();
        assert!(first.as_mut().now_or_never().is_none(), "{backend:?}: answered before the commit");
        assert!(second.as_mut().now_or_never().is_none(), "{backend:?}: answered before the commit");
        assert_eq!(home.stored(), BTreeSet::new(), "{backend:?}");

        drop(release);
        for answer in [first, second, third] {
            answer.await.unwrap();
            assert_eq!(home.stored().len(), 3, "{backend:?}: one commit for all of them");
        }
    }
}

#[tokio::test]
async fn an_answered_write_is_visible_on_another_connection() {
    for (backend, writes) in Backend::all_with_writes() {
        let home = Home::new(backend);
        let database = home.open(writes);
        let independent = Mutex::new(home.independent());
        let callers = (0..64).map(|n| {
            let (database, independent) = (&database, &independent);
            async move {
                let name = format!("{n:02}");
                let run = {
                    let name = name.clone();
                    move |connection: &mut Connection| insert(connection, &name)
                };
                database.write(run).await.unwrap();
                let found = names(&mut independent.lock().unwrap()).unwrap().contains(&name);
                assert!(found, "{backend:?} {writes:?}: {name} is not there");
            }
        });
        join_all(callers).await;
    }
}

#[tokio::test]
async fn a_full_disk_fails_its_batch_and_the_next_one_starts_over() {
    const SMALL: usize = 1;
    const TOO_LARGE: usize = 1 << 20;
    let home = Home::new(Backend::Sqlite);
    let database = home.open(Writes::Serial);
    // The limit belongs to the connection: it is the full disk, and a new connection is the larger
    // one.
    let held = Held::with(&database, |connection| {
        query!(connection, c => c.batch_execute("PRAGMA max_page_count = 20"))?;
        insert(connection, "held")
    })
    .await;
    let commands = (0..20).map(|n| {
        let database = database.clone();
        let bytes = if n % 5 == 4 { TOO_LARGE } else { SMALL };
        ask(async move {
            let run = move |connection: &mut Connection| insert_large(connection, &format!("{n:02}"), bytes);
            database.write(run).await
        })
    });
    let commands: Vec<_> = commands.collect();
    let held = held.release();
    let mut answers = vec![("held".to_owned(), held.await)];
    for (n, answer) in join_all(commands).await.into_iter().enumerate() {
        answers.push((format!("{n:02}"), answer));
    }
    let refused = check_outage(&home, &answers);
    // Those before the large one were promised nothing yet, and it took them along.
    for name in ["held", "00", "01", "02", "03", "04"] {
        assert!(refused.contains(name), "{name} was in the batch that failed: {refused:?}");
    }
    let run = |connection: &mut Connection| insert_large(connection, "later", TOO_LARGE);
    database.write(run).await.unwrap();
    assert!(home.stored().contains("later"));
}

#[tokio::test]
async fn a_connection_lost_inside_a_batch_fails_that_batch_and_the_next_one_starts_over() {
    let Some(backend) = Backend::postgres() else { return };
    let home = Home::new(backend);
    let database = home.open(Writes::Serial);
    let held = Held::with(&database, |connection| insert(connection, "held")).await;
    let commands = (0..20).map(|n| {
        let database = database.clone();
        ask(async move {
            let run = move |connection: &mut Connection| {
                insert(connection, &format!("{n:02}"))?;
                if n == 9 {
                    query!(connection, c => c.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())"))?;
                }
                Ok(())
            };
            database.write(run).await
        })
    });
    let commands: Vec<_> = commands.collect();
    let held = held.release();
    let mut answers = vec![("held".to_owned(), held.await)];
    for (n, answer) in join_all(commands).await.into_iter().enumerate() {
        answers.push((format!("{n:02}"), answer));
    }
    let refused = check_outage(&home, &answers);
    assert!(refused.contains("held") && refused.contains("09"), "the batch was lost: {refused:?}");
    write(&database, "later").await.unwrap();
    assert!(home.stored().contains("later"));
}

/// Each command either succeeded and is stored, or failed because the database is unavailable and is not stored. Returns
/// the failed ones.
fn check_outage(home: &Home, answers: &[(String, Result<(), Error>)]) -> BTreeSet<String> {
    let mut stored = BTreeSet::new();
    let mut refused = BTreeSet::new();
    for (name, answer) in answers {
        match answer {
            Ok(()) => stored.insert(name.clone()),
            Err(Error::Unavailable(_)) => refused.insert(name.clone()),
            Err(other) => panic!("{name} was answered {other:?}"),
        };
    }
    assert_eq!(home.stored(), stored);
    refused
}

#[tokio::test]
async fn a_connection_lost_inside_a_write_of_its_own_fails_only_that_one() {
    let Some(backend) = Backend::postgres() else { return };
    let home = Home::new(backend);
    let database = home.open(Writes::Concurrent);
    let lost = |connection: &mut Connection| {
        insert(connection, "lost")?;
        query!(connection, c => c.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())"))?;
        Ok::<_, Error>(())
    };
    for _ in 0..2 * POOL_SIZE {
        let answer = database.write(lost).await;
        assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    }
    write(&database, "later").await.unwrap();
    assert_eq!(home.stored(), ["later".to_owned()].into());
}

#[tokio::test]
async fn after_the_server_closed_all_connections_a_bounded_number_of_calls_fail() {
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::new(backend);
        let database = home.open(writes);
        write(&database, "first").await.unwrap();

        assert_eq!(failed_reads(&database).await, 0);
        assert!(home.end_connections() >= POOL_SIZE);
        let failed = failed_reads(&database).await;
        assert!((1..=POOL_SIZE).contains(&failed), "{writes:?}: {failed} reads failed");
        assert_eq!(failed_reads(&database).await, 0, "{writes:?}: reads keep failing");

        assert!(home.end_connections() >= POOL_SIZE);
        let (mut failed, mut worked) = (0, 0);
        for n in 0..4 * POOL_SIZE {
            let run = move |connection: &mut Connection| insert(connection, &n.to_string());
            match database.write(run).await {
                Ok(()) => worked += 1,
                Err(Error::Unavailable(_)) => failed += 1,
                Err(other) => panic!("{writes:?}: a write was answered {other:?}"),
            }
        }
        let failed_max = if writes == Writes::Serial { 1 } else { POOL_SIZE };
        assert!(failed <= failed_max, "{writes:?}: {failed} writes failed");
        assert_eq!(home.stored().len(), 1 + worked, "{writes:?}: what failed is not there");
        // Whatever dead connection the writes did not come upon, as many reads at once do. A writer
        // has one beside the pool's.
        let own = usize::from(writes == Writes::Serial);
        assert!(failed + failed_reads(&database).await <= POOL_SIZE + own, "{writes:?}");
        assert_eq!(failed_reads(&database).await, 0, "{writes:?}: reads keep failing");
    }
}

/// Reads on every connection of the pool at once and counts how many found theirs dead.
async fn failed_reads(database: &Database) -> usize {
    let meeting = Arc::new(Barrier::new(POOL_SIZE));
    let reads = (0..POOL_SIZE).map(|_| {
        let meeting = Arc::clone(&meeting);
        database.list(move |connection: &mut Connection| {
            // None lets go of its connection before all have one.
            meeting.wait();
            names(connection)
        })
    });
    let mut failed = 0;
    for read in join_all(reads).await {
        match read {
            Ok(_) => {}
            Err(Error::Unavailable(_)) => failed += 1,
            Err(other) => panic!("a read was answered {other:?}"),
        }
    }
    failed
}

#[tokio::test]
async fn a_panicking_read_fails_alone() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        for _ in 0..2 * POOL_SIZE {
            let panicking = |_: &mut Connection| -> Result<(), Error> { panic!("a defect in a read") };
            assert!(matches!(database.read(panicking).await, Err(Error::Panicked)), "{backend:?}");
            assert!(matches!(database.list(panicking).await, Err(Error::Panicked)), "{backend:?}");
        }
        assert!(database.read(names).await.unwrap().is_empty(), "{backend:?}");
    }
}

/// Reads twice, and lets another connection write in between.
fn read_around_a_write(
    connection: &mut Connection,
    other: &mut Connection,
    name: &str,
) -> Result<[Vec<String>; 2], Error> {
    let before = names(connection)?;
    insert(other, name)?;
    Ok([before, names(connection)?])
}

#[tokio::test]
async fn two_reads_inside_a_snapshot_see_the_same_despite_a_write() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        write(&database, "first").await.unwrap();
        let mut other = home.independent();
        let read = move |connection: &mut Connection| read_around_a_write(connection, &mut other, "second");
        let [before, after] = database.snapshot(read).await.unwrap();
        assert_eq!((before.as_slice(), after.as_slice()), (&["first".into()][..], &["first".into()][..]));

        // Without a snapshot they do not, so that this test can fail.
        let mut other = home.independent();
        let read = move |connection: &mut Connection| read_around_a_write(connection, &mut other, "third");
        let [before, after] = database.list(read).await.unwrap();
        assert_eq!((before.len(), after.len()), (2, 3), "{backend:?}");
    }
}

#[tokio::test]
async fn a_snapshot_cannot_write_and_whatever_ends_it_leaves_nothing_open() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        for _ in 0..POOL_SIZE + 1 {
            let refused = database.snapshot(|connection| insert(connection, "sneaked in")).await;
            assert!(refused.is_err(), "{backend:?}");
            let nested = database.snapshot(|connection: &mut Connection| -> Result<(), Error> {
                query!(connection, c => c.transaction(|_| panic!("a defect in a read")))
            });
            assert!(matches!(nested.await, Err(Error::Panicked)), "{backend:?}");
        }
        assert_eq!(home.stored(), BTreeSet::new(), "{backend:?}");
        write(&database, "later").await.unwrap();
        for _ in 0..POOL_SIZE + 1 {
            let seen = database.snapshot(names).await.unwrap();
            assert_eq!(seen, ["later"], "{backend:?}: a connection still sees the past");
        }
    }
}

#[tokio::test]
async fn what_was_deleted_is_in_no_file_once_it_is_purged_beside_open_connections() {
    const GONE: &str = "a name that must not be readable";
    let home = Home::new(Backend::Sqlite);
    let database = home.open(Writes::Serial);
    let files = || {
        let files = std::fs::read_dir(home.folder.path()).unwrap();
        let bytes = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect::<Vec<_>>();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    write(&database, "stays").await.unwrap();
    write(&database, GONE).await.unwrap();
    let delete = |connection: &mut Connection| -> Result<(), Error> {
        query!(connection, c => diesel::delete(thing::table.find(GONE)).execute(c))?;
        Ok(())
    };
    database.write(delete).await.unwrap();
    assert!(files().contains(GONE), "SQLite has forgotten it by itself: this test would prove nothing");

    // A reader that has begun sees what was, so the log cannot be emptied.
    let mut reader = home.independent();
    query!(&mut reader, c => c.batch_execute("BEGIN; SELECT name FROM thing")).unwrap();
    let busy = database.purge().await;
    assert!(matches!(busy, Err(Error::Unavailable(_))), "{busy:?}");
    query!(&mut reader, c => c.batch_execute("COMMIT")).unwrap();

    database.purge().await.unwrap();
    assert!(!files().contains(GONE) && files().contains("stays"));
    write(&database, "later").await.unwrap();
    assert_eq!(home.stored(), BTreeSet::from(["later".to_owned(), "stays".to_owned()]));
}

#[tokio::test]
async fn reads_of_sqlite_cannot_write() {
    let home = Home::new(Backend::Sqlite);
    let database = home.open(Writes::Serial);
    for _ in 0..2 {
        let writing = |connection: &mut Connection| insert(connection, "sneaked");
        assert!(database.read(writing).await.is_err());
        assert!(database.list(writing).await.is_err());
    }
    assert_eq!(home.stored(), BTreeSet::new());
}

#[test]
fn a_url_names_a_sqlite_file_or_a_postgresql_server() {
    for good in ["sqlite:things.sqlite", "sqlite:/tmp/things", "postgres://u@h/db", "postgresql:///db"] {
        assert!(good.parse::<Url>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "things.sqlite",
        "/tmp/things.sqlite",
        "file:things.sqlite",
        "mysql://u@h/db",
        "sqlite",
        "sqlite:",
        "sqlite::memory:",
        "SQLITE:things.sqlite",
        "postgres:",
        "postgres:u@h/db",
        "host=h user=u",
    ] {
        let refused = bad.parse::<Url>().unwrap_err();
        assert!(refused.contains("sqlite:") && refused.contains("postgres:"), "{bad}: {refused}");
    }
}

#[test]
fn neither_a_url_nor_a_failure_to_open_it_shows_the_password() {
    for url in [
        "postgres://clerk:hunter2@127.0.0.1:1/things",
        "postgresql://clerk@127.0.0.1:1/things?password=hunter2",
        // Mistakes that libpq complains of in its own words.
        "postgres://clerk:hunter2%@127.0.0.1:1/things",
        "postgres://clerk:hunter2@[::1/things",
        "postgres://clerk:hunter2@[::1]things",
        "postgres://clerk@127.0.0.1:1/things?hunter2",
        "postgres://clerk:hunter2/3@127.0.0.1:1/things",
        "postgres://clerk:4@hunter2@127.0.0.1:1/things",
    ] {
        let url: Url = url.parse().unwrap();
        let Err(refused) = Database::open(&url, true, Writes::Serial) else { panic!("{url} was opened") };
        for shown in [format!("{url}"), format!("{url:?}"), format!("{refused}"), format!("{refused:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}

#[test]
fn a_missing_sqlite_file_is_made_only_when_asked_for() {
    let home = Home::new(Backend::Sqlite);
    let files = || std::fs::read_dir(home.folder.path()).unwrap().count();
    let Err(refused) = Database::open(&home.url, false, Writes::Serial) else {
        panic!("a database that does not exist was opened")
    };
    assert!(matches!(&refused, Error::Unavailable(why) if why.contains("--create")), "{refused}");
    assert_eq!(files(), 0, "nothing is left behind");

    drop(Database::open(&home.url, true, Writes::Serial).unwrap());
    assert!(files() >= 1);
    drop(Database::open(&home.url, false, Writes::Serial).unwrap());

    let nowhere = home.folder.path().join("no folder").join("things.sqlite");
    let nowhere: Url = format!("sqlite:{}", nowhere.display()).parse().unwrap();
    for create in [false, true] {
        let opened = Database::open(&nowhere, create, Writes::Serial);
        assert!(matches!(opened.err(), Some(Error::Unavailable(_))), "create: {create}");
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_noticed_at_the_start() {
    // Nothing listens on port 1.
    for writes in [Writes::Serial, Writes::Concurrent] {
        let url: Url = "postgres://clerk@127.0.0.1:1/things".parse().unwrap();
        assert!(matches!(Database::open(&url, true, writes).err(), Some(Error::Unavailable(_))));
    }
}

#[cfg(feature = "bundled-libpq")]
#[test]
fn a_url_that_demands_tls_of_a_build_without_it_is_a_clear_error() {
    let url: Url = "postgres://clerk@127.0.0.1:1/things?sslmode=require".parse().unwrap();
    let Err(refused) = Database::open(&url, false, Writes::Serial) else {
        panic!("a connection without TLS was made")
    };
    // The complaint is about TLS, not about the port that nothing listens on.
    let words = refused.to_string();
    assert!(words.contains("sslmode") && words.contains("SSL support"), "{words}");
}

#[test]
fn a_schema_is_refused_until_it_is_migrated() {
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = Database::open(&home.url, true, Writes::Serial).unwrap();
        let refused = database.check_schema(MIGRATIONS).unwrap_err();
        assert!(matches!(&refused, Error::Query(why) if why.contains("migrate")), "{backend:?}: {refused}");
        database.migrate(MIGRATIONS).unwrap();
        database.check_schema(MIGRATIONS).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        assert_eq!(home.stored(), BTreeSet::new(), "{backend:?}");
    }
}

/// Each on a thread, all at the same moment.
fn at_once<T: Send>(run: impl Fn() -> T + Sync) -> Vec<T> {
    const PROCESSES: usize = 4;
    let start = Barrier::new(PROCESSES);
    let run = || {
        start.wait();
        run()
    };
    thread::scope(|scope| {
        let processes: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(run)).collect();
        processes.into_iter().map(|process| process.join().unwrap()).collect()
    })
}

/// Races that are lost rarely are tried more than once.
const ROUNDS: usize = 10;

#[test]
fn several_processes_may_migrate_at_the_same_time() {
    for backend in Backend::all() {
        for round in 0..ROUNDS {
            let home = Home::new(backend);
            drop(Database::open(&home.url, true, Writes::Serial).unwrap());
            let outcomes = at_once(|| {
                let database = Database::open(&home.url, false, Writes::Serial)?;
                database.migrate(MIGRATIONS)?;
                database.check_schema(MIGRATIONS)
            });
            assert!(outcomes.iter().all(Result::is_ok), "{backend:?}, round {round}: {outcomes:?}");
            assert_eq!(home.stored(), BTreeSet::new(), "{backend:?}, round {round}");
        }
    }
}

#[test]
fn several_processes_may_make_and_migrate_a_sqlite_file_at_the_same_time() {
    for round in 0..ROUNDS {
        let home = Home::new(Backend::Sqlite);
        let outcomes = at_once(|| {
            let database = Database::open(&home.url, true, Writes::Serial)?;
            database.migrate(MIGRATIONS)
        });
        assert!(outcomes.iter().all(Result::is_ok), "round {round}: {outcomes:?}");
    }
}
