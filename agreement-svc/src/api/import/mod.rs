//! Imports: rows in bulk, each decided and answered by itself (ATT-10). What a row is stands in a file for each import.
//!
//! Rows that have arrived are decided together, in one change, and the next ones after its commit: so what is stored of a
//! stream that is cut is always its beginning. Nothing is kept but the rows in flight: a row is read only
//! when there is room for its answer, and answers are made only as the client's flow control takes
//! them, so a client that sends and never reads stops being read after a few windows.

pub(super) mod attestations;
pub(super) mod customers;

use std::collections::BTreeMap;
use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use chassis::auth::{self, Caller};
use chassis::database::Error;
use chassis::idempotency::IdempotencyKey;
use chassis::limits::tenant::Permit;
use chassis::server::call::{call_id, open_ended};
use chassis::server::message::with_reason;
use chassis::status::{stood_still, stopping, too_many_streams};
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use proto::agreement::ImportOutcome;
use proto::types;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::{Api, Asked, Mutation, Timed, check_times, decoded, status};
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
pub(super) type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// The outcome of a row, and the id of what it is about.
type Outcome = (ImportOutcome, Uuid);

/// An import: what its rows ask for, and how they are decided.
pub(super) struct Import<M, N, D> {
    /// The call's name, which is part of the idempotency key.
    pub name: &'static str,
    pub request_id: fn(&mut M) -> &mut String,
    /// Reads what a row asks for.
    pub read: fn(&mut Mutation<M>) -> N,
    /// Reads what decisions on some rows of a partner need to know.
    pub prepare: fn(&mut Change<'_>, Uuid, &[&N]) -> Result<D, Error>,
    /// Decides on a row.
    pub decide: fn(&mut D, &mut Change<'_>, N) -> Result<Outcome, ChangeError>,
    /// Stores the effects of all of them.
    pub store: fn(D, &mut Change<'_>) -> Result<(), Error>,
}

/// The answer to a row of any import.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settled {
    pub row: u64,
    pub request_id: String,
    pub outcome: ImportOutcome,
    /// The id of what the row is about; empty if it was refused.
    pub id: String,
    pub refusal: Option<types::Refusal>,
}

impl Api {
    /// `A` is the call's answer.
    pub(super) fn import<M, N, D, A>(
        &self,
        request: Request<Streaming<M>>,
        import: Import<M, N, D>,
    ) -> Result<Response<Answers<A>>, Status>
    where
        M: Message + Default + 'static,
        N: Send + 'static,
        D: 'static,
        A: Message + Default + From<Settled> + Into<Settled> + 'static,
    {
        let caller = Arc::new(auth::caller(&request)?);
        let permit = self.imports.try_acquire(caller.tenant()).map_err(|full| {
            self.metrics.stream_refused_for_load();
            too_many_streams(status::DOMAIN, "imports", full)
        })?;
        let mut tally = Tally::new(import.name, call_id(&request), &caller, permit);
        let import = Arc::new(import);

        let (stop, stopped) = (self.stopping.clone(), self.stopping.clone());
        // In place of the rows that are not taken any more.
        let end = stream::iter(std::iter::once_with(move || stopped.is_cancelled()))
            .filter_map(|has_stopped| ready(has_stopped.then(|| Err(stopping(status::DOMAIN)))));
        let rows = request
            .into_inner()
            .map(|row| row.map_err(|status| with_reason(status, status::DOMAIN)))
            .take_until(Box::pin(stop.cancelled_owned()));
        let (api, partner_id, of_rows) = (self.clone(), caller.tenant_id, import.clone());
        let rows = sent_in_time(rows).chain(end).zip(stream::iter(1..));
        let rows = rows.map(move |(row, number)| row.map(|row| api.read_row(&caller, &of_rows, number, row)));
        let api = self.clone();
        let mut answers = rows
            .ready_chunks(ROWS_IN_FLIGHT)
            .then(move |rows| settle_rows::<M, N, D, A>(api.clone(), import.clone(), partner_id, rows))
            .flat_map(stream::iter)
            .boxed();
        let counted = stream::poll_fn(move |context| {
            let answer = answers.poll_next_unpin(context);
            if let Poll::Ready(answer) = &answer {
                tally.count(answer.as_ref());
            }
            answer.map(|answer| answer.map(|answer| answer.map(A::from)))
        });
        Ok(open_ended(taken_in_time(counted)))
    }

    fn read_row<M: Message, N, D>(
        &self,
        caller: &Caller,
        import: &Import<M, N, D>,
        number: u64,
        mut row: M,
    ) -> Row<N> {
        let request_id = std::mem::take((import.request_id)(&mut row));
        let echoed = request_id.chars().take(REQUEST_ID_LENGTH).collect();
        let echo = Settled { row: number, request_id: echoed, ..Settled::default() };
        let mut call = Mutation::new(import.name, caller.clone(), row, &request_id, false);
        // As the command `import` does.
        call.is_id_derived = true;
        let new = (import.read)(&mut call);
        let asked = self.asked(call).map(|Asked { key, timed, .. }| (key, NewRow { new, timed }));
        Row { echo, asked }
    }

    /// Decides on rows and stores them, all in one change.
    async fn settle<M, N, D, A>(
        &self,
        import: Arc<Import<M, N, D>>,
        partner_id: Uuid,
        rows: Vec<Row<N>>,
    ) -> Result<Vec<Settled>, Status>
    where
        M: 'static,
        N: Send + 'static,
        D: 'static,
        A: Message + Default + From<Settled> + Into<Settled>,
    {
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
        let prepare = move |change: &mut Change<'_>, rows: &[&NewRow<N>]| {
            let rows: Vec<&N> = rows.iter().map(|row| &row.new).collect();
            let decisions = (import.prepare)(change, partner_id, &rows)?;
            Ok(Deciding { import: import.clone(), decisions })
        };
        let limits = (self.clock.clone(), self.acceptance_changes_max);
        let encode = |answer: &Settled| A::from(answer.clone()).encode_to_vec();
        let answered = change_each(&self.database, requests, limits, prepare, encode).await;
        let answered = answered.map_err(|error| status::of(error.into()))?;
        self.committed.send_replace(());
        for (echo, answer) in echoes.into_iter().zip(answered) {
            let number = echo.row;
            let answer = match answer {
                Ok(Answered::New(answer)) => repeating(echo, answer),
                Ok(Answered::Before(bytes)) => {
                    let mut answer: Settled = decoded::<A>(&bytes)?.into();
                    if answer.outcome == ImportOutcome::Stored {
                        answer.outcome = ImportOutcome::Replayed;
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
struct Row<N> {
    /// What its answer repeats.
    echo: Settled,
    /// What it asks for, or all that is wrong with it.
    asked: Result<(IdempotencyKey, NewRow<N>), Status>,
}

/// What a row asks for.
struct NewRow<N> {
    new: N,
    timed: Vec<Timed>,
}

/// Rows that are being decided.
struct Deciding<M, N, D> {
    import: Arc<Import<M, N, D>>,
    decisions: D,
}

impl<M, N, D> Decide<NewRow<N>, Settled> for Deciding<M, N, D> {
    fn decide(&mut self, change: &mut Change<'_>, row: NewRow<N>) -> Result<Settled, ChangeError> {
        check_times(&row.timed, change.now)?;
        let (outcome, id) = (self.import.decide)(&mut self.decisions, change, row.new)?;
        Ok(Settled { outcome, id: id.to_string(), ..Settled::default() })
    }

    fn store(self, change: &mut Change<'_>) -> Result<(), Error> {
        (self.import.store)(self.decisions, change)
    }
}

/// Answers rows that have arrived together, up to one that cannot be read, which ends the stream. So does a failure: the rows
/// after it must not be decided without these, because they may be about the same customer.
async fn settle_rows<M, N, D, A>(
    api: Api,
    import: Arc<Import<M, N, D>>,
    partner_id: Uuid,
    rows: Vec<Result<Row<N>, Status>>,
) -> impl Iterator<Item = Result<Settled, Status>> + Send
where
    M: 'static,
    N: Send + 'static,
    D: 'static,
    A: Message + Default + From<Settled> + Into<Settled>,
{
    let mut end = None;
    let rows = rows.into_iter().map_while(|row| row.map_err(|status| end = Some(status)).ok()).collect();
    let answers = match api.settle::<M, N, D, A>(import, partner_id, rows).await {
        Ok(answers) => answers,
        Err(failed) => {
            end = Some(failed);
            vec![]
        }
    };
    answers.into_iter().map(Ok).chain(end.map(Err))
}

fn repeating(echo: Settled, answer: Settled) -> Settled {
    Settled { row: echo.row, request_id: echo.request_id, ..answer }
}

fn refused(echo: Settled, refused: &Status) -> Settled {
    let refusal = Some(status::item(refused));
    Settled { outcome: ImportOutcome::Refused, refusal, ..echo }
}

/// Ends a stream of which the client sends nothing for too long.
fn sent_in_time<T>(rows: impl Stream<Item = Result<T, Status>>) -> impl Stream<Item = Result<T, Status>> {
    tokio_stream::StreamExt::timeout(rows, STANDSTILL_MAX)
        .map(|row| row.unwrap_or_else(|_| Err(stood_still(status::DOMAIN, STANDSTILL_MAX, None))))
}

/// Ends a stream of which the client takes nothing for too long, and one that goes on for too long. The stream is on a task
/// of its own, because no task asks for the next answer of a client that does not read. The answers of a commit wait
/// for each other in between, so that they travel together: many small frames cost much, and HTTP/2
/// libraries count them as an attack when they are not read at once.
fn taken_in_time<A: Send + 'static>(
    answers: impl Stream<Item = Result<A, Status>> + Send + 'static,
) -> Answers<A> {
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
                    return Some(Err(stood_still(status::DOMAIN, STANDSTILL_MAX, None)));
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

/// The outcomes of the rows of one import, counted. They are logged when the stream ends, however it does.
struct Tally {
    call: &'static str,
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
    fn new(call: &'static str, call_id: String, caller: &Caller, permit: Permit) -> Self {
        Self {
            call,
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

    fn count(&mut self, answer: Option<&Result<Settled, Status>>) {
        match answer.map(|answer| answer.as_ref().map(|answer| answer.outcome)) {
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
        let Self { call, stored, replayed, duplicate, refused, ended, .. } = *self;
        let (call_id, tenant) = (&self.call_id, self.tenant_id);
        tracing::info!(call, %tenant, stored, replayed, duplicate, refused, ended, call_id, "import");
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
            row.map(|()| Settled::default())
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
            row.map(|()| Settled::default())
        }));
        let taken: Vec<Result<Settled, Status>> = answers.collect().await;
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
            Ok(Settled::default())
        }));
        // The clock moves only for sleeping tasks, so the test does not wait.
        tokio::time::sleep(STANDSTILL_MAX * 2).await;
        assert_eq!(Arc::strong_count(&permit), 1);
        let taken: Vec<Result<Settled, Status>> = answers.collect().await;
        let ended = taken.last().and_then(|last| last.as_ref().err()).unwrap();
        assert!(ended.message().starts_with("STREAM_STOOD_STILL: "), "{ended}");
    }
}
