//! `ImportAttestations`: attestations in bulk, each row decided and answered by itself (ATT-10).
//!
//! Rows go through the writer's queue in the order in which they came, so what is stored of a stream
//! that is cut is always its beginning. Nothing is kept but the rows in flight: a row is read only
//! when there is room for its answer, and answers are made only as the client's flow control takes
//! them, so a client that sends and never reads stops being read after a few windows.

use std::future::{poll_fn, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use chassis::auth::{self, Caller};
use chassis::limits::tenant::Permit;
use chassis::server::call::{call_id, open_ended};
use chassis::server::message::with_reason;
use futures_util::future::Either;
use futures_util::{Stream, StreamExt, stream};
use proto::agreement::attestation_service_server::AttestationService;
use proto::agreement::{
    CreateAttestationRequest, ImportAttestationsRequest, ImportAttestationsResponse, ImportOutcome,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::task::coop::unconstrained;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::attestation::read_new;
use super::{Api, Mutation, status};
use crate::actions::attest::attest_as_partner;
use crate::rules::Refusal;
use crate::store::change::ChangeError;

/// Rows of one import that wait for their commit: half of what the writer commits at once, so that an
/// import fills its commits and other calls still find room in them.
const ROWS_IN_FLIGHT: usize = 64;

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
        let api = self.clone();
        let rows = request
            .into_inner()
            .map(|row| row.map_err(|status| with_reason(status, status::DOMAIN)))
            .take_until(Box::pin(stop.cancelled_owned()));
        let rows = sent_in_time(rows).chain(end).zip(stream::iter(1..));
        let mut answers = rows
            .then(move |(row, number)| begin(attest_row(api.clone(), Arc::clone(&caller), number, row)))
            .buffered(ROWS_IN_FLIGHT)
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

    async fn attest(&self, caller: &Caller, row: CreateAttestationRequest) -> Answer {
        let mut call = Mutation::new("ImportAttestations", caller.clone(), row, |row| &mut row.request_id);
        // As the command `import` does.
        call.is_id_derived = true;
        let (customer_id, new) = read_new(&mut call);
        let changed = self.changed(call, move |change, caller| {
            match attest_as_partner(change, caller.tenant_id, customer_id, new) {
                Ok(attestation) => Ok(settled(ImportOutcome::Stored, attestation.id)),
                // This is remembered, unlike a refusal. A row that was superfluous when it came first
                // must not become an attestation when it comes again after rows that followed it.
                Err(ChangeError::Refused(Refusal::AlreadyAttested { attestation_id })) => {
                    Ok(settled(ImportOutcome::Duplicate, attestation_id))
                }
                Err(error) => Err(error),
            }
        });
        let changed = changed.await?;
        let mut answer = changed.answer;
        if changed.is_replay && answer.outcome() == ImportOutcome::Stored {
            answer.set_outcome(ImportOutcome::Replayed);
        }
        Ok(answer)
    }
}

/// Answers a row, whatever becomes of it; only a stream that cannot go on is an error.
async fn attest_row(
    api: Api,
    caller: Arc<Caller>,
    number: u64,
    row: Result<ImportAttestationsRequest, Status>,
) -> Answer {
    let ImportAttestationsRequest { request_id, customer_id, template_id, contact, agreed_at } = row?;
    let echo = request_id.chars().take(REQUEST_ID_LENGTH).collect();
    let row = CreateAttestationRequest {
        request_id,
        customer_id,
        template_id,
        contact,
        agreed_at,
        validate_only: false,
    };
    let answer = match api.attest(&caller, row).await {
        Ok(answer) => answer,
        Err(refused) if status::is_refusal(&refused) => ImportAttestationsResponse {
            outcome: ImportOutcome::Refused.into(),
            refusal: Some(status::item(&refused)),
            ..ImportAttestationsResponse::default()
        },
        // The rows after it must not be decided without it: they may be about the same customer.
        Err(failed) => return Err(failed),
    };
    Ok(ImportAttestationsResponse { row: number, request_id: echo, ..answer })
}

/// Polls a row once, before the next one is looked at: its first poll puts it into the writer's queue,
/// or in line for it, so that rows are decided in the order in which they came. It is exempt from the
/// runtime's budget, which could otherwise turn that poll away and the order round.
async fn begin(row: impl Future<Output = Answer> + Send) -> impl Future<Output = Answer> + Send {
    let mut row = Box::pin(unconstrained(row));
    match poll_fn(|context| Poll::Ready(row.as_mut().poll(context))).await {
        Poll::Ready(answer) => Either::Left(ready(answer)),
        Poll::Pending => Either::Right(row),
    }
}

/// Ends a stream of which the client sends nothing for too long.
fn sent_in_time<T>(rows: impl Stream<Item = Result<T, Status>>) -> impl Stream<Item = Result<T, Status>> {
    tokio_stream::StreamExt::timeout(rows, STANDSTILL_MAX)
        .map(|row| row.unwrap_or_else(|_| Err(status::stood_still(STANDSTILL_MAX, None))))
}

/// Ends a stream of which the client takes nothing for too long, and one that goes on for too long. The stream is on a task of its own,
/// because no task asks for the next answer of a client that does not read. The answers of a commit wait
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
