//! The neighbour: agreement-svc, asked over gRPC. Its answer becomes a fact, or it becomes
//! "unknown", which is a refusal (I8).

pub(crate) mod history;
pub(crate) mod replicas;

use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::auth::{Auth, Bearer, Caller, Channel as CallerChannel, Credentials};
use chassis::backoff;
use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chassis::metrics::Metrics;
use chassis::reload::Watched;
use chassis::telemetry::trace::Traced;
use chrono::DateTime;
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::{
    AgreementDemand, AssumedAttestation, CheckEligibilityRequest, CheckEligibilityResponse,
    CreateAttestationRequest, CreateAttestationResponse, PartnerRole, ReportPurchaseRequest,
};
use proto::identity::{Role, TenantKind};
use proto::types::{self, ErrorReason};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;
use tower::retry::budget::{Budget, TpsBudget};
use uuid::Uuid;

use crate::rules::gate::{
    AgreementType, Answer, Decision, Evidence, EvidenceKind, Operation, Permit, Reason, Rehearsal, Remedy,
    Rule, Verdict,
};
use crate::rules::order::{Parties, PurchaseReport};
use replicas::Replicas;

/// `ErrorInfo.domain` of what the neighbour refuses.
pub(crate) const DOMAIN: &str = "agreement-svc";

/// Tries for one question. More would only add to the load of a neighbour in trouble.
const TRIES_MAX: u32 = 3;

/// Waits between tries, before jitter: the first, and the longest.
const RETRY_BASE: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// What all calls of the process together may try again, in any ten seconds: this many for each of them,
/// and one for every five calls that were answered. So a neighbour in trouble is not asked three times as
/// much, and one that restarts is asked again by everybody.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
const BUDGET_PER_SECOND: u32 = 5;
const BUDGET_OF_ANSWERED: f32 = 0.2;

/// How order-svc identifies itself where identities are trusted by their word.
const SERVICE_ID: Uuid = uuid::uuid!("0de05dc0-0000-7000-8000-000000000001");

/// Reporting a purchase is not waited for by anybody, so it may take longer than the gate.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);

/// What CreateAttestation may say no with, and what it means for whoever orders. ALREADY_ATTESTED is not
/// among them: then there is nothing to do.
const REFUSALS: [(ErrorReason, Code); 9] = [
    (ErrorReason::InvalidFields, Code::InvalidArgument),
    (ErrorReason::RequestIdReused, Code::InvalidArgument),
    (ErrorReason::IdentityRequired, Code::Unauthenticated),
    (ErrorReason::RoleNotAllowed, Code::PermissionDenied),
    (ErrorReason::ResourceNotFound, Code::NotFound),
    (ErrorReason::ResellerCannotAttest, Code::PermissionDenied),
    (ErrorReason::CloudNotSupported, Code::FailedPrecondition),
    (ErrorReason::TemplateRetired, Code::FailedPrecondition),
    (ErrorReason::OlderThanCurrent, Code::FailedPrecondition),
];

/// A question to the gate.
#[derive(Clone, Debug)]
pub(crate) struct GateQuery {
    pub parties: Parties,
    pub operation: Operation,
    pub demands: Vec<Vec<AgreementType>>,
    /// The answer must know of everything up to this revision; 0 is any.
    pub at_least_revision: i64,
    /// The user for whom it is asked.
    pub caller: Caller,
    /// The id under which both services log.
    pub call_id: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GateError {
    /// Payer, customer and reseller do not belong together (GATE-0).
    NotTogether,
    /// GATE-0.
    PayerIsReseller,
    /// Anything else: away, slow, broken, or talking nonsense. For the log.
    Unknown(String),
}

/// An attestation as it was stored, or as it would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attested {
    pub id: Uuid,
    pub template_id: Uuid,
    pub template_version: u32,
    /// The revision that stored it.
    pub revision: i64,
}

/// Why nothing is known to be attested.
#[derive(Debug)]
pub(crate) enum NotAttested {
    /// The neighbour's own refusal.
    Refused(Status),
    /// Anything else. For the log.
    Unknown(String),
}

/// How this service identifies itself to the neighbour.
#[derive(Clone)]
pub(crate) enum ServiceIdentity {
    /// By its word, where that is believed.
    Metadata,
    /// By a token of its own.
    Token(Watched<Bearer>),
}

impl ServiceIdentity {
    /// Reads the token, on a runtime that looks at it from then on.
    ///
    /// # Errors
    /// A token that is missing, of no use, or cannot be read.
    pub(crate) fn open(auth: Auth, token: Option<&Path>) -> Result<Self, String> {
        match (auth, token) {
            (Auth::Insecure, None) => Ok(Self::Metadata),
            (Auth::Insecure, Some(_)) => {
                Err("--auth insecure presents no token; leave --service-token out, or use --auth jwt".into())
            }
            (Auth::Jwt, None) => Err("--auth jwt needs --service-token".into()),
            (Auth::Jwt, Some(file)) => {
                let token = Watched::open(vec![file.to_owned()], |contents| Bearer::read(&contents[0]));
                token.map(Self::Token).map_err(|why| format!("--service-token {why}"))
            }
        }
    }

    /// Has the token told of, where there is one.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        if let Self::Token(token) = self {
            metrics.register_files("service-token", token, |token| {
                token.validity("service-token").into_iter().collect()
            });
        }
    }

    fn credentials(&self) -> Credentials {
        match self {
            Self::Metadata => Credentials::Metadata(service()),
            Self::Token(token) => Credentials::Token(Bearer::clone(&token.now())),
        }
    }
}

/// The client of agreement-svc. Clones share its connection and its retries.
#[derive(Clone)]
pub(crate) struct Agreements {
    own: ServiceIdentity,
    replicas: Replicas,
    deadline: Duration,
    retries: Arc<TpsBudget>,
    clock: Clock,
}

/// On what terms a call is made.
struct CallOptions<'a> {
    /// As whom.
    identity: &'a Credentials,
    /// The id under which both services log.
    call_id: &'a str,
    /// How long it may take, with all its tries.
    deadline: Duration,
    /// How long whoever waits for it still does.
    time_left: Duration,
}

impl Agreements {
    pub(crate) fn new(replicas: Replicas, own: ServiceIdentity, deadline: Duration, clock: Clock) -> Self {
        let retries = TpsBudget::new(BUDGET_WINDOW, BUDGET_PER_SECOND, BUDGET_OF_ANSWERED);
        Self { own, replicas, deadline, retries: Arc::new(retries), clock }
    }

    /// Has everything told of by which the neighbour and this process believe each other.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        self.own.register_metrics(metrics);
        self.replicas.register_metrics(metrics);
    }

    /// Asks the gate, for no longer than the deadline or the caller's time_left, retries included.
    ///
    /// # Errors
    /// [`GateError`]; only its first two cases are words of the neighbour.
    pub(crate) async fn check(&self, ask: &GateQuery, time_left: Duration) -> Result<Answer, GateError> {
        self.question(ask, ask.message(), time_left).await
    }

    /// Asks the gate what it would answer, on the assumption of an attestation where one is given.
    ///
    /// # Errors
    /// As [`Agreements::check`].
    pub(crate) async fn rehearse(
        &self,
        ask: &GateQuery,
        assumed: Option<&Attested>,
        time_left: Duration,
    ) -> Result<Rehearsal, GateError> {
        let assumed_attestation = assumed.map(|attested| AssumedAttestation {
            attestation_id: attested.id.to_string(),
            template_id: attested.template_id.to_string(),
            template_version: attested.template_version,
        });
        let message = CheckEligibilityRequest { assumed_attestation, ..ask.message() };
        self.question(ask, message, time_left).await.map(Rehearsal::new)
    }

    async fn question(
        &self,
        ask: &GateQuery,
        message: CheckEligibilityRequest,
        time_left: Duration,
    ) -> Result<Answer, GateError> {
        let own = self.own.credentials();
        let terms = CallOptions { identity: &own, call_id: &ask.call_id, deadline: self.deadline, time_left };
        let call = |channel, request| {
            let (mut gate, asked_at) = (EligibilityServiceClient::new(channel), self.clock.now());
            async move { Ok(gate.check_eligibility(request).await?.map(|answer| (asked_at, answer))) }
        };
        match self.call_with_failover(terms, message, call).await.inspect_err(log_if_unauthenticated) {
            Ok((asked_at, answer)) => read_answer(ask, asked_at, answer),
            Err(status) => Err(match (reason_of(&status), status.code()) {
                (Some(ErrorReason::ResourceNotFound), Code::NotFound) => GateError::NotTogether,
                (Some(ErrorReason::PayerIsReseller), Code::InvalidArgument) => GateError::PayerIsReseller,
                _ => GateError::Unknown(status.to_string()),
            }),
        }
    }

    /// Attests with the caller's own identity, for as long as the gate may take. `None`: the current
    /// attestation says the same.
    ///
    /// # Errors
    /// [`NotAttested`].
    pub(crate) async fn attest(
        &self,
        message: &CreateAttestationRequest,
        caller: &Caller,
        credentials: &Credentials,
        call_id: &str,
        time_left: Duration,
    ) -> Result<Option<Attested>, NotAttested> {
        let terms = CallOptions { identity: credentials, call_id, deadline: self.deadline, time_left };
        let call = |channel, request| {
            let mut attestations = AttestationServiceClient::new(channel);
            async move { attestations.create_attestation(request).await }
        };
        let status = match self.call_with_failover(terms, message.clone(), call).await {
            Ok(answer) => {
                let nonsense = || NotAttested::Unknown("its attestation makes no sense".into());
                return read_attested(message, caller, answer).map(Some).ok_or_else(nonsense);
            }
            Err(status) => status,
        };
        match (reason_of(&status), status.code()) {
            (Some(ErrorReason::AlreadyAttested), Code::AlreadyExists) => Ok(None),
            (Some(reason), code) if REFUSALS.contains(&(reason, code)) => Err(NotAttested::Refused(status)),
            _ => Err(NotAttested::Unknown(status.to_string())),
        }
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
        };
        let own = self.own.credentials();
        let terms = CallOptions {
            identity: &own,
            call_id: &report.order_id.to_string(),
            deadline: REPORT_DEADLINE,
            time_left: REPORT_DEADLINE,
        };
        let call = |channel, request| {
            let mut gate = EligibilityServiceClient::new(channel);
            async move { gate.report_purchase(request).await }
        };
        self.call_with_failover(terms, message, call).await.inspect_err(log_if_unauthenticated).map(drop)
    }

    /// Makes a call until it is answered; only for calls that may be made twice, since they read or carry a
    /// request id. One try takes at most half of the deadline, so that a lost one leaves time for another.
    ///
    /// # Errors
    /// The refusal, or how the last try ended.
    async fn call_with_failover<M: Clone, A, F>(
        &self,
        terms: CallOptions<'_>,
        message: M,
        call: impl Fn(Traced<Channel>, Request<M>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let give_up = Instant::now() + terms.deadline.min(terms.time_left);
        let mut last = Status::deadline_exceeded("the deadline had passed before it was asked");
        for attempt in 0..TRIES_MAX {
            if attempt > 0 {
                if !self.retries.withdraw() {
                    break;
                }
                let pause = backoff::wait(attempt - 1, RETRY_BASE, RETRY_MAX);
                tokio::time::sleep(pause.min(give_up.saturating_duration_since(Instant::now()))).await;
            }
            let left = give_up.saturating_duration_since(Instant::now()).min(terms.deadline / 2);
            if left.is_zero() {
                break;
            }
            let mut request = request_as(terms.identity, message.clone(), terms.call_id);
            request.set_timeout(left);
            let replica = self.replicas.next();
            match tokio::time::timeout(left, call(replica.channel(), request)).await {
                Err(_) => {
                    replica.failed();
                    last = Status::deadline_exceeded("it did not answer in time");
                }
                Ok(Err(status)) if is_retryable(&status) => {
                    replica.failed();
                    last = status;
                }
                Ok(answered) => {
                    replica.answered();
                    self.retries.deposit();
                    return answered.map(Response::into_inner);
                }
            }
        }
        Err(last)
    }
}

/// A request as somebody, without a deadline.
fn request_as<M>(identity: &Credentials, message: M, call_id: &str) -> Request<M> {
    let mut request = Request::new(message);
    identity.present(request.metadata_mut());
    if let Ok(call_id) = MetadataValue::try_from(call_id) {
        request.metadata_mut().insert("x-call-id", call_id);
    }
    request
}

/// Whether the neighbour refuses who this service is shows in no answer to a caller, so the log says it.
fn log_if_unauthenticated(status: &Status) {
    if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
        let why = status.message();
        tracing::error!(
            why,
            "agreement-svc refuses this service's identity; put a valid token into --service-token"
        );
    }
}

/// order-svc itself, by its word.
fn service() -> Caller {
    Caller {
        tenant_kind: TenantKind::Service.into_str(),
        tenant_id: SERVICE_ID,
        user_id: SERVICE_ID,
        roles: vec![],
        channel: CallerChannel::Api,
    }
}

fn is_retryable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        // From the neighbour they mean something else; only what happened here has a source: we were late, or the
        // connection ended before the call was sent, or in the middle of it.
        Code::Cancelled | Code::Unknown | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

/// The reason of a refusal by the neighbour, and by nobody else.
fn reason_of(status: &Status) -> Option<ErrorReason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
}

/// Reads what was attested, if it is what was asked for.
fn read_attested(
    asked: &CreateAttestationRequest,
    caller: &Caller,
    answer: CreateAttestationResponse,
) -> Option<Attested> {
    let attestation = answer.attestation?;
    let is_as_asked = attestation.customer_id == asked.customer_id
        && attestation.template_id == asked.template_id
        && attestation.partner_id == caller.tenant_id.to_string();
    let attested = Attested {
        id: attestation.attestation_id.parse().ok()?,
        template_id: attestation.template_id.parse().ok()?,
        template_version: attestation.template_version,
        revision: answer.revision,
    };
    (is_as_asked && attested.template_version > 0 && attested.revision > 0).then_some(attested)
}

impl GateQuery {
    fn message(&self) -> CheckEligibilityRequest {
        let operation = match self.operation {
            Operation::NewPurchase => types::Operation::NewPurchase,
            Operation::SeatChange => types::Operation::SeatChange,
            Operation::ManualRenewal => types::Operation::ManualRenewal,
        };
        let channel = match self.caller.channel {
            CallerChannel::Dashboard => types::Channel::Dashboard,
            CallerChannel::Api => types::Channel::Api,
        };
        let role = |role: &&'static str| match role.parse().ok()? {
            Role::AdminAgent => Some(PartnerRole::AdminAgent),
            Role::SalesAgent => Some(PartnerRole::SalesAgent),
            Role::HelpdeskAgent => Some(PartnerRole::HelpdeskAgent),
            Role::GlobalAdmin => Some(PartnerRole::GlobalAdmin),
        };
        let demand = |types: &Vec<AgreementType>| AgreementDemand {
            agreement_types: types.iter().map(|t| agreement_type(*t).into()).collect(),
        };
        CheckEligibilityRequest {
            payer_id: self.parties.payer_id.to_string(),
            customer_id: self.parties.customer_id.to_string(),
            reseller_id: self.parties.reseller_id.map(|id| id.to_string()).unwrap_or_default(),
            operation: operation.into(),
            channel: channel.into(),
            demands: self.demands.iter().map(demand).collect(),
            at_least_revision: self.at_least_revision,
            acting_partner_id: self.caller.tenant_id.to_string(),
            acting_roles: self.caller.roles.iter().filter_map(role).map(Into::into).collect(),
            as_of: None,
            assumed_attestation: None,
        }
    }
}

fn agreement_type(of: AgreementType) -> types::AgreementType {
    match of {
        AgreementType::MicrosoftCloudAgreement => types::AgreementType::MicrosoftCloudAgreement,
        AgreementType::MicrosoftCustomerAgreement => types::AgreementType::MicrosoftCustomerAgreement,
    }
}

/// Reads an answer to a question; whatever does not fit together makes it unknown.
fn read_answer(
    ask: &GateQuery,
    asked_at: Time,
    answer: CheckEligibilityResponse,
) -> Result<Answer, GateError> {
    let nonsense = |what: &str| GateError::Unknown(format!("its answer makes no sense: {what}"));
    if answer.customer_id != ask.parties.customer_id.to_string()
        || answer.payer_id != ask.parties.payer_id.to_string()
    {
        return Err(nonsense("it is about somebody else"));
    }
    let is_country = answer.customer_country.len() == 2;
    if !is_country || answer.revision < ask.at_least_revision {
        return Err(nonsense("the customer's country or revision"));
    }
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time?;
        DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
    };
    let evaluated_at = time(answer.evaluated_at).ok_or_else(|| nonsense("no time of evaluation"))?;
    let valid_until = match answer.valid_until {
        None => None,
        some => Some(time(some).ok_or_else(|| nonsense("the time until it holds"))?),
    };
    let verdict = match types::Decision::try_from(answer.decision) {
        Ok(types::Decision::Blocked) => Verdict::Blocked {
            reasons: answer.reasons.iter().filter_map(|reason| read_reason(*reason)).collect(),
            remedies: answer.remedies.iter().filter_map(read_remedy).collect(),
        },
        Ok(types::Decision::Allowed | types::Decision::Exempt) => Verdict::Permitted(
            read_permit(ask, &answer, evaluated_at).ok_or_else(|| nonsense("decision, rule and evidence"))?,
        ),
        Ok(types::Decision::Unspecified) | Err(_) => return Err(nonsense("an unknown decision")),
    };
    Ok(Answer {
        customer_id: ask.parties.customer_id,
        customer_country: answer.customer_country,
        verdict,
        asked_at,
        valid_until,
    })
}

/// A yes whose decision, rule and evidence fit together, and the question.
fn read_permit(ask: &GateQuery, answer: &CheckEligibilityResponse, evaluated_at: Time) -> Option<Permit> {
    use types::{Decision as Said, GateRule};
    let evidence = match &answer.evidence {
        None => None,
        Some(evidence) => Some(read_evidence(evidence)?),
    };
    let kind = evidence.as_ref().map(|evidence| evidence.kind);
    let is_demanded = |of: AgreementType| ask.demands.iter().all(|demand| demand.contains(&of));
    if !evidence.as_ref().is_none_or(|evidence| is_demanded(evidence.agreement_type)) {
        return None;
    }
    let said = Said::try_from(answer.decision).ok()?;
    let (decision, rule) = match (said, GateRule::try_from(answer.rule).ok()?, kind) {
        (Said::Allowed, GateRule::NotYetMandatory, _) => (Decision::Allowed, Rule::NotYetMandatory),
        (Said::Allowed, GateRule::DirectSignature, Some(EvidenceKind::DirectSignature)) => {
            (Decision::Allowed, Rule::DirectSignature)
        }
        (Said::Allowed, GateRule::Attestation, Some(EvidenceKind::Attestation)) => {
            (Decision::Allowed, Rule::Attestation)
        }
        (Said::Exempt, GateRule::OutsidePublicCloud, None) => {
            let cloud = types::Cloud::try_from(answer.customer_cloud).ok()?;
            let is_outside = !matches!(cloud, types::Cloud::Public | types::Cloud::Unspecified);
            is_outside.then_some((Decision::Exempt, Rule::OutsidePublicCloud))?
        }
        // An exemption for automatic renewal is never the answer to what is asked here (I5).
        _ => return None,
    };
    Some(Permit { decision, rule, evidence, revision: answer.revision, evaluated_at })
}

fn read_evidence(evidence: &types::Evidence) -> Option<Evidence> {
    Some(Evidence {
        kind: match types::AcceptanceKind::try_from(evidence.kind).ok()? {
            types::AcceptanceKind::Attestation => EvidenceKind::Attestation,
            types::AcceptanceKind::DirectSignature => EvidenceKind::DirectSignature,
            types::AcceptanceKind::Unspecified => return None,
        },
        acceptance_id: evidence.acceptance_id.parse().ok()?,
        template_id: evidence.template_id.parse().ok()?,
        template_version: evidence.template_version,
        agreement_type: match types::AgreementType::try_from(evidence.agreement_type).ok()? {
            types::AgreementType::MicrosoftCloudAgreement => AgreementType::MicrosoftCloudAgreement,
            types::AgreementType::MicrosoftCustomerAgreement => AgreementType::MicrosoftCustomerAgreement,
            types::AgreementType::Unspecified => return None,
        },
    })
}

fn read_reason(reason: i32) -> Option<Reason> {
    match types::BlockReason::try_from(reason).ok()? {
        types::BlockReason::NoAcceptance => Some(Reason::NoAcceptance),
        types::BlockReason::Withdrawn => Some(Reason::Withdrawn),
        types::BlockReason::VersionSuperseded => Some(Reason::VersionSuperseded),
        types::BlockReason::WrongAgreementType => Some(Reason::WrongAgreementType),
        types::BlockReason::Unspecified => None,
    }
}

fn read_remedy(remedy: &types::Remedy) -> Option<Remedy> {
    match types::RemedyKind::try_from(remedy.kind).ok()? {
        types::RemedyKind::Attest => Some(Remedy::Attest { template_id: remedy.template_id.parse().ok()? }),
        types::RemedyKind::AskProvider => {
            Some(Remedy::AskProvider { provider_id: remedy.provider_id.parse().ok()? })
        }
        types::RemedyKind::InviteCustomer => {
            Some(Remedy::InviteCustomer { template_id: remedy.template_id.parse().ok()? })
        }
        types::RemedyKind::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic::TimeoutExpired;

    use super::*;

    #[test]
    fn what_happened_here_is_told_from_what_the_neighbour_says() {
        let here = |code| Status::from_error(Box::new(code));
        assert!(is_retryable(&here(TimeoutExpired(()))));
        for code in [Code::Cancelled, Code::Unknown, Code::Internal] {
            assert!(!is_retryable(&Status::new(code, "Timeout expired")), "{code:?}");
            let mut ended = Status::new(code, "the connection ended");
            ended.set_source(Arc::new(std::io::Error::other("closed")));
            assert!(is_retryable(&ended), "{code:?}");
        }
    }
}
