//! `AGREEMENT_REQUIRED`: what is missing, what was considered, and what helps.

use std::collections::HashMap;

use proto::types::{
    AcceptanceKind, AgreementType, BlockReason, ConsideredAcceptance, ErrorReason, Evidence, RemedyKind,
};
use serde::Deserialize;
use tonic::Status;

use crate::refusal::Refusal;

/// The gate blocked the call: the customer has not accepted what is required (GATE-6).
#[derive(Clone, Debug, PartialEq)]
pub struct AgreementRequired {
    /// The customer.
    pub customer_id: String,
    /// Why the gate is closed.
    pub reasons: Vec<BlockReason>,
    /// What the caller can do. After one of them it sends the same request again, under the same request id. Empty if no
    /// acceptance helps; the message of the status says why.
    pub remedies: Vec<Remedy>,
    /// The acceptances that do not count, and why.
    pub considered: Vec<ConsideredAcceptance>,
    /// The lines of an order whose offers no single agreement satisfies, from 0: order them separately.
    pub lines: Vec<usize>,
}

/// A remedy against a missing acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Attest the customer's acceptance, with CreateAttestation or in the field `attestation` of the request.
    Attest {
        /// Of this template.
        template_id: String,
        /// The fields that the user has to be asked for, as paths in an attestation.
        required_fields: Vec<String>,
        /// Further fields that an attestation takes.
        optional_fields: Vec<String>,
    },
    /// Ask the provider to attest; ProposeAttestation hands over what is known.
    AskProvider {
        /// The provider's partner id.
        provider_id: String,
    },
    /// Invite the customer to sign, with CreateInvitation.
    InviteCustomer {
        /// This template.
        template_id: String,
    },
}

impl AgreementRequired {
    /// Reads a status; `None` if it is another refusal. Reasons and remedies that this version of the contract does not have
    /// are left out.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let refusal =
            Refusal::of(status).filter(|refusal| refusal.reason == ErrorReason::AgreementRequired)?;
        let metadata = &refusal.metadata;
        let reason = |name: String| BlockReason::from_str_name(&format!("BLOCK_REASON_{name}"));
        let line = |line: String| line.strip_prefix("lines[")?.strip_suffix(']')?.parse().ok();
        let considered = metadata.get("considered").map(String::as_str).unwrap_or("[]");
        let considered: Vec<Considered> = serde_json::from_str(considered).unwrap_or_default();
        Some(Self {
            customer_id: text(metadata, "customer_id"),
            reasons: list(metadata, "reasons").into_iter().filter_map(reason).collect(),
            remedies: list(metadata, "remedies").iter().filter_map(|name| remedy(name, metadata)).collect(),
            considered: considered.into_iter().map(Into::into).collect(),
            lines: list(metadata, "lines").into_iter().filter_map(line).collect(),
        })
    }
}

fn remedy(name: &str, metadata: &HashMap<String, String>) -> Option<Remedy> {
    match RemedyKind::from_str_name(&format!("REMEDY_KIND_{name}"))? {
        RemedyKind::Attest => Some(Remedy::Attest {
            template_id: text(metadata, "template_id"),
            required_fields: list(metadata, "required_fields"),
            optional_fields: list(metadata, "optional_fields"),
        }),
        RemedyKind::AskProvider => Some(Remedy::AskProvider { provider_id: text(metadata, "provider_id") }),
        RemedyKind::InviteCustomer => {
            Some(Remedy::InviteCustomer { template_id: text(metadata, "template_id") })
        }
        RemedyKind::Unspecified => None,
    }
}

fn text(metadata: &HashMap<String, String>, key: &str) -> String {
    metadata.get(key).cloned().unwrap_or_default()
}

/// The parts of a comma-separated text.
fn list(metadata: &HashMap<String, String>, key: &str) -> Vec<String> {
    text(metadata, key).split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// An object of `considered`, as it is written.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Considered {
    kind: String,
    acceptance_id: String,
    template_id: String,
    template_version: u32,
    agreement_type: String,
    agreed_at: String,
    reason: String,
    withdrawn_at: String,
    required_template_id: String,
    required_version: u32,
    required_since: String,
}

impl From<Considered> for ConsideredAcceptance {
    fn from(considered: Considered) -> Self {
        let kind = AcceptanceKind::from_str_name(&format!("ACCEPTANCE_KIND_{}", considered.kind));
        let of = AgreementType::from_str_name(&format!("AGREEMENT_TYPE_{}", considered.agreement_type));
        let reason = BlockReason::from_str_name(&format!("BLOCK_REASON_{}", considered.reason));
        Self {
            acceptance: Some(Evidence {
                kind: kind.unwrap_or_default().into(),
                acceptance_id: considered.acceptance_id,
                template_id: considered.template_id,
                template_version: considered.template_version,
                agreement_type: of.unwrap_or_default().into(),
            }),
            agreed_at: considered.agreed_at.parse().ok(),
            reason: reason.unwrap_or_default().into(),
            withdrawn_at: considered.withdrawn_at.parse().ok(),
            required_template_id: considered.required_template_id,
            required_version: considered.required_version,
            required_since: considered.required_since.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn refused(metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<_, _> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let details = ErrorDetails::with_error_info("AGREEMENT_REQUIRED", "order-svc", metadata);
        Status::with_error_details(Code::FailedPrecondition, "AGREEMENT_REQUIRED: …", details)
    }

    #[test]
    fn remedies_come_with_what_they_need() {
        let required = AgreementRequired::of(&refused(&[
            ("customer_id", "c"),
            ("reasons", "NO_ACCEPTANCE,OF_A_NEWER_VERSION,WITHDRAWN"),
            ("remedies", "ATTEST,OF_A_NEWER_VERSION,INVITE_CUSTOMER"),
            ("template_id", "t"),
            ("required_fields", "contact.email,agreed_at"),
            ("optional_fields", "contact.phone"),
        ]));
        let fields = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let expected = AgreementRequired {
            customer_id: "c".into(),
            reasons: vec![BlockReason::NoAcceptance, BlockReason::Withdrawn],
            remedies: vec![
                Remedy::Attest {
                    template_id: "t".into(),
                    required_fields: fields(&["contact.email", "agreed_at"]),
                    optional_fields: fields(&["contact.phone"]),
                },
                Remedy::InviteCustomer { template_id: "t".into() },
            ],
            considered: vec![],
            lines: vec![],
        };
        assert_eq!(required, Some(expected));
        let asked = AgreementRequired::of(&refused(&[("remedies", "ASK_PROVIDER"), ("provider_id", "p")]));
        assert_eq!(asked.unwrap().remedies, [Remedy::AskProvider { provider_id: "p".into() }]);
    }

    #[test]
    fn without_a_remedy_the_lines_say_what_to_separate() {
        let required =
            AgreementRequired::of(&refused(&[("remedies", ""), ("lines", "lines[0],lines[12],else")]));
        let required = required.unwrap();
        assert_eq!((required.remedies, required.lines), (vec![], vec![0, 12]));
    }

    #[test]
    fn other_refusals_need_no_agreement() {
        let details = ErrorDetails::with_error_info("INTERNAL", "order-svc", []);
        assert_eq!(AgreementRequired::of(&Status::with_error_details(Code::Internal, "", details)), None);
        assert_eq!(AgreementRequired::of(&Status::unavailable("away")), None);
        // What was considered helps a person; without it the rest still counts.
        assert!(AgreementRequired::of(&refused(&[("considered", "[{]")])).unwrap().considered.is_empty());
    }
}
