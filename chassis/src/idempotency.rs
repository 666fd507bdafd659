//! Idempotency keys (request ids): a request that is repeated under its id has no second effect and gets the first answer
//! again, also if the state has changed since, for at least [`ANSWER_KEPT`]. Each service has the table `request` in its
//! own schema.
//!
//! Of a request only a digest is stored, to tell a repetition from other content under the same id. With a key that the
//! operator keeps outside the database the digest is an HMAC, so that a reader of the database cannot check a guess of what
//! was asked, such as a person's address, against it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_lc_rs::hmac;
use chrono::{NaiveDateTime, TimeDelta};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Text, Timestamp};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::auth::Caller;
use crate::clock::{Clock, Time};
use crate::database::{Connection, Database, Error, Kept, asking};
use crate::query;

use schema::request;

mod schema {
    diesel::table! {
        request (tenant_id, call, request_id) {
            tenant_id -> Text,
            call -> Text,
            request_id -> Text,
            content -> Text,
            answer -> Binary,
            answered_at -> Timestamp,
        }
    }
}

/// How long a first answer is kept at least: longer than any client goes on retrying.
pub const ANSWER_KEPT: TimeDelta = TimeDelta::days(30);

/// How often old answers are deleted. An hour is nothing to their age.
const POLL_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Answers deleted in one transaction, for which writing calls wait hardly more than a millisecond.
const DELETED_AT_A_TIME: i64 = 100;

/// A shorter key would be easier to guess than what it protects.
const KEY_BYTES_MIN: usize = 32;

/// Hashes requests into idempotency keys. Every process of a service needs the same secret key, or it takes repetitions for
/// other content.
#[derive(Clone, Debug, Default)]
pub struct RequestHasher(Option<hmac::Key>);

/// A request id, with its tenant and a digest of the request.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The id that the client made.
    pub request_id: Uuid,
    stored_id: Uuid,
    tenant_id: Uuid,
    call: &'static str,
    content: String,
    /// The digest as it was stored before there was a key.
    content_without_key: Option<String>,
}

/// A stored answer, with the place of its key among those that were asked for.
#[derive(QueryableByName)]
struct StoredContent {
    #[diesel(sql_type = BigInt)]
    position: i64,
    #[diesel(sql_type = Text)]
    content: String,
    #[diesel(sql_type = Binary)]
    answer: Vec<u8>,
}

/// The key of a row: tenant, call and stored id.
type PrimaryKey = (String, String, String);

/// The key of a row that was just stored.
#[derive(QueryableByName)]
#[diesel(table_name = request)]
struct StoredKey {
    tenant_id: String,
    call: String,
    request_id: String,
}

/// The result of a lookup of a request id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It was never used.
    Never,
    /// The first answer, to be given again.
    Answered(Vec<u8>),
    /// It was used for other content.
    OtherContent,
}

impl RequestHasher {
    /// Reads the secret key; without a file there is none.
    ///
    /// # Errors
    /// A file that cannot be read or is too short.
    pub fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else {
            tracing::warn!(
                "without --request-key-file a reader of the database can check guesses of what was asked against the \
                 digests of requests"
            );
            return Ok(Self::default());
        };
        let key = std::fs::read(file).with_context(|| format!("the request key in {}", file.display()))?;
        let length = key.len();
        ensure!(
            length >= KEY_BYTES_MIN,
            "the request key in {} has {length} bytes; it needs at least {KEY_BYTES_MIN}",
            file.display()
        );
        Ok(Self(Some(hmac::Key::new(hmac::HMAC_SHA256, &key))))
    }

    /// `content` is the request without its id and without what does not change its effect.
    #[must_use]
    pub fn key(
        &self,
        caller: &Caller,
        call: &'static str,
        request_id: Uuid,
        content: &impl Message,
    ) -> IdempotencyKey {
        let encoded = content.encode_to_vec();
        let plain = hex::encode(Sha256::digest(&encoded));
        let (content, content_without_key) = match &self.0 {
            None => (plain, None),
            Some(key) => (hex::encode(hmac::sign(key, &encoded)), Some(plain)),
        };
        let (tenant_id, stored_id) = (caller.tenant_id, request_id);
        IdempotencyKey { request_id, stored_id, tenant_id, call, content, content_without_key }
    }

    /// The key of a request whose id the client derived from the content: the id is stored as an HMAC, too.
    #[must_use]
    pub fn with_derived_id(&self, of: IdempotencyKey) -> IdempotencyKey {
        let stored_id = self.hashed_id(of.request_id.as_bytes());
        IdempotencyKey { stored_id: stored_id.unwrap_or(of.request_id), ..of }
    }

    /// An id for a request that this service sends because of another one: the same for the same content, so that a
    /// repetition is one there, too.
    #[must_use]
    pub fn derived_id(&self, because_of: Uuid, content: &impl Message) -> Uuid {
        let content = content.encode_to_vec();
        let hashed = self.hashed_id(&[because_of.as_bytes(), content.as_slice()].concat());
        hashed.unwrap_or_else(|| Uuid::new_v5(&because_of, &content))
    }

    fn hashed_id(&self, of: &[u8]) -> Option<Uuid> {
        let hmac = hmac::sign(self.0.as_ref()?, of);
        Some(Uuid::new_v8(*hmac.as_ref().first_chunk()?))
    }
}

impl IdempotencyKey {
    fn primary_key(&self) -> (String, &'static str, String) {
        (self.tenant_id.to_string(), self.call, self.stored_id.to_string())
    }

    fn primary_key_without_key(&self) -> Option<(String, &'static str, String)> {
        let is_other = self.stored_id != self.request_id;
        is_other.then(|| (self.tenant_id.to_string(), self.call, self.request_id.to_string()))
    }

    fn is_of(&self, content: &str) -> bool {
        content == self.content || self.content_without_key.as_deref() == Some(content)
    }

    /// What a row, with its digest and its answer, says of the request.
    fn lookup(&self, row: Option<(String, Vec<u8>)>) -> Lookup {
        match row {
            None => Lookup::Never,
            Some((content, answer)) if self.is_of(&content) => Lookup::Answered(answer),
            Some(_) => Lookup::OtherContent,
        }
    }
}

/// Whether the request was answered before.
///
/// # Errors
/// The database's.
pub fn response_find(connection: &mut Connection, key: &IdempotencyKey) -> Result<Lookup, Error> {
    let mut row: Option<(String, Vec<u8>)> = None;
    // What was answered before there was a key for the id stands under the id itself.
    for (tenant_id, call, request_id) in
        [Some(key.primary_key()), key.primary_key_without_key()].into_iter().flatten()
    {
        row = query!(&mut *connection, c => {
            request::table
                .find((tenant_id, call, request_id))
                .select((request::content, request::answer))
                .first(c)
                .optional()
        })?;
        if row.is_some() {
            break;
        }
    }
    Ok(key.lookup(row))
}

/// Which of the requests were answered before, in their order.
///
/// # Errors
/// The database's.
pub fn responses_find(connection: &mut Connection, keys: &[&IdempotencyKey]) -> Result<Vec<Lookup>, Error> {
    asking(connection);
    // SQLite would prepare a statement with a list of keys anew each time.
    let c = match connection {
        Connection::Postgres(c) if keys.len() > 1 => c,
        single => return keys.iter().map(|key| response_find(single, key)).collect(),
    };
    // What was answered before there was a key for the id stands under the id itself, which is asked for after all others.
    let without_key =
        keys.iter().map(|key| key.primary_key_without_key().unwrap_or_else(|| key.primary_key()));
    let asked = keys.iter().map(|key| key.primary_key()).chain(without_key);
    let (tenants, calls, ids): (Vec<_>, Vec<_>, Vec<_>) = asked.collect();
    // One lookup for each key: the planner cannot turn it into a scan, whatever it believes of the size of the table.
    let rows = sql_query(
        "SELECT asked.position, stored.content, stored.answer
        FROM unnest($1, $2, $3) WITH ORDINALITY AS asked (tenant_id, call, request_id, position)
        CROSS JOIN LATERAL (SELECT content, answer FROM request WHERE request.tenant_id = asked.tenant_id
            AND request.call = asked.call AND request.request_id = asked.request_id OFFSET 0) AS stored",
    )
    .bind::<Array<Text>, _>(&tenants)
    .bind::<Array<Text>, _>(&calls)
    .bind::<Array<Text>, _>(&ids);
    let rows: Vec<StoredContent> = Kept(rows).load(c)?;
    let rows: BTreeMap<i64, (String, Vec<u8>)> =
        rows.into_iter().map(|row| (row.position, (row.content, row.answer))).collect();
    let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
    let found = (1..).zip(keys).map(|(position, key)| {
        let row = rows.get(&position).or_else(|| rows.get(&(position + count)));
        key.lookup(row.cloned())
    });
    Ok(found.collect())
}

/// Stores the answer in the transaction of its effect; false if another call was first.
///
/// # Errors
/// The database's.
pub fn response_store(
    connection: &mut Connection,
    key: &IdempotencyKey,
    answer: &[u8],
    now: Time,
) -> Result<bool, Error> {
    let (tenant_id, call, request_id) = key.primary_key();
    let answered_at: NaiveDateTime = now.naive_utc();
    let inserted = query!(connection, c => {
        diesel::insert_into(request::table)
            .values((
                request::tenant_id.eq(&tenant_id),
                request::call.eq(call),
                request::request_id.eq(&request_id),
                request::content.eq(&key.content),
                request::answer.eq(answer),
                request::answered_at.eq(answered_at),
            ))
            .on_conflict_do_nothing()
            .execute(c)
    })?;
    Ok(inserted > 0)
}

/// Stores the answers to several requests, in the transaction of their effects; false for those that were answered before,
/// which may be by an earlier one of these. Transactions that store answers to the same requests wait for each other, and never
/// in a circle, because each stores its own in the order of their keys.
///
/// # Errors
/// The database's.
pub fn responses_store(
    connection: &mut Connection,
    answers: &[(&IdempotencyKey, &[u8])],
    now: Time,
) -> Result<Vec<bool>, Error> {
    asking(connection);
    let c = match connection {
        Connection::Postgres(c) if answers.len() > 1 => c,
        single => {
            return answers.iter().map(|(key, answer)| response_store(single, key, answer, now)).collect();
        }
    };
    let mut in_order: Vec<_> =
        answers.iter().map(|(key, answer)| (key.primary_key(), &key.content, *answer)).collect();
    // Of answers to the same request the first one is stored: the sort keeps their order.
    in_order.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    let (keys, contents, stored): (Vec<_>, Vec<_>, Vec<_>) = in_order.into_iter().collect();
    let (tenants, calls, ids): (Vec<_>, Vec<_>, Vec<_>) = keys.into_iter().collect();
    let insert = sql_query(
        "INSERT INTO request (tenant_id, call, request_id, content, answer, answered_at)
        SELECT *, $6 FROM unnest($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING RETURNING tenant_id, call, request_id",
    )
    .bind::<Array<Text>, _>(tenants)
    .bind::<Array<Text>, _>(calls)
    .bind::<Array<Text>, _>(ids)
    .bind::<Array<Text>, _>(contents)
    .bind::<Array<Binary>, _>(stored)
    .bind::<Timestamp, _>(now.naive_utc());
    let inserted: Vec<StoredKey> = Kept(insert).load(c)?;
    let mut inserted: BTreeSet<PrimaryKey> =
        inserted.into_iter().map(|key| (key.tenant_id, key.call, key.request_id)).collect();
    let is_new = |(key, _): &(&IdempotencyKey, &[u8])| {
        let (tenant_id, call, request_id) = key.primary_key();
        inserted.remove(&(tenant_id, call.to_owned(), request_id))
    };
    Ok(answers.iter().map(is_new).collect())
}

/// Deletes answers that are older than [`ANSWER_KEPT`], at once and then every hour, until `stop`. Their request ids may
/// then be used anew. Several replicas may do so at the same time.
pub async fn run_expiry(database: Database, clock: Clock, stop: CancellationToken) {
    loop {
        let before = clock.now() - ANSWER_KEPT;
        let expire = move |connection: &mut Connection| responses_expire(connection, before);
        while !stop.is_cancelled() {
            let expired: Result<bool, Error> = database.write_apart(expire).await;
            match expired {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "old answers cannot be deleted; the next attempt is in an hour");
                    break;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

/// Deletes some of the answers from before a time, oldest first; true if there may be more.
fn responses_expire(connection: &mut Connection, before: Time) -> Result<bool, Error> {
    let is_old = || request::answered_at.lt(before.naive_utc());
    let oldest = request::table
        .filter(is_old())
        .order((request::answered_at, request::request_id))
        .limit(DELETED_AT_A_TIME)
        .select((request::tenant_id, request::call, request::request_id));
    // It waits for no other replica, so it cannot deadlock with one.
    let old: Vec<(String, String, String)> = match connection {
        Connection::Sqlite(c) => oldest.load(c)?,
        Connection::Postgres(c) => oldest.for_update().skip_locked().load(c)?,
    };
    for key in &old {
        let (tenant_id, call, request_id) = key;
        query!(&mut *connection, c => {
            diesel::delete(request::table.find((tenant_id, call, request_id))).execute(c)
        })?;
    }
    Ok(!old.is_empty())
}

/// The answer to a request, as it is stored.
#[derive(Clone, Debug)]
pub struct StoredAnswer {
    tenant_id: String,
    /// The call that was answered, by the name its key was made with.
    pub call: String,
    request_id: String,
    /// The encoded message.
    pub answer: Vec<u8>,
    /// Whether the digest of the request is still there.
    pub has_digest: bool,
}

/// A page of all stored answers, by key, after the last of the page before.
///
/// # Errors
/// The database's.
pub fn answers_after(
    connection: &mut Connection,
    after: Option<&StoredAnswer>,
    limit: i64,
) -> Result<Vec<StoredAnswer>, Error> {
    let rows: Vec<(String, String, String, Vec<u8>, bool)> = query!(connection, c => {
        let mut page = request::table
            .order((request::tenant_id, request::call, request::request_id))
            .limit(limit)
            .select((
                request::tenant_id,
                request::call,
                request::request_id,
                request::answer,
                request::content.ne(""),
            ))
            .into_boxed();
        if let Some(StoredAnswer { tenant_id, call, request_id, .. }) = after {
            let of_call = request::call.gt(call).or(request::call.eq(call).and(request::request_id.gt(request_id)));
            let of_tenant = request::tenant_id.gt(tenant_id).or(request::tenant_id.eq(tenant_id).and(of_call));
            page = page.filter(of_tenant);
        }
        page.load(c)
    })?;
    let stored = |(tenant_id, call, request_id, answer, has_digest)| StoredAnswer {
        tenant_id,
        call,
        request_id,
        answer,
        has_digest,
    };
    Ok(rows.into_iter().map(stored).collect())
}

/// Replaces a stored answer and deletes the digest of its request, for data that must no longer be kept in either. A client
/// that repeats the request is then refused because its id was used for other content. False, and nothing done, where the
/// stored answer is another one by now.
///
/// # Errors
/// The database's.
pub fn answer_replace(
    connection: &mut Connection,
    stored: &StoredAnswer,
    replacement: &[u8],
) -> Result<bool, Error> {
    let StoredAnswer { tenant_id, call, request_id, answer, .. } = stored;
    let replaced = query!(connection, c => {
        diesel::update(request::table.find((tenant_id, call, request_id)).filter(request::answer.eq(answer)))
            .set((request::content.eq(""), request::answer.eq(replacement)))
            .execute(c)
    })?;
    Ok(replaced > 0)
}

#[cfg(test)]
mod tests {
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
        let derived =
            |hasher: &RequestHasher, content: &str| hasher.derived_id(request_id, &content.to_owned());
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
}
