//! The attestation that an order or a change carries (ORD-4, SUB-8): made at agreement-svc as the caller, with the caller's credentials.

use std::time::Duration;

use agreement_gate_client::CallOptions;
use chassis::auth::{Caller, Credentials};
use chassis::idempotency::RequestHasher;
use chassis::telemetry::trace::Traced;
use prost_types::Timestamp;
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::{CreateAttestationRequest, CreateAttestationResponse};
use proto::types::{AttestationDetails, Contact, ErrorReason};
use tonic::{Code, Status};
use uuid::Uuid;

use super::{AgreementClient, options, reason_of, refusal_of};

/// The refusals of CreateAttestation that are passed on to the client. ALREADY_ATTESTED is not
/// among them: then there is nothing to do.
const REFUSALS: [(ErrorReason, Code); 10] = [
    (ErrorReason::InvalidFields, Code::InvalidArgument),
    (ErrorReason::RequestIdReused, Code::InvalidArgument),
    (ErrorReason::IdentityRequired, Code::Unauthenticated),
    (ErrorReason::RoleNotAllowed, Code::PermissionDenied),
    (ErrorReason::ResourceNotFound, Code::NotFound),
    (ErrorReason::ResellerCannotAttest, Code::PermissionDenied),
    (ErrorReason::CloudNotSupported, Code::FailedPrecondition),
    (ErrorReason::TemplateRetired, Code::FailedPrecondition),
    (ErrorReason::OlderThanCurrent, Code::FailedPrecondition),
    (ErrorReason::AcceptanceChangeLimit, Code::ResourceExhausted),
];

/// An attestation that the caller wants made.
#[derive(Clone, Debug)]
pub(crate) struct AttestationQuery {
    /// The request id of the call that carries it.
    pub carrier_request_id: Uuid,
    pub hasher: RequestHasher,
    pub customer_id: Uuid,
    pub template_id: Uuid,
    pub contact: Option<Contact>,
    pub agreed_at: Option<Timestamp>,
    pub details: Option<AttestationDetails>,
    /// agreement-svc checks it and stores nothing (ORD-5).
    pub validate_only: bool,
}

impl AttestationQuery {
    /// The message. Its request id follows from the carrying call's and from what is attested: the same call attests
    /// the same once, and a client can send a refused call again with another attestation.
    fn message(&self) -> CreateAttestationRequest {
        let mut message = CreateAttestationRequest {
            request_id: String::new(),
            customer_id: self.customer_id.to_string(),
            template_id: self.template_id.to_string(),
            contact: self.contact.clone(),
            agreed_at: self.agreed_at,
            validate_only: false,
            details: self.details.clone(),
        };
        message.request_id = self.hasher.derived_id(self.carrier_request_id, &message).to_string();
        message.validate_only = self.validate_only;
        message
    }
}

/// An attestation as it was stored, or as it would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attested {
    pub id: Uuid,
    pub template_id: Uuid,
    pub template_version: u32,
    pub agreed_at: Option<Timestamp>,
    /// The revision that stored it.
    pub revision: i64,
}

/// Why nothing is known to be attested.
#[derive(Debug)]
pub(crate) enum NotAttested {
    /// The refusal of agreement-svc.
    Refused(Status),
    /// Anything else. For the log.
    Unknown(String),
}

impl AgreementClient {
    /// Attests with the caller's own identity, for as long as the gate may take. `None`: the current
    /// attestation says the same.
    ///
    /// # Errors
    /// [`NotAttested`].
    pub(crate) async fn attest(
        &self,
        query: &AttestationQuery,
        caller: &Caller,
        credentials: &Credentials,
        call_id: &str,
        time_left: Duration,
    ) -> Result<Option<Attested>, NotAttested> {
        let options = options(credentials, call_id, self.deadline, time_left);
        let options = CallOptions { is_own: false, ..options };
        let call = |channel, request| {
            let mut attestations = AttestationServiceClient::new(Traced(channel));
            async move { attestations.create_attestation(request).await }
        };
        let status = match self.client.call(options, query.message(), call).await {
            Ok(answer) => {
                let nonsense =
                    || NotAttested::Unknown("its answer is not the attestation that was asked for".into());
                return read_attested(query, caller, answer).map(Some).ok_or_else(nonsense);
            }
            Err(status) => status,
        };
        match (reason_of(&status), status.code()) {
            (Some(ErrorReason::AlreadyAttested), Code::AlreadyExists) => Ok(None),
            (Some(reason), code) if REFUSALS.contains(&(reason, code)) => Err(NotAttested::Refused(status)),
            _ => Err(NotAttested::Unknown(status.to_string())),
        }
    }
}

/// Whether an attestation was refused because the caller has no active relationship with the customer.
pub(crate) fn is_of_unseen_customer(refused: &Status) -> bool {
    let resource = refusal_of(refused).and_then(|refusal| refusal.resource);
    refused.code() == Code::NotFound && resource.is_some_and(|of| of.kind == "customer")
}

/// Reads what was attested, if it is what was asked for.
fn read_attested(
    query: &AttestationQuery,
    caller: &Caller,
    answer: CreateAttestationResponse,
) -> Option<Attested> {
    let attestation = answer.attestation?;
    let is_as_asked = attestation.customer_id == query.customer_id.to_string()
        && attestation.template_id == query.template_id.to_string()
        && attestation.partner_id == caller.tenant_id.to_string();
    let attested = Attested {
        id: attestation.attestation_id.parse().ok()?,
        template_id: query.template_id,
        template_version: attestation.template_version,
        agreed_at: attestation.agreed_at,
        revision: answer.revision,
    };
    (is_as_asked && attested.template_version > 0 && attested.revision > 0).then_some(attested)
}
