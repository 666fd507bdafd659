//! The gRPC services, each in a file of its own. A call reads its request, collects what the rules
//! need to know, lets them decide, stores the outcome and answers.
//!
//! Identity, role, limits and logging are settled before a call arrives here (chassis::server with
//! the table in [`access`]). Rules live in `rules`, rows in `store`, the client of agreement-svc in `agreements`;
//! codes are chosen in [`status`].

pub(crate) mod access;
mod attestation;
mod convert;
mod event;
mod offer;
mod order;
mod required;
mod status;
mod subscription;
mod withdrawal;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::auth::{self, Caller, Credentials};
use chassis::clock::Clock;
use chassis::database::{BatchedReads, Connection, Database, Error};
use chassis::form::Form;
use chassis::idempotency::{IdempotencyKey, Lookup, RequestHasher};
use chassis::limits::tenant::TenantLimiter;
use chassis::paging::{Page, Pages};
use chassis::server::call;
use chassis::server::deadline::time_left;
use chassis::watch::Watchers;
use prost::Message;
use proto::identity::TenantKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::agreements::AgreementClient;
use crate::agreements::attest::Attested;
use crate::agreements::gate::{GateError, GateQuery};
use crate::metrics::Decisions;
use crate::rules::Refusal;
use crate::rules::gate::{Answer, DryRun};
use crate::rules::offer::Catalogue;
use crate::rules::order::Parties;
use crate::store::Viewer;
use crate::store::commit::{Basis, Commit, Commits, Effect, Write};
use crate::store::fence::Void;
use crate::workers::Followed;

/// Attempts of a call to store what it buys or changes, with the first one. Each asks the gate anew where it rests on its answer.
const ATTEMPTS_MAX: u32 = 3;

/// The calls of every service, and what they share.
#[derive(Clone)]
pub(crate) struct Api {
    pub database: Database,
    pub replays: BatchedReads<IdempotencyKey, Lookup>,
    pub commits: Commits,
    pub clock: Clock,
    pub pages: Pages,
    pub hasher: RequestHasher,
    pub catalogue: Arc<Catalogue>,
    pub agreements: AgreementClient,
    pub decisions: Decisions,
    /// How far agreement-svc's history was followed, and whether it still is the one that was.
    pub followed: watch::Receiver<Followed>,
    /// Ends what waits.
    pub stopping: CancellationToken,
    /// Open subscriptions that a payer and a customer may have (SUB-7).
    pub subscriptions_max: u32,
    pub watchers: Watchers,
    /// Lists of outdated acceptances in progress.
    pub outdated_lists: TenantLimiter,
    /// Changed after every stored order, to wake the reporter.
    pub orders: watch::Sender<()>,
}

impl Api {
    /// Reads one page of a list: its rows, and the token of the next page.
    async fn list<T: Send + 'static>(
        &self,
        page: Page,
        read: impl FnOnce(&mut Connection) -> Result<Vec<T>, Error> + Send + 'static,
        key: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, String), Status> {
        let mut rows = self.database.list(read).await.map_err(|error: Error| status::failed(&error))?;
        let next_page_token = page.cut(&mut rows, key);
        Ok((rows, next_page_token))
    }

    /// The first answer to a request id that was seen before; a call that only validates has none.
    async fn replay<A: Message + Default>(
        &self,
        key: Option<&IdempotencyKey>,
    ) -> Result<Option<Response<A>>, Status> {
        let Some(key) = key.cloned() else { return Ok(None) };
        let request_id = key.request_id;
        let seen = self.replays.read(key).await;
        match seen.map_err(|error: Error| status::failed(&error))? {
            Lookup::Never => Ok(None),
            Lookup::Answered(answer) => {
                let answer = A::decode(answer.as_slice()).map_err(|error| status::undecodable(&error))?;
                Ok(Some(call::replayed(answer)))
            }
            Lookup::OtherContent => Err(status::refused(&Refusal::RequestIdReused { request_id })),
        }
    }

    /// Answers a request once (idempotency): looks its id up, acts, and looks again where the act lost a
    /// race or failed. A call that only validates has no key.
    async fn answer_once<A, F>(
        &self,
        key: Option<&IdempotencyKey>,
        attempt: impl Fn() -> F + Send + Sync,
    ) -> Result<Response<A>, Status>
    where
        A: Message + Default,
        F: Future<Output = Result<Attempt<A>, Failure>> + Send,
    {
        let mut last = Refusal::GateUnavailable;
        for _ in 0..ATTEMPTS_MAX {
            if let Some(first) = self.replay(key).await? {
                return Ok(first);
            }
            match attempt().await {
                Ok(Attempt::Done(answer)) => return Ok(Response::new(answer)),
                Ok(Attempt::Retry(refusal)) => {
                    // An answer to a query that came after the fence was raised is newer than the fence, unless
                    // agreement-svc has lost what raised it.
                    if let Refusal::AnswerOutdated { customer_id, .. } = refusal
                        && refusal == last
                    {
                        let lost = Refusal::WithdrawalLost { customer_id, acceptance_id: None };
                        return self.fail(lost.into(), key).await;
                    }
                    last = refusal;
                }
                Err(failure) => return self.fail(failure, key).await,
            }
        }
        self.fail(last.into(), key).await
    }

    /// Ends a call that stored nothing. Another call with the same id may have been answered meanwhile; then
    /// the failure may be the effect of that very request, and the client gets the first answer.
    async fn fail<A: Message + Default>(
        &self,
        failure: Failure,
        key: Option<&IdempotencyKey>,
    ) -> Result<Response<A>, Status> {
        let status = match failure {
            Failure::Refused(refusal) => status::refused(&refusal),
            Failure::NotAttested { refused, payer_id } => status::not_attested(&refused, payer_id),
            Failure::Database(error) => return Err(status::failed(&error)),
        };
        self.replay(key).await?.ok_or(status)
    }

    /// Stores what a call buys or changes for a customer, with its response, and says how that ends the attempt.
    async fn store<A: Message>(
        &self,
        key: &IdempotencyKey,
        customer_id: Uuid,
        basis: Basis,
        effect: Effect,
        response: A,
    ) -> Result<Attempt<A>, Failure> {
        let (key, encoded) = (key.clone(), response.encode_to_vec());
        let write = Write { key, response: encoded, customer_id, basis, effect };
        match self.commits.commit(write).await? {
            Commit::Done => Ok(Attempt::Done(response)),
            Commit::SeenBefore | Commit::AnswerStale => Ok(Attempt::Retry(Refusal::GateUnavailable)),
            Commit::NotRelated => Ok(Attempt::Retry(Refusal::HistoryBehind)),
            Commit::Void(void) => without_effect(customer_id, void),
            Commit::TooManySubscriptions => Err(self.too_many_subscriptions(customer_id).into()),
            Commit::LostRace => Err(Refusal::StaleEtag.into()),
        }
    }

    fn too_many_subscriptions(&self, customer_id: Uuid) -> Refusal {
        Refusal::TooManySubscriptions { customer_id, max: self.subscriptions_max }
    }

    /// Asks the gate; everything but an answer becomes a refusal.
    async fn ask(&self, query: &GateQuery, time_left: Duration) -> Result<Answer, Refusal> {
        self.check_history(time_left).await?;
        let answered = self.agreements.check(query, time_left).await;
        self.decisions.count(&answered);
        answered.map_err(|no_answer| unanswered(&query.parties, no_answer))
    }

    /// Asks the gate what it would answer, on the assumption of an attestation where one is given (ORD-5). It decides
    /// nothing, so it is not counted among the decisions.
    async fn dry_run(
        &self,
        query: &GateQuery,
        assumed: Option<&Attested>,
        time_left: Duration,
    ) -> Result<DryRun, Refusal> {
        self.check_history(time_left).await?;
        let dry_run = self.agreements.dry_run(query, assumed, time_left).await;
        dry_run.map_err(|no_answer| unanswered(&query.parties, no_answer))
    }

    /// Refuses while agreement-svc's history is known not to be the one that was followed here: what it answers then
    /// may rest on what was withdrawn (WD-3a). After the start that is found out first.
    async fn check_history(&self, time_left: Duration) -> Result<(), Refusal> {
        let is_invalid = self.followed.borrow().is_invalid;
        let is_invalid = match is_invalid {
            Some(is_invalid) => is_invalid,
            None => {
                let mut followed = self.followed.clone();
                let known = followed.wait_for(|followed| followed.is_invalid.is_some());
                let known = tokio::time::timeout(self.agreements.time_for(time_left), known).await;
                let known = known.ok().and_then(Result::ok).and_then(|followed| followed.is_invalid);
                known.ok_or(Refusal::GateUnavailable)?
            }
        };
        if is_invalid { Err(Refusal::HistoryInvalid) } else { Ok(()) }
    }
}

/// The refusal where the gate gave no answer.
fn unanswered(parties: &Parties, no_answer: GateError) -> Refusal {
    match no_answer {
        GateError::NoActiveRelationship(Some(misnamed)) => {
            Refusal::NotTogether { parties: *parties, misnamed }
        }
        GateError::NoActiveRelationship(None) => {
            Refusal::NotFound { resource: "customer", id: parties.customer_id.to_string() }
        }
        GateError::PayerIsReseller => Refusal::PayerIsReseller { payer_id: parties.payer_id },
        GateError::Unknown(why) => {
            tracing::warn!(why, "the gate gave no answer");
            Refusal::GateUnavailable
        }
    }
}

/// How an attempt ends whose answer of the gate does not count.
fn without_effect<A>(customer_id: Uuid, void: Void) -> Result<Attempt<A>, Failure> {
    match void {
        Void::Outdated { fence } => Ok(Attempt::Retry(Refusal::AnswerOutdated { customer_id, fence })),
        Void::EvidenceWithdrawn { acceptance_id } => {
            Err(Refusal::WithdrawalLost { customer_id, acceptance_id: Some(acceptance_id) }.into())
        }
    }
}

/// How one attempt of a call that buys or changes ended, when nothing failed.
enum Attempt<A> {
    Done(A),
    /// The call starts again; after the last attempt it is refused with this.
    Retry(Refusal),
}

/// Why a call that buys or changes stored nothing.
enum Failure {
    Refused(Refusal),
    /// The refusal of agreement-svc, which is passed on, and the payer through which a reseller serves the customer.
    NotAttested {
        refused: Status,
        payer_id: Option<Uuid>,
    },
    Database(Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

/// Ends the reading of a request.
fn checked(form: Form) -> Result<(), Status> {
    form.finish().map_err(|violations| status::invalid(&violations))
}

/// Who makes a call that buys or changes, and how long it may take.
struct Origin {
    caller: Caller,
    /// For an attestation, which is the caller's own.
    credentials: Credentials,
    /// The id under which both services log.
    call_id: String,
    /// The caller's.
    deadline: Instant,
}

impl Origin {
    fn of<M>(request: &Request<M>) -> Result<Self, Status> {
        Ok(Self {
            caller: auth::caller(request)?,
            credentials: auth::credentials(request)?,
            call_id: call::call_id(request),
            deadline: Instant::now() + time_left(request),
        })
    }

    /// The time that is left until the caller's deadline.
    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// An offer to filter by.
fn optional_offer(form: &mut Form, offer_id: &str) -> Option<String> {
    Some(form.text("offer_id", offer_id, 0, 100)).filter(|id| !id.is_empty())
}

/// What a caller may see of orders and subscriptions (ROLE-6).
fn viewer(caller: &Caller) -> Viewer {
    match caller.tenant_kind.parse() {
        Ok(TenantKind::Operator | TenantKind::Service) => Viewer::Everything,
        Ok(TenantKind::Customer) => Viewer::Customer(caller.tenant_id),
        Ok(TenantKind::Partner) | Err(_) => Viewer::Partner(caller.tenant_id),
    }
}
