//! The gate's wire: a query becomes a message, and an answer becomes a fact. An answer that does not fit together,
//! or that does not fit the query, is unknown.

use std::collections::BTreeSet;
use std::time::Duration;

use chassis::auth::{Caller, Channel};
use chassis::clock::Time;
use chassis::telemetry::trace::Traced;
use chrono::{DateTime, TimeDelta};
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::{
    AgreementDemand, AssumedAttestation, CheckEligibilityRequest, CheckEligibilityResponse, PartnerRole,
};
use proto::identity::Role;
use proto::types::{self, ErrorReason};
use tonic::{Code, Status};

use super::attest::Attested;
use super::{AgreementClient, log_if_unauthenticated, reason_of, refusal_of};
use crate::rules::gate::{
    ANSWER_AGE_MAX, AgreementType, Answer, Approval, Considered, Decision, DryRun, Evidence, EvidenceKind,
    Hindrance, Operation, Problem, Reason, Remedy, Rule, Verdict,
};
use crate::rules::offer::Offer;
use crate::rules::order::{Misnamed, Parties};
use crate::rules::relationship::parties_for;
use crate::rules::subscription::Subscription;

/// A query to the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Payer, customer and reseller do not belong together (GATE-0). It is said which of them is named wrongly, unless the
    /// caller does not see the customer.
    NoActiveRelationship(Option<Misnamed>),
    /// GATE-0.
    PayerIsReseller,
    /// Anything else: agreement-svc is unavailable, slow or broken, or its response is invalid. For the log.
    Unknown(String),
}

impl AgreementClient {
    /// Asks the gate, for no longer than the deadline or the caller's time_left, retries included.
    ///
    /// # Errors
    /// [`GateError`]; only its first two cases come from agreement-svc.
    pub(crate) async fn check(&self, query: &GateQuery, time_left: Duration) -> Result<Answer, GateError> {
        self.send(query, query.message(), time_left).await
    }

    /// Asks the gate what it would answer, on the assumption of an attestation where one is given: a dry run.
    ///
    /// # Errors
    /// As [`AgreementClient::check`].
    pub(crate) async fn dry_run(
        &self,
        query: &GateQuery,
        assumed: Option<&Attested>,
        time_left: Duration,
    ) -> Result<DryRun, GateError> {
        let assumed_attestation = assumed.map(|attested| AssumedAttestation {
            attestation_id: attested.id.to_string(),
            template_id: attested.template_id.to_string(),
            template_version: attested.template_version,
            agreed_at: attested.agreed_at,
        });
        let message = CheckEligibilityRequest { assumed_attestation, ..query.message() };
        let answer = self.send(query, message, time_left).await?;
        Ok(DryRun::new(answer, assumed.is_some()))
    }

    async fn send(
        &self,
        query: &GateQuery,
        message: CheckEligibilityRequest,
        time_left: Duration,
    ) -> Result<Answer, GateError> {
        let options = self.own_options(&query.call_id, self.deadline, time_left);
        let call = |channel, request| {
            let (mut gate, asked_at) = (EligibilityServiceClient::new(Traced(channel)), self.clock.now());
            async move { Ok(gate.check_eligibility(request).await?.map(|answer| (asked_at, answer))) }
        };
        match self.client.call(options, message, call).await.inspect_err(log_if_unauthenticated) {
            Ok((asked_at, answer)) => read_answer(query, asked_at, self.clock_difference_max, answer),
            Err(status) => Err(match (reason_of(&status), status.code()) {
                (Some(ErrorReason::ResourceNotFound), Code::NotFound) => {
                    GateError::NoActiveRelationship(read_misnamed(&status))
                }
                (Some(ErrorReason::PayerIsReseller), Code::InvalidArgument) => GateError::PayerIsReseller,
                _ => GateError::Unknown(status.to_string()),
            }),
        }
    }
}

impl GateQuery {
    /// About a change of a subscription, as a user asks for it.
    pub(crate) fn of_subscription(
        subscription: &Subscription,
        operation: Operation,
        offer: Option<&Offer>,
        caller: Caller,
        call_id: String,
    ) -> Self {
        let demanded = offer.map(|offer| offer.agreement_types.clone()).filter(|types| !types.is_empty());
        Self {
            parties: parties_for(caller.tenant_id, subscription),
            operation,
            demands: demanded.into_iter().collect(),
            at_least_revision: 0,
            caller,
            call_id,
        }
    }

    pub(super) fn message(&self) -> CheckEligibilityRequest {
        let operation = match self.operation {
            Operation::NewPurchase => types::Operation::NewPurchase,
            Operation::SeatChange => types::Operation::SeatChange,
            Operation::ManualRenewal => types::Operation::ManualRenewal,
        };
        let channel = match self.caller.channel {
            Channel::Dashboard => types::Channel::Dashboard,
            Channel::Api => types::Channel::Api,
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
            // An identity may name a role twice.
            acting_roles: self
                .caller
                .roles
                .iter()
                .filter_map(role)
                .map(Into::into)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
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

/// Which of the parties is named wrongly, if the refusal says it.
fn read_misnamed(refused: &Status) -> Option<Misnamed> {
    let metadata = refusal_of(refused)?.metadata;
    match metadata.get("field")?.as_str() {
        "payer_id" => Some(Misnamed::Payer { use_payer_id: metadata.get("use_payer_id")?.parse().ok()? }),
        "reseller_id" => Some(Misnamed::Reseller),
        _ => None,
    }
}

/// Reads the answer to a query; an answer with parts that do not fit together is unknown, and so is one that was given
/// at another time than now.
pub(super) fn read_answer(
    query: &GateQuery,
    asked_at: Time,
    clock_difference_max: TimeDelta,
    answer: CheckEligibilityResponse,
) -> Result<Answer, GateError> {
    let nonsense = |what: &str| GateError::Unknown(format!("its answer cannot be used: {what}"));
    if answer.customer_id != query.parties.customer_id.to_string()
        || answer.payer_id != query.parties.payer_id.to_string()
    {
        return Err(nonsense("it is about another customer or payer"));
    }
    let is_country = answer.customer_country.len() == 2;
    if !is_country || answer.revision < query.at_least_revision {
        return Err(nonsense("the customer's country or revision"));
    }
    let evaluated_at = read_time(answer.evaluated_at).ok_or_else(|| nonsense("no time of evaluation"))?;
    if (evaluated_at - asked_at).abs() > ANSWER_AGE_MAX + clock_difference_max {
        return Err(nonsense("it is of another time; is it an old one, or do the clocks differ?"));
    }
    let valid_for = match answer.valid_until {
        None => None,
        some => Some(read_time(some).ok_or_else(|| nonsense("the time until it holds"))? - evaluated_at),
    };
    let only_reseller_id = match answer.only_reseller_id.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|_| nonsense("the only reseller"))?),
    };
    let verdict = match types::Decision::try_from(answer.decision) {
        Ok(types::Decision::Blocked) => Verdict::Blocked {
            reasons: answer.reasons.iter().filter_map(|reason| read_reason(*reason)).collect(),
            remedies: answer.remedies.iter().filter_map(read_remedy).collect(),
            considered: answer.considered.iter().filter_map(read_considered).collect(),
            hindrance: read_hindrance(&answer),
        },
        Ok(types::Decision::Allowed | types::Decision::Exempt) => Verdict::Approved(
            read_approval(query, &answer, evaluated_at)
                .ok_or_else(|| nonsense("decision, rule and evidence"))?,
        ),
        Ok(types::Decision::Unspecified) | Err(_) => return Err(nonsense("an unknown decision")),
    };
    Ok(Answer {
        customer_id: query.parties.customer_id,
        customer_country: answer.customer_country,
        only_reseller_id,
        revision: answer.revision,
        verdict,
        asked_at,
        valid_for,
    })
}

/// Why a no has no remedy: order-svc's callers may all attest and invite, so it is not their role.
fn read_hindrance(answer: &CheckEligibilityResponse) -> Option<Hindrance> {
    let is_wrong_type =
        answer.reasons.iter().any(|reason| read_reason(*reason) == Some(Reason::WrongAgreementType));
    match answer.remedies.is_empty() {
        false => None,
        true if answer.satisfying_types.is_empty() && is_wrong_type => Some(Hindrance::Offers(vec![])),
        true => Some(Hindrance::NoVersion),
    }
}

/// A yes whose decision, rule and evidence fit together, and the query.
fn read_approval(
    query: &GateQuery,
    answer: &CheckEligibilityResponse,
    evaluated_at: Time,
) -> Option<Approval> {
    use types::{Decision as Said, GateRule};
    let evidence = match &answer.evidence {
        None => None,
        Some(evidence) => Some(read_evidence(evidence)?),
    };
    let kind = evidence.as_ref().map(|evidence| evidence.kind);
    if evidence.is_some() && !answer.reasons.is_empty() {
        return None;
    }
    let is_demanded = |of: AgreementType| query.demands.iter().all(|demand| demand.contains(&of));
    if !evidence.as_ref().is_none_or(|evidence| is_demanded(evidence.agreement_type)) {
        return None;
    }
    let said = Said::try_from(answer.decision).ok()?;
    let cloud = types::Cloud::try_from(answer.customer_cloud).ok()?;
    let is_public = match cloud {
        types::Cloud::Public => true,
        types::Cloud::UsGovernment | types::Cloud::Germany | types::Cloud::China21vianet => false,
        types::Cloud::Unspecified => return None,
    };
    let (decision, rule) = match (said, GateRule::try_from(answer.rule).ok()?, kind) {
        (Said::Allowed, ..) if !is_public => return None,
        // Before the date on which an acceptance becomes mandatory the answer says what is missing.
        (_, rule, _) if rule != GateRule::NotYetMandatory && !answer.reasons.is_empty() => return None,
        (Said::Allowed, GateRule::NotYetMandatory, _) => (Decision::Allowed, Rule::NotYetMandatory),
        (Said::Allowed, GateRule::DirectSignature, Some(EvidenceKind::DirectSignature)) => {
            (Decision::Allowed, Rule::DirectSignature)
        }
        (Said::Allowed, GateRule::Attestation, Some(EvidenceKind::Attestation)) => {
            (Decision::Allowed, Rule::Attestation)
        }
        (Said::Exempt, GateRule::OutsidePublicCloud, None) if !is_public => {
            (Decision::Exempt, Rule::OutsidePublicCloud)
        }
        // An exemption for automatic renewal is never the answer to what is asked here (I5).
        _ => return None,
    };
    Some(Approval { decision, rule, evidence, revision: answer.revision, evaluated_at })
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

fn read_time(time: Option<prost_types::Timestamp>) -> Option<Time> {
    let time = time?;
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

fn read_considered(considered: &types::ConsideredAcceptance) -> Option<Considered> {
    Some(Considered {
        acceptance: read_evidence(considered.acceptance.as_ref()?)?,
        agreed_at: read_time(considered.agreed_at)?,
        problem: match read_reason(considered.reason)? {
            Reason::Withdrawn => Problem::Withdrawn { withdrawn_at: read_time(considered.withdrawn_at)? },
            Reason::VersionSuperseded => Problem::VersionSuperseded {
                required_template_id: considered.required_template_id.parse().ok()?,
                required_version: considered.required_version,
                required_since: read_time(considered.required_since)?,
            },
            Reason::WrongAgreementType => Problem::WrongAgreementType,
            Reason::NoAcceptance => return None,
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
