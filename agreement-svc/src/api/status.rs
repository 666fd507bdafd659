//! From refusals and failures to gRPC statuses. The only place that chooses a code.

use std::time::Duration;

use chassis::database::Error;
use chassis::form::Violation;
use chassis::status::{Failure, failure, invalid_fields};
use proto::types::ErrorReason;
use tonic::{Code, Status};

use crate::rules::Refusal;
use crate::store::change::ChangeError;

/// `ErrorInfo.domain` of everything this service refuses.
pub(super) const DOMAIN: &str = "agreement-svc";

/// Long enough for a failover or a burst to pass, short enough for a person who waits.
const DATABASE_RETRY: Duration = Duration::from_millis(500);

pub(super) fn of(error: ChangeError) -> Status {
    match error {
        ChangeError::Refused(refusal) => refused(&refusal),
        ChangeError::Failed(error) => failed(&error),
    }
}

pub(super) fn invalid(violations: &[Violation]) -> Status {
    invalid_fields(DOMAIN, violations)
}

/// An answer that was stored and cannot be read back.
pub(super) fn undecodable(error: &prost::DecodeError) -> Status {
    tracing::error!(%error, "a stored answer cannot be decoded");
    internal()
}

pub(super) fn refused(refusal: &Refusal) -> Status {
    let precondition = |reason, sentence: String| with(Code::FailedPrecondition, reason, sentence);
    match refusal {
        Refusal::NotFound { resource, id } => {
            with(Code::NotFound, ErrorReason::ResourceNotFound, format!("there is no {resource} {id} that you may see"))
                .resource(resource, id)
                .status()
        }
        Refusal::Field { field, problem } => {
            invalid(&[Violation { field: (*field).to_owned(), problem: problem.clone() }])
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
            format!("an indirect reseller does not attest; ask provider {provider_id} to"),
        )
        .with("provider_id", provider_id)
        .status(),
        Refusal::CloudNotSupported { cloud } => precondition(
            ErrorReason::CloudNotSupported,
            format!("acceptance exists in the PUBLIC cloud only, and the customer is in {}", cloud.name()),
        )
        .with("cloud", cloud.name())
        .status(),
        Refusal::TemplateRetired { template_id, use_template_id } => {
            let remedy = use_template_id.map(|id| format!("; use template {id}")).unwrap_or_default();
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
            format!("attestation {attestation_id} already states this version and contact; nothing to do"),
        )
        .with("attestation_id", attestation_id)
        .with("partner_center_code", 600_061)
        .status(),
        Refusal::OlderThanCurrent { attestation_id, offered, current } => precondition(
            ErrorReason::OlderThanCurrent,
            format!(
                "on the date agreed version {offered} was in force, and attestation {attestation_id} is of \
                 version {current}; attest an acceptance of the later version"
            ),
        )
        .with("attestation_id", attestation_id)
        .with("offered_version", offered)
        .with("current_version", current)
        .status(),
        Refusal::DomainTaken => with(
            Code::AlreadyExists,
            ErrorReason::DomainTaken,
            "a customer with this domain exists; ask it for a relationship or use another domain",
        )
        .status(),
        Refusal::PartnerExists { partner_id } => with(
            Code::AlreadyExists,
            ErrorReason::PartnerExists,
            format!("partner {partner_id} is registered with other particulars, which never change"),
        )
        .with("partner_id", partner_id)
        .status(),
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
                "partner {partner_id} is {} in {}, which does not fit here; name another partner",
                kind.name(),
                cloud.name()
            ),
        )
        .with("partner_id", partner_id)
        .with("kind", kind.name())
        .with("cloud", cloud.name())
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
        .retry_after(DATABASE_RETRY)
        .status(),
    }
}

pub(super) fn failed(error: &Error) -> Status {
    match error {
        Error::Unavailable(cause) => {
            tracing::warn!(cause, "the database is unavailable");
            with(
                Code::Unavailable,
                ErrorReason::DatabaseUnavailable,
                "the database cannot be used right now; retry under the same request id",
            )
            .retry_after(DATABASE_RETRY)
            .status()
        }
        Error::Query(_) | Error::Corrupt { .. } | Error::Panicked => {
            tracing::error!(%error, "a defect or a damaged row");
            internal()
        }
    }
}

fn internal() -> Status {
    with(Code::Internal, ErrorReason::Internal, "the service failed; its log has the cause under x-call-id")
        .status()
}

fn with(code: Code, reason: ErrorReason, sentence: impl Into<String>) -> Failure {
    failure(DOMAIN, code, reason.name(), sentence)
}
