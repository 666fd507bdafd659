//! Migrations by several processes at the same time.

use super::*;

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
fn several_processes_create_and_migrate_one_sqlite_file() {
    for round in 0..ROUNDS {
        let home = Home::new(Backend::Sqlite);
        let outcomes = at_once(|| {
            let database = Database::open(&home.url, true, Writes::Serial)?;
            database.migrate(MIGRATIONS)
        });
        assert!(outcomes.iter().all(Result::is_ok), "round {round}: {outcomes:?}");
    }
}

/// A migration that waits for a table in use has all calls wait behind it, so it gives up soon, and undone.
#[tokio::test]
async fn a_migration_does_not_wait_for_long_for_a_table_in_use() {
    let Some(backend) = Backend::postgres() else { return };
    let home = Home::new(backend);
    let database = home.open(Writes::Serial);
    let mut reader = home.independent();
    query!(&mut reader, c => c.batch_execute("BEGIN; SELECT name FROM thing")).unwrap();
    let migrating = database.clone();
    let migrating = tokio::task::spawn_blocking(move || migrating.migrate(LATER));
    let given_up = tokio::time::timeout(Duration::from_secs(20), migrating).await;
    let refused = given_up.expect("it waits on").unwrap().unwrap_err().to_string();
    assert!(refused.contains("000003") && refused.contains("run it again"), "{refused}");
    query!(&mut reader, c => c.batch_execute("COMMIT")).unwrap();
    assert!(database.check_schema(LATER).is_err());
    database.migrate(LATER).unwrap();
    database.check_schema(LATER).unwrap();
}
