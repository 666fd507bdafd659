//! `ImportAttestations`: attestations in bulk, each row decided and answered by itself (ATT-10).
//!
//! Rows that have arrived are decided together, in one change, and the next ones after its commit: so what is stored of a
//! stream that is cut is always its beginning. Nothing is kept but the rows in flight: a row is read only
//! when there is room for its answer, and answers are made only as the client's flow control takes
//! them, so a client that sends and never reads stops being read after a few windows.

use std::collections::BTreeMap;
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use chassis::auth::{self, Caller};
use chassis::database::Error;
use chassis::idempotency::IdempotencyKey;
use chassis::limits::tenant::Permit;
use chassis::server::call::{call_id, open_ended};
use chassis::server::message::with_reason;
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use proto::agreement::attestation_service_server::AttestationService;
use proto::agreement::{
    CreateAttestationRequest, ImportAttestationsRequest, ImportAttestationsResponse, ImportOutcome,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::attestation::read_new;
use super::{Api, Asked, Mutation, Timed, check_times, decoded, status};
use crate::actions::attest::{Attesting, NewAttestation};
use crate::rules::Refusal;
use crate::store::change::{Answered, Change, ChangeError, Decide, change_each};

/// Rows of one import that are decided together: as many as the writer commits at once, so that other changes wait no longer
/// for an import than for each other. A row that arrives alone does not wait for others.
const ROWS_IN_FLIGHT: usize = 128;

/// How long an import may stand still, because its rows do not come or its answers are not taken. There
/// is room for few imports, and one that its client has abandoned must not keep its slot.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);

/// How long an import may take as a whole, so that it makes room for others however slowly its rows come, and
/// an identity does not outlive itself for long. A million rows take less; more are sent in parts.
const IMPORT_DURATION_MAX: Duration = Duration::from_secs(1800);

/// Characters of a row's request id that its answer repeats. An id has no more; what is longer is none
/// and is not worth keeping until the rows before are answered.
const REQUEST_ID_LENGTH: usize = 36;

/// The answers, in the order of the rows.
type Answers = <Api as AttestationService>::ImportAttestationsStream;

/// The outcome of a row, or why the stream ends.
type Answer = <Answers as Stream>::Item;

impl Api {
    pub(super) fn import(
        &self,
        request: Request<Streaming<ImportAttestationsRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let caller = Arc::new(auth::caller(&request)?);
        let permit = self.stream_permit(&self.imports, "imports", &caller)?;
        let mut tally = Tally::new(call_id(&request), &caller, permit);

        let (stop, stopped) = (self.stopping.clone(), self.stopping.clone());
        // In place of the rows that are not taken any more.
        let end = stream::iter(std::iter::once_with(move || stopped.is_cancelled()))
            .filter_map(|stopping| ready(stopping.then(|| Err(status::stopping()))));
        let rows = request
            .into_inner()
            .map(|row| row.map_err(|status| with_reason(status, status::DOMAIN)))
            .take_until(Box::pin(stop.cancelled_owned()));
        let (api, partner_id) = (self.clone(), caller.tenant_id);
        let rows = sent_in_time(rows).chain(end).zip(stream::iter(1..));
        let rows = rows.map(move |(row, number)| row.map(|row| api.read_row(&caller, number, row)));
        let api = self.clone();
        let mut answers = rows
            .ready_chunks(ROWS_IN_FLIGHT)
            .then(move |rows| attest_rows(api.clone(), partner_id, rows))
            .flat_map(stream::iter)
            .boxed();
        let counted = stream::poll_fn(move |context| {
            let answer = answers.poll_next_unpin(context);
            if let Poll::Ready(answer) = &answer {
                tally.count(answer.as_ref());
            }
            answer
        });
        Ok(open_ended(taken_in_time(counted)))
    }

    fn read_row(&self, caller: &Caller, number: u64, row: ImportAttestationsRequest) -> Row {
        let ImportAttestationsRequest { request_id, customer_id, template_id, contact, agreed_at } = row;
        let echo = ImportAttestationsResponse {
            row: number,
            request_id: request_id.chars().take(REQUEST_ID_LENGTH).collect(),
            ..ImportAttestationsResponse::default()
        };
        let row = CreateAttestationRequest {
            request_id,
            customer_id,
            template_id,
            contact,
            agreed_at,
            validate_only: false,
        };
        let mut call = Mutation::new("ImportAttestations", caller.clone(), row, |row| &mut row.request_id);
        // As the command `import` does.
        call.is_id_derived = true;
        let (customer_id, new) = read_new(&mut call);
        let asked =
            self.asked(call).map(|Asked { key, timed, .. }| (key, NewRow { customer_id, new, timed }));
        Row { echo, asked }
    }

    /// Decides on rows and stores them, all in one change.
    async fn attest(
        &self,
        partner_id: Uuid,
        rows: Vec<Row>,
    ) -> Result<Vec<ImportAttestationsResponse>, Status> {
        let (mut answers, mut echoes, mut requests) = (BTreeMap::new(), vec![], vec![]);
        for Row { echo, asked } in rows {
            match asked {
                Ok(request) => {
                    requests.push(request);
                    echoes.push(echo);
                }
                Err(bad) => drop(answers.insert(echo.row, refused(echo, &bad))),
            }
        }
        if requests.is_empty() {
            return Ok(answers.into_values().collect());
        }
        let read = move |change: &mut Change<'_>, rows: &[&NewRow]| {
            let asked = rows.iter().map(|row| (row.customer_id, row.new.template_id));
            Attesting::read(change, partner_id, asked)
        };
        let limits = (self.clock.clone(), self.acceptance_changes_max);
        let encode = ImportAttestationsResponse::encode_to_vec;
        let answered = change_each(&self.database, requests, limits, read, encode).await;
        let answered = answered.map_err(|error| status::of(error.into()))?;
        self.committed.send_replace(());
        for (echo, answer) in echoes.into_iter().zip(answered) {
            let number = echo.row;
            let answer = match answer {
                Ok(Answered::New(answer)) => repeating(echo, answer),
                Ok(Answered::Before(bytes)) => {
                    let mut answer: ImportAttestationsResponse = decoded(&bytes)?;
                    if answer.outcome() == ImportOutcome::Stored {
                        answer.set_outcome(ImportOutcome::Replayed);
                    }
                    repeating(echo, answer)
                }
                Err(refusal) => refused(echo, &status::refused(&refusal)),
            };
            answers.insert(number, answer);
        }
        Ok(answers.into_values().collect())
    }
}

/// A row that was read.
struct Row {
    /// What its answer repeats.
    echo: ImportAttestationsResponse,
    /// What it asks for, or all that is wrong with it.
    asked: Result<(IdempotencyKey, NewRow), Status>,
}

/// What a row asks for.
struct NewRow {
    customer_id: Uuid,
    new: NewAttestation,
    timed: Vec<Timed>,
}

impl Decide<NewRow, ImportAttestationsResponse> for Attesting {
    fn decide(
        &mut self,
        change: &mut Change<'_>,
        row: NewRow,
    ) -> Result<ImportAttestationsResponse, ChangeError> {
        check_times(&row.timed, change.now)?;
        match self.attest(change, row.customer_id, row.new) {
            Ok(attestation) => Ok(settled(ImportOutcome::Stored, attestation.id)),
            // This is remembered, unlike a refusal. A row that was superfluous when it came first
            // must not become an attestation when it comes again after rows that followed it.
            Err(ChangeError::Refused(Refusal::AlreadyAttested { attestation_id })) => {
                Ok(settled(ImportOutcome::Duplicate, attestation_id))
            }
            Err(error) => Err(error),
        }
    }

    fn store(self, change: &mut Change<'_>) -> Result<(), Error> {
        self.store_all(change)
    }
}

/// Answers rows that have arrived together, up to one that cannot be read, which ends the stream. So does a failure: the rows
/// after it must not be decided without these, because they may be about the same customer.
async fn attest_rows(
    api: Api,
    partner_id: Uuid,
    rows: Vec<Result<Row, Status>>,
) -> impl Iterator<Item = Answer> + Send {
    let mut end = None;
    let rows = rows.into_iter().map_while(|row| row.map_err(|status| end = Some(status)).ok()).collect();
    let answers = match api.attest(partner_id, rows).await {
        Ok(answers) => answers,
        Err(failed) => {
            end = Some(failed);
            vec![]
        }
    };
    answers.into_iter().map(Ok).chain(end.map(Err))
}

fn repeating(
    echo: ImportAttestationsResponse,
    answer: ImportAttestationsResponse,
) -> ImportAttestationsResponse {
    ImportAttestationsResponse { row: echo.row, request_id: echo.request_id, ..answer }
}

fn refused(echo: ImportAttestationsResponse, refused: &Status) -> ImportAttestationsResponse {
    let refusal = Some(status::item(refused));
    ImportAttestationsResponse { outcome: ImportOutcome::Refused.into(), refusal, ..echo }
}

/// Ends a stream of which the client sends nothing for too long.
fn sent_in_time<T>(rows: impl Stream<Item = Result<T, Status>>) -> impl Stream<Item = Result<T, Status>> {
    tokio_stream::StreamExt::timeout(rows, STANDSTILL_MAX)
        .map(|row| row.unwrap_or_else(|_| Err(status::stood_still(STANDSTILL_MAX, None))))
}

/// Ends a stream of which the client takes nothing for too long, and one that goes on for too long. The stream is on a task
/// of its own, because no task asks for the next answer of a client that does not read. The answers of a commit wait
/// for each other in between, so that they travel together: many small frames cost much, and HTTP/2
/// libraries count them as an attack when they are not read at once.
fn taken_in_time(answers: impl Stream<Item = Answer> + Send + 'static) -> Answers {
    let (sender, receiver) = mpsc::channel(ROWS_IN_FLIGHT);
    let in_time = async move {
        let mut answers = pin!(answers);
        while let Some(answer) = answers.next().await {
            // What is waited for after that would never come, and would keep the permit of the import.
            let is_last = answer.is_err();
            match sender.send_timeout(answer, STANDSTILL_MAX).await {
                Ok(()) if is_last => return None,
                Ok(()) => {}
                Err(SendTimeoutError::Timeout(_)) => {
                    return Some(Err(status::stood_still(STANDSTILL_MAX, None)));
                }
                Err(SendTimeoutError::Closed(_)) => return None,
            }
        }
        None
    };
    let in_time = async {
        let too_long = |_| Some(Err(status::too_long(IMPORT_DURATION_MAX)));
        tokio::time::timeout(IMPORT_DURATION_MAX, in_time).await.unwrap_or_else(too_long)
    };
    let in_time = tokio::spawn(in_time);
    let end = stream::once(in_time)
        .filter_map(|ended| ready(ended.unwrap_or_else(|_| Some(Err(status::panicked())))));
    ReceiverStream::new(receiver).chain(end).boxed()
}

fn settled(outcome: ImportOutcome, attestation_id: Uuid) -> ImportAttestationsResponse {
    ImportAttestationsResponse {
        outcome: outcome.into(),
        attestation_id: attestation_id.to_string(),
        ..ImportAttestationsResponse::default()
    }
}

/// The outcomes of the rows of one import, counted. They are logged when the stream ends, however it does.
struct Tally {
    call_id: String,
    tenant_id: Uuid,
    stored: u64,
    replayed: u64,
    duplicate: u64,
    refused: u64,
    ended: &'static str,
    _permit: Permit,
}

impl Tally {
    fn new(call_id: String, caller: &Caller, permit: Permit) -> Self {
        Self {
            call_id,
            tenant_id: caller.tenant_id,
            stored: 0,
            replayed: 0,
            duplicate: 0,
            refused: 0,
            ended: "its answers were not taken any more",
            _permit: permit,
        }
    }

    fn count(&mut self, answer: Option<&Answer>) {
        match answer.map(|answer| answer.as_ref().map(ImportAttestationsResponse::outcome)) {
            Some(Ok(ImportOutcome::Stored)) => self.stored += 1,
            Some(Ok(ImportOutcome::Replayed)) => self.replayed += 1,
            Some(Ok(ImportOutcome::Duplicate)) => self.duplicate += 1,
            Some(Ok(ImportOutcome::Refused | ImportOutcome::Unspecified)) => self.refused += 1,
            Some(Err(status)) => self.ended = status.code().description(),
            None => self.ended = "all rows were answered",
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let Self { stored, replayed, duplicate, refused, ended, .. } = *self;
        let (call_id, tenant) = (&self.call_id, self.tenant_id);
        tracing::info!(%tenant, stored, replayed, duplicate, refused, ended, call_id, "import");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_messages_ends() {
        let mut rows = pin!(sent_in_time(stream::iter([Ok(7)]).chain(stream::pending())));
        assert_eq!(rows.next().await.and_then(Result::ok), Some(7));
        let ended = rows.next().await.and_then(Result::err).unwrap();
        assert!(ended.message().starts_with("STREAM_STOOD_STILL: "), "{ended}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_releases_its_permit() {
        let permit = Arc::new(());
        let held = Arc::clone(&permit);
        let rows = sent_in_time(stream::pending::<Result<(), Status>>());
        let mut answers = taken_in_time(rows.map(move |row| {
            let _held = &held;
            row.map(|()| ImportAttestationsResponse::default())
        }));
        assert!(matches!(answers.next().await, Some(Err(_))));
        assert!(answers.next().await.is_none());
        assert_eq!(Arc::strong_count(&permit), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_slow_rows_ends_and_releases_its_permit() {
        let permit = Arc::new(());
        let held = Arc::clone(&permit);
        let began = tokio::time::Instant::now();
        let rows = stream::repeat(()).then(|()| async {
            tokio::time::sleep(STANDSTILL_MAX - Duration::from_secs(1)).await;
            Ok(())
        });
        let answers = taken_in_time(sent_in_time(rows).map(move |row| {
            let _held = &held;
            row.map(|()| ImportAttestationsResponse::default())
        }));
        let taken: Vec<Answer> = answers.collect().await;
        let ended = taken.last().and_then(|last| last.as_ref().err()).unwrap();
        assert!(ended.message().starts_with("DEADLINE_PASSED: "), "{ended}");
        assert_eq!(taken.len(), 31);
        assert!(began.elapsed() >= IMPORT_DURATION_MAX);
        assert_eq!(Arc::strong_count(&permit), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_not_read_releases_its_permit() {
        let permit = Arc::new(());
        let held = Arc::clone(&permit);
        let answers = taken_in_time(stream::repeat_with(move || {
            let _held = &held;
            Ok(ImportAttestationsResponse::default())
        }));
        // The clock moves only for sleeping tasks, so the test does not wait.
        tokio::time::sleep(STANDSTILL_MAX * 2).await;
        assert_eq!(Arc::strong_count(&permit), 1);
        let taken: Vec<Answer> = answers.collect().await;
        let ended = taken.last().and_then(|last| last.as_ref().err()).unwrap();
        assert!(ended.message().starts_with("STREAM_STOOD_STILL: "), "{ended}");
    }
}
