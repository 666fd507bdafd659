//! Answers to several requests at a time: they are found and stored as one by one.

use chassis::auth::{Caller, Channel};
use chassis::clock::Time;
use chassis::idempotency::{
    IdempotencyKey, Lookup, RequestHasher, response_find, response_store, responses_find, responses_store,
};
use uuid::Uuid;

use super::*;

const TABLE: &str = "CREATE TABLE request (tenant_id TEXT NOT NULL, call TEXT NOT NULL,
    request_id TEXT NOT NULL, content TEXT NOT NULL, answer BYTEA NOT NULL,
    answered_at TIMESTAMP NOT NULL, PRIMARY KEY (tenant_id, call, request_id))";

fn key(
    hasher: &RequestHasher,
    tenant: u128,
    call: &'static str,
    request: u128,
    content: &str,
) -> IdempotencyKey {
    let caller = Caller {
        tenant_kind: "PARTNER",
        tenant_id: Uuid::from_u128(tenant),
        user_id: Uuid::nil(),
        roles: vec![],
        channel: Channel::Api,
        client: None,
    };
    hasher.with_derived_id(hasher.key(&caller, call, Uuid::from_u128(request), &content.to_owned()))
}

#[tokio::test]
async fn several_answers_are_found_and_stored_as_one_by_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [1; 32]).unwrap();
    for backend in Backend::all() {
        let home = Home::new(backend);
        let database = home.open(Writes::Serial);
        let (without, keyed) = (RequestHasher::default(), RequestHasher::read(Some(file.path())).unwrap());
        let run = move |connection: &mut Connection| -> Result<(), Error> {
            query!(&mut *connection, c => c.batch_execute(TABLE))?;
            let now = Time::from_timestamp(1_800_000_000, 0).unwrap();
            response_store(connection, &key(&without, 1, "Call", 1, "a"), b"before there was a key", now)?;
            response_store(connection, &key(&keyed, 1, "Call", 2, "a"), b"first", now)?;
            let keys = [
                key(&keyed, 1, "Call", 1, "a"),
                key(&keyed, 1, "Call", 1, "b"),
                key(&keyed, 1, "Call", 2, "a"),
                key(&keyed, 1, "Call", 2, "b"),
                key(&keyed, 2, "Call", 2, "a"),
                key(&keyed, 1, "Other", 2, "a"),
                key(&keyed, 1, "Call", 3, "a"),
                key(&keyed, 1, "Call", 3, "b"),
            ];
            let asked: Vec<_> = keys.iter().collect();
            let answered = |answer: &[u8]| Lookup::Answered(answer.to_vec());
            let mut expected = vec![answered(b"before there was a key"), Lookup::OtherContent];
            expected.extend([answered(b"first"), Lookup::OtherContent]);
            expected.extend(vec![Lookup::Never; 4]);
            assert_eq!(responses_find(connection, &asked)?, expected);
            for (key, expected) in keys.iter().zip(&expected) {
                assert_eq!(response_find(connection, key)?, *expected);
            }

            let answers: Vec<(&IdempotencyKey, &[u8])> =
                keys[2..].iter().map(|key| (key, &b"new"[..])).collect();
            let is_new = responses_store(connection, &answers, now)?;
            assert_eq!(is_new, [false, false, true, true, true, false]);
            expected.truncate(4);
            expected.extend(vec![answered(b"new"); 3]);
            expected.push(Lookup::OtherContent);
            assert_eq!(responses_find(connection, &asked)?, expected);
            assert_eq!(responses_find(connection, &asked[..1])?, expected[..1]);
            assert_eq!(responses_find(connection, &[])?, []);
            assert_eq!(responses_store(connection, &[], now)?, [] as [bool; 0]);

            // Of many at a time to the same request, the first one is stored.
            let request = key(&keyed, 1, "Call", 4, "a");
            let all: Vec<_> = (0..64_u8).rev().map(|n| [n]).collect();
            let answers: Vec<(&IdempotencyKey, &[u8])> = all.iter().map(|n| (&request, &n[..])).collect();
            let is_new = responses_store(connection, &answers, now)?;
            assert_eq!(is_new.iter().filter(|is_new| **is_new).count(), 1);
            assert!(is_new[0]);
            assert_eq!(response_find(connection, &request)?, answered(&all[0]));
            Ok(())
        };
        database.write(run).await.unwrap();
    }
}
