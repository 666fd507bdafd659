//! Requests that must have at most one effect: under one id and content the first answer is given
//! again, whatever has changed since. Each service has the table `request` in its own schema.

use chrono::NaiveDateTime;
use diesel::prelude::*;
use prost::Message;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::auth::Caller;
use crate::clock::Time;
use crate::database::{Connection, Error};
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

/// A request id, with whose it is and what it asked for.
#[derive(Clone, Debug)]
pub struct RequestKey {
    /// The id that the client made.
    pub request_id: Uuid,
    tenant_id: Uuid,
    call: &'static str,
    content: String,
}

/// What is known of a request id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Never,
    /// The first answer, to be given again.
    Answered(Vec<u8>),
    /// It was used for other content.
    OtherContent,
}

impl RequestKey {
    /// `content` is the request without its id and without what does not change its effect.
    #[must_use]
    pub fn new(caller: &Caller, call: &'static str, request_id: Uuid, content: &impl Message) -> Self {
        let digest = Sha256::digest(content.encode_to_vec());
        let content = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { request_id, tenant_id: caller.tenant_id, call, content }
    }

    fn primary_key(&self) -> (String, &'static str, String) {
        (self.tenant_id.to_string(), self.call, self.request_id.to_string())
    }
}

/// Whether the request was answered before.
///
/// # Errors
/// The database's.
pub fn request_seen(connection: &mut Connection, key: &RequestKey) -> Result<Seen, Error> {
    let row: Option<(String, Vec<u8>)> = query!(connection, c => {
        request::table
            .find(key.primary_key())
            .select((request::content, request::answer))
            .first(c)
            .optional()
    })?;
    Ok(match row {
        None => Seen::Never,
        Some((content, answer)) if content == key.content => Seen::Answered(answer),
        Some(_) => Seen::OtherContent,
    })
}

/// Remembers the answer in the transaction of its effect; false when somebody else was first.
///
/// # Errors
/// The database's.
pub fn request_answered(
    connection: &mut Connection,
    key: &RequestKey,
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

/// The answer to a request, as it is stored.
#[derive(Clone, Debug)]
pub struct StoredAnswer {
    tenant_id: String,
    /// The call that was answered, by the name its key was made with.
    pub call: String,
    request_id: String,
    /// The encoded message.
    pub answer: Vec<u8>,
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
    let rows: Vec<(String, String, String, Vec<u8>)> = query!(connection, c => {
        let mut page = request::table
            .order((request::tenant_id, request::call, request::request_id))
            .limit(limit)
            .select((request::tenant_id, request::call, request::request_id, request::answer))
            .into_boxed();
        if let Some(StoredAnswer { tenant_id, call, request_id, .. }) = after {
            let of_call = request::call.gt(call).or(request::call.eq(call).and(request::request_id.gt(request_id)));
            let of_tenant = request::tenant_id.gt(tenant_id).or(request::tenant_id.eq(tenant_id).and(of_call));
            page = page.filter(of_tenant);
        }
        page.load(c)
    })?;
    let stored = |(tenant_id, call, request_id, answer)| StoredAnswer { tenant_id, call, request_id, answer };
    Ok(rows.into_iter().map(stored).collect())
}

/// Replaces a stored answer and forgets what was asked: whoever repeats the request is then told that
/// its id was used for other content. For what must no longer be kept, be it in the answer or as a
/// digest of the content.
///
/// # Errors
/// The database's.
pub fn answer_replace(connection: &mut Connection, changed: &StoredAnswer) -> Result<(), Error> {
    let StoredAnswer { tenant_id, call, request_id, answer } = changed;
    query!(connection, c => {
        diesel::update(request::table.find((tenant_id, call, request_id)))
            .set((request::content.eq(""), request::answer.eq(answer)))
            .execute(c)
    })?;
    Ok(())
}
