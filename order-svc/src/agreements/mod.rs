//! The client of agreement-svc: failover among its replicas, retries within a budget, deadlines. An answer becomes a
//! fact, or it becomes "unknown", which is a refusal (I8).

pub(crate) mod attest;
pub(crate) mod events;
pub(crate) mod gate;
pub(crate) mod identity;
pub(crate) mod lookup;
mod partner;
pub(crate) mod renewal;
pub(crate) mod replicas;
pub(crate) mod withdrawal;

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::auth::Credentials;
use chassis::backoff;
use chassis::clock::Clock;
use chassis::form::timestamp;
use chassis::metrics::Metrics;
use chassis::telemetry::trace::Traced;
use chrono::TimeDelta;
use proto::agreement::ReportPurchaseRequest;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::types::ErrorReason;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, TimeoutExpired};
use tonic_types::StatusExt;
use tower::retry::budget::{Budget, TpsBudget};

use crate::rules::order::PurchaseReport;
use identity::ServiceIdentity;
use replicas::Replicas;

/// `ErrorInfo.domain` of agreement-svc's refusals.
pub(crate) const DOMAIN: &str = "agreement-svc";

/// No address in `--agreements` is an IP address, and none of the names has led to a connection yet.
const NO_REPLICA: &str = "no name in --agreements leads to a replica that can be reached";

/// Attempts for one call. More would only add to the load of an agreement-svc in trouble.
const TRIES_MAX: u32 = 3;

/// Backoff between attempts, before jitter: the first, and the longest.
const RETRY_BASE: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// The retry budget of the process: in any ten seconds its calls may retry this often for each second, and once
/// for every five calls that were answered. So retries do not triple the load of an agreement-svc in trouble, and
/// all calls are retried when it restarts.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
const BUDGET_PER_SECOND: u32 = 5;
const BUDGET_OF_ANSWERED: f32 = 0.2;

/// No caller waits for the report of a purchase, so it may take longer than the gate.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);

/// The client of agreement-svc. Clones share its connection and its retries.
#[derive(Clone)]
pub(crate) struct AgreementClient {
    own: ServiceIdentity,
    replicas: Replicas,
    deadline: Duration,
    retries: Arc<TpsBudget>,
    clock: Clock,
    /// How far agreement-svc's clock and ours may be apart.
    clock_difference_max: TimeDelta,
}

/// The options of a call.
struct CallOptions<'a> {
    /// As whom.
    identity: &'a Credentials,
    /// Whether that is this service, and not its caller, which may be over its own share of agreement-svc.
    is_own: bool,
    /// The id under which both services log.
    call_id: &'a str,
    /// How long it may take, with all its tries.
    deadline: Duration,
    /// How long the caller still waits for it.
    time_left: Duration,
}

impl AgreementClient {
    pub(crate) fn new(
        replicas: Replicas,
        own: ServiceIdentity,
        deadline: Duration,
        clock: Clock,
        clock_difference_max: TimeDelta,
    ) -> Self {
        let retries = TpsBudget::new(BUDGET_WINDOW, BUDGET_PER_SECOND, BUDGET_OF_ANSWERED);
        Self { own, replicas, deadline, retries: Arc::new(retries), clock, clock_difference_max }
    }

    /// How long a caller with so much time left waits for an answer.
    pub(crate) fn time_for(&self, time_left: Duration) -> Duration {
        self.deadline.min(time_left)
    }

    /// Registers the metrics of the replicas, and of this process's token and certificates.
    ///
    /// # Errors
    /// They are registered already.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) -> Result<(), prometheus::Error> {
        self.own.register_metrics(metrics);
        self.replicas.register_metrics(metrics)
    }

    /// Reports a customer's first purchase. Reporting again under the same order is safe.
    ///
    /// # Errors
    /// What kept it from being taken.
    pub(crate) async fn report_purchase(&self, report: &PurchaseReport) -> Result<(), Status> {
        let message = ReportPurchaseRequest {
            request_id: report.order_id.to_string(),
            customer_id: report.customer_id.to_string(),
            payer_id: report.payer_id.to_string(),
            purchased_at: Some(timestamp(report.purchased_at)),
            validate_only: false,
        };
        let own = self.own.credentials();
        let options = CallOptions {
            identity: &own,
            is_own: true,
            call_id: &report.order_id.to_string(),
            deadline: REPORT_DEADLINE,
            time_left: REPORT_DEADLINE,
        };
        let call = |channel, request| {
            let mut gate = EligibilityServiceClient::new(channel);
            async move { gate.report_purchase(request).await }
        };
        self.call_with_failover(options, message, call).await.inspect_err(log_if_unauthenticated).map(drop)
    }

    /// Makes a call until it is answered; only for calls that may be made twice, since they read or carry a
    /// request id. One try takes at most half of the deadline, so that a lost one leaves time for another.
    ///
    /// # Errors
    /// The refusal, or how the last try ended.
    async fn call_with_failover<M: Clone, A, F>(
        &self,
        options: CallOptions<'_>,
        message: M,
        call: impl Fn(Traced<Channel>, Request<M>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + options.deadline.min(options.time_left);
        let mut last = Status::deadline_exceeded("the deadline had passed before agreement-svc was called");
        for attempt in 0..TRIES_MAX {
            // A caller that does not wait any more costs the others no retry.
            if attempt > 0 {
                if deadline <= Instant::now() || !self.retries.withdraw() {
                    break;
                }
                let pause = backoff::wait(attempt - 1, RETRY_BASE, RETRY_MAX);
                tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
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
            let mut request = request_as(options.identity, message.clone(), options.call_id);
            request.set_timeout(left);
            let tried = tokio::time::timeout(left, call(replica.channel(), request)).await;
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
                Tried::Failed => {
                    replica.failed();
                    last = status;
                }
            }
        }
        Err(last)
    }
}

/// A request with an identity and a call id, without a deadline.
fn request_as<M>(identity: &Credentials, message: M, call_id: &str) -> Request<M> {
    let mut request = Request::new(message);
    identity.present(request.metadata_mut());
    if let Ok(call_id) = MetadataValue::try_from(call_id) {
        request.metadata_mut().insert("x-call-id", call_id);
    }
    request
}

/// Logs that agreement-svc refuses the identity of this service; no answer to a caller shows it.
fn log_if_unauthenticated(status: &Status) {
    if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
        let why = status.message();
        tracing::error!(
            why,
            "agreement-svc refuses this service's identity; put a valid token into --service-token"
        );
    }
}

/// What a try without an answer says.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    /// It was answered with a refusal.
    Refused,
    /// The caller gave it less time than the gate may take. That says nothing about the replica, and the others pay no retry
    /// for it.
    OutOfTime,
    /// The replica failed; another may not.
    Failed,
}

/// `is_cut`: the caller's deadline comes before the end of the try. `is_own`: the call is made as this service.
fn judge(status: &Status, is_cut: bool, is_own: bool) -> Tried {
    let reason = reason_of(status);
    let is_late = is_timer(status) || reason == Some(ErrorReason::DeadlinePassed);
    let has_failed = match (status.code(), reason) {
        (Code::Unavailable, _) => true,
        // One replica has no room; another may have.
        (Code::ResourceExhausted, Some(ErrorReason::Overloaded)) => true,
        (Code::ResourceExhausted, Some(ErrorReason::TenantOverloaded)) => is_own,
        // From agreement-svc they mean something else; only what happened here has a source: we were late, or the
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

/// The reason of a refusal, if it is agreement-svc that refused.
fn reason_of(status: &Status) -> Option<ErrorReason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn own_failures_differ_from_agreement_svcs_answers() {
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
        let refused = |code, reason: &str, domain: &str| {
            Status::with_error_details(code, "", ErrorDetails::with_error_info(reason, domain, []))
        };
        let timer = Status::from_error(Box::new(TimeoutExpired(())));
        let late = refused(Code::Unavailable, "DEADLINE_PASSED", DOMAIN);
        let overloaded = refused(Code::ResourceExhausted, "OVERLOADED", DOMAIN);
        let tenant = refused(Code::ResourceExhausted, "TENANT_OVERLOADED", DOMAIN);
        let by_proxy = refused(Code::ResourceExhausted, "OVERLOADED", "proxy.example");
        let away = Status::unavailable("connection refused");
        use Tried::{Failed, OutOfTime, Refused};
        // as this service with time, cut short, as the caller with time
        for (status, expected) in [
            (&timer, [Failed, OutOfTime, Failed]),
            (&late, [Failed, OutOfTime, Failed]),
            (&away, [Failed, Failed, Failed]),
            (&overloaded, [Failed, Failed, Failed]),
            (&tenant, [Failed, Failed, Refused]),
            (&by_proxy, [Refused, Refused, Refused]),
        ] {
            let judged = [(false, true), (true, true), (false, false)]
                .map(|(is_cut, is_own)| judge(status, is_cut, is_own));
            assert_eq!(judged, expected, "{status}");
        }
    }
}
