//! Calls: one deadline for all attempts, failover among the replicas, retries within a budget.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use proto::types::ErrorReason;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Response, Status, TimeoutExpired};
use tower::retry::backoff::Backoff;
use tower::retry::budget::{Budget, TpsBudget};

use crate::backoff::backoff;
use crate::refusal::Refusal;
use crate::replicas::Replicas;

/// No address is known, because no name has led to a connection yet.
pub(crate) const NO_REPLICA: &str = "no name leads to a replica that can be reached";

/// Attempts for one call. More would only add to the load of a service in trouble.
const TRIES_MAX: u32 = 3;

/// Backoff between attempts: the first wait, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_millis(200);

/// The retry budget of the process: in any ten seconds its calls may retry this often for each second, and once
/// for every five calls that were answered. So retries do not triple the load of a service in trouble, and
/// all calls are retried when it restarts.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
const BUDGET_PER_SECOND: u32 = 5;
const BUDGET_OF_ANSWERED: f32 = 0.2;

/// A client of one of the services. Clones share its connections and its retries.
#[derive(Clone)]
pub struct Client {
    pub(crate) replicas: Replicas,
    retries: Arc<TpsBudget>,
}

/// The options of a call.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// What is sent with each attempt: the identity, as `authorization`, and the id under which the service logs, as
    /// `x-call-id`.
    pub metadata: MetadataMap,
    /// Whether the identity is this program's own. A call in the name of a caller, which may be over its own share of the
    /// service, is not repeated after TENANT_OVERLOADED.
    pub is_own: bool,
    /// How long it may take, with all its attempts. One takes at most half of it, so that a lost one leaves time for another.
    pub deadline: Duration,
    /// How long it is waited for; less than the deadline where a caller of this program has less time.
    pub time_left: Duration,
}

impl CallOptions {
    /// A call as this program, which has all the time of the deadline.
    #[must_use]
    pub fn new(metadata: MetadataMap, deadline: Duration) -> Self {
        Self { metadata, is_own: true, deadline, time_left: deadline }
    }
}

impl Client {
    /// A client of the service with these replicas.
    #[must_use]
    pub fn new(replicas: Replicas) -> Self {
        let retries = TpsBudget::new(BUDGET_WINDOW, BUDGET_PER_SECOND, BUDGET_OF_ANSWERED);
        Self { replicas, retries: Arc::new(retries) }
    }

    /// Makes a call until it is answered. It may be made more than once, as every call of the contract may: it reads, or it
    /// carries a request id.
    ///
    /// It is repeated, at the next replica, if the service is unavailable or has no room, if the connection fails, and if the
    /// gate's answer was outdated. Any other refusal is the answer.
    ///
    /// # Errors
    /// The refusal, or how the last attempt ended.
    pub async fn call<M: Clone, A, F>(
        &self,
        options: CallOptions,
        message: M,
        call: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + options.deadline.min(options.time_left);
        let mut last = Status::deadline_exceeded("the deadline had passed before the service was called");
        let mut backoff = backoff(RETRY_FIRST, RETRY_LONGEST);
        for attempt in 0..TRIES_MAX {
            // A caller that does not wait any more costs the others no retry.
            if attempt > 0 {
                if deadline <= Instant::now() || !self.retries.withdraw() {
                    break;
                }
                drop(timeout_at(deadline, backoff.next_backoff()).await);
            }
            let left = deadline.saturating_duration_since(Instant::now()).min(options.deadline / 2);
            if left.is_zero() {
                break;
            }
            let is_cut = left < options.deadline / 2;
            let try_ends = Instant::now() + left;
            let Some(replica) = self.replicas.next(left).await else {
                last = Status::unavailable(NO_REPLICA);
                continue;
            };
            let left = try_ends.saturating_duration_since(Instant::now());
            let mut request =
                Request::from_parts(options.metadata.clone(), Extensions::default(), message.clone());
            request.set_timeout(left);
            let tried = timeout(left, call(replica.channel(), request)).await;
            let status = match tried.unwrap_or_else(|_| Err(Status::from_error(Box::new(TimeoutExpired(())))))
            {
                Ok(answer) => {
                    replica.answered();
                    self.retries.deposit();
                    return Ok(answer.into_inner());
                }
                Err(status) => status,
            };
            match judge(&status, is_cut, options.is_own) {
                Tried::Refused => {
                    replica.answered();
                    self.retries.deposit();
                    return Err(status);
                }
                Tried::OutOfTime => return Err(status),
                Tried::Outdated => {
                    replica.answered();
                    last = status;
                }
                Tried::Failed => {
                    replica.failed();
                    last = status;
                }
            }
        }
        Err(last)
    }
}

/// What a try without an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// It was answered with a refusal.
    Refused,
    /// The caller gave it less time than a try may take. That says nothing about the replica, and the others pay no retry
    /// for it.
    OutOfTime,
    /// The replica serves, and what it knew was outdated; the same request may be answered now.
    Outdated,
    /// The replica failed; another may not.
    Failed,
}

/// `is_cut`: the caller's deadline comes before the end of the try. `is_own`: the call is made as this program.
pub(crate) fn judge(status: &Status, is_cut: bool, is_own: bool) -> Tried {
    let reason = Refusal::of(status).map(|refusal| refusal.reason);
    let is_late = is_timer(status) || reason == Some(ErrorReason::DeadlinePassed);
    let has_failed = match (status.code(), reason) {
        (Code::Aborted, Some(ErrorReason::AnswerOutdated)) => return Tried::Outdated,
        (Code::Unavailable, _) => true,
        // One replica has no room; another may have.
        (Code::ResourceExhausted, Some(ErrorReason::Overloaded)) => true,
        (Code::ResourceExhausted, Some(ErrorReason::TenantOverloaded)) => is_own,
        // From a service they mean something else; only what happened here has a source: we were late, or the
        // connection ended before the call was sent, or in the middle of it.
        (Code::Cancelled | Code::Unknown | Code::Internal, _) => status.source().is_some(),
        _ => false,
    };
    match has_failed {
        true if is_cut && is_late => Tried::OutOfTime,
        true => Tried::Failed,
        false => Tried::Refused,
    }
}

/// Whether a timer of this process ended the call.
fn is_timer(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tonic::transport::Endpoint;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    /// A client whose channel leads nowhere: the calls of the tests do not use it.
    fn client() -> Client {
        Client::new(Replicas::of([Endpoint::from_static("http://127.0.0.1:1").connect_lazy()]))
    }

    fn options() -> CallOptions {
        let mut metadata = MetadataMap::new();
        metadata.insert("x-call-id", "7".parse().unwrap());
        CallOptions::new(metadata, Duration::from_secs(1))
    }

    fn refused(code: Code, reason: &str, domain: &str) -> Status {
        Status::with_error_details(code, "", ErrorDetails::with_error_info(reason, domain, []))
    }

    /// Makes a call whose first tries end like this, and all others well. The answer is how often it was tried, and how it
    /// ended.
    async fn tries(client: &Client, ends: &[Status]) -> (u32, Result<(), Status>) {
        let tried = AtomicU32::new(0);
        let call = |_, request: Request<()>| {
            assert_eq!(request.metadata().get("x-call-id").unwrap(), "7");
            assert!(request.metadata().contains_key("grpc-timeout"));
            let end = ends.get(tried.fetch_add(1, Ordering::Relaxed) as usize).cloned();
            async move { end.map_or(Ok(Response::new(())), Err) }
        };
        let ended = client.call(options(), (), call).await;
        (tried.into_inner(), ended)
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_pass_by_itself_is_tried_again() {
        let away = Status::unavailable("connection refused");
        let of = |code, reason| refused(code, reason, "order-svc");
        for (end, expected) in [
            (away.clone(), 2),
            (of(Code::Unavailable, "GATE_UNAVAILABLE"), 2),
            (of(Code::ResourceExhausted, "OVERLOADED"), 2),
            (of(Code::Aborted, "ANSWER_OUTDATED"), 2),
            (of(Code::Aborted, "ETAG_STALE"), 1),
            (of(Code::ResourceExhausted, "MESSAGE_TOO_LARGE"), 1),
            (of(Code::FailedPrecondition, "AGREEMENT_REQUIRED"), 1),
            (of(Code::InvalidArgument, "INVALID_FIELDS"), 1),
            (of(Code::Internal, "INTERNAL"), 1),
        ] {
            let (tried, ended) = tries(&client(), std::slice::from_ref(&end)).await;
            assert_eq!((tried, ended.is_ok()), (expected, expected == 2), "{end}");
        }
        let (tried, ended) = tries(&client(), &[away.clone(), away.clone(), away]).await;
        assert_eq!((tried, ended.unwrap_err().message()), (TRIES_MAX, "connection refused"));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_end_with_their_budget() {
        let client = client();
        let away = [(); 3].map(|()| Status::unavailable("connection refused"));
        let mut all = 0;
        for _ in 0..100 {
            all += tries(&client, &away).await.0;
        }
        let budget = BUDGET_PER_SECOND * 10;
        assert!((100 + budget / 2..=100 + budget).contains(&all), "{all} tries of 100 calls");
        assert_eq!(tries(&client, &away).await.0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn all_tries_share_one_deadline() {
        let (began, tried) = (Instant::now(), AtomicU32::new(0));
        let call = |_, _: Request<()>| {
            tried.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<Response<()>, Status>>()
        };
        assert!(client().call(options(), (), call).await.is_err());
        assert_eq!(tried.into_inner(), 2, "one try takes half of it");
        let took = began.elapsed();
        assert!((990..1010).contains(&took.as_millis()), "{took:?}");
    }

    #[test]
    fn own_failures_differ_from_a_services_answers() {
        let judged = |status: &Status| judge(status, false, true);
        assert_eq!(judged(&Status::from_error(Box::new(TimeoutExpired(())))), Tried::Failed);
        for code in [Code::Cancelled, Code::Unknown, Code::Internal] {
            assert_eq!(judged(&Status::new(code, "Timeout expired")), Tried::Refused, "{code:?}");
            let mut ended = Status::new(code, "the connection ended");
            ended.set_source(Arc::new(std::io::Error::other("closed")));
            assert_eq!(judged(&ended), Tried::Failed, "{code:?}");
            assert_eq!(judge(&ended, true, true), Tried::Failed, "{code:?}");
        }
    }

    /// A caller in a hurry opens no circuit and costs the others no retry, nor does one that is over its own share.
    #[test]
    fn a_replica_is_not_blamed_for_its_callers() {
        let timer = Status::from_error(Box::new(TimeoutExpired(())));
        let late = refused(Code::Unavailable, "DEADLINE_PASSED", "agreement-svc");
        let overloaded = refused(Code::ResourceExhausted, "OVERLOADED", "agreement-svc");
        let tenant = refused(Code::ResourceExhausted, "TENANT_OVERLOADED", "order-svc");
        let outdated = refused(Code::Aborted, "ANSWER_OUTDATED", "order-svc");
        let stale = refused(Code::Aborted, "ETAG_STALE", "order-svc");
        let too_large = refused(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", "order-svc");
        let by_proxy = refused(Code::ResourceExhausted, "OVERLOADED", "proxy.example");
        let away = Status::unavailable("connection refused");
        use Tried::{Failed, OutOfTime, Outdated, Refused};
        // as this program with time, cut short, as the caller with time
        for (status, expected) in [
            (&timer, [Failed, OutOfTime, Failed]),
            (&late, [Failed, OutOfTime, Failed]),
            (&away, [Failed, Failed, Failed]),
            (&overloaded, [Failed, Failed, Failed]),
            (&tenant, [Failed, Failed, Refused]),
            (&outdated, [Outdated, Outdated, Outdated]),
            (&stale, [Refused, Refused, Refused]),
            (&too_large, [Refused, Refused, Refused]),
            (&by_proxy, [Refused, Refused, Refused]),
        ] {
            let judged = [(false, true), (true, true), (false, false)]
                .map(|(is_cut, is_own)| judge(status, is_cut, is_own));
            assert_eq!(judged, expected, "{status}");
        }
    }
}
