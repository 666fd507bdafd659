//! The locked transaction, which extends the hash chain: every change of parties, templates or acceptances runs in it.
//!
//! It begins by locking the revision row, so that changes happen strictly one after the other: their
//! numbers have no gaps but those that restores leave, readers see them in order, and what is read inside
//! cannot change before it is decided upon. It ends by writing its events, and the number and hash of the last one back into
//! that row.

use std::collections::BTreeSet;
use std::iter::from_fn;

use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error, Kept};
use chassis::idempotency::{
    IdempotencyKey, Lookup, response_find, response_store, responses_find, responses_store,
};
use chassis::{insert_rows, query};
use chrono::NaiveDateTime;
use diesel::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::schema::{event, revision};
use crate::rules::attestation::Details;
use crate::rules::event::{Event, LIFT};
use crate::rules::party::Contact;
use crate::rules::template::Document;
use crate::rules::{Refusal, Time};

/// A change in progress. Reads and writes go through `connection`; [`Change::record`] appends an event.
pub(crate) struct Change<'c> {
    pub connection: &'c mut Connection,
    /// The one time of everything in this change, taken under the lock, so that it follows the order of the changes.
    pub now: Time,
    /// Changes of acceptances an hour that are allowed for a customer and a partner (ATT-8).
    pub acceptance_changes_max: u32,
    revision: i64,
    head: String,
    /// What was recorded.
    events: Vec<EventRow>,
}

#[derive(Insertable, Serialize)]
#[diesel(table_name = event, treat_none_as_default_value = false)]
struct EventRow {
    revision: i64,
    customer_id: Option<String>,
    partner_id: Option<String>,
    recorded_at: NaiveDateTime,
    body: String,
    hash: String,
}

/// Decides on requests that are stored together.
pub(crate) trait Decide<R, A>: Sized {
    /// Decides a request, as those before it have left everything. A refusal leaves nothing.
    fn decide(&mut self, change: &mut Change<'_>, request: R) -> Result<A, ChangeError>;

    /// Stores the effects of all of them.
    fn store(self, change: &mut Change<'_>) -> Result<(), Error>;
}

/// Why nothing was changed.
#[derive(Debug)]
pub enum ChangeError {
    Refused(Refusal),
    Failed(Error),
}

impl ChangeError {
    /// As [`Refusal::within`].
    #[must_use]
    pub(crate) fn within(self, path: &str) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(refusal.within(path)),
            failed @ Self::Failed(_) => failed,
        }
    }
}

impl From<Refusal> for ChangeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for ChangeError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<diesel::result::Error> for ChangeError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answered<A> {
    New(A),
    /// The stored bytes of the first answer; the request was answered before, and nothing was done now.
    Before(Vec<u8>),
}

/// How a transaction ends without a commit.
enum Undone<A> {
    /// `validate_only`: this would have been the answer.
    DryRun(A),
    Not(ChangeError),
}

impl<A> From<Error> for Undone<A> {
    fn from(error: Error) -> Self {
        Self::Not(error.into())
    }
}

/// Runs `decide` under the lock and stores its answer, encoded by `encode`, under the request's key, all in one
/// transaction. A request seen before gets its first answer again; with `validate_only` the key is
/// ignored and everything is undone.
pub(crate) async fn change<A: Send + 'static>(
    database: &Database,
    key: IdempotencyKey,
    (clock, acceptance_changes_max): (Clock, u32),
    validate_only: bool,
    decide: impl FnOnce(&mut Change<'_>) -> Result<A, ChangeError> + Send + 'static,
    encode: fn(&A) -> Vec<u8>,
) -> Result<Answered<A>, ChangeError> {
    let write = move |connection: &mut Connection| {
        let mut change = Change::begin(connection, &clock, acceptance_changes_max)?;
        if !validate_only {
            match response_find(change.connection, &key)? {
                Lookup::Never => {}
                Lookup::Answered(answer) => return Ok(Answered::Before(answer)),
                Lookup::OtherContent => {
                    let request_id = key.request_id;
                    return Err(Undone::Not(Refusal::RequestIdReused { request_id }.into()));
                }
            }
        }
        let answer = decide(&mut change).map_err(Undone::Not)?;
        if validate_only {
            return Err(Undone::DryRun(answer));
        }
        response_store(change.connection, &key, &encode(&answer), change.now)?;
        change.finish()?;
        Ok(Answered::New(answer))
    };
    match database.write(write).await {
        Ok(answered) => Ok(answered),
        Err(Undone::DryRun(answer)) => Ok(Answered::New(answer)),
        Err(Undone::Not(error)) => Err(error),
    }
}

/// Decides on several requests under the lock, in their order, and stores their answers, encoded by `encode`, under their
/// keys, all in one transaction. Each is answered by itself, as [`change`] does. `read` reads what the decisions on some of
/// them need to know. A constant number of statements serves all, however many they are, unless a request id comes again.
pub(crate) async fn change_each<R, A, D>(
    database: &Database,
    requests: Vec<(IdempotencyKey, R)>,
    (clock, acceptance_changes_max): (Clock, u32),
    read: impl Fn(&mut Change<'_>, &[&R]) -> Result<D, Error> + Send + 'static,
    encode: fn(&A) -> Vec<u8>,
) -> Result<Vec<Result<Answered<A>, Refusal>>, Error>
where
    R: Send + 'static,
    A: Send + 'static,
    D: Decide<R, A>,
{
    let parts = requests.len();
    let write = move |connection: &mut Connection| {
        let mut change = Change::begin(connection, &clock, acceptance_changes_max)?;
        let mut answers = Vec::with_capacity(requests.len());
        let mut rest = requests.into_iter().peekable();
        while rest.peek().is_some() {
            // A request id that comes again is looked up again, after its first answer.
            let mut ids = BTreeSet::new();
            let part = from_fn(|| rest.next_if(|(key, _)| ids.insert(key.request_id))).collect();
            answers.extend(change.answer_each(part, &read, encode)?);
        }
        change.finish()?;
        Ok(answers)
    };
    database.write_parts(parts, write).await
}

/// Runs a change that no caller asked for and that cannot be asked for twice.
pub(crate) async fn change_internal<T, E>(
    database: &Database,
    clock: &Clock,
    decide: impl FnOnce(&mut Change<'_>) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    let clock = clock.clone();
    let write = move |connection: &mut Connection| {
        // It changes no acceptance.
        let mut change = Change::begin(connection, &clock, u32::MAX)?;
        let outcome = decide(&mut change)?;
        change.finish()?;
        Ok(outcome)
    };
    database.write(write).await
}

impl<'c> Change<'c> {
    fn begin(
        connection: &'c mut Connection,
        clock: &Clock,
        acceptance_changes_max: u32,
    ) -> Result<Self, Error> {
        // The update takes the lock; it changes nothing, so that a refusal burns no number.
        let (revision, head) = query!(connection, c => {
            let update = diesel::update(revision::table)
                .set(revision::value.eq(revision::value))
                .returning((revision::value, revision::head));
            Kept(update).get_result(c)
        })?;
        let now = clock.now();
        Ok(Self { connection, now, acceptance_changes_max, revision, head, events: vec![] })
    }

    /// The number of the last event.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// Appends an event and returns its number.
    pub(crate) fn record(&mut self, happened: &Event) -> Result<i64, Error> {
        self.append(self.revision + 1, happened)
    }

    /// Appends the event which says that the last one was the last of a copy that was restored, and returns
    /// its number.
    pub(crate) fn record_restored(&mut self) -> Result<i64, Error> {
        let restored = Event::HistoryRestored { last_revision: self.revision, last_hash: self.head.clone() };
        self.append(self.revision + LIFT, &restored)
    }

    fn append(&mut self, revision: i64, happened: &Event) -> Result<i64, Error> {
        let body = serde_json::to_string(happened).map_err(|error| Error::Query(error.to_string()))?;
        self.revision = revision;
        self.head = chained(&self.head, self.revision, self.now, &body);
        self.events.push(EventRow {
            revision,
            customer_id: happened.customer_id().map(|id| id.to_string()),
            partner_id: happened.partner_id().map(|id| id.to_string()),
            recorded_at: self.now.naive_utc(),
            body,
            hash: self.head.clone(),
        });
        Ok(revision)
    }

    /// Answers requests that all have ids of their own.
    fn answer_each<R, A, D: Decide<R, A>>(
        &mut self,
        requests: Vec<(IdempotencyKey, R)>,
        read: impl Fn(&mut Self, &[&R]) -> Result<D, Error>,
        encode: fn(&A) -> Vec<u8>,
    ) -> Result<Vec<Result<Answered<A>, Refusal>>, Error> {
        let (keys, requests): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let found = responses_find(self.connection, &keys.iter().collect::<Vec<_>>())?;
        let unanswered = requests.iter().zip(&found).filter(|(_, lookup)| **lookup == Lookup::Never);
        let mut decisions = read(self, &unanswered.map(|(request, _)| request).collect::<Vec<_>>())?;
        let mut answers = Vec::with_capacity(keys.len());
        let mut new = vec![];
        for ((key, lookup), request) in keys.iter().zip(found).zip(requests) {
            answers.push(match lookup {
                Lookup::Answered(answer) => Ok(Answered::Before(answer)),
                Lookup::OtherContent => Err(Refusal::RequestIdReused { request_id: key.request_id }),
                Lookup::Never => match decisions.decide(self, request) {
                    Ok(answer) => {
                        new.push((key, encode(&answer)));
                        Ok(Answered::New(answer))
                    }
                    Err(ChangeError::Refused(refusal)) => Err(refusal),
                    Err(ChangeError::Failed(error)) => return Err(error),
                },
            });
        }
        decisions.store(self)?;
        let new: Vec<_> = new.iter().map(|(key, answer)| (*key, answer.as_slice())).collect();
        responses_store(self.connection, &new, self.now)?;
        Ok(answers)
    }

    fn finish(self) -> Result<(), Error> {
        insert_rows!(&mut *self.connection, event, &self.events)?;
        let _: i64 = query!(self.connection, c => {
            let update = diesel::update(revision::table)
                .set((revision::value.eq(self.revision), revision::head.eq(&self.head)))
                .returning(revision::value);
            Kept(update).get_result(c)
        })?;
        Ok(())
    }
}

/// A link of the hash chain: over the hash of the event before it, its number, its time and its body as stored.
pub(super) fn chained(previous: &str, revision: i64, recorded_at: Time, body: &str) -> String {
    let micros = recorded_at.timestamp_micros();
    hex::encode(Sha256::digest(format!("{previous}\n{revision}\n{micros}\n{body}")))
}

/// Commits to a person without naming it: the salt is beside the person in the record, and the
/// commitment means nothing once both are erased.
pub(crate) fn commitment(salt: &str, contact: &Contact) -> String {
    let Contact { first_name, last_name, email, phone } = contact;
    // Control characters cannot occur in the fields, so the parts cannot run into each other.
    hex::encode(Sha256::digest(format!("{salt}\n{first_name}\n{last_name}\n{email}\n{phone}")))
}

/// As [`commitment`], to the person of an attestation and what is erased with it. Where nothing of that was given, it is the
/// commitment to the contact, as of earlier versions.
pub(crate) fn attestation_commitment(salt: &str, contact: &Contact, details: &Details) -> String {
    let Details { title, evidence_reference, on_behalf_of, .. } = details;
    if [title, evidence_reference, on_behalf_of].iter().all(|text| text.is_empty()) {
        return commitment(salt, contact);
    }
    let contact = commitment(salt, contact);
    hex::encode(Sha256::digest(format!("{contact}\n{salt}\n{title}\n{evidence_reference}\n{on_behalf_of}")))
}

/// The hash over the documents of a version, in the order of country and language.
pub(crate) fn documents_digest(documents: &[Document]) -> String {
    let mut lines: Vec<String> = documents
        .iter()
        .map(|d| format!("{}\t{}\t{}\t{}\n", d.country, d.language, d.link, d.sha256))
        .collect();
    lines.sort_unstable();
    hex::encode(Sha256::digest(lines.concat()))
}
