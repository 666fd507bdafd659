//! Refusals: what the status of a failed call says by its details. `docs/errors.md` says what each reason means.

use std::collections::HashMap;
use std::time::Duration;

use proto::types::{ErrorReason, FieldProblem};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The service that refused. On behalf of a caller, order-svc passes refusals of agreement-svc on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// agreement-svc.
    AgreementSvc,
    /// order-svc.
    OrderSvc,
}

impl Domain {
    /// The name, as `ErrorInfo.domain` carries it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AgreementSvc => "agreement-svc",
            Self::OrderSvc => "order-svc",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::AgreementSvc, Self::OrderSvc].into_iter().find(|domain| domain.name() == name)
    }
}

/// A refusal by one of the services.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The service.
    pub domain: Domain,
    /// The code of the status.
    pub code: Code,
    /// The reason, by which a program decides. `Unspecified` is one that this version of the contract does not have.
    pub reason: ErrorReason,
    /// The message for people; it names reason and remedy.
    pub message: String,
    /// What the reason carries.
    pub metadata: HashMap<String, String>,
    /// The bad fields, with INVALID_FIELDS. A last one without a path says how many more there are.
    pub violations: Vec<FieldProblem>,
    /// What does not exist, with RESOURCE_NOT_FOUND.
    pub resource: Option<Resource>,
    /// How long to wait before the same request is sent again.
    pub retry_after: Option<Duration>,
    /// The message in the language of the customer, with CONTACT_PARTNER.
    pub localized_message: Option<String>,
}

/// A resource that does not exist, or that the caller may not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Such as `customer`.
    pub kind: String,
    /// Its id.
    pub id: String,
}

impl Refusal {
    /// Reads a status; `None` if it does not come from one of the services, but from something between, or from this process.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info()?;
        let reason = ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason));
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        Some(Self {
            domain: Domain::named(&info.domain)?,
            code: status.code(),
            reason: reason.unwrap_or_default(),
            message: status.message().to_owned(),
            metadata: info.metadata.clone(),
            violations: violations
                .iter()
                .map(|bad| FieldProblem { field: bad.field.clone(), problem: bad.description.clone() })
                .collect(),
            resource: details
                .resource_info()
                .map(|of| Resource { kind: of.resource_type.clone(), id: of.resource_name.clone() }),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            localized_message: details.localized_message().map(|localized| localized.message.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_of_a_service_is_read_with_all_its_details() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("INVALID_FIELDS", "order-svc", [("partner_center_code".into(), "600002".into())])
            .add_bad_request_violation("lines[2].quantity", "must be 1 to 300")
            .set_resource_info("customer", "7", "", "not found")
            .set_retry_info(Some(Duration::from_millis(500)))
            .set_localized_message("fr", "non");
        let status = Status::with_error_details(Code::InvalidArgument, "INVALID_FIELDS: bad", details);
        let expected = Refusal {
            domain: Domain::OrderSvc,
            code: Code::InvalidArgument,
            reason: ErrorReason::InvalidFields,
            message: "INVALID_FIELDS: bad".into(),
            metadata: [("partner_center_code".to_owned(), "600002".to_owned())].into(),
            violations: vec![FieldProblem {
                field: "lines[2].quantity".into(),
                problem: "must be 1 to 300".into(),
            }],
            resource: Some(Resource { kind: "customer".into(), id: "7".into() }),
            retry_after: Some(Duration::from_millis(500)),
            localized_message: Some("non".into()),
        };
        assert_eq!(Refusal::of(&status), Some(expected));
    }

    #[test]
    fn what_no_service_said_is_no_refusal() {
        let info = |reason: &str, domain: &str| {
            Status::with_error_details(Code::Internal, "", ErrorDetails::with_error_info(reason, domain, []))
        };
        assert_eq!(Refusal::of(&Status::unavailable("connection refused")), None);
        assert_eq!(Refusal::of(&info("INTERNAL", "proxy.example")), None);
        let newer = Refusal::of(&info("OF_A_NEWER_VERSION", "agreement-svc")).unwrap();
        assert_eq!((newer.domain, newer.reason), (Domain::AgreementSvc, ErrorReason::Unspecified));
    }
}
