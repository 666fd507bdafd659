//! Outages: what a lost connection, passing trouble or a panic costs.

use super::*;

/// Whether the server closes connections, one after the other or all of them, no call fails that had not begun.
#[tokio::test]
async fn connections_that_were_closed_between_calls_fail_none() {
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::new(backend);
        let database = home.open(writes);
        write(&database, "first").await.unwrap();
        let before = backends(&database).await;
        assert_eq!(before.len(), POOL_SIZE);

        assert!(home.end_connections() >= POOL_SIZE);
        let after = backends(&database).await;
        assert!(after.is_disjoint(&before), "{writes:?}: {after:?}");
        assert!(home.end_connections() >= POOL_SIZE);
        for n in 0..4 * POOL_SIZE {
            let run = move |connection: &mut Connection| insert(connection, &n.to_string());
            database.write(run).await.unwrap_or_else(|error| panic!("{writes:?}: {error}"));
        }
        assert_eq!(home.stored().len(), 1 + 4 * POOL_SIZE);
    }
}

/// One call may come just when the server has said farewell and not closed the connection yet.
#[tokio::test]
async fn a_server_that_closes_idle_connections_fails_one_call_at_most() {
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::with_options(backend, "%20-cidle_session_timeout%3D100");
        let database = home.open(writes);
        write(&database, "first").await.unwrap();
        for _ in 0..2 {
            let mut failed = usize::from(write(&database, "first").await.is_err_and(is_unavailable));
            for read in join_all((0..POOL_SIZE).map(|_| database.read(names))).await {
                failed += usize::from(read.is_err_and(is_unavailable));
            }
            assert!(failed <= 1, "{writes:?}: {failed} calls failed");
            home.wait_for_end_of_connections();
        }
    }
}

/// The call that meets the cut fails, and no later one, whichever connection it gets.
#[tokio::test]
async fn one_cut_in_the_middle_of_a_call_fails_that_call() {
    const CUT: &str = "SELECT pg_terminate_backend(pg_backend_pid())";
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::new(backend);
        let database = home.open(writes);
        let cut = |connection: &mut Connection| run(connection, CUT);
        let before = backends(&database).await;
        for failed in [database.read(cut).await, database.snapshot(cut).await, database.write(cut).await] {
            assert!(matches!(failed, Err(Error::Unavailable(_))), "{writes:?}: {failed:?}");
            write(&database, "after").await.unwrap();
            let delete = |connection: &mut Connection| run(connection, "DELETE FROM thing");
            database.write(delete).await.unwrap();
        }
        // Those that were not cut are as old, and might be cut as well without the system knowing it yet.
        let after = backends(&database).await;
        assert!(after.is_disjoint(&before), "{writes:?}: {after:?}");
    }
}

/// A server that becomes a standby goes on answering, but refuses every write.
#[tokio::test]
async fn connections_to_a_server_that_has_become_read_only_are_replaced() {
    const TURN: &str = "SET default_transaction_read_only = on";
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::new(backend);
        let database = home.open(writes);
        let turned = database.write(|connection| run(connection, TURN)).await;
        turned.unwrap();
        let mut refused = 0;
        for n in 0..2 * POOL_SIZE {
            let run = move |connection: &mut Connection| insert(connection, &n.to_string());
            match database.write(run).await {
                Ok(()) => {}
                Err(Error::Unavailable(_)) => refused += 1,
                Err(other) => panic!("{writes:?}: {other}"),
            }
        }
        assert!(refused <= 1, "{writes:?}: one connection refused {refused} writes");
    }
}

/// Passing trouble is known by its code, and in whatever language the server words it.
#[tokio::test]
async fn trouble_that_passes_is_no_defect() {
    const PASSING: [&str; 18] = [
        "08000", "08003", "08006", "08P01", "25006", "40001", "40P01", "53000", "53100", "53200", "53300",
        "53400", "55006", "55P03", "57014", "57P01", "57P03", "58030",
    ];
    const DEFECTS: [&str; 8] = [
        "SELEC 1",
        "SELECT nothing",
        "SELECT 1 FROM nowhere",
        "SELECT nothing(1)",
        "INSERT INTO thing VALUES ('name', '')",
        "INSERT INTO thing VALUES (NULL, '')",
        "DO $$ BEGIN RAISE USING ERRCODE = '23514', TABLE = 'thing', CONSTRAINT = 'positive'; END $$",
        "DO $$ BEGIN RAISE USING ERRCODE = '22000', COLUMN = 'name'; END $$",
    ];
    let Some(backend) = Backend::postgres() else { return };
    let home = Home::new(backend);
    let database = home.open(Writes::Concurrent);
    write(&database, "name").await.unwrap();
    let ask = async |sql: String| database.write(move |connection| run(connection, &sql)).await;
    for state in PASSING {
        let raised =
            ask(format!("DO $$ BEGIN RAISE 'Anweisung abgebrochen' USING ERRCODE = '{state}'; END $$"));
        let raised = raised.await;
        assert!(matches!(raised, Err(Error::Unavailable(_))), "{state}: {raised:?}");
    }
    for defect in DEFECTS {
        let refused = ask(defect.into()).await;
        assert!(matches!(refused, Err(Error::Query(_))), "{defect}: {refused:?}");
    }
    // A lock on a table is waited for while the statement is read.
    let mut other = home.independent();
    query!(&mut other, c => c.batch_execute("BEGIN; LOCK TABLE thing IN ACCESS EXCLUSIVE MODE")).unwrap();
    for limit in ["lock_timeout", "statement_timeout"] {
        let timed_out = ask(format!("SET LOCAL {limit} = 1100; SELECT name FROM thing")).await;
        assert!(matches!(timed_out, Err(Error::Unavailable(_))), "{limit}: {timed_out:?}");
    }
}

/// Locks on tables are waited for while a statement is read, and servers may be set to wait for a short time only.
#[tokio::test]
async fn a_short_wait_for_a_lock_is_no_defect() {
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::with_options(backend, "%20-clock_timeout%3D500");
        let database = home.open(writes);
        let mut other = home.independent();
        run(&mut other, "BEGIN; LOCK TABLE thing IN ACCESS EXCLUSIVE MODE").unwrap();
        let read = database.read(names).await.unwrap_err();
        assert!(matches!(read, Error::Unavailable(_)), "{writes:?}: {read:?}");
        let written = write(&database, "name").await.unwrap_err();
        assert!(matches!(written, Error::Unavailable(_)), "{writes:?}: {written:?}");
        let refused = database.read(|connection| run(connection, "SELEC 1")).await.unwrap_err();
        assert!(matches!(refused, Error::Query(_)), "{writes:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_deadlock_that_is_found_soon_is_no_defect() {
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::with_options(backend, "%20-cdeadlock_timeout%3D500");
        let database = home.open(writes);
        let mut other = home.independent();
        // The bridge finds the deadlock, and is the one that gives way.
        run(&mut other, "CREATE TABLE other_thing (); SET deadlock_timeout = '1min'").unwrap();
        run(&mut other, "BEGIN; LOCK TABLE thing IN ACCESS EXCLUSIVE MODE").unwrap();
        let meet = move |connection: &mut Connection| {
            run(connection, "LOCK TABLE other_thing IN ACCESS EXCLUSIVE MODE")?;
            let waits = thread::spawn(move || run(&mut other, "SELECT * FROM other_thing; ROLLBACK"));
            await_lock(connection, "other_thing");
            let found = names(connection);
            // Its locks have ended with it.
            waits.join().unwrap()?;
            found
        };
        let ended = database.write(meet).await;
        assert!(matches!(ended, Err(Error::Unavailable(_))), "{writes:?}: {ended:?}");
    }
}

/// Until a session waits for a lock on the table.
fn await_lock(connection: &mut Connection, table: &str) {
    let sql = format!("SELECT pid FROM pg_locks WHERE relation = '{table}'::regclass AND NOT granted");
    while query!(connection, c => sql_query(&sql).execute(c)).unwrap() == 0 {
        thread::yield_now();
    }
}

/// The process of the server behind each connection of the pool.
async fn backends(database: &Database) -> BTreeSet<i32> {
    #[derive(QueryableByName)]
    struct Backend {
        #[diesel(sql_type = diesel::sql_types::Integer)]
        pid: i32,
    }
    let meeting = Arc::new(Barrier::new(POOL_SIZE));
    let reads = (0..POOL_SIZE).map(|_| {
        let meeting = Arc::clone(&meeting);
        database.read(move |connection: &mut Connection| -> Result<i32, Error> {
            // None lets go of its connection before all have one.
            meeting.wait();
            let backend: Backend =
                query!(connection, c => sql_query("SELECT pg_backend_pid() AS pid").get_result(c))?;
            Ok(backend.pid)
        })
    });
    join_all(reads).await.into_iter().map(Result::unwrap).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to functions that hand over errors")]
fn is_unavailable(error: Error) -> bool {
    matches!(error, Error::Unavailable(_))
}

fn run(connection: &mut Connection, sql: &str) -> Result<(), Error> {
    Ok(query!(connection, c => c.batch_execute(sql))?)
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
