//! Turns refusals and failures into gRPC statuses; codes are chosen here and nowhere else.

use chassis::database::Error;
use chassis::form::Violation;
use chassis::status::{Failure, RETRY, database_failure, failure, internal, invalid_fields};
use proto::types::ErrorReason;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::required::explain;
use crate::agreements;
use crate::rules::Refusal;
use crate::rules::order::{Misnamed, Parties};
use crate::rules::subscription::State;

/// `ErrorInfo.domain` of everything this service refuses.
pub(super) const DOMAIN: &str = "order-svc";

pub(super) fn invalid(violations: &[Violation]) -> Status {
    invalid_fields(DOMAIN, violations).status()
}

/// An answer that was stored and cannot be read back.
pub(super) fn undecodable(error: &prost::DecodeError) -> Status {
    tracing::error!(%error, "a stored answer cannot be decoded");
    internal(DOMAIN).status()
}

pub(super) fn refused(refusal: &Refusal) -> Status {
    let precondition = |reason, sentence: String| with(Code::FailedPrecondition, reason, sentence);
    match refusal {
        Refusal::NotFound { resource, id } => not_found(resource, id),
        Refusal::Fields(fields) => {
            let violation = |bad: &crate::rules::BadField| Violation {
                field: bad.field.clone(),
                problem: bad.problem.clone(),
            };
            invalid(&fields.iter().map(violation).collect::<Vec<_>>())
        }
        Refusal::RequestIdReused { request_id } => with(
            Code::InvalidArgument,
            ErrorReason::RequestIdReused,
            "the request id was used before with other content; use a new one for new content",
        )
        .with("request_id", request_id)
        .status(),
        Refusal::StaleEtag => with(
            Code::Aborted,
            ErrorReason::EtagStale,
            "the subscription has changed since the etag was read; read it again and retry",
        )
        .with("partner_center_code", 2055)
        .status(),
        Refusal::NotTogether { parties, misnamed } => not_together(parties, *misnamed),
        Refusal::PayerIsReseller { payer_id } => with(
            Code::InvalidArgument,
            ErrorReason::PayerIsReseller,
            format!(
                "partner {payer_id} is an indirect reseller and does not pay; name its provider in payer_id"
            ),
        )
        .with("payer_id", payer_id)
        .status(),
        Refusal::AgreementRequired { customer_id, reasons, remedies, considered, hindrance } => {
            let (sentence, metadata) = explain(reasons, remedies, considered, hindrance.as_ref());
            let mut failure = with(Code::FailedPrecondition, ErrorReason::AgreementRequired, sentence)
                .with("customer_id", customer_id)
                .with("partner_center_code", 13605);
            for (key, value) in metadata {
                failure = failure.with(key, value);
            }
            let subject = format!("customers/{customer_id}");
            for reason in reasons {
                failure = failure.precondition("AGREEMENT", &subject, reason.into_str());
            }
            failure.status()
        }
        Refusal::GateUnavailable => with(
            Code::Unavailable,
            ErrorReason::GateUnavailable,
            "whether the customer accepted is not known right now, and nothing was ordered or changed; \
             retry under the same request id",
        )
        .retry_after(RETRY)
        .status(),
        Refusal::AnswerOutdated { .. } => with(
            Code::Aborted,
            ErrorReason::AnswerOutdated,
            "withdrawals of the customer, or ends of its relationships, kept overtaking the gate's answers, and nothing was \
             ordered or changed; retry under the same request id",
        )
        .status(),
        Refusal::WithdrawalLost { customer_id, acceptance_id } => {
            let sentence = match acceptance_id {
                Some(id) => format!(
                    "the withdrawal of acceptance {id} was applied here, and agreement-svc lost it when it was restored \
                     from an older copy; withdraw the acceptance again, then accept anew"
                ),
                None => "a withdrawal or an end of a relationship was applied here for the customer, and agreement-svc \
                         lost it when it was restored from an older copy; repeat it there, then accept anew"
                    .to_owned(),
            };
            let failure =
                precondition(ErrorReason::WithdrawalLost, sentence).with("customer_id", customer_id);
            match acceptance_id {
                Some(id) => failure.with("acceptance_id", id).status(),
                None => failure.status(),
            }
        }
        Refusal::HistoryInvalid => with(
            Code::Unavailable,
            ErrorReason::GateUnavailable,
            "agreement-svc was restored from an older copy and its answers cannot be used until its operator announces \
             the restore; nothing was ordered or changed; retry under the same request id",
        )
        .retry_after(RETRY)
        .status(),
        Refusal::RelationshipEnded { customer_id, payer_id } => precondition(
            ErrorReason::RelationshipEnded,
            format!(
                "your relationship with customer {customer_id} has ended; partner {payer_id}, which pays, can still suspend or \
                 cancel the subscription, switch its automatic renewal off, and assign a reseller that the customer works with"
            ),
        )
        .with("customer_id", customer_id)
        .with("payer_id", payer_id)
        .status(),
        Refusal::PayerOnly { payer_id } => with(
            Code::PermissionDenied,
            ErrorReason::PayerOnly,
            format!("only the payer chooses the reseller on record; ask partner {payer_id} to do it"),
        )
        .with("payer_id", payer_id)
        .status(),
        Refusal::CursorAhead { head } => with(
            Code::OutOfRange,
            ErrorReason::CursorAhead,
            format!("the history ends at revision {head}, before the one asked for; begin again after 0"),
        )
        .with("head", head)
        .status(),
        Refusal::HistoryBehind => with(
            Code::Unavailable,
            ErrorReason::GateUnavailable,
            "which relationships are active is not known right now, and nothing was changed; retry under the same request id",
        )
        .retry_after(RETRY)
        .status(),
        Refusal::TooManySubscriptions { customer_id, max } => precondition(
            ErrorReason::SubscriptionLimit,
            format!(
                "a payer may have {max} open subscriptions with one customer; change quantities instead, cancel what is not \
                 needed, or ask the operator to raise --subscriptions-max"
            ),
        )
        .with("customer_id", customer_id)
        .with("limit", max)
        .status(),
        Refusal::NotActive { state } => {
            let remedy = match state {
                State::Active => "read it again and retry",
                State::Suspended => "resume it first",
                State::Cancelled | State::Expired => "that is final, so order again",
            };
            let failure = precondition(
                ErrorReason::SubscriptionNotActive,
                format!("the subscription is {}, and this takes an ACTIVE one; {remedy}", state.into_str()),
            )
            .with("state", state.into_str());
            match state {
                State::Suspended => failure.with("partner_center_code", 2001).status(),
                State::Cancelled | State::Expired => failure.with("partner_center_code", 2011).status(),
                State::Active => failure.status(),
            }
        }
        Refusal::Ended { state } => precondition(
            ErrorReason::SubscriptionEnded,
            format!("the subscription is {}, which is final; order anew", state.into_str()),
        )
        .with("state", state.into_str())
        .with("partner_center_code", 2011)
        .status(),
        Refusal::NotRenewable { offer_id } => precondition(
            ErrorReason::NotRenewable,
            format!(
                "subscriptions to offer {offer_id} do not renew that way: a perpetual one needs no renewal, one that \
                 does not renew automatically takes RenewSubscription"
            ),
        )
        .with("offer_id", offer_id)
        .with("partner_center_code", 800_093)
        .status(),
        Refusal::NotALicence { kind } => precondition(
            ErrorReason::NotALicence,
            format!(
                "only licence subscriptions have seats, and this is {}; order another one",
                kind.into_str()
            ),
        )
        .with("kind", kind.into_str())
        .status(),
        Refusal::TermEnded { term_end } => {
            let term_end = term_end.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            precondition(
                ErrorReason::TermEnded,
                format!("the term ended at {term_end} and is being processed; read the subscription again and retry"),
            )
            .with("term_end", term_end)
            .status()
        }
        Refusal::OfferWithdrawn { offer_id } => precondition(
            ErrorReason::OfferWithdrawn,
            format!("offer {offer_id} is no longer in the catalogue; order another one"),
        )
        .with("offer_id", offer_id)
        .status(),
    }
}

pub(super) fn failed(error: &Error) -> Status {
    database_failure(DOMAIN, error).status()
}

fn not_found(resource: &str, id: &str) -> Status {
    let sentence = format!("there is no {resource} {id} that you may see");
    let failure = with(Code::NotFound, ErrorReason::ResourceNotFound, sentence).resource(resource, id);
    let partner_center_code = match resource {
        "customer" => 20002,
        "order" => 20000,
        "subscription" => 20003,
        _ => return failure.status(),
    };
    failure.with("partner_center_code", partner_center_code).status()
}

/// GATE-0, for a caller that sees the customer.
fn not_together(parties: &Parties, misnamed: Misnamed) -> Status {
    let Parties { payer_id, customer_id, .. } = parties;
    let not_found = |sentence: String, field| {
        with(Code::NotFound, ErrorReason::ResourceNotFound, sentence)
            .resource("relationship", customer_id)
            .with("field", field)
    };
    match misnamed {
        Misnamed::Payer { use_payer_id } => {
            let sentence = format!(
                "payer_id is wrong: you have no active relationship with customer {customer_id} and partner {payer_id}; \
                 name partner {use_payer_id}"
            );
            not_found(sentence, "payer_id").with("use_payer_id", use_payer_id).status()
        }
        Misnamed::Reseller => {
            let reseller = parties.reseller_id.map(|id| id.to_string()).unwrap_or_default();
            let sentence = format!(
                "reseller_id is wrong: you and partner {reseller} have no active relationship with customer {customer_id}; \
                 leave it empty, or name a reseller of one of your relationships with the customer"
            );
            not_found(sentence, "reseller_id").status()
        }
    }
}

/// The refusal by agreement-svc of the attestation that a call carries, with its message; the bad fields of the
/// attestation become those of the call, and a reseller is sent to the payer of the order or subscription.
pub(super) fn not_attested(refused: &Status, payer_id: Option<Uuid>) -> Status {
    let details = refused.get_error_details();
    let info = details.error_info();
    let provider = info.filter(|info| info.reason == ErrorReason::ResellerCannotAttest.name());
    let provider = provider.and_then(|info| info.metadata.get("provider_id"));
    if let (Some(provider), Some(payer_id)) = (provider, payer_id) {
        let message = refused.message().replace(provider.as_str(), &payer_id.to_string());
        let reason = ErrorReason::ResellerCannotAttest.name();
        let sentence =
            message.strip_prefix(reason).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&message);
        let failure = failure(agreements::DOMAIN, refused.code(), reason, sentence);
        return failure.with("provider_id", payer_id).status();
    }
    let (Some(bad), Some(info)) = (details.bad_request(), info) else {
        // Without its headers, which are not ours to send.
        return Status::with_details(refused.code(), refused.message(), refused.details().to_vec().into());
    };
    let violations = bad.field_violations.iter().map(|violation| Violation {
        field: format!("attestation.{}", violation.field),
        problem: violation.description.clone(),
    });
    let failure = invalid_fields(agreements::DOMAIN, &violations.collect::<Vec<_>>());
    info.metadata.iter().fold(failure, |failure, (key, value)| failure.with(key, value)).status()
}

fn with(code: Code, reason: ErrorReason, sentence: impl Into<String>) -> Failure {
    failure(DOMAIN, code, reason.name(), sentence)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::rules::gate::{
        AgreementType, Considered, Evidence, EvidenceKind, Hindrance, LineDemand, Problem, Reason, Remedy,
    };
    use crate::rules::offer::OfferKind;
    use crate::rules::{BadField, Time};

    /// Code, message and metadata of a refusal; all three are part of the contract.
    fn text_of(status: &Status) -> String {
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.domain, DOMAIN);
        assert!(ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason)).is_some());
        assert!(status.message().starts_with(&format!("{}: ", info.reason)));
        let mut metadata: Vec<_> =
            info.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        metadata.sort();
        format!("{:?} {} {metadata:?}\n", status.code(), status.message())
    }

    #[test]
    fn every_refusal_has_its_code_reason_and_remedy() {
        let id = Uuid::from_u128(1);
        let bad = BadField { field: "lines[2].quantity".into(), problem: "must be 1 to 300".into() };
        let parties = Parties { payer_id: id, reseller_id: Some(id), customer_id: id };
        let both = vec![Remedy::Attest { template_id: id }, Remedy::InviteCustomer { template_id: id }];
        let blocked = |reasons, remedies, hindrance| Refusal::AgreementRequired {
            customer_id: id,
            reasons,
            remedies,
            considered: vec![],
            hindrance,
        };
        let considered = |kind, problem| Considered {
            acceptance: Evidence {
                kind,
                acceptance_id: id,
                template_id: id,
                template_version: 2,
                agreement_type: AgreementType::MicrosoftCustomerAgreement,
            },
            agreed_at: Time::UNIX_EPOCH,
            problem,
        };
        let required = |reasons, remedies| blocked(reasons, remedies, None);
        let hindered = |of| blocked(vec![Reason::WrongAgreementType], vec![], Some(of));
        let take = |of, lines: std::ops::Range<usize>| LineDemand { types: vec![of], lines: lines.collect() };
        let cloud = take(AgreementType::MicrosoftCloudAgreement, 0..2);
        let customer = take(AgreementType::MicrosoftCustomerAgreement, 2..9);
        let refusals = [
            Refusal::NotFound { resource: "order", id: id.to_string() },
            Refusal::Fields(vec![bad]),
            Refusal::RequestIdReused { request_id: id },
            Refusal::StaleEtag,
            Refusal::NotTogether { parties, misnamed: Misnamed::Payer { use_payer_id: id } },
            Refusal::NotTogether { parties, misnamed: Misnamed::Reseller },
            Refusal::PayerIsReseller { payer_id: id },
            required(vec![Reason::NoAcceptance], both),
            required(
                vec![Reason::Withdrawn, Reason::VersionSuperseded],
                vec![Remedy::AskProvider { provider_id: id }],
            ),
            required(vec![Reason::WrongAgreementType], vec![]),
            Refusal::AgreementRequired {
                customer_id: id,
                reasons: vec![Reason::Withdrawn, Reason::VersionSuperseded],
                remedies: vec![Remedy::InviteCustomer { template_id: id }],
                considered: vec![
                    considered(
                        EvidenceKind::Attestation,
                        Problem::VersionSuperseded {
                            required_template_id: id,
                            required_version: 3,
                            required_since: Time::UNIX_EPOCH,
                        },
                    ),
                    considered(
                        EvidenceKind::DirectSignature,
                        Problem::Withdrawn { withdrawn_at: Time::UNIX_EPOCH },
                    ),
                    considered(EvidenceKind::DirectSignature, Problem::WrongAgreementType),
                ],
                hindrance: None,
            },
            hindered(Hindrance::Offers(vec![])),
            hindered(Hindrance::Offers(vec![cloud.clone()])),
            hindered(Hindrance::Offers(vec![cloud, customer])),
            blocked(vec![Reason::NoAcceptance], vec![], Some(Hindrance::NoVersion)),
            Refusal::GateUnavailable,
            Refusal::AnswerOutdated { customer_id: id, fence: 7 },
            Refusal::WithdrawalLost { customer_id: id, acceptance_id: Some(id) },
            Refusal::WithdrawalLost { customer_id: id, acceptance_id: None },
            Refusal::HistoryInvalid,
            Refusal::RelationshipEnded { customer_id: id, payer_id: id },
            Refusal::PayerOnly { payer_id: id },
            Refusal::HistoryBehind,
            Refusal::TooManySubscriptions { customer_id: id, max: 7 },
            Refusal::NotActive { state: State::Active },
            Refusal::NotActive { state: State::Suspended },
            Refusal::NotActive { state: State::Cancelled },
            Refusal::NotActive { state: State::Expired },
            Refusal::Ended { state: State::Cancelled },
            Refusal::NotRenewable { offer_id: "MS-AZR-0145P".into() },
            Refusal::NotALicence { kind: OfferKind::AzurePlan },
            Refusal::TermEnded { term_end: Time::UNIX_EPOCH },
            Refusal::OfferWithdrawn { offer_id: "MS-AZR-0145P".into() },
        ];
        let texts: String = refusals.iter().map(|refusal| text_of(&refused(refusal))).collect();
        expect![[r#"
            NotFound RESOURCE_NOT_FOUND: there is no order 00000000-0000-0000-0000-000000000001 that you may see ["partner_center_code=20000"]
            InvalidArgument INVALID_FIELDS: lines[2].quantity must be 1 to 300 []
            InvalidArgument REQUEST_ID_REUSED: the request id was used before with other content; use a new one for new content ["request_id=00000000-0000-0000-0000-000000000001"]
            Aborted ETAG_STALE: the subscription has changed since the etag was read; read it again and retry ["partner_center_code=2055"]
            NotFound RESOURCE_NOT_FOUND: payer_id is wrong: you have no active relationship with customer 00000000-0000-0000-0000-000000000001 and partner 00000000-0000-0000-0000-000000000001; name partner 00000000-0000-0000-0000-000000000001 ["field=payer_id", "use_payer_id=00000000-0000-0000-0000-000000000001"]
            NotFound RESOURCE_NOT_FOUND: reseller_id is wrong: you and partner 00000000-0000-0000-0000-000000000001 have no active relationship with customer 00000000-0000-0000-0000-000000000001; leave it empty, or name a reseller of one of your relationships with the customer ["field=reseller_id"]
            InvalidArgument PAYER_IS_RESELLER: partner 00000000-0000-0000-0000-000000000001 is an indirect reseller and does not pay; name its provider in payer_id ["payer_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition AGREEMENT_REQUIRED: the customer has not accepted what is required (NO_ACCEPTANCE); remedy: attest its acceptance of template 00000000-0000-0000-0000-000000000001, or invite the customer to sign directly ["customer_id=00000000-0000-0000-0000-000000000001", "optional_fields=contact.phone,details.title,details.evidence_reference,details.evidence_sha256,details.on_behalf_of,details.external_reference,details.shown_text.country,details.shown_text.language,details.shown_text.sha256", "partner_center_code=13605", "reasons=NO_ACCEPTANCE", "remedies=ATTEST,INVITE_CUSTOMER", "required_fields=template_id,contact.first_name,contact.last_name,contact.email,agreed_at", "template_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition AGREEMENT_REQUIRED: the customer has not accepted what is required (WITHDRAWN,VERSION_SUPERSEDED); remedy: ask provider 00000000-0000-0000-0000-000000000001 to attest ["customer_id=00000000-0000-0000-0000-000000000001", "partner_center_code=13605", "provider_id=00000000-0000-0000-0000-000000000001", "reasons=WITHDRAWN,VERSION_SUPERSEDED", "remedies=ASK_PROVIDER"]
            FailedPrecondition AGREEMENT_REQUIRED: the customer has not accepted what is required (WRONG_AGREEMENT_TYPE); CheckEligibility of agreement-svc says what helps ["customer_id=00000000-0000-0000-0000-000000000001", "partner_center_code=13605", "reasons=WRONG_AGREEMENT_TYPE", "remedies="]
            FailedPrecondition AGREEMENT_REQUIRED: the customer has not accepted what is required (WITHDRAWN,VERSION_SUPERSEDED): version 2, accepted on 1970-01-01, has not counted since 1970-01-01, when version 3 became required, and version 2, accepted on 1970-01-01, was withdrawn on 1970-01-01, and version 2, accepted on 1970-01-01, is of the type MICROSOFT_CUSTOMER_AGREEMENT, which does not count; remedy: invite the customer to sign directly ["considered=[{\"kind\":\"ATTESTATION\",\"acceptance_id\":\"00000000-0000-0000-0000-000000000001\",\"template_id\":\"00000000-0000-0000-0000-000000000001\",\"template_version\":2,\"agreement_type\":\"MICROSOFT_CUSTOMER_AGREEMENT\",\"agreed_at\":\"1970-01-01T00:00:00Z\",\"reason\":\"VERSION_SUPERSEDED\",\"required_template_id\":\"00000000-0000-0000-0000-000000000001\",\"required_version\":3,\"required_since\":\"1970-01-01T00:00:00Z\"},{\"kind\":\"DIRECT_SIGNATURE\",\"acceptance_id\":\"00000000-0000-0000-0000-000000000001\",\"template_id\":\"00000000-0000-0000-0000-000000000001\",\"template_version\":2,\"agreement_type\":\"MICROSOFT_CUSTOMER_AGREEMENT\",\"agreed_at\":\"1970-01-01T00:00:00Z\",\"reason\":\"WITHDRAWN\",\"withdrawn_at\":\"1970-01-01T00:00:00Z\"},{\"kind\":\"DIRECT_SIGNATURE\",\"acceptance_id\":\"00000000-0000-0000-0000-000000000001\",\"template_id\":\"00000000-0000-0000-0000-000000000001\",\"template_version\":2,\"agreement_type\":\"MICROSOFT_CUSTOMER_AGREEMENT\",\"agreed_at\":\"1970-01-01T00:00:00Z\",\"reason\":\"WRONG_AGREEMENT_TYPE\"}]", "customer_id=00000000-0000-0000-0000-000000000001", "partner_center_code=13605", "reasons=WITHDRAWN,VERSION_SUPERSEDED", "remedies=INVITE_CUSTOMER", "template_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition AGREEMENT_REQUIRED: no acceptance satisfies this (WRONG_AGREEMENT_TYPE): the offer takes no agreement that counts today; order another offer ["customer_id=00000000-0000-0000-0000-000000000001", "partner_center_code=13605", "reasons=WRONG_AGREEMENT_TYPE", "remedies="]
            FailedPrecondition AGREEMENT_REQUIRED: no acceptance satisfies this (WRONG_AGREEMENT_TYPE): the offers of lines[0], lines[1] take only MICROSOFT_CLOUD_AGREEMENT, which does not count today; order other offers ["customer_id=00000000-0000-0000-0000-000000000001", "lines=lines[0],lines[1]", "partner_center_code=13605", "reasons=WRONG_AGREEMENT_TYPE", "remedies="]
            FailedPrecondition AGREEMENT_REQUIRED: no acceptance satisfies this (WRONG_AGREEMENT_TYPE): no agreement counts for the offers of lines[0], lines[1] (only MICROSOFT_CLOUD_AGREEMENT) and of lines[2], lines[3], lines[4], lines[5], lines[6], 2 more (only MICROSOFT_CUSTOMER_AGREEMENT) together; order these lines separately ["customer_id=00000000-0000-0000-0000-000000000001", "lines=lines[0],lines[1],lines[2],lines[3],lines[4],lines[5],lines[6],lines[7],lines[8]", "partner_center_code=13605", "reasons=WRONG_AGREEMENT_TYPE", "remedies="]
            FailedPrecondition AGREEMENT_REQUIRED: the customer has not accepted what is required (NO_ACCEPTANCE), and no version of the agreement is in force; ask the operator to publish one ["customer_id=00000000-0000-0000-0000-000000000001", "partner_center_code=13605", "reasons=NO_ACCEPTANCE", "remedies="]
            Unavailable GATE_UNAVAILABLE: whether the customer accepted is not known right now, and nothing was ordered or changed; retry under the same request id []
            Aborted ANSWER_OUTDATED: withdrawals of the customer, or ends of its relationships, kept overtaking the gate's answers, and nothing was ordered or changed; retry under the same request id []
            FailedPrecondition WITHDRAWAL_LOST: the withdrawal of acceptance 00000000-0000-0000-0000-000000000001 was applied here, and agreement-svc lost it when it was restored from an older copy; withdraw the acceptance again, then accept anew ["acceptance_id=00000000-0000-0000-0000-000000000001", "customer_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition WITHDRAWAL_LOST: a withdrawal or an end of a relationship was applied here for the customer, and agreement-svc lost it when it was restored from an older copy; repeat it there, then accept anew ["customer_id=00000000-0000-0000-0000-000000000001"]
            Unavailable GATE_UNAVAILABLE: agreement-svc was restored from an older copy and its answers cannot be used until its operator announces the restore; nothing was ordered or changed; retry under the same request id []
            FailedPrecondition RELATIONSHIP_ENDED: your relationship with customer 00000000-0000-0000-0000-000000000001 has ended; partner 00000000-0000-0000-0000-000000000001, which pays, can still suspend or cancel the subscription, switch its automatic renewal off, and assign a reseller that the customer works with ["customer_id=00000000-0000-0000-0000-000000000001", "payer_id=00000000-0000-0000-0000-000000000001"]
            PermissionDenied PAYER_ONLY: only the payer chooses the reseller on record; ask partner 00000000-0000-0000-0000-000000000001 to do it ["payer_id=00000000-0000-0000-0000-000000000001"]
            Unavailable GATE_UNAVAILABLE: which relationships are active is not known right now, and nothing was changed; retry under the same request id []
            FailedPrecondition SUBSCRIPTION_LIMIT: a payer may have 7 open subscriptions with one customer; change quantities instead, cancel what is not needed, or ask the operator to raise --subscriptions-max ["customer_id=00000000-0000-0000-0000-000000000001", "limit=7"]
            FailedPrecondition SUBSCRIPTION_NOT_ACTIVE: the subscription is ACTIVE, and this takes an ACTIVE one; read it again and retry ["state=ACTIVE"]
            FailedPrecondition SUBSCRIPTION_NOT_ACTIVE: the subscription is SUSPENDED, and this takes an ACTIVE one; resume it first ["partner_center_code=2001", "state=SUSPENDED"]
            FailedPrecondition SUBSCRIPTION_NOT_ACTIVE: the subscription is CANCELLED, and this takes an ACTIVE one; that is final, so order again ["partner_center_code=2011", "state=CANCELLED"]
            FailedPrecondition SUBSCRIPTION_NOT_ACTIVE: the subscription is EXPIRED, and this takes an ACTIVE one; that is final, so order again ["partner_center_code=2011", "state=EXPIRED"]
            FailedPrecondition SUBSCRIPTION_ENDED: the subscription is CANCELLED, which is final; order anew ["partner_center_code=2011", "state=CANCELLED"]
            FailedPrecondition NOT_RENEWABLE: subscriptions to offer MS-AZR-0145P do not renew that way: a perpetual one needs no renewal, one that does not renew automatically takes RenewSubscription ["offer_id=MS-AZR-0145P", "partner_center_code=800093"]
            FailedPrecondition NOT_A_LICENCE: only licence subscriptions have seats, and this is AZURE_PLAN; order another one ["kind=AZURE_PLAN"]
            FailedPrecondition TERM_ENDED: the term ended at 1970-01-01T00:00:00.000000Z and is being processed; read the subscription again and retry ["term_end=1970-01-01T00:00:00.000000Z"]
            FailedPrecondition OFFER_WITHDRAWN: offer MS-AZR-0145P is no longer in the catalogue; order another one ["offer_id=MS-AZR-0145P"]
        "#]].assert_eq(&texts);
    }

    #[test]
    fn a_passed_on_refusal_changes_only_the_paths_of_its_fields() {
        let violations = [("contact.email", "is required"), ("agreed_at", "must not be in the future")]
            .map(|(field, problem)| Violation { field: field.into(), problem: problem.into() });
        let bad = invalid_fields(agreements::DOMAIN, &violations).with("partner_center_code", 600_002);
        let passed_on = not_attested(&bad.status(), Some(Uuid::nil()));
        assert_eq!(
            (passed_on.code(), passed_on.message()),
            (
                Code::InvalidArgument,
                "INVALID_FIELDS: attestation.contact.email is required; \
                 attestation.agreed_at must not be in the future"
            )
        );
        let info = passed_on.get_details_error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("agreement-svc", "INVALID_FIELDS"));
        assert_eq!(info.metadata["partner_center_code"], "600002");
        let fields = passed_on.get_details_bad_request().unwrap().field_violations;
        let fields: Vec<_> = fields.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["attestation.contact.email", "attestation.agreed_at"]);

        let mut other = failure(agreements::DOMAIN, Code::NotFound, "RESOURCE_NOT_FOUND", "there is none")
            .resource("customer", 7)
            .status();
        other.metadata_mut().insert("x-call-id", "theirs".parse().unwrap());
        let passed_on = not_attested(&other, Some(Uuid::nil()));
        assert_eq!((passed_on.code(), passed_on.message()), (other.code(), other.message()));
        assert_eq!(passed_on.details(), other.details());
        assert!(passed_on.metadata().is_empty());
    }

    /// ATT-1. A reseller may serve a customer through several providers, and is sent to the one that pays.
    #[test]
    fn a_reseller_is_sent_to_the_payer_of_its_order() {
        let [first, payer] = [1, 2].map(Uuid::from_u128);
        let refused = failure(
            agreements::DOMAIN,
            Code::PermissionDenied,
            "RESELLER_CANNOT_ATTEST",
            format!("ask provider {first} to attest"),
        );
        let refused = refused.with("provider_id", first).status();
        for (payer_id, expected) in [(Some(payer), payer), (Some(first), first), (None, first)] {
            let passed_on = not_attested(&refused, payer_id);
            assert_eq!(passed_on.code(), Code::PermissionDenied);
            let sentence = format!("RESELLER_CANNOT_ATTEST: ask provider {expected} to attest");
            assert_eq!(passed_on.message(), sentence);
            let info = passed_on.get_details_error_info().unwrap();
            assert_eq!(
                (info.domain.as_str(), info.reason.as_str()),
                ("agreement-svc", "RESELLER_CANNOT_ATTEST")
            );
            assert_eq!(info.metadata["provider_id"], expected.to_string());
        }
    }
}
