use diesel::connection::SimpleConnection;

use super::*;
use crate::database::Writes;

const TABLE: &str = "CREATE TABLE request (tenant_id TEXT NOT NULL, call TEXT NOT NULL,
    request_id TEXT NOT NULL, content TEXT NOT NULL, answer BYTEA NOT NULL,
    answered_at TIMESTAMP NOT NULL, PRIMARY KEY (tenant_id, call, request_id))";

fn caller() -> Caller {
    Caller {
        tenant_kind: "PARTNER",
        tenant_id: Uuid::from_u128(1),
        user_id: Uuid::nil(),
        roles: vec![],
        channel: crate::auth::Channel::Api,
        client: None,
    }
}

fn key(n: u128) -> IdempotencyKey {
    RequestHasher::default().key(&caller(), "Call", Uuid::from_u128(n), &"content".to_owned())
}

/// With a key a digest is an HMAC, an id that follows from the content is one, too, and what was stored without it is
/// still recognised.
#[test]
fn a_guess_cannot_be_checked_without_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let hasher = |key: &[u8]| {
        let file = folder.path().join("key");
        std::fs::write(&file, key).unwrap();
        RequestHasher::read(Some(&file))
    };
    let request_id = Uuid::from_u128(7);
    let of = |hasher: &RequestHasher, content: &str| {
        hasher.with_derived_id(hasher.key(&caller(), "Call", request_id, &content.to_owned()))
    };
    let (without, keyed) = (RequestHasher::read(None).unwrap(), hasher(&[1; 32]).unwrap());
    let other = hasher(&[2; 32]).unwrap();
    let stored = of(&keyed, "content");
    assert!(of(&keyed, "content").is_of(&stored.content) && !of(&keyed, "other").is_of(&stored.content));
    for hasher in [&without, &other] {
        let guess = of(hasher, "content");
        assert!(!guess.is_of(&stored.content));
        assert_ne!((guess.stored_id, guess.request_id), (stored.stored_id, stored.stored_id));
    }
    assert_eq!(of(&without, "content").primary_key().2, request_id.to_string());
    let derived = |hasher: &RequestHasher, content: &str| hasher.derived_id(request_id, &content.to_owned());
    assert_eq!(derived(&keyed, "content"), derived(&keyed, "content"));
    let others = [derived(&keyed, "other"), derived(&without, "content"), derived(&other, "content")];
    assert!(!others.contains(&derived(&keyed, "content")), "{others:?}");
    assert_eq!(keyed.key(&caller(), "Call", request_id, &()).primary_key().2, request_id.to_string());
    let before = of(&without, "content").content;
    assert!(stored.is_of(&before) && !of(&keyed, "other").is_of(&before));
    let refused = hasher(&[1; 31]).err().unwrap().to_string();
    assert!(refused.contains("31 bytes; it needs at least 32"), "{refused}");
    assert!(RequestHasher::read(Some(&folder.path().join("none"))).is_err());
}

/// Setting the key forgets no answer, also of imported rows.
#[tokio::test]
async fn what_was_answered_before_there_was_a_key_is_answered_again() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("requests").display()).parse().unwrap();
    let database = Database::open(&url, true, Writes::Serial).unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, [1; 32]).unwrap();
    let (without, keyed) = (RequestHasher::default(), RequestHasher::read(Some(&file)).unwrap());
    let make = |hasher: &RequestHasher, content: &str| {
        let content = content.to_owned();
        let id = Uuid::from_u128(7);
        [
            hasher.key(&caller(), "Call", id, &content),
            hasher.with_derived_id(hasher.key(&caller(), "Row", id, &content)),
        ]
    };
    let stored = make(&without, "content");
    let now = Time::from_timestamp(1_800_000_000, 0).unwrap();
    let write = move |connection: &mut Connection| -> Result<(), Error> {
        query!(&mut *connection, c => c.batch_execute(TABLE))?;
        for key in &stored {
            assert!(response_store(connection, key, b"first", now)?);
        }
        Ok(())
    };
    database.write(write).await.unwrap();
    for (content, expected) in
        [("content", Lookup::Answered(b"first".to_vec())), ("other", Lookup::OtherContent)]
    {
        for key in make(&keyed, content) {
            let found =
                database.read(move |connection: &mut Connection| response_find(connection, &key)).await;
            assert_eq!(found.unwrap(), expected);
        }
    }
}

/// Of two that take something out of the same answer the second must read it again, or it would bring back what the
/// first took out.
#[tokio::test]
async fn an_answer_is_replaced_only_while_it_is_the_one_that_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("requests").display()).parse().unwrap();
    let database = Database::open(&url, true, Writes::Serial).unwrap();
    let now = Time::from_timestamp(1_800_000_000, 0).unwrap();
    let write = move |connection: &mut Connection| -> Result<_, Error> {
        query!(&mut *connection, c => c.batch_execute(TABLE))?;
        assert!(response_store(connection, &key(1), b"ann and bob", now)?);
        let read = answers_after(connection, None, 10)?.remove(0);
        let replaced =
            [answer_replace(connection, &read, b"bob")?, answer_replace(connection, &read, b"ann")?];
        let left = answers_after(connection, None, 10)?.remove(0);
        Ok((read.has_digest, replaced, left.answer, left.has_digest))
    };
    let seen = database.write(write).await.unwrap();
    assert_eq!(seen, (true, [true, false], b"bob".to_vec(), false));
}

#[tokio::test]
async fn answers_are_kept_for_thirty_days_and_deleted_in_batches() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("requests").display()).parse().unwrap();
    let database = Database::open(&url, true, Writes::Serial).unwrap();
    let now = Time::from_timestamp(1_800_000_000, 0).unwrap();
    let older = now - ANSWER_KEPT - TimeDelta::microseconds(1);
    let count = DELETED_AT_A_TIME.unsigned_abs() as u128 * 2 + 1;
    let write = move |connection: &mut Connection| -> Result<(), Error> {
        query!(&mut *connection, c => c.batch_execute(TABLE))?;
        response_store(connection, &key(0), b"kept", now - ANSWER_KEPT)?;
        for n in 1..=count {
            assert!(response_store(connection, &key(n), b"forgotten", older)?);
        }
        Ok(())
    };
    database.write(write).await.unwrap();
    let stop = CancellationToken::new();
    let forgetting = tokio::spawn(run_expiry(database.clone(), Clock::manual(now), stop.clone()));
    let left = || database.list(|connection: &mut Connection| answers_after(connection, None, 1000));
    while left().await.unwrap().len() > 1 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    forgetting.await.unwrap();
    let read = |n| database.read(move |connection: &mut Connection| response_find(connection, &key(n)));
    assert_eq!(read(0).await.unwrap(), Lookup::Answered(b"kept".to_vec()));
    assert_eq!(read(count).await.unwrap(), Lookup::Never);
}
