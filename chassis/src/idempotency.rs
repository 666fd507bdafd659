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

/// Takes back answers that the same transaction has stored: their requests have no effect after all.
///
/// # Errors
/// The database's.
pub fn responses_remove(connection: &mut Connection, keys: &[&IdempotencyKey]) -> Result<(), Error> {
    for key in keys {
        query!(&mut *connection, c => diesel::delete(request::table.find(key.primary_key())).execute(c))?;
    }
    Ok(())
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
mod tests;
