//! The neighbour: agreement-svc, asked over gRPC. Its answer becomes a fact, or it becomes
//! "unknown", which is a refusal (I8).

pub(crate) mod history;

use std::time::{Duration, Instant};

use chassis::auth::{Caller, Channel as CallerChannel, Role, TenantKind};
use chassis::backoff;
use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chrono::DateTime;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::{
    AgreementDemand, CheckEligibilityRequest, CheckEligibilityResponse, PartnerRole, ReportPurchaseRequest,
};
use proto::types;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::rules::gate::{
    AgreementType, Answer, Decision, Evidence, EvidenceKind, Operation, Permit, Reason, Remedy, Rule, Verdict,
};
use crate::rules::order::{Parties, PurchaseReport};

/// Tries for one question. More would only add to the load of a neighbour in trouble.
const ATTEMPTS_MAX: u32 = 3;

/// Waits between tries, before jitter: the first, and the longest.
const RETRY_BASE: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// A dead connection is noticed after the interval and the timeout together, also while idle;
/// without this a channel stays dead after a network partition.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How order-svc identifies itself where identities are trusted by their word.
const SERVICE_ID: Uuid = uuid::uuid!("0de05dc0-0000-7000-8000-000000000001");

/// Reporting a purchase is not waited for by anybody, so it may take longer than the gate.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);

/// A question to the gate.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub parties: Parties,
    pub operation: Operation,
    pub demands: Vec<Vec<AgreementType>>,
    /// The user for whom it is asked.
    pub caller: Caller,
    /// The id under which both services log.
    pub call_id: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Payer, customer and reseller do not belong together (GATE-0).
    NotTogether,
    /// GATE-0.
    PayerIsReseller,
    /// Anything else: away, slow, broken, or talking nonsense. For the log.
    Unknown(String),
}

/// The client of agreement-svc. Clones share its connection.
#[derive(Clone)]
pub(crate) struct Agreements {
    channel: Channel,
    gate: EligibilityServiceClient<Channel>,
    deadline: Duration,
    clock: Clock,
}

impl Agreements {
    /// A client that connects when first used and again whenever the connection is lost.
    ///
    /// # Errors
    /// An address that is none.
    pub(crate) fn new(address: &str, deadline: Duration, clock: Clock) -> Result<Self, String> {
        let wrong = || format!("--agreements {address} must have the form http://HOST:PORT");
        let uri: Uri = address.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("http") || uri.port().is_none() {
            return Err(wrong());
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(deadline)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_lazy();
        Ok(Self { gate: EligibilityServiceClient::new(channel.clone()), channel, deadline, clock })
    }

    /// Asks the gate, for no longer than the deadline or the caller's patience, retries included.
    ///
    /// # Errors
    /// [`NoAnswer`]; only its first two cases are words of the neighbour.
    pub(crate) async fn check(&self, ask: &Ask, patience: Duration) -> Result<Answer, NoAnswer> {
        let give_up = Instant::now() + self.deadline.min(patience);
        let mut last = String::from("the deadline had passed before it was asked");
        for attempt in 0..ATTEMPTS_MAX {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let asked_at = self.clock.now();
            let request = self.request(ask.message(), &ask.call_id, left);
            match tokio::time::timeout(left, self.gate.clone().check_eligibility(request)).await {
                Ok(Ok(answer)) => return read_answer(ask, asked_at, answer.into_inner()),
                Ok(Err(status)) => match status.code() {
                    Code::NotFound if has_reason(&status, types::ErrorReason::ResourceNotFound) => {
                        return Err(NoAnswer::NotTogether);
                    }
                    Code::InvalidArgument if has_reason(&status, types::ErrorReason::PayerIsReseller) => {
                        return Err(NoAnswer::PayerIsReseller);
                    }
                    // tonic reports its own time-out as CANCELLED.
                    Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => last = status.to_string(),
                    _ => return Err(NoAnswer::Unknown(status.to_string())),
                },
                Err(_) => return Err(NoAnswer::Unknown("it did not answer in time".into())),
            }
            let pause = backoff::wait(attempt, RETRY_BASE, RETRY_MAX);
            tokio::time::sleep(pause.min(give_up.saturating_duration_since(Instant::now()))).await;
        }
        Err(NoAnswer::Unknown(last))
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
        let request = self.request(message, &report.order_id.to_string(), REPORT_DEADLINE);
        let late = |_| Status::unavailable("it did not answer in time");
        tokio::time::timeout(REPORT_DEADLINE, self.gate.clone().report_purchase(request))
            .await
            .map_err(late)??;
        Ok(())
    }

    fn request<M>(&self, message: M, call_id: &str, deadline: Duration) -> Request<M> {
        let mut request = self.own_request(message, call_id);
        request.set_timeout(deadline);
        request
    }

    /// A request of order-svc itself, without a deadline.
    fn own_request<M>(&self, message: M, call_id: &str) -> Request<M> {
        let mut request = Request::new(message);
        let service = Caller {
            tenant_kind: TenantKind::Service,
            tenant_id: SERVICE_ID,
            user_id: SERVICE_ID,
            roles: vec![],
            channel: CallerChannel::Api,
        };
        service.present(request.metadata_mut());
        if let Ok(call_id) = MetadataValue::try_from(call_id) {
            request.metadata_mut().insert("x-call-id", call_id);
        }
        request
    }
}

impl Ask {
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
        let role = |role: &Role| match role {
            Role::AdminAgent => PartnerRole::AdminAgent,
            Role::SalesAgent => PartnerRole::SalesAgent,
            Role::HelpdeskAgent => PartnerRole::HelpdeskAgent,
            Role::GlobalAdmin => PartnerRole::GlobalAdmin,
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
            at_least_revision: 0,
            acting_partner_id: self.caller.tenant_id.to_string(),
            acting_roles: self.caller.roles.iter().map(|r| role(r).into()).collect(),
            as_of: None,
        }
    }
}

fn agreement_type(of: AgreementType) -> types::AgreementType {
    match of {
        AgreementType::MicrosoftCloudAgreement => types::AgreementType::MicrosoftCloudAgreement,
        AgreementType::MicrosoftCustomerAgreement => types::AgreementType::MicrosoftCustomerAgreement,
    }
}

fn has_reason(status: &Status, reason: types::ErrorReason) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == reason.name())
}

/// Reads an answer to a question; whatever does not fit together makes it unknown.
fn read_answer(ask: &Ask, asked_at: Time, answer: CheckEligibilityResponse) -> Result<Answer, NoAnswer> {
    let nonsense = |what: &str| NoAnswer::Unknown(format!("its answer makes no sense: {what}"));
    if answer.customer_id != ask.parties.customer_id.to_string()
        || answer.payer_id != ask.parties.payer_id.to_string()
    {
        return Err(nonsense("it is about somebody else"));
    }
    let is_country = answer.customer_country.len() == 2;
    if !is_country || answer.revision < 0 {
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
fn read_permit(ask: &Ask, answer: &CheckEligibilityResponse, evaluated_at: Time) -> Option<Permit> {
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
