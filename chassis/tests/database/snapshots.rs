//! Snapshots, reads, and erasure from files.

use super::*;

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
async fn a_snapshot_cannot_write_and_leaves_nothing_open() {
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
async fn deleted_rows_are_in_no_file_after_a_vacuum() {
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
    let busy = database.vacuum(Duration::ZERO).await;
    assert!(matches!(busy, Err(Error::Unavailable(_))), "{busy:?}");
    query!(&mut reader, c => c.batch_execute("COMMIT")).unwrap();

    database.vacuum(Duration::from_secs(10)).await.unwrap();
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
