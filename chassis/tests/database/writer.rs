//! The writer with group commit: what a batch does to its commands.

use super::*;

#[tokio::test]
async fn each_command_of_a_batch_has_its_own_outcome() {
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

/// Panics in a transaction within that of the command.
fn panic_inside(connection: &mut Connection) -> Result<(), Error> {
    insert(connection, "outer")?;
    query!(connection, c => c.transaction(|c| {
        diesel::insert_into(thing::table)
            .values((thing::name.eq("inner"), thing::payload.eq(vec![])))
            .execute(c)?;
        panic!("a defect in a nested transaction")
    }))
}

#[tokio::test]
async fn a_panic_in_a_nested_transaction_undoes_only_its_command() {
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
            async move { database.write(panic_inside).await }
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
        // Alone it is the first of its batch.
        assert!(matches!(database.write(panic_inside).await, Err(Error::Panicked)), "{backend:?} {writes:?}");
        assert!(write(&database, "later").await.is_ok(), "{backend:?} {writes:?}");
        let stored = ["after", "before", "later"].map(String::from);
        assert_eq!(home.stored(), stored.into(), "{backend:?} {writes:?}");
    }
}

#[tokio::test]
async fn a_hidden_failure_of_a_statement_is_no_success() {
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

/// What does the work of many commands is committed before the next command begins.
#[tokio::test]
async fn a_command_of_many_parts_fills_its_commit() {
    const MANY: usize = 128;
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        let first = Held::with(&database, |connection| insert(connection, "first")).await;
        let large = {
            let database = database.clone();
            ask(async move { database.write_parts(MANY, |connection| insert(connection, "large")).await })
        };
        let (started, has_started) = oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let next = {
            let database = database.clone();
            ask(async move {
                let hold = move |connection: &mut Connection| {
                    let _ = started.send(());
                    let _ = released.recv();
                    insert(connection, "next")
                };
                database.write(hold).await
            })
        };
        let first = first.release();
        has_started.await.unwrap();
        assert_eq!(home.stored(), ["first", "large"].map(String::from).into(), "{backend:?}");
        drop(release);
        for answer in [first, large, next] {
            answer.await.unwrap();
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

/// A full disk makes SQLite roll back the transaction by itself, and what follows would be committed outside of any.
#[tokio::test]
async fn nothing_follows_a_command_that_hides_a_full_disk() {
    let home = Home::new(Backend::Sqlite);
    let database = home.open(Writes::Serial);
    let held = Held::with(&database, |connection| {
        query!(&mut *connection, c => c.batch_execute("PRAGMA max_page_count = 20"))?;
        drop(insert_large(connection, "hidden", 1 << 20));
        Ok(())
    })
    .await;
    let follows = ask({
        let database = database.clone();
        async move { write(&database, "follows").await }
    });
    let held = held.release();
    assert!(matches!(held.await, Err(Error::Unavailable(_))));
    let is_ok = follows.await.is_ok();
    assert_eq!(home.stored().contains("follows"), is_ok);
    assert!(write(&database, "later").await.is_ok());
}

#[tokio::test]
async fn a_connection_lost_in_a_batch_fails_only_that_batch() {
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
async fn a_connection_lost_in_a_single_write_fails_only_that_write() {
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
