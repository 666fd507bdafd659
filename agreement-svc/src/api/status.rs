//! Turns refusals and failures into gRPC statuses; codes are chosen here and nowhere else.

use std::time::Duration;

use chassis::database::Error;
use chassis::form::Violation;
use chassis::status::{Failure, RETRY, STREAM_RETRY, database_failure, failure, internal, invalid_fields};
use proto::types::{self, ErrorReason};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::rules::attestation::IN_THE_FUTURE;
use crate::rules::eligibility::Misnamed;
use crate::rules::language::{SHIPPED, contact_partner};
use crate::rules::proposal::ProposalState;
use crate::rules::{BadField, Refusal};
use crate::store::change::ChangeError;

/// `ErrorInfo.domain` of everything this service refuses.
pub(super) const DOMAIN: &str = "agreement-svc";

pub(super) fn of(error: ChangeError) -> Status {
    match error {
        ChangeError::Refused(refusal) => refused(&refusal),
        ChangeError::Failed(error) => failed(&error),
    }
}

pub(super) fn invalid(violations: &[Violation]) -> Status {
    let failure = invalid_fields(DOMAIN, violations);
    let agreed_too_late = |violation: &Violation| {
        violation.field.ends_with("agreed_at") && violation.problem.starts_with(IN_THE_FUTURE)
    };
    if violations.iter().any(agreed_too_late) {
        return failure.with("partner_center_code", 600_002).status();
    }
    failure.status()
}

/// A stream went on for longer than any may.
pub(super) fn too_long(limit: Duration) -> Status {
    let sentence = format!("a stream may last {} minutes; start it again", limit.as_secs() / 60);
    with(Code::Unavailable, ErrorReason::DeadlinePassed, sentence).retry_after(STREAM_RETRY).status()
}

/// What served a stream panicked; the panic itself is in the log.
pub(super) fn panicked() -> Status {
    internal(DOMAIN).status()
}

/// A refusal as an item of many carries it.
pub(super) fn item(status: &Status) -> types::Refusal {
    let details = status.get_error_details();
    let (reason, metadata) = details.error_info().map_or_else(Default::default, |info| {
        (ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason)), info.metadata.clone())
    });
    let localized = details.localized_message().cloned().unwrap_or_default();
    let fields = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    types::Refusal {
        code: status.code().into(),
        reason: reason.unwrap_or_default().into(),
        message: status.message().to_owned(),
        metadata,
        localized_message: localized.message,
        locale: localized.locale,
        fields: fields
            .into_iter()
            .map(|violation| types::FieldProblem { field: violation.field, problem: violation.description })
            .collect(),
    }
}

/// An answer that was stored and cannot be read back.
pub(super) fn undecodable(error: &prost::DecodeError) -> Status {
    tracing::error!(%error, "a stored answer cannot be decoded");
    internal(DOMAIN).status()
}

pub(super) fn refused(refusal: &Refusal) -> Status {
    let precondition = |reason, sentence: String| with(Code::FailedPrecondition, reason, sentence);
    match refusal {
        Refusal::NotFound { resource, id } => not_found(resource, *id),
        Refusal::Fields(bad) => {
            let violation = |bad: &BadField| Violation {
                field: bad.field.clone(),
                problem: bad.problem.clone(),
            };
            invalid(&bad.iter().map(violation).collect::<Vec<_>>())
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
            "the resource has changed since the etag was read; read it again and retry",
        )
        .status(),
        Refusal::ResellerCannotAttest { provider_id } => with(
            Code::PermissionDenied,
            ErrorReason::ResellerCannotAttest,
            format!("an indirect reseller does not attest; ask provider {provider_id} to attest"),
        )
        .with("provider_id", provider_id)
        .status(),
        Refusal::CloudNotSupported { cloud } => precondition(
            ErrorReason::CloudNotSupported,
            format!(
                "acceptance exists in the PUBLIC cloud only, and the customer is in {}, where none is required; order without it",
                cloud.into_str()
            ),
        )
        .with("cloud", cloud.into_str())
        .status(),
        Refusal::TemplateRetired { template_id, use_template_id } => {
            let remedy = match use_template_id {
                Some(id) => format!("; use template {id}"),
                None => "; use a live one, which ListTemplates names, or the operator publishes one".to_owned(),
            };
            let failure =
                precondition(ErrorReason::TemplateRetired, format!("template {template_id} is retired{remedy}"))
                    .with("template_id", template_id);
            match use_template_id {
                Some(id) => failure.with("use_template_id", id).status(),
                None => failure.status(),
            }
        }
        Refusal::AlreadyAttested { attestation_id } => with(
            Code::AlreadyExists,
            ErrorReason::AlreadyAttested,
            format!("attestation {attestation_id} already states this version, contact and date; nothing to do"),
        )
        .with("attestation_id", attestation_id)
        .with("partner_center_code", 600_061)
        .status(),
        Refusal::OlderThanCurrent { attestation_id, offered, current } => precondition(
            ErrorReason::OlderThanCurrent,
            format!(
                "on the date agreed version {offered} was in force, and attestation {attestation_id} is of \
                 version {current}; check the date agreed, or attest an acceptance of the later version"
            ),
        )
        .with("attestation_id", attestation_id)
        .with("offered_version", offered)
        .with("current_version", current)
        .status(),
        Refusal::TooManyChanges { max, retry_after } => with(
            Code::ResourceExhausted,
            ErrorReason::AcceptanceChangeLimit,
            format!(
                "this customer's acceptances by this partner, or its own signatures, were made and withdrawn {max} times within an hour; try again \
                 in {} s, or ask the operator to raise --acceptance-changes-max",
                retry_after.num_seconds() + 1
            ),
        )
        .with("limit", max)
        .retry_after(retry_after.to_std().unwrap_or(STREAM_RETRY))
        .status(),
        Refusal::CustomerExists => with(
            Code::AlreadyExists,
            ErrorReason::CustomerExists,
            "a customer with this id exists; if it is yours, compare it with GetCustomer and change it with UpdateCustomer, otherwise \
             invite it to a relationship with CreateInvitation",
        )
        .status(),
        Refusal::DomainTaken => with(
            Code::AlreadyExists,
            ErrorReason::DomainTaken,
            "a customer with this domain exists; invite it to a relationship with CreateInvitation, or use another domain; if it \
             holds the domain wrongly, the operator corrects that with UpdateCustomer",
        )
        .status(),
        Refusal::PartnerExists { partner_id } => with(
            Code::AlreadyExists,
            ErrorReason::PartnerExists,
            format!(
                "partner {partner_id} is registered with other particulars; UpdatePartner corrects the name and \
                 the support contact, and kind and cloud never change"
            ),
        )
        .with("partner_id", partner_id)
        .status(),
        Refusal::TenantOfOtherKind { tenant_id, is_partner } => {
            let (sentence, kind) = if *is_partner {
                let what = "is registered as a partner, so it cannot become a customer";
                (format!("tenant {tenant_id} {what}; use the company's own tenant"), "PARTNER")
            } else {
                let what = "is a customer, so it cannot be registered as a partner";
                (format!("tenant {tenant_id} {what}; register the partner under a tenant of its own"), "CUSTOMER")
            };
            precondition(ErrorReason::TenantOfOtherKind, sentence)
                .with("tenant_id", tenant_id)
                .with("kind", kind)
                .status()
        }
        Refusal::ResellerNotLinked { provider_id, reseller_id } => precondition(
            ErrorReason::ResellerNotLinked,
            format!(
                "reseller {reseller_id} is not linked to provider {provider_id}; ask the operator to link them"
            ),
        )
        .with("provider_id", provider_id)
        .with("reseller_id", reseller_id)
        .status(),
        Refusal::WrongPartnerKind { partner_id, kind, cloud } => precondition(
            ErrorReason::WrongPartnerKind,
            format!(
                "a link joins an INDIRECT_PROVIDER and an INDIRECT_RESELLER of one cloud, and partner {partner_id} is {} in {}; \
                 name another partner",
                kind.into_str(),
                cloud.into_str()
            ),
        )
        .with("partner_id", partner_id)
        .with("kind", kind.into_str())
        .with("cloud", cloud.into_str())
        .status(),
        Refusal::NotLaterThanLastVersion { not_before } => {
            let not_before = not_before.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            precondition(
                ErrorReason::NotLaterThanLastVersion,
                format!("a version takes effect now or later, and after the one before: not before {not_before}"),
            )
            .with("not_before", not_before)
            .status()
        }
        Refusal::TypeHasTemplate { template_id } => precondition(
            ErrorReason::TypeHasTemplate,
            format!("template {template_id} of this type is live; publish a version of it or retire it first"),
        )
        .with("template_id", template_id)
        .status(),
        Refusal::NotTogether { customer_id, misnamed } => not_together(*customer_id, *misnamed),
        Refusal::PayerIsReseller { payer_id } => with(
            Code::InvalidArgument,
            ErrorReason::PayerIsReseller,
            format!("partner {payer_id} is an indirect reseller and does not pay; name its provider as payer"),
        )
        .with("payer_id", payer_id)
        .status(),
        Refusal::RevisionBehind { head } => with(
            Code::Unavailable,
            ErrorReason::RevisionBehind,
            format!("the database is at revision {head}, behind the one asked for; try again"),
        )
        .with("head", head)
        .retry_after(RETRY)
        .status(),
        Refusal::VersionChanged { template_id, shown, in_force } => precondition(
            ErrorReason::VersionChanged,
            format!(
                "version {shown} of template {template_id} was shown, and version {in_force} is in force; show \
                 that one and ask again"
            ),
        )
        .with("template_id", template_id)
        .with("shown_version", shown)
        .with("version_in_force", in_force)
        .status(),
        Refusal::ContactPartner { partner, language } => {
            let (locale, localized) = contact_partner(language);
            let (_, sentence) = contact_partner(SHIPPED[0]);
            let failure =
                precondition(ErrorReason::ContactPartner, sentence.into()).localized(locale, localized);
            let Some((partner_id, support)) = partner.as_deref() else { return failure.status() };
            let ways = [
                ("support_email", &support.email),
                ("support_phone", &support.phone),
                ("support_url", &support.url),
            ];
            let known = ways.into_iter().filter(|(_, way)| !way.is_empty());
            known.fold(failure.with("partner_id", partner_id), |failure, (key, way)| failure.with(key, way)).status()
        }
        Refusal::MustBeAttested => with(
            Code::FailedPrecondition,
            ErrorReason::ContactPartner,
            "the customer bought before it ever signed, so it cannot sign directly; attest its acceptance instead",
        )
        .status(),
        Refusal::InvitationNotPending { invitation_id, state } => precondition(
            ErrorReason::InvitationNotPending,
            format!(
                "invitation {invitation_id} is {}; the partner has to create a new one",
                state.into_str()
            ),
        )
        .with("invitation_id", invitation_id)
        .with("state", state.into_str())
        .status(),
        Refusal::ProposalNotPending { proposal_id, state } => precondition(
            ErrorReason::ProposalNotPending,
            match state {
                ProposalState::Approved => format!(
                    "proposal {proposal_id} is APPROVED; the provider can withdraw the attestation that it made"
                ),
                _ => format!("proposal {proposal_id} is {}; the reseller has to propose again", state.into_str()),
            },
        )
        .with("proposal_id", proposal_id)
        .with("state", state.into_str())
        .status(),
        Refusal::TooManyProposals { max } => precondition(
            ErrorReason::ProposalLimit,
            format!(
                "{max} proposals for this customer wait for the provider, or were withdrawn within the hour; ask the provider to \
                 approve or reject them, or wait"
            ),
        )
        .with("limit", max)
        .status(),
        Refusal::InvitationsOff => with(
            Code::FailedPrecondition,
            ErrorReason::InvitationsOff,
            "this service has no key for acceptance links; ask the operator to start it with --invitation-key-file",
        )
        .status(),
        Refusal::AcceptanceSuperseded { acceptance_id, current_id } => {
            let remedy = current_id.map(|id| format!("; withdraw {id}")).unwrap_or_default();
            let failure = precondition(
                ErrorReason::AcceptanceSuperseded,
                format!("acceptance {acceptance_id} was replaced and no longer counts{remedy}"),
            )
            .with("acceptance_id", acceptance_id);
            match current_id {
                Some(id) => failure.with("current_id", id).status(),
                None => failure.status(),
            }
        }
        Refusal::NotificationNotDead { state } => precondition(
            ErrorReason::NotificationNotDead,
            format!("the mail is {}; only a DEAD_LETTER can be retried", state.into_str()),
        )
        .with("state", state.into_str())
        .status(),
        Refusal::CursorAhead { head } => with(
            Code::OutOfRange,
            ErrorReason::CursorAhead,
            format!("the history ends at revision {head}, before the one asked for; begin again after 0"),
        )
        .with("head", head)
        .status(),
        Refusal::HistoryForked { revision } => precondition(
            ErrorReason::HistoryForked,
            format!(
                "revision {revision} is not part of the history: it was lost when an older copy was restored. \
                 Repeat what was lost; a watcher waits until the operator announces the restore with \
                 migrate --after-restore"
            ),
        )
        .with("revision", revision)
        .status(),
    }
}

pub(super) fn failed(error: &Error) -> Status {
    database_failure(DOMAIN, error).status()
}

fn not_found(resource: &str, id: Uuid) -> Status {
    let sentence = match resource {
        "relationship" => format!(
            "you have no active relationship with customer {id} and the partner that provider_id or reseller_id names; name \
             another one, or none for a relationship of your own"
        ),
        _ => format!("there is no {resource} {id} that you may see"),
    };
    let failure = with(Code::NotFound, ErrorReason::ResourceNotFound, sentence).resource(resource, id);
    match resource {
        "customer" => failure.with("partner_center_code", 20002).status(),
        _ => failure.status(),
    }
}

/// GATE-0, for a partner that sees the customer.
fn not_together(customer_id: Uuid, misnamed: Misnamed) -> Status {
    let not_found = |sentence: String, field| {
        with(Code::NotFound, ErrorReason::ResourceNotFound, sentence)
            .resource("relationship", customer_id)
            .with("field", field)
    };
    match misnamed {
        Misnamed::Payer { payer_id, use_payer_id } => {
            let sentence = format!(
                "payer_id is wrong: you have no active relationship with customer {customer_id} and partner {payer_id}; \
                 name partner {use_payer_id}"
            );
            not_found(sentence, "payer_id").with("use_payer_id", use_payer_id).status()
        }
        Misnamed::Reseller { use_reseller_id: None } => {
            let sentence = format!(
                "reseller_id is wrong: you and that partner have no active relationship with customer {customer_id}; leave \
                 it empty, or name a reseller of one of your relationships with the customer"
            );
            not_found(sentence, "reseller_id").status()
        }
        Misnamed::Reseller { use_reseller_id: Some(own) } => {
            let sentence = format!(
                "reseller_id is wrong: your relationship with customer {customer_id} and that payer names you as the reseller; \
                 name {own}"
            );
            not_found(sentence, "reseller_id").with("use_reseller_id", own).status()
        }
    }
}

fn with(code: Code, reason: ErrorReason, sentence: impl Into<String>) -> Failure {
    failure(DOMAIN, code, reason.name(), sentence)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::rules::Time;
    use crate::rules::invitation::InvitationState;
    use crate::rules::notification::NotificationState;
    use crate::rules::party::{Cloud, PartnerKind, Support};

    /// Code, message and metadata of a refusal: what clients read is part of the contract.
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
        let refusals = [
            Refusal::NotFound { resource: "customer", id },
            Refusal::NotFound { resource: "relationship", id },
            Refusal::field("provider_id", "must be empty: only an indirect reseller names its provider"),
            Refusal::RequestIdReused { request_id: id },
            Refusal::StaleEtag,
            Refusal::ResellerCannotAttest { provider_id: id },
            Refusal::CloudNotSupported { cloud: Cloud::Germany },
            Refusal::TemplateRetired { template_id: id, use_template_id: Some(id) },
            Refusal::TemplateRetired { template_id: id, use_template_id: None },
            Refusal::AlreadyAttested { attestation_id: id },
            Refusal::OlderThanCurrent { attestation_id: id, offered: 1, current: 2 },
            Refusal::TooManyChanges { max: 60, retry_after: chrono::Duration::seconds(7) },
            Refusal::CustomerExists,
            Refusal::DomainTaken,
            Refusal::PartnerExists { partner_id: id },
            Refusal::TenantOfOtherKind { tenant_id: id, is_partner: true },
            Refusal::TenantOfOtherKind { tenant_id: id, is_partner: false },
            Refusal::ResellerNotLinked { provider_id: id, reseller_id: id },
            Refusal::WrongPartnerKind { partner_id: id, kind: PartnerKind::DirectBill, cloud: Cloud::Public },
            Refusal::NotLaterThanLastVersion { not_before: Time::UNIX_EPOCH },
            Refusal::TypeHasTemplate { template_id: id },
            Refusal::NotTogether {
                customer_id: id,
                misnamed: Misnamed::Payer { payer_id: id, use_payer_id: id },
            },
            Refusal::NotTogether { customer_id: id, misnamed: Misnamed::Reseller { use_reseller_id: None } },
            Refusal::NotTogether {
                customer_id: id,
                misnamed: Misnamed::Reseller { use_reseller_id: Some(id) },
            },
            Refusal::PayerIsReseller { payer_id: id },
            Refusal::RevisionBehind { head: 7 },
            Refusal::VersionChanged { template_id: id, shown: 1, in_force: 2 },
            Refusal::ContactPartner { partner: None, language: "fr".into() },
            Refusal::ContactPartner {
                partner: Some(Box::new((
                    id,
                    Support { email: "help@partner.example".into(), ..Support::default() },
                ))),
                language: "ja".into(),
            },
            Refusal::MustBeAttested,
            Refusal::InvitationNotPending { invitation_id: id, state: InvitationState::Expired },
            Refusal::ProposalNotPending { proposal_id: id, state: ProposalState::Expired },
            Refusal::TooManyProposals { max: 10 },
            Refusal::InvitationsOff,
            Refusal::AcceptanceSuperseded { acceptance_id: id, current_id: Some(id) },
            Refusal::AcceptanceSuperseded { acceptance_id: id, current_id: None },
            Refusal::NotificationNotDead { state: NotificationState::Sent },
            Refusal::CursorAhead { head: 7 },
            Refusal::HistoryForked { revision: 7 },
        ];
        let texts: String = refusals.iter().map(|refusal| text_of(&refused(refusal))).collect();
        expect![[r#"
            NotFound RESOURCE_NOT_FOUND: there is no customer 00000000-0000-0000-0000-000000000001 that you may see ["partner_center_code=20002"]
            NotFound RESOURCE_NOT_FOUND: you have no active relationship with customer 00000000-0000-0000-0000-000000000001 and the partner that provider_id or reseller_id names; name another one, or none for a relationship of your own []
            InvalidArgument INVALID_FIELDS: provider_id must be empty: only an indirect reseller names its provider []
            InvalidArgument REQUEST_ID_REUSED: the request id was used before with other content; use a new one for new content ["request_id=00000000-0000-0000-0000-000000000001"]
            Aborted ETAG_STALE: the resource has changed since the etag was read; read it again and retry []
            PermissionDenied RESELLER_CANNOT_ATTEST: an indirect reseller does not attest; ask provider 00000000-0000-0000-0000-000000000001 to attest ["provider_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition CLOUD_NOT_SUPPORTED: acceptance exists in the PUBLIC cloud only, and the customer is in GERMANY, where none is required; order without it ["cloud=GERMANY"]
            FailedPrecondition TEMPLATE_RETIRED: template 00000000-0000-0000-0000-000000000001 is retired; use template 00000000-0000-0000-0000-000000000001 ["template_id=00000000-0000-0000-0000-000000000001", "use_template_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition TEMPLATE_RETIRED: template 00000000-0000-0000-0000-000000000001 is retired; use a live one, which ListTemplates names, or the operator publishes one ["template_id=00000000-0000-0000-0000-000000000001"]
            AlreadyExists ALREADY_ATTESTED: attestation 00000000-0000-0000-0000-000000000001 already states this version, contact and date; nothing to do ["attestation_id=00000000-0000-0000-0000-000000000001", "partner_center_code=600061"]
            FailedPrecondition OLDER_THAN_CURRENT: on the date agreed version 1 was in force, and attestation 00000000-0000-0000-0000-000000000001 is of version 2; check the date agreed, or attest an acceptance of the later version ["attestation_id=00000000-0000-0000-0000-000000000001", "current_version=2", "offered_version=1"]
            ResourceExhausted ACCEPTANCE_CHANGE_LIMIT: this customer's acceptances by this partner, or its own signatures, were made and withdrawn 60 times within an hour; try again in 8 s, or ask the operator to raise --acceptance-changes-max ["limit=60"]
            AlreadyExists CUSTOMER_EXISTS: a customer with this id exists; if it is yours, compare it with GetCustomer and change it with UpdateCustomer, otherwise invite it to a relationship with CreateInvitation []
            AlreadyExists DOMAIN_TAKEN: a customer with this domain exists; invite it to a relationship with CreateInvitation, or use another domain; if it holds the domain wrongly, the operator corrects that with UpdateCustomer []
            AlreadyExists PARTNER_EXISTS: partner 00000000-0000-0000-0000-000000000001 is registered with other particulars; UpdatePartner corrects the name and the support contact, and kind and cloud never change ["partner_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition TENANT_OF_OTHER_KIND: tenant 00000000-0000-0000-0000-000000000001 is registered as a partner, so it cannot become a customer; use the company's own tenant ["kind=PARTNER", "tenant_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition TENANT_OF_OTHER_KIND: tenant 00000000-0000-0000-0000-000000000001 is a customer, so it cannot be registered as a partner; register the partner under a tenant of its own ["kind=CUSTOMER", "tenant_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition RESELLER_NOT_LINKED: reseller 00000000-0000-0000-0000-000000000001 is not linked to provider 00000000-0000-0000-0000-000000000001; ask the operator to link them ["provider_id=00000000-0000-0000-0000-000000000001", "reseller_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition WRONG_PARTNER_KIND: a link joins an INDIRECT_PROVIDER and an INDIRECT_RESELLER of one cloud, and partner 00000000-0000-0000-0000-000000000001 is DIRECT_BILL in PUBLIC; name another partner ["cloud=PUBLIC", "kind=DIRECT_BILL", "partner_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition NOT_LATER_THAN_LAST_VERSION: a version takes effect now or later, and after the one before: not before 1970-01-01T00:00:00.000000Z ["not_before=1970-01-01T00:00:00.000000Z"]
            FailedPrecondition TYPE_HAS_TEMPLATE: template 00000000-0000-0000-0000-000000000001 of this type is live; publish a version of it or retire it first ["template_id=00000000-0000-0000-0000-000000000001"]
            NotFound RESOURCE_NOT_FOUND: payer_id is wrong: you have no active relationship with customer 00000000-0000-0000-0000-000000000001 and partner 00000000-0000-0000-0000-000000000001; name partner 00000000-0000-0000-0000-000000000001 ["field=payer_id", "use_payer_id=00000000-0000-0000-0000-000000000001"]
            NotFound RESOURCE_NOT_FOUND: reseller_id is wrong: you and that partner have no active relationship with customer 00000000-0000-0000-0000-000000000001; leave it empty, or name a reseller of one of your relationships with the customer ["field=reseller_id"]
            NotFound RESOURCE_NOT_FOUND: reseller_id is wrong: your relationship with customer 00000000-0000-0000-0000-000000000001 and that payer names you as the reseller; name 00000000-0000-0000-0000-000000000001 ["field=reseller_id", "use_reseller_id=00000000-0000-0000-0000-000000000001"]
            InvalidArgument PAYER_IS_RESELLER: partner 00000000-0000-0000-0000-000000000001 is an indirect reseller and does not pay; name its provider as payer ["payer_id=00000000-0000-0000-0000-000000000001"]
            Unavailable REVISION_BEHIND: the database is at revision 7, behind the one asked for; try again ["head=7"]
            FailedPrecondition VERSION_CHANGED: version 1 of template 00000000-0000-0000-0000-000000000001 was shown, and version 2 is in force; show that one and ask again ["shown_version=1", "template_id=00000000-0000-0000-0000-000000000001", "version_in_force=2"]
            FailedPrecondition CONTACT_PARTNER: Contact your partner to confirm your acceptance of the Microsoft Customer Agreement []
            FailedPrecondition CONTACT_PARTNER: Contact your partner to confirm your acceptance of the Microsoft Customer Agreement ["partner_id=00000000-0000-0000-0000-000000000001", "support_email=help@partner.example"]
            FailedPrecondition CONTACT_PARTNER: the customer bought before it ever signed, so it cannot sign directly; attest its acceptance instead []
            FailedPrecondition INVITATION_NOT_PENDING: invitation 00000000-0000-0000-0000-000000000001 is EXPIRED; the partner has to create a new one ["invitation_id=00000000-0000-0000-0000-000000000001", "state=EXPIRED"]
            FailedPrecondition PROPOSAL_NOT_PENDING: proposal 00000000-0000-0000-0000-000000000001 is EXPIRED; the reseller has to propose again ["proposal_id=00000000-0000-0000-0000-000000000001", "state=EXPIRED"]
            FailedPrecondition PROPOSAL_LIMIT: 10 proposals for this customer wait for the provider, or were withdrawn within the hour; ask the provider to approve or reject them, or wait ["limit=10"]
            FailedPrecondition INVITATIONS_OFF: this service has no key for acceptance links; ask the operator to start it with --invitation-key-file []
            FailedPrecondition ACCEPTANCE_SUPERSEDED: acceptance 00000000-0000-0000-0000-000000000001 was replaced and no longer counts; withdraw 00000000-0000-0000-0000-000000000001 ["acceptance_id=00000000-0000-0000-0000-000000000001", "current_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition ACCEPTANCE_SUPERSEDED: acceptance 00000000-0000-0000-0000-000000000001 was replaced and no longer counts ["acceptance_id=00000000-0000-0000-0000-000000000001"]
            FailedPrecondition NOTIFICATION_NOT_DEAD: the mail is SENT; only a DEAD_LETTER can be retried ["state=SENT"]
            OutOfRange CURSOR_AHEAD: the history ends at revision 7, before the one asked for; begin again after 0 ["head=7"]
            FailedPrecondition HISTORY_FORKED: revision 7 is not part of the history: it was lost when an older copy was restored. Repeat what was lost; a watcher waits until the operator announces the restore with migrate --after-restore ["revision=7"]
        "#]].assert_eq(&texts);
    }
}
