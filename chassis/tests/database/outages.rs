//! Outages: what a lost connection or a panic costs.

use super::*;

#[tokio::test]
async fn closed_connections_fail_a_bounded_number_of_calls() {
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
